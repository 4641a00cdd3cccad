"""COCO's metrics of a detector."""

from collections.abc import Callable, Iterable

import keras
import numpy as np

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.data.detection import DetectionData
from mnv2_keras.detection import postprocess_detections, preprocess_detection_image
from mnv2_keras.evaluation.coco import evaluate_coco
from mnv2_keras.networks.endpoints import check_input


def evaluate_detector(
    model: keras.Model,
    data: DetectionData,
    *,
    batch: int = 16,
    progress: Callable[[int], None] | None = None,
    **postprocessing,
) -> dict[str, float]:
    """COCO's metrics of a detector on labelled images.

    Args:
        model: of `build_ssdlite_mobilenetv2`, of a fixed input size.
        data: images and boxes (`read_coco`, `read_voc`, `read_tfds`, `drawn_shapes`).
        batch: images at once.
        progress: called with the number of images done.
        postprocessing: arguments of `postprocess_detections`.

    Returns:
        As `evaluate_coco`.

    Raises:
        ValueError: the model's classes are not those of the data, or it takes pixels from 0 to 255.
    """
    check_input(model)
    classes = model.output["class_predictions_with_background"].shape[-1] - 1
    if classes != len(data.categories):
        raise ValueError(
            f"The model has {classes} classes, the data {len(data.categories)}: they must be the same, in one order."
        )
    documents: dict[str, list] = {"images": [], "annotations": []}
    documents["categories"] = [
        {"id": n, "name": label or str(n)} for n, label in zip(data.categories, data.labels, strict=True)
    ]
    rows = list(coco_results(model, data, documents, batch=batch, progress=progress, **postprocessing))
    return evaluate_coco(documents, rows)


def coco_results(model, data, documents, *, batch: int = 16, progress=None, **postprocessing) -> Iterable[dict]:
    """A detector's boxes on every image as COCO results; the truth is added to `documents` in COCO's form."""
    anchors, size = ssd_anchors(model.input_shape[1:3]), model.input_shape[1:3]
    done = 0
    for group in _groups(data.examples, batch):
        pixels = [example.pixels() for example in group]
        images = np.stack([preprocess_detection_image(each, size) for each in pixels])
        outputs = model.predict_on_batch(images)
        found = postprocess_detections(
            outputs["box_encodings"], outputs["class_predictions_with_background"], anchors, **postprocessing
        )
        found = {name: value.numpy() for name, value in found.items()}
        for i, (example, photo) in enumerate(zip(group, pixels, strict=True)):
            height, width = photo.shape[:2]
            number = done + i + 1
            documents["images"].append(
                {"id": number, "file_name": str(example.number), "height": height, "width": width}
            )
            for j, (box, label) in enumerate(zip(example.boxes, example.classes, strict=True)):
                truth = {"image_id": number, "category_id": data.categories[label], "bbox": _bbox(box, height, width)}
                truth |= {} if example.areas is None else {"area": float(example.areas[j])}
                documents["annotations"].append(truth | {"iscrowd": int(example.crowd[j])})
            for k in range(found["num"][i]):
                yield {
                    "image_id": number,
                    "category_id": data.categories[found["classes"][i, k]],
                    "bbox": _bbox(found["boxes"][i, k], height, width),
                    "score": float(found["scores"][i, k]),
                }
        done += len(group)
        if progress is not None:
            progress(done)


def _bbox(box, height: int, width: int) -> list[float]:
    """Corners in parts of the image as x, y, width, height in pixels."""
    ymin, xmin, ymax, xmax = (float(side) for side in box)
    return [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]


def _groups(examples: Iterable, size: int) -> Iterable[list]:
    group = []
    for example in examples:
        group.append(example)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
