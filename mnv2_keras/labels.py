"""Labels of ImageNet, Pascal VOC and COCO, and the best classes of a network's scores."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnv2_keras.checks import user_path, whole_number


class Prediction(NamedTuple):
    """A class: its index in the model's output, its label and its score."""

    index: int
    label: str
    score: float


@cache
def _lines(name: str) -> tuple[str, ...]:
    return tuple((files(__package__) / "label_files" / f"{name}.txt").read_text("utf-8").splitlines())


def imagenet_labels(classes: int = 1001) -> tuple[str, ...]:
    """The ImageNet (ILSVRC 2012) labels in the order of a classifier's outputs.

    Args:
        classes: 1001 as in TF-Slim's checkpoints (index 0 is "background", 1 is "tench, Tinca tinca"), or 1000 without the
            background, as in Keras Applications.

    Raises:
        ValueError: any other number of classes.
    """
    if classes not in (1000, 1001):
        raise ValueError(
            f"ImageNet has no list of {classes} labels: expected 1001 (index 0 is the background) or 1000 (without it)."
        )
    return _lines("imagenet")[-classes:]


def voc_labels() -> tuple[str, ...]:
    """The 21 labels of Pascal VOC segmentation: index 0 is "background", 1 "aeroplane", 20 "tvmonitor"."""
    return _lines("voc")


def coco_labels() -> dict[int, str]:
    """The labels of COCO by their published id: 80 names with ids 1 to 90; id 0 is the background.

    Ten ids (12, 26, 29, 30, 45, 66, 68, 69, 71, 83) have no label, though detectors have an output for them.
    """
    return {int(number): label for number, label in (line.split(" ", 1) for line in _lines("coco"))}


def published_labels(task: str, classes: int) -> tuple[str, ...] | None:
    """The labels of the data set that the published networks of a task and number of classes were trained on.

    Args:
        task: "classification" (ImageNet with 1001 or 1000 classes), "detection" (COCO with 90 or 80 classes, the background not
            counted; an id that COCO does not use is called "class 12") or "segmentation" (Pascal VOC with 21).
        classes: outputs of the network.

    Returns:
        One label per class; None for other numbers of classes.
    """
    if task == "classification":
        return imagenet_labels(classes) if classes in (1000, 1001) else None
    if task == "segmentation":
        return voc_labels() if classes == len(voc_labels()) else None
    names = coco_labels()
    if classes == len(names):
        return tuple(names.values())
    return tuple(names.get(number, f"class {number}") for number in range(1, 91)) if classes == 90 else None


def read_labels(path: str | os.PathLike) -> tuple[str, ...]:
    """The lines of a text file (UTF-8, with or without a byte order mark); empty lines at its end do not count.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8.
    """
    path = user_path(path)
    try:
        return tuple(path.read_text("utf-8-sig").rstrip().splitlines())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file of labels {path}: check the path.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error


def class_labels(labels, classes: int | None = None) -> tuple[str, ...]:
    """Labels in each of the forms that this package takes.

    Args:
        labels: a text file with one label per line (a path), a sequence of texts in the order of the outputs, or a dictionary
            `{index: label}` with an entry for each output.
        classes: the number that is expected; None for any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another number of labels, a dictionary without the indices 0 to classes - 1, or another type.
    """
    if isinstance(labels, str | os.PathLike):
        origin, names = str(labels), read_labels(labels)
    elif isinstance(labels, Mapping):
        if sorted(labels, key=str) != sorted(range(len(labels)), key=str):
            raise ValueError(f"labels has the keys {list(labels)[:5]}: expected the indices 0 to {len(labels) - 1}, each once.")
        origin, names = "labels", tuple(labels[i] for i in range(len(labels)))
    elif isinstance(labels, Sequence | np.ndarray) and not isinstance(labels, bytes):
        origin, names = "labels", tuple(labels)
    else:
        raise ValueError(
            f"labels is a {type(labels).__name__}: expected a path, a sequence of texts in the order of the outputs, or "
            "{index: text}."
        )
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"labels holds {wrong[0]!r}: expected texts.")
    if classes and len(names) != classes:
        raise ValueError(f"{origin}: {len(names)} labels were given for {classes} classes: give one for each.")
    return tuple(map(str, names))


def labels_beside(weights, classes: int) -> tuple[str, ...] | None:
    """The lines of `labels.txt` in the folder of a `.keras` or `.tflite` file, as this package's trainings write it.

    None for other weights, and for a file whose number of lines is not `classes`.
    """
    path = Path(weights) if isinstance(weights, str | os.PathLike) else None
    if path is None or path.suffix not in (".keras", ".tflite"):
        return None
    file = user_path(path).with_name("labels.txt")
    labels = read_labels(file) if file.is_file() else ()
    return labels if len(labels) == classes else None


def decode_predictions(probs, top: int = 5, labels: Sequence[str] | None = None) -> list[list[Prediction]]:
    """The best classes of each image, best first.

    Args:
        probs: (B, classes) or (classes,) probabilities or logits, an array or what NumPy makes one of.
        top: number of classes per image, at least 1; all of them if there are fewer.
        labels: one label per class; by default ImageNet's for 1001 or 1000 classes.

    Returns:
        One list per image (also for a single row) of `Prediction(index, label, score)` by descending score; of equal scores the
        lower index comes first.

    Raises:
        ValueError: another rank, NaN, `top` below 1, or a number of labels other than that of the classes.
    """
    scores = np.asarray(probs, np.float64)
    if scores.ndim not in (1, 2):
        raise ValueError(f"decode_predictions takes scores of shape (B, classes) or (classes,), not {scores.shape}.")
    scores = np.atleast_2d(scores)
    classes = scores.shape[1]
    top = whole_number("top", top, 1)
    if labels is None:
        if classes not in (1000, 1001):
            raise ValueError(f"There are no labels for {classes} classes (ImageNet has 1001 or 1000): give labels=, one per class.")
        labels = imagenet_labels(classes)
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels were given for {classes} classes: give one label per class.")
    if np.isnan(scores).any():
        image = int(np.isnan(scores).any(axis=1).argmax())
        raise ValueError(f"The scores of image {image} hold NaN: check the model's weights and its input.")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(index, labels[index], row[index]) for index in order]
        for order, row in zip(best.tolist(), scores.tolist(), strict=True)
    ]
