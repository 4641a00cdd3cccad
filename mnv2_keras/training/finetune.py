"""From a folder of photos and published weights to a model of the folder's classes, for the desk and for the phone."""

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import keras
import numpy as np

from mnv2_keras.atomic import write_text
from mnv2_keras.checks import one_of, user_path
from mnv2_keras.conversion import open_model
from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.batches import evaluation_batches
from mnv2_keras.data.classification import read_splits
from mnv2_keras.evaluation.classification import Evaluation, evaluate
from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.options import PRECISIONS, Quantization
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
    """The result of fine-tuning; the files are in its folder."""

    model: keras.Model
    evaluation: Evaluation  # on the held-out photos
    probe_accuracy: float  # held-out accuracy of the head alone, before any block was trained
    broken: dict[str, str]  # photos that could not be read, and why


class _Options(NamedTuple):
    resume: bool = False
    progress: Callable[[Progress], None] | None = None
    features: Callable[[int, int], None] | None = None


def with_new_head(model: keras.Model, classes: int) -> keras.Model:
    """A new classifier on the backbone of a model of this package; the backbone's layers are shared."""
    last = next(name for name in reversed(blocks(model)) if name[6:].isdigit())
    outputs = classification(endpoints(model)[last], classes, ConvConfig(weight_decay=4e-5), dropout_rate=0.2)
    return keras.Model(model.input, outputs, name=model.name)


def unfreeze(model: keras.Model, first: str) -> keras.Model:
    """Train a model of this package from a block on; freeze the blocks before it, and all batch norms.

    Args:
        model: whose layers are frozen.
        first: the first block to train, such as "layer_15" (see `blocks`), or "Logits" for the head alone; a ValueError lists
            the blocks.
    """
    names = [name for name in blocks(model) if name == "Logits" or name[6:].isdigit()]
    one_of("unfreeze", first, names)
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
    data_name: str = "",
    **options,
) -> Finetuned:
    """Train a classifier for the classes of a folder, from published weights: the head first, then the last blocks.

    The folder receives `model.keras`, `model.tflite` (with labels), `labels.txt`, `report.json`, `confusion.png` (if matplotlib
    is installed), and the run of the second stage in `blocks/`.

    Args:
        data: as in `read_splits`.
        weights: a checkpoint, Keras file or registered name.
        folder: for the results.
        first: the first block that is trained after the head; None trains the head only.
        recipe, probe: of the two stages; the network in them is replaced by the weights' own.
        precision: of the .tflite: "float32", "float16", "dynamic", "int8" or "int16x8" (these two calibrated on training photos).
        data_name: the name of the data in the report, in place of their own.
        options: `resume` and `progress` of the second stage, as in `train`; `features`, the progress of the first stage, as in
            `pooled_features`.

    Raises:
        FileNotFoundError, ValueError: data or weights that cannot be used; the message says why.
    """
    folder, options = user_path(folder), _Options(**options)
    one_of("precision", precision, PRECISIONS)
    if first:
        check_folder(folder / "blocks", options.resume)
    draws = can_draw(folder / "confusion.png")
    training, held_out = read_splits(data, recipe.held_out, recipe.seed)
    names = training.class_names
    keras.utils.set_random_seed(recipe.seed)
    model = with_new_head(open_model(weights)[0], len(names))
    shape = model.input_shape[1:]
    if None in shape:
        raise ValueError(f"{weights} takes images of any size: give weights of a fixed one, such as mobilenet_v2_1.0_224.")
    if first:
        unfreeze(model, first)
    probed = linear_probe(model, training, held_out, probe, progress=options.features)
    if first:
        network = {"input_shape": shape, "classes": len(names), "from": str(weights), "first": first}
        settings = {"model": model, "resume": options.resume, "progress": options.progress}
        model = train(training, held_out, recipe.changed(network=network), folder / "blocks", **settings).model
    evaluation = evaluate(model, replace(held_out, name=data_name or held_out.name), labels=names)
    save_model(model, folder / "model.keras")
    write_text(folder / "labels.txt", "\n".join(names) + "\n")
    photos = _photos(training, shape) if precision in ("int8", "int16x8") else None
    calibration = {"quantization": Quantization(photos), "compare": photos is not None}
    exported = export_litert(model, folder / "model.tflite", precision, labels=names, **calibration)
    broken = {**training.broken, **held_out.broken}
    file = {"bytes": (folder / "model.tflite").stat().st_size, "operators": dict(exported.operators)}
    report = {
        "weights": str(weights),
        "unfrozen_from": first,
        "probe_accuracy": probed.history[-1]["val_accuracy"],
        "tflite": {"precision": precision, **file},
        "trained_on": len(training),
        "left_out": broken,
        **{name: value for name, value in evaluation.as_dict().items() if name != "counts"},
        "broken": len(broken),  # of all photos; the evaluation counts the held-out ones only
    }
    write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    if draws:
        evaluation.plot(folder / "confusion.png")
    return Finetuned(model, evaluation, report["probe_accuracy"], broken)


def _photos(examples, shape) -> np.ndarray:
    """Some training photos of all classes as the network takes them, (N, H, W, C)."""
    indices = range(0, len(examples), max(1, len(examples) // CALIBRATION))
    batches = evaluation_batches(
        examples, CALIBRATION, lambda image: evaluated(image, shape[:2]), channels=shape[2], indices=indices
    )
    readable = (image for images, _, weights in batches for image in images.numpy()[weights.numpy() > 0])
    return np.stack(list(itertools.islice(readable, CALIBRATION)))
