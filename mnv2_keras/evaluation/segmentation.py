"""The agreement of masks: a confusion matrix, updated photo by photo, and the metrics it gives."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mnv2_keras.checks import whole_number
from mnv2_keras.evaluation.driver import accumulate
from mnv2_keras.figures import check_figure, draw_confusion
from mnv2_keras.masks import IGNORED


class ConfusionMatrix:
    """Counts of pixels by true label (rows) and predicted label (columns), in exact integers.

    Args:
        classes: number of classes.
        ignored: the true label of pixels that are not counted; None to count all.
    """

    def __init__(self, classes: int, ignored: int | None = IGNORED):
        self.classes, self.ignored = whole_number("classes", classes), ignored
        self.counts = np.zeros((self.classes, self.classes), np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Add the pixels of one or many masks: true and predicted labels, integers of one shape.

        Raises:
            ValueError: the shapes differ, or a label is not a class; nothing is counted then.
        """
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        if truth.shape != predicted.shape:
            raise ValueError(f"the true mask has shape {truth.shape}, the predicted one {predicted.shape}: expected the same.")
        if self.ignored is not None:
            counted = truth != self.ignored
            truth, predicted = truth[counted], predicted[counted]
        for name, labels in (("true", truth), ("predicted", predicted)):
            for wrong in labels[(labels < 0) | (labels >= self.classes)]:
                raise ValueError(f"the {name} mask has the label {wrong}: expected 0 to {self.classes - 1}.")
        pairs = truth.astype(np.int64).ravel() * self.classes + predicted.astype(np.int64).ravel()
        self.counts += np.bincount(pairs, minlength=self.classes**2).reshape(self.counts.shape)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, float64 (classes,); NaN for a class that is nowhere."""
        both = np.diag(self.counts)
        either = self.counts.sum(0) + self.counts.sum(1) - both
        return np.divide(both, either, out=np.full(self.classes, np.nan), where=either > 0)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur (in truth or prediction), as `tf.metrics.mean_iou` has it; NaN without any."""
        present = self.iou[~np.isnan(self.iou)]
        return float(present.mean()) if present.size else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels with the right label; NaN without any."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")

    def as_dict(self, names: Sequence[str] | None = None) -> dict:
        """All metrics, as JSON holds them; None in place of NaN."""
        iou = dict(zip(self._names(names), map(_number, self.iou), strict=True))
        return {
            "mean_iou": _number(self.mean_iou),
            "pixel_accuracy": _number(self.pixel_accuracy),
            "pixels": int(self.counts.sum()),
            "iou": iou,
            "confusion": self.counts.tolist(),
        }

    def plot(self, path: str | os.PathLike, names: Sequence[str] | None = None) -> Path:
        """Draw the matrix, each row as shares of its true label, into a .png or .svg file; errors as in `check_figure`."""
        check_figure(path)
        return draw_confusion(self.counts, self._names(names), f"mean IoU {self.mean_iou:.3f}", path, percent=True)

    def _names(self, names: Sequence[str] | None) -> Sequence[str]:
        enough = names and len(names) >= self.classes
        return list(names[: self.classes]) if enough else [f"class {i}" for i in range(self.classes)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def evaluate_segmenter(segmenter, pairs, progress: Callable[[int], None] | None = None) -> ConfusionMatrix:
    """Segment every photo and compare the result with its mask.

    Args:
        segmenter: what has `segment(photo).labels` and `classes`, such as a `Segmenter`.
        pairs: gives (photo, mask): `photos_and_masks`, `tfds_photos_and_masks`, `DrawnShapes`. Photos that cannot be read are
            left out and named in `pairs.broken`, or raise (see `Readable`).
        progress: called after each photo with the number of photos done.

    Returns:
        The matrix over all photos; only one photo is in memory at a time.

    Raises:
        ValueError: photos and masks that do not fit each other, naming them; a folder is checked before the first photo.
    """
    if hasattr(pairs, "check"):
        pairs.check()
    matrix = ConfusionMatrix(max(pairs.classes, segmenter.classes or 0))
    batches = ((photo, mask, done) for done, (photo, mask) in enumerate(pairs, start=1))
    return accumulate(matrix, batches, lambda photo: segmenter.segment(photo).labels, progress)
