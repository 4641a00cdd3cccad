"""How well masks agree: a confusion matrix kept up to date photo by photo, and what is read from it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnv2_keras.figures import check_figure, draw_confusion
from mnv2_keras.masks import IGNORED


class ConfusionMatrix:
    """Counts of pixels by true label (rows) and predicted label (columns), in exact integers.

    Args:
        classes: number of classes.
        ignored: the true label of pixels that are not judged; None to judge all.
    """

    def __init__(self, classes: int, ignored: int | None = IGNORED):
        if isinstance(classes, bool | np.bool_) or not isinstance(classes, int | np.integer) or classes < 1:
            raise ValueError(f"classes is {classes!r}: expected a whole number of at least 1.")
        self.classes, self.ignored = int(classes), ignored
        self.counts = np.zeros((classes, classes), np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Add the pixels of one or many masks.

        Args:
            truth: true labels, integers of any shape.
            predicted: labels of the same shape.

        Raises:
            ValueError: the shapes differ, or a label is no class; nothing is counted then.
        """
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        if truth.shape != predicted.shape:
            raise ValueError(
                f"the true mask has shape {truth.shape}, the predicted one {predicted.shape}: expected the same."
            )
        if self.ignored is not None:
            judged = truth != self.ignored
            truth, predicted = truth[judged], predicted[judged]
        for name, labels in (("true", truth), ("predicted", predicted)):
            if labels.size and (labels.min() < 0 or labels.max() >= self.classes):
                bad = labels[(labels < 0) | (labels >= self.classes)][0]
                raise ValueError(f"the {name} mask has the label {bad}: expected 0 to {self.classes - 1}.")
        pairs = truth.astype(np.int64).ravel() * self.classes + predicted.astype(np.int64).ravel()
        self.counts += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, float64 (classes,); NaN for a class that is nowhere."""
        both = np.diag(self.counts)
        either = self.counts.sum(0) + self.counts.sum(1) - both
        return np.divide(both, either, out=np.full(self.classes, np.nan), where=either > 0)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that are there (in truth or prediction), as `tf.metrics.mean_iou` has it; NaN without any."""
        present = self.iou[~np.isnan(self.iou)]
        return float(present.mean()) if present.size else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the judged pixels with the right label; NaN without any."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")

    def as_dict(self, names: Sequence[str] | None = None) -> dict:
        """Everything, as JSON holds it; absent classes have None."""
        names = _names(names, self.classes)
        iou = {name: None if np.isnan(value) else float(value) for name, value in zip(names, self.iou, strict=True)}
        return {
            "mean_iou": _number(self.mean_iou),
            "pixel_accuracy": _number(self.pixel_accuracy),
            "pixels": int(self.counts.sum()),
            "iou": iou,
            "confusion": self.counts.tolist(),
        }

    def plot(self, path: str | os.PathLike, names: Sequence[str] | None = None) -> Path:
        """Draw the matrix, each row as shares of its true label, into a .png or .svg file.

        Raises:
            ValueError: see `check_figure`.
        """
        check_figure(path)
        names = _names(names, self.classes)
        return draw_confusion(self.counts, names, f"mean IoU {self.mean_iou:.3f}", path, percent=True)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _names(names: Sequence[str] | None, classes: int) -> Sequence[str]:
    return list(names[:classes]) if names and len(names) >= classes else [f"class {i}" for i in range(classes)]


def evaluate_segmenter(segmenter, pairs, progress=None) -> ConfusionMatrix:
    """Segment every photo and hold it against its mask.

    Args:
        segmenter: what has `segment(photo).labels` and `classes`, such as a `Segmenter`.
        pairs: gives (photo, mask): `photos_and_masks`, `tfds_photos_and_masks`, `DrawnShapes`.
        progress: called after each photo with the number of photos done.

    Returns:
        The matrix over all photos that can be read (`pairs.broken` of a folder names the others); only one photo is in memory
        at a time.

    Raises:
        ValueError: photos and masks that do not fit each other, naming them; a folder is looked at before the first.
    """
    if hasattr(pairs, "check"):
        pairs.check()
    matrix = ConfusionMatrix(max(pairs.classes, segmenter.classes or 0))
    for done, (photo, mask) in enumerate(pairs, start=1):
        matrix.update(mask, segmenter.segment(photo).labels)
        if progress:
            progress(done)
    return matrix
