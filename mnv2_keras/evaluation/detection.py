"""COCO's metrics of a detector."""

from collections.abc import Callable, Iterator

import keras
import numpy as np

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.data.detection import DetectionData, DetectionExample
from mnv2_keras.detection import postprocess_detections, preprocess_detection_image
from mnv2_keras.evaluation.coco import evaluate_coco
from mnv2_keras.evaluation.driver import accumulate
from mnv2_keras.images import ImageError
from mnv2_keras.inference.task_networks import task_network


class CocoMetrics:
    """True and detected boxes in COCO's form.

    Args:
        categories: COCO's id of each class.
        labels: name of each class, or None.

    Attributes:
        document: the truth, as a COCO JSON holds it; images are numbered from 1.
        rows: the detections, as a COCO results file holds them.
    """

    def __init__(self, categories, labels):
        names = [{"id": i, "name": label or str(i)} for i, label in zip(categories, labels, strict=True)]
        self.document: dict[str, list] = {"images": [], "annotations": [], "categories": names}
        self.rows: list[dict] = []
        self._categories = categories

    def update(self, truth: list[tuple[DetectionExample, int, int]], predicted: dict[str, np.ndarray]) -> None:
        """Add images: examples with their height and width in pixels, and what `postprocess_detections` gives for them."""
        for i, (example, height, width) in enumerate(truth):
            number = len(self.document["images"]) + 1
            image = {"id": number, "file_name": str(example.number), "height": height, "width": width}
            self.document["images"].append(image)
            for j, (box, label) in enumerate(zip(example.boxes, example.classes, strict=True)):
                area = {} if example.areas is None else {"area": float(example.areas[j])}
                row = self._row(image, box, label) | area | {"iscrowd": int(example.crowd[j])}
                self.document["annotations"].append(row)
            boxes, classes, scores = (predicted[name][i] for name in ("boxes", "classes", "scores"))
            for k in range(predicted["num"][i]):
                self.rows.append(self._row(image, boxes[k], classes[k]) | {"score": float(scores[k])})

    def _row(self, image: dict, box, label: int) -> dict:
        """A box, corners in parts of the image, as COCO holds it: x, y, width, height in pixels."""
        ymin, xmin, ymax, xmax = map(float, box)
        width, height = image["width"], image["height"]
        bbox = [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
        return {"image_id": image["id"], "category_id": self._categories[label], "bbox": bbox}

    def as_dict(self) -> dict[str, float]:
        """As `evaluate_coco`."""
        return evaluate_coco(self.document, self.rows)


def evaluate_detector(
    model: keras.Model, data: DetectionData, *, batch: int = 16, progress: Callable[[int], None] | None = None, **postprocessing
) -> dict[str, float]:
    """COCO's metrics of a detector on labelled images.

    Args:
        model: of `build_ssdlite_mobilenetv2`, of a fixed input size.
        data: images and boxes (`read_coco`, `read_voc`, `read_tfds`, `drawn_shapes`). Images that cannot be read are left out
            and named in `data.broken`, or raise (see `Readable`).
        batch: images at once.
        progress: called with the number of images done.
        postprocessing: arguments of `postprocess_detections`.

    Returns:
        As `evaluate_coco`.

    Raises:
        ValueError: the model is not a detector, its classes are not those of the data, or it takes pixels from 0 to 255; no image
            can be read (`ImageError`).
    """
    return detector_metrics(model, data, batch=batch, progress=progress, **postprocessing).as_dict()


def detector_metrics(model, data: DetectionData, *, batch: int = 16, progress=None, **postprocessing) -> CocoMetrics:
    """The boxes behind `evaluate_detector`."""
    network, size = task_network(model, "detection", model.name)
    classes, anchors = network.outputs[1].shape[-1] - 1, ssd_anchors(size)
    if classes != len(data.categories):
        raise ValueError(
            f"The model has {classes} classes, the data {len(data.categories)}: they must be the same, in the same order."
        )

    def predict(images) -> dict[str, np.ndarray]:
        outputs = model.predict_on_batch(images)
        encodings, logits = outputs["box_encodings"], outputs["class_predictions_with_background"]
        return {
            name: np.asarray(value) for name, value in postprocess_detections(encodings, logits, anchors, **postprocessing).items()
        }

    metrics = CocoMetrics(data.categories, data.labels)
    metrics = accumulate(metrics, _batches(data, size, batch), predict, progress)
    if not metrics.document["images"] and data.broken:
        raise ImageError(f"None of the images can be read: {next(iter(data.broken.values()))}")
    return metrics


def _batches(data: DetectionData, size: tuple[int, int], batch: int) -> Iterator[tuple]:
    """Preprocessed images, examples with their sizes, and the number of images so far."""
    images, truth, done = [], [], 0
    for done, example in enumerate(data.examples, 1):
        pixels = data.pixels(example)
        if pixels is not None:
            images.append(preprocess_detection_image(pixels, size))
            truth.append((example, *pixels.shape[:2]))
        if len(images) == batch:
            yield np.stack(images), truth, done
            images, truth = [], []
    if images:
        yield np.stack(images), truth, done
