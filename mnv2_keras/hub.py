"""What comes with a published checkpoint, ready to use: its preprocessing, labels and figures."""

from dataclasses import dataclass

import numpy as np

from mnv2_keras.detection import preprocess_detection_image
from mnv2_keras.images import ImageSource, read_image
from mnv2_keras.labels import published_labels
from mnv2_keras.masks import fit_photo, pad_photo
from mnv2_keras.preprocessing import preprocess_image
from mnv2_keras.registry import LABELS, CheckpointRecord, get_checkpoint


def _preprocess_segmentation_image(photo, size: tuple[int, int]) -> np.ndarray:
    photo = read_image(photo) if isinstance(photo, ImageSource) else np.asarray(photo)
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise ValueError(f"photo is {photo.dtype} {photo.shape}: expected uint8 pixels of shape (H, W, 3).")
    return pad_photo(fit_photo(photo, size), size)


#: Preprocessing of each task: from a photo and a size to the network's input.
_PREPROCESS = {
    "classification": preprocess_image,
    "detection": preprocess_detection_image,
    "segmentation": _preprocess_segmentation_image,
}


@dataclass(frozen=True)
class CheckpointInfo:
    """A registered checkpoint with what it needs and what it reaches.

    Attributes:
        record: the registry's entry: URL, hash, alpha, licence and so on.
    """

    record: CheckpointRecord

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the input in pixels."""
        size = self.record.resolution
        return (*((size, size) if isinstance(size, int) else size), 3)

    def preprocess(self, photo) -> np.ndarray:
        """A photo as this network's input, computed as in the genuine program's evaluation.

        Args:
            photo: a path, the bytes of a file, a PIL image, or uint8 (H, W, 3) in RGB.

        Returns:
            float32 `input_shape`, values in [-1, 1].

        Raises:
            FileNotFoundError, ValueError: as in `preprocess_image`.
        """
        return _PREPROCESS[self.record.task](photo, self.input_shape[:2])

    @property
    def labels(self) -> tuple[str, ...] | None:
        """One label per class (of a detector without the background); None where this package has no list of them."""
        if self.record.labels not in LABELS.values():
            return None
        return published_labels(self.record.task, self.record.classes)

    @property
    def metrics(self) -> dict[str, float]:
        """The published figures: `top_1` and `top_5` on ImageNet, `coco_ap`, `miou`, all in percent; empty without any."""
        names = ("top_1", "top_5", "coco_ap", "miou")
        return {name: getattr(self.record, name) for name in names if getattr(self.record, name) is not None}


def checkpoint_info(name: str) -> CheckpointInfo:
    """The preprocessing, labels and published figures of a registered checkpoint. TensorFlow is not imported.

    Args:
        name: as in `list_checkpoints()`.

    Raises:
        ValueError: there is no such name; the message has the closest ones.
    """
    return CheckpointInfo(get_checkpoint(name))
