"""A folder of photos and published weights to a model of one's own, for the desk and for the phone."""

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from mnv2_keras.atomic import write_text
from mnv2_keras.conversion import open_model
from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.batches import evaluation_batches
from mnv2_keras.data.classification import read_splits
from mnv2_keras.evaluation.classification import Evaluation, evaluate
from mnv2_keras.export.litert import PRECISIONS, export_litert
from mnv2_keras.figures import can_draw
from mnv2_keras.networks.backbone import ConvConfig
from mnv2_keras.networks.classifier import classification
from mnv2_keras.networks.endpoints import blocks, endpoints, freeze
from mnv2_keras.training.classification import train
from mnv2_keras.training.fit import Progress
from mnv2_keras.training.linear_probe import linear_probe
from mnv2_keras.training.recipes import FINETUNE, LINEAR_PROBE, Recipe
from mnv2_keras.training.state import check_folder
from mnv2_keras.weights import save_model

#: Photos an int8 export is calibrated on.
CALIBRATION = 100


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning gave; the files are in its folder.

    Attributes:
        model: the classifier.
        evaluation: on the held-out photos.
        probe_accuracy: held-out accuracy of the head alone, before any block was trained.
        broken: photos that could not be read, and why.
    """

    model: keras.Model
    evaluation: Evaluation
    probe_accuracy: float
    broken: dict[str, str]


def with_new_head(
    model: keras.Model, classes: int, dropout_rate: float = 0.2, weight_decay: float = 0.0
) -> keras.Model:
    """The model's backbone, its layers shared, under a new classifier.

    Args:
        model: of this package.
        classes: of the new head.
        dropout_rate, weight_decay: of the new head.

    Raises:
        ValueError: the model holds no MobileNetV2.
    """
    last = next(name for name in reversed(blocks(model)) if name[6:].isdigit())
    style = ConvConfig(weight_decay=weight_decay)
    return keras.Model(
        model.input, classification(endpoints(model)[last], classes, style, dropout_rate), name=model.name
    )


def unfreeze(model: keras.Model, first: str) -> keras.Model:
    """Train from a block on, and freeze what comes before it, and all batch norms.

    Args:
        model: of this package.
        first: the first block to train, such as "layer_15" (see `blocks`), or "Logits" for the head alone.

    Raises:
        ValueError: no such block.
    """
    names = [name for name in blocks(model) if name == "Logits" or name[6:].isdigit()]
    if first not in names:
        raise ValueError(f"unfreeze is {first!r}: expected one of {', '.join(names)}.")
    if first != names[0]:
        return freeze(model, names[names.index(first) - 1])
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    return model


def finetune(
    data,
    weights,
    folder: str | os.PathLike,
    *,
    first: str | None = "layer_15",
    recipe: Recipe = FINETUNE,
    probe: Recipe = LINEAR_PROBE,
    precision: str = "float32",
    resume: bool = False,
    data_name: str = "",
    progress: Callable[[Progress], None] | None = None,
    features: Callable[[int, int], None] | None = None,
) -> Finetuned:
    """Train a classifier for the classes of a folder, from published weights: the head first, then the last blocks.

    The folder receives `model.keras`, `model.tflite` (with labels), `labels.txt`, `report.json`, `confusion.png` (if matplotlib
    is installed), and the run of the second stage in `blocks/`.

    Args:
        data: as in `read_splits`.
        weights: a checkpoint, Keras file or registered name.
        folder: for the results.
        first: the first block that is trained after the head; None leaves it at the head.
        recipe, probe: of the two stages; the network in them is replaced by the weights' own.
        precision: of the .tflite: "float32", "float16", "dynamic" or "int8" (calibrated on training photos).
        resume: go on where a stopped run was.
        data_name: what the report calls the data.
        progress: of the second stage, as in `train`.
        features: called with photos done and photos in all, while the first stage computes what the backbone sees in them.

    Returns:
        The model and its evaluation.

    Raises:
        FileNotFoundError, ValueError: data or weights that cannot be used; the message says why.
    """
    folder = Path(folder).expanduser()
    # What cannot be done is told before the long work.
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: expected one of {', '.join(PRECISIONS)}.")
    if first:
        check_folder(folder / "blocks", resume)
    draws = can_draw(folder / "confusion.png")
    training, held_out = read_splits(data, recipe.held_out, recipe.seed)
    keras.utils.set_random_seed(recipe.seed)
    model = with_new_head(open_model(weights)[0], len(training.class_names), weight_decay=4e-5)
    if None in model.input_shape[1:]:
        raise ValueError(
            f"{weights} takes images of any size: give weights of a fixed one, such as mobilenet_v2_1.0_224."
        )
    if first:
        unfreeze(model, first)
    probed = linear_probe(model, training, held_out, probe, progress=features)
    if first:
        network = {
            "input_shape": model.input_shape[1:],
            "classes": len(training.class_names),
            "from": str(weights),
            "first": first,
        }
        own = recipe.changed(network=network)
        model = train(training, held_out, own, folder / "blocks", model=model, resume=resume, progress=progress).model
    names = training.class_names
    evaluation = evaluate(model, held_out, labels=names, data_name=data_name)
    save_model(model, folder / "model.keras")
    write_text(folder / "labels.txt", "\n".join(names) + "\n")
    calibration = _photos(training, model.input_shape[1:]) if precision in ("int8", "int16x8") else None
    exported = export_litert(
        model,
        folder / "model.tflite",
        precision,
        labels=names,
        calibration=calibration,
        compare=calibration is not None,
    )
    broken = {**training.broken, **held_out.broken}
    report = {
        "weights": str(weights),
        "unfrozen_from": first,
        "probe_accuracy": probed.history[-1]["val_accuracy"],
        "tflite": {
            "precision": precision,
            "bytes": (folder / "model.tflite").stat().st_size,
            "operators": dict(exported.operators),
        },
        "trained_on": len(training),
        "left_out": broken,
        **{name: value for name, value in evaluation.as_dict().items() if name != "counts"},
        "broken": len(broken),  # of all photos, not of those held out alone
    }
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    if draws:
        evaluation.plot(folder / "confusion.png")
    return Finetuned(model, evaluation, report["probe_accuracy"], broken)


def _photos(examples, shape) -> np.ndarray:
    """Some training photos as the network takes them, of all classes alike, (N, H, W, C)."""
    step = max(1, len(examples) // CALIBRATION)
    batches = evaluation_batches(
        examples,
        CALIBRATION,
        lambda image: evaluated(image, shape[:2]),
        channels=shape[2],
        indices=range(0, len(examples), step),
    )
    kept = (
        image for images, _, weights in batches for image, weight in zip(images.numpy(), weights, strict=True) if weight
    )
    return np.stack(list(itertools.islice(kept, CALIBRATION)))
