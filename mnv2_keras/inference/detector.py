"""Photos to boxes: what is on them, and where."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnv2_keras.images import read_image
from mnv2_keras.inference.streaming import one_by_one
from mnv2_keras.labels import coco_labels, labels_beside

#: Colours of the classes, in turns; all of them bear black letters.
_COLOURS = ("#4dd0e1", "#ffb74d", "#aed581", "#f48fb1", "#fff176", "#b39ddb", "#ff8a65", "#90caf9")


class Detection(NamedTuple):
    """One thing on a photo."""

    index: int  # class, 0-based: COCO's published id less 1
    label: str
    score: float
    box: tuple[float, float, float, float]  # ymin, xmin, ymax, xmax as parts of the photo's height and width


@dataclass(frozen=True)
class Detections:
    """What is on one photo, the likeliest first.

    Attributes:
        source: the photo's path, or None for an array.
        photo: uint8 (H, W, 3).
        found: the things.
    """

    source: Path | None
    photo: np.ndarray
    found: tuple[Detection, ...]

    def as_dict(self) -> dict:
        """As JSON holds it; boxes in pixels: x, y, width, height."""
        height, width = self.photo.shape[:2]
        rows = []
        for index, label, score, (ymin, xmin, ymax, xmax) in self.found:
            box = [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
            rows.append({"index": index, "label": label, "score": round(score, 4), "bbox": [round(v, 2) for v in box]})
        return {
            "photo": str(self.source) if self.source else None,
            "height": height,
            "width": width,
            "detections": rows,
        }

    def picture(self) -> Image.Image:
        """The photo with a box, a label and a score around each thing."""
        image = Image.fromarray(self.photo).convert("RGB")
        drawn = ImageDraw.Draw(image)
        text = max(11, min(image.size) // 28)
        font = ImageFont.load_default(text)
        for index, label, score, (ymin, xmin, ymax, xmax) in reversed(self.found):  # the likeliest on top
            colour = _COLOURS[index % len(_COLOURS)]
            left, top, right, bottom = xmin * image.width, ymin * image.height, xmax * image.width, ymax * image.height
            drawn.rectangle([left, top, right, bottom], outline=colour, width=max(1, text // 6))
            words = f"{label} {score:.2f}"
            _, _, wide, high = drawn.textbbox((0, 0), words, font=font)
            left, top = min(left, max(0, image.width - wide - 4)), max(0, top - high - 4)
            drawn.rectangle([left, top, left + wide + 4, top + high + 4], fill=colour)
            drawn.text((left + 2, top + 2), words, fill="black", font=font)
        return image


class Detector:
    """Finds things on photos. Safe to use from several threads.

    The whole photo is resized to the network's input; its aspect ratio is not kept, as in the published detectors.

    Args:
        weights: an archive, folder, checkpoint or registered name; a `.keras` file or a model.
        labels: name of each class, or a file with one in each line. None takes the file `labels.txt` beside a `.keras` file, if it
            has as many; COCO's for 90 or 80 classes; otherwise "class N".
        score_threshold: things need a higher score.
        max_detections: for each photo.
        postprocessing: other arguments of `postprocess_detections`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no detector, or one that takes pixels from 0 to 255; or an argument is out of its range.
    """

    def __init__(
        self,
        weights="ssdlite_mobilenet_v2_coco_2018_05_09",
        *,
        labels: Sequence[str] | str | os.PathLike | None = None,
        score_threshold: float = 0.3,
        max_detections: int = 100,
        **postprocessing,
    ):
        import keras
        import tensorflow as tf

        from mnv2_keras.boxes import ssd_anchors
        from mnv2_keras.conversion import open_model
        from mnv2_keras.detection import postprocess_detections
        from mnv2_keras.networks.endpoints import check_input

        model = weights if isinstance(weights, keras.Model) else open_model(weights)[0]
        outputs = ("box_encodings", "class_predictions_with_background")
        found = getattr(model, "output", None)
        if not isinstance(found, dict) or set(found) != set(outputs):
            raise ValueError(f"{weights} holds no detector: its model does not put out {' and '.join(outputs)}.")
        check_input(model)
        if None in model.input_shape[1:]:
            raise ValueError("the model takes images of any size: build it with the input_shape that it shall look at.")
        self.size = tuple(model.input_shape[1:3])
        self.classes = model.output[outputs[1]].shape[-1] - 1
        self.labels = _labels(labels, weights, self.classes)
        anchors = ssd_anchors(self.size)
        options = {"score_threshold": score_threshold, "max_total": max_detections, **postprocessing}

        @tf.function(input_signature=[tf.TensorSpec((1, *self.size, model.input_shape[3]), tf.float32)])
        def run(batch):
            found = model(batch, training=False)
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(found[name])) for name in outputs])
            return postprocess_detections(*(found[name] for name in outputs), anchors, **options), finite

        run.get_concrete_function()  # what is wrong with the options is said now
        self._run = run

    def detect(self, photo) -> Detections:
        """What is on one photo.

        Args:
            photo: a path, or uint8 (H, W, 3), of any size.

        Raises:
            FileNotFoundError, ImageError: the file is not there or no picture that can be read.
            ValueError: an array of another shape or type; the network's outputs are NaN.
        """
        from mnv2_keras.detection import preprocess_detection_image

        source = Path(photo) if isinstance(photo, str | os.PathLike) else None
        photo = read_image(photo) if source else np.asarray(photo)
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
            raise ValueError(f"a photo is uint8 of shape (H, W, 3), not {photo.dtype} {photo.shape}.")
        found, finite = self._run(preprocess_detection_image(photo, self.size)[None])
        if not finite:
            raise ValueError("the network's outputs are NaN or infinite: its weights come from a diverged training.")
        boxes, scores, classes = (found[name][0].numpy().tolist() for name in ("boxes", "scores", "classes"))
        rows = zip(classes, scores, boxes, strict=True)
        things = [Detection(index, self.labels[index], score, tuple(box)) for index, score, box in rows]
        return Detections(source, photo, tuple(things[: int(found["num"][0])]))

    def stream(self, photos: Iterable, skip_broken: bool = False) -> Iterator[Detections | ValueError | OSError]:
        """What is on each photo, one after the other, in order.

        Args:
            photos: paths or arrays.
            skip_broken: give the error in place of the result for a photo that cannot be used, and go on; otherwise raise.
        """
        return one_by_one(self.detect, photos, skip_broken)


def _labels(labels, weights, classes: int) -> tuple[str, ...]:
    if labels is None:
        labels = labels_beside(weights, classes)
    if isinstance(labels, str | os.PathLike):
        labels = Path(labels).read_text("utf-8").splitlines()
    if labels is not None:
        if len(labels) != classes:
            raise ValueError(f"{len(labels)} labels were given for {classes} classes: give one for each.")
        return tuple(labels)
    names = coco_labels()
    if classes == 90:
        return tuple(names.get(number, f"class {number}") for number in range(1, 91))
    return (
        tuple(names.values()) if classes == len(names) else tuple(f"class {number}" for number in range(1, classes + 1))
    )
