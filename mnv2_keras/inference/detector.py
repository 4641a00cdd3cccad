"""Photos to boxes: which things are on a photo, and where."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.deprecation import warn_renamed
from mnv2_keras.detection import postprocess_arrays, preprocess_detection_image
from mnv2_keras.inference.predictor import OpenedWeights, PhotoPredictor, PhotoResult, source_of

#: Colours of the classes, in turn; black letters can be read on all of them.
_COLOURS = ("#4dd0e1", "#ffb74d", "#aed581", "#f48fb1", "#fff176", "#b39ddb", "#ff8a65", "#90caf9")


class Detection(NamedTuple):
    """One thing on a photo.

    Attributes:
        index: its class, 0-based: COCO's published id less 1.
        label: the name of the class.
        score: 0 to 1.
        box: ymin, xmin, ymax, xmax as parts of the photo's height and width, 0 to 1.
    """

    index: int
    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Detections(PhotoResult):
    """The result of a `Detector` for one photo.

    Attributes:
        source: the photo's path, or None for an array.
        photo: uint8 (H, W, 3); None where there is an error.
        detections: the things on it, the best score first.
        error: why the photo could not be used; None for a good one.
    """

    source: Path | None
    photo: np.ndarray | None
    detections: tuple[Detection, ...]
    error: Exception | None = None

    @property
    def found(self) -> tuple[Detection, ...]:
        """The old name of `detections`."""
        warn_renamed("Detections.found", "Detections.detections")
        return self.detections

    def as_dict(self) -> dict:
        """The result as JSON holds it; boxes in pixels: x, y, width, height."""
        if self.error is not None:
            return self._about()
        height, width = self.photo.shape[:2]
        rows = []
        for index, label, score, (ymin, xmin, ymax, xmax) in self.detections:
            box = [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
            rows.append({"index": index, "label": label, "score": round(score, 4), "bbox": [round(v, 2) for v in box]})
        return self._about() | {"detections": rows}

    def picture(self) -> Image.Image:
        """The photo with a box, a label and a score around each thing.

        Raises:
            ValueError: the photo could not be used.
        """
        self._check_photo()
        image = Image.fromarray(self.photo).convert("RGB")
        canvas = ImageDraw.Draw(image)
        text = max(11, min(image.size) // 28)
        font = ImageFont.load_default(text)
        for index, label, score, (ymin, xmin, ymax, xmax) in reversed(self.detections):  # the best on top
            colour = _COLOURS[index % len(_COLOURS)]
            left, top = xmin * image.width, ymin * image.height
            corners = [left, top, xmax * image.width, ymax * image.height]
            canvas.rectangle(corners, outline=colour, width=max(1, text // 6))
            words = f"{label} {score:.2f}"
            _, _, width, height = canvas.textbbox((0, 0), words, font=font)
            left, top = min(left, max(0, image.width - width - 4)), max(0, top - height - 4)
            canvas.rectangle([left, top, left + width + 4, top + height + 4], fill=colour)
            canvas.text((left + 2, top + 2), words, fill="black", font=font)
        return image


class Detector(PhotoPredictor):
    """Finds things on photos.

    The whole photo is resized to the network's input; its aspect ratio is not kept, as in the published detectors.

    Args:
        weights: as in `Predictor`; a `.tflite` file must give the network's raw outputs, box encodings (1, A, 4) and logits
            (1, A, classes + 1).
        engine, threads, precision, labels, on_message: as in `Predictor`. The published data set of 80 or 90 classes is COCO.
        score_threshold: things need a higher score, 0 to 1.
        max_detections: most things of each photo.
        postprocessing: `iou_threshold`, `max_per_class` and `clip_window` of `postprocess_detections`.

    Raises:
        FileNotFoundError, ValueError: as in `Predictor`.
    """

    _TASK = "detection"
    _FIRST_CLASS = 1  # 0 is the background

    def __init__(
        self,
        weights="ssdlite_mobilenet_v2_coco_2018_05_09",
        engine: str | None = None,
        threads: int | None = None,
        *,
        precision: str = "float32",
        labels: Sequence[str] | str | os.PathLike | None = None,
        score_threshold: float = 0.3,
        max_detections: int = 100,
        on_message=None,
        **postprocessing,
    ):
        limits = {"score_threshold": score_threshold, "max_total": max_detections}
        self._postprocess = partial(postprocess_arrays, **(limits | postprocessing))
        self._postprocess(np.zeros((1, 1, 4)), np.zeros((1, 1, 2)), np.zeros((1, 4)))  # refuses wrong arguments now
        super().__init__(weights, engine, threads, precision, labels, on_message)
        self._anchors = ssd_anchors(self.size)

    def _check_network(self, opened: OpenedWeights) -> None:
        shapes = [output.shape for output in self._engine.outputs]
        if [len(shape) for shape in shapes] != [2, 2] or not any(shape[1] == 4 for shape in shapes):
            raise ValueError(
                f"{opened.name} is not a detector that runs here: it gives {', '.join(map(str, shapes))}, expected box encodings "
                "(A, 4) and logits (A, classes + 1), as export_litert writes them. A file that ends in boxes runs in MediaPipe."
            )
        self._order = (0, 1) if shapes[0][1] == 4 else (1, 0)
        self.classes = shapes[self._order[1]][1] - 1

    def detect(self, photo) -> Detections:
        """The things on one photo.

        Args:
            photo: a path, or uint8 (H, W, 3), of any size.

        Raises:
            FileNotFoundError, ImageError: the file does not exist, or cannot be read as a picture.
            ValueError: an array of another shape or type; the network's outputs are NaN; closed.
        """
        self._check_open()
        return self._compute(photo)

    def _compute(self, image, use_all_threads: bool = True) -> Detections:
        photo = self._photo(image)
        prepared = self._scaled(preprocess_detection_image(photo, self.size))
        outputs = self._run(prepared, self._order, use_all_threads)
        boxes = self._postprocess(*(values[None] for values in outputs), self._anchors)
        rows = zip(*(boxes[name][0].tolist() for name in ("classes", "scores", "boxes")), strict=True)
        detections = [Detection(index, self.labels[index], score, tuple(box)) for index, score, box in rows]
        return Detections(source_of(image), photo, tuple(detections[: int(boxes["num"][0])]))

    def _failed(self, image, error: Exception) -> Detections:
        return Detections(source_of(image), None, (), error)
