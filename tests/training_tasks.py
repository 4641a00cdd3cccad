"""The three tasks at a size that is traced in seconds: what the tests of the training loop and their programs train."""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest

from mnv2_keras import (
    DetectionRecipe,
    Recipe,
    SegmentationRecipe,
    build_deeplabv3_mobilenetv2,
    build_ssdlite_mobilenetv2,
    train,
    train_detector,
    train_segmenter,
)
from mnv2_keras.architecture import detector, make_plan, segmenter
from mnv2_keras.atomic import write_bytes
from mnv2_keras.data.classification import Examples
from mnv2_keras.data.detection import detection_batches
from mnv2_keras.data.drawn_shapes import DrawnShapes, drawn_shapes
from mnv2_keras.training.classification import build
from mnv2_keras.training.detection_augmentation import augmentation
from mnv2_keras.training.step import building

TASKS = ("classification", "detection", "segmentation")
#: Steps of a round, and of a run.
ROUND, STEPS = 3, 9
#: A table with one block for each stride: a quarter of Table 2's layers.
SHORT_TABLE = ((1, 16, 1, 1), (1, 24, 1, 2), (1, 32, 1, 2), (6, 96, 1, 2), (6, 160, 1, 2))
DETECTION = DetectionRecipe(
    alpha=0.1, side=48, batch=4, steps=STEPS, optimizer="momentum", learning_rate=1e-3, schedule="cosine", warmup=2
)
SEGMENTATION = SegmentationRecipe(steps=STEPS, batch=2, crop=(33, 33), learning_rate=0.01, scales=(0.75, 1.5))


def examples(count: int, seed: int) -> Examples:
    """Two classes of noise, one of them brighter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    images = rng.integers(0, 156, (count, 16, 16, 1)) + 100 * labels[:, None, None, None]
    return Examples(images.astype(np.uint8), labels, ("dark", "bright"))


def recipe(**options) -> Recipe:
    """A classifier's recipe with a network of two blocks."""
    network = {
        "input_shape": (16, 16, 1),
        "classes": 2,
        "table": ((1, 8, 1, 1), (6, 8, 1, 2)),
        "stem_channels": 8,
        "last_channels": 16,
        "weight_decay": 4e-5,
        "batch_norm_momentum": 0.9,
    }
    settings = {"epochs": 3, "batch": 8, "learning_rate": 0.01, "average": 0.9, "augmentation": "affine"}
    return Recipe(network | options.pop("network", {}), **(settings | options))


@functools.cache
def short_plans(output_stride: int = 16):
    """Plans of a detector (the classic SSD, which has fewer layers) and of a segmenter on the short table."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (detector, segmenter):
            patch.setattr(module, "make_plan", functools.partial(make_plan, table=SHORT_TABLE))
        return (
            detector.make_detector_plan(0.1, classes=3, separable=False, min_depth=8),
            segmenter.make_segmenter_plan(0.1, classes=4, output_stride=output_stride),
        )


def frozen(model: keras.Model) -> keras.Model:
    """The model with its batch norms frozen."""
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    return model


def draw_nothing(rows: list[dict], path) -> None:
    """In place of `draw_training`, which takes as long as a round here."""
    write_bytes(path, b"a figure")


class Result(NamedTuple):
    """A run: its model, and its history."""

    model: keras.Model
    rows: list[dict]


def small_detector(chosen: DetectionRecipe = DETECTION, **options) -> keras.Model:
    """A fresh detector of three classes on the short table."""
    with building(chosen):
        return build_ssdlite_mobilenetv2(input_shape=(48, 48, 3), plan=short_plans()[0], weight_decay=4e-5, **options)


def small_segmenter(chosen: SegmentationRecipe = SEGMENTATION, **options) -> keras.Model:
    """A fresh segmenter of four classes on the short table."""
    options = {"input_shape": (33, 33, 3), "plan": short_plans()[1], "weight_decay": 4e-5} | options
    with building(chosen):
        return build_deeplabv3_mobilenetv2(**options)


def detection_data(chosen: DetectionRecipe, start: int = 0):
    """Batches of drawn shapes, shuffled, cropped and mirrored as the recipe says."""
    augment = augmentation(chosen.flip, chosen.crop)
    shapes = drawn_shapes(10, 48).examples
    return detection_batches(shapes, (48, 48), chosen.batch, augment=augment, seed=1, start=start)


def train_task(
    task: str,
    folder=None,
    *,
    freeze: bool = False,
    strategy=None,
    evaluate: Callable[[], dict] | None = None,
    settings: dict | None = None,
    **options,
) -> Result:
    """Train a task: 9 steps in three rounds.

    Args:
        task: of `TASKS`.
        folder: of the run; a classifier needs one.
        freeze: batch norms, and leave out what is random in the step, so that devices can be compared.
        strategy: of TensorFlow.
        evaluate: of a detector or segmenter.
        settings: in place of the recipe's.
        options: `resume`, `progress`.
    """
    settings = settings or {}
    scope = strategy.scope() if strategy else contextlib.nullcontext()
    if task == "classification":
        chosen = recipe(**({"augmentation": "none", "network": {"dropout_rate": 0.0}} if freeze else {}), **settings)
        with scope:
            model = frozen(build(chosen, 2)) if freeze else None
        run = train(examples(8 * ROUND, 0), examples(16, 1), chosen, folder, model=model, strategy=strategy, **options)
        return Result(run.model, run.history)
    options |= {"folder": folder, "evaluate": evaluate, "every": ROUND}
    if task == "detection":
        chosen = DETECTION.changed(**settings)
        with scope:
            model = frozen(small_detector(chosen)) if freeze else small_detector(chosen)
            return Result(model, train_detector(model, lambda start: detection_data(chosen, start), chosen, **options))
    chosen = SEGMENTATION.changed(**({"fine_tune_batch_norm": False} if freeze else {}), **settings)
    with scope:
        model = small_segmenter(chosen, **({"dropout_rate": 0.0} if freeze else {}))
        return Result(model, train_segmenter(model, DrawnShapes(9, 40), chosen, **options))
