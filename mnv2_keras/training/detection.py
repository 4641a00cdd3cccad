"""Training of detectors: recipes as data, their step, their run."""

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import keras
import tensorflow as tf

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.deprecation import renamed_arguments
from mnv2_keras.networks.detector import build_ssdlite_mobilenetv2
from mnv2_keras.training.detection_loss import detection_loss
from mnv2_keras.training.distribution import own_part
from mnv2_keras.training.fit import Progress, fit
from mnv2_keras.training.recipes import TrainingRecipe
from mnv2_keras.training.state import RunFolder
from mnv2_keras.training.step import TrainingStep, building, network_shapes


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(TrainingRecipe):
    """How a detector is trained."""

    alpha: float  # of the network
    side: int  # of its square input, in pixels
    steps: int
    schedule: str = "staircase"  # times `decay` every `decay_steps`; or "cosine", to zero at the end
    decay: float = 0.95
    decay_steps: int = 1
    weight_decay: float = 4e-5  # this and the next two are of the network
    batch_norm_momentum: float = 0.9997
    min_depth: int = 16
    flip: bool = True  # whether images are mirrored
    crop: bool = True  # whether they are cropped as SSD does

    def __post_init__(self):
        if isinstance(self.decay, str):
            message = "decay is the factor of the staircase now, the kind of schedule is given as schedule: the next release"
            warnings.warn(f"{message} does not accept strings.", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "schedule", self.decay)
            object.__setattr__(self, "decay", 0.95)
        super().__post_init__()


#: The published training of `ssdlite_mobilenet_v2_coco` and `ssd_mobilenet_v2_coco`. `mnv2 train detection --recipe paper
#: --tfds coco/2017 --weights imagenet -o runs/coco`; days on one GPU, not run here.
PAPER = DetectionRecipe(alpha=1.0, side=300, batch=24, steps=200_000, learning_rate=0.004, decay_steps=800_720)
#: Drawn shapes on a trained classifier's backbone: `mnv2 train detection --shapes --weights imagenet`, eleven minutes on two
#: cores; docs/detection.md has its curve. From scratch the same takes many times as long.
SHAPES = DetectionRecipe(
    alpha=1.0,
    side=96,
    batch=16,
    steps=2_000,
    optimizer="adam",
    learning_rate=1e-3,
    schedule="cosine",
    warmup=50,
    batch_norm_momentum=0.97,
    crop=False,
)
RECIPES = {"paper": PAPER, "shapes": SHAPES}


def build(recipe: DetectionRecipe, classes: int, **options) -> keras.Model:
    """The recipe's network, fresh from its seed or with weights, in its mixed precision.

    `classes` is without the background; the options are those of `build_ssdlite_mobilenetv2`, such as `weights`.
    """
    shape, names = (recipe.side, recipe.side, 3), ("min_depth", "batch_norm_momentum", "weight_decay")
    settings = {name: getattr(recipe, name) for name in names}
    with building(recipe):
        return build_ssdlite_mobilenetv2(recipe.alpha, shape, classes=classes, **settings, **options)


class DetectionStep(TrainingStep):
    """A step on images (B, H, W, 3) and their objects (see `detection_batches`).

    It returns the loss and its parts: `localization`, `classification` and `l2`. The anchors are (A, 4).
    """

    names = ("localization", "classification", "l2")

    def __init__(self, model: keras.Model, recipe: DetectionRecipe, anchors):
        spec = tf.TensorSpec
        boxes, classes, num = spec((None, None, 4)), spec((None, None), tf.int32), spec((None,), tf.int32)
        batch = spec((None, *model.input_shape[1:])), {"boxes": boxes, "classes": classes, "num": num}
        super().__init__(model, model, recipe, batch=batch)
        self.anchors = tf.constant(anchors)

    def loss(self, images, truth):
        outputs = {name: tf.cast(value, tf.float32) for name, value in self.fused(images, training=True).items()}
        losses = detection_loss(outputs, truth, self.anchors, self.over_replicas)
        parts = [losses["localization"], losses["classification"], self.l2()]
        # Mining skips anchors whose loss is NaN: the sum over all anchors is NaN then.
        total = tf.add_n(parts) + tf.stop_gradient(0.0 * tf.reduce_sum(losses["anchorwise_classification"]))
        return total, parts


@renamed_arguments(log=("folder", lambda log: None if log is None else Path(log).parent))
def train_detector(
    model: keras.Model,
    batches: Iterable | Callable[[int], Iterable],
    recipe: DetectionRecipe,
    *,
    anchors=None,
    evaluate: Callable[[], dict] | None = None,
    every: int = 500,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> list[dict]:
    """Train a detector by a recipe. Call it within `strategy.scope()` to use several devices or machines.

    Args:
        model: of `build_ssdlite_mobilenetv2`, with the recipe's weight decay and momentum.
        batches: of images and objects, endless and the same for the same seed (see `detection_batches`). Or a function that
            gives the batches from a step on, such as `lambda start: detection_batches(..., start=start)`: a resumed run need
            not read those before.
        recipe: how it is trained.
        anchors: (A, 4); None for those of the model's input.
        evaluate, every, progress: as in `fit`.
        folder: of the run (see `RunFolder`), with `recipe.json`. None writes nothing.
        resume: resume the run in this folder (on CPUs to the same bits); it starts from the beginning if no round was finished.

    Returns:
        A row for each round (see `fit`, which documents the errors too) with the parts of its loss: `localization`,
        `classification` and `l2`.
    """
    anchors = ssd_anchors(model.input_shape[1:3]) if anchors is None else anchors
    identity = recipe.identity() | {"anchors": len(anchors), "network": network_shapes(model)}
    run = RunFolder(folder, identity, resume, {"recipe.json": recipe.as_json()})
    step = DetectionStep(model, recipe, anchors)

    def remaining(done: int):
        return own_part(batches(done) if callable(batches) else islice(batches, done, None), step.strategy)

    return fit(step, remaining, recipe.learning_rates(), run, evaluate, every=every, progress=progress)
