"""COCO's metrics, by pycocotools."""

import contextlib
import io
from collections.abc import Callable, Iterable

import keras
import numpy as np

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.data.detection import DetectionData, coco_document, read_json
from mnv2_keras.detection import postprocess_detections, preprocess_detection_image

#: The twelve numbers of `COCOeval.summarize`, in its order.
METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


def evaluate_coco(annotations, results, *, limit: int | None = None) -> dict[str, float]:
    """COCO's twelve box metrics.

    Args:
        annotations: a COCO JSON file, or a dict of the same form.
        results: a COCO results file, or a list of `{"image_id", "category_id", "bbox", "score"}`, boxes as x, y, width, height in
            pixels.
        limit: the first so many images by id, as in pycocotools' demonstration; None for all.

    Returns:
        `AP` (IoU 0.50 to 0.95), `AP50`, `AP75`, `AP_small`, ..., `AR_1`, ..., 0 to 1; -1 where nothing of that size is there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file; results of images or categories that are not among the annotations.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ValueError("pycocotools is not installed: pip install 'mnv2-keras[detection]'.") from error
    document = annotations if isinstance(annotations, dict) else coco_document(annotations)
    rows = _results(results)
    images, categories = ({each["id"] for each in document[part]} for part in ("images", "categories"))
    for row in rows:
        if row["image_id"] not in images or row["category_id"] not in categories:
            raise ValueError(
                f"The results hold image {row['image_id']} and category {row['category_id']}, which the annotations do not both "
                "have: they are of another data set, or their categories count otherwise."
            )
    if not rows or not document["annotations"]:
        return dict.fromkeys(METRICS, -1.0 if not document["annotations"] else 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = document | {
            "annotations": [_annotation(i, each) for i, each in enumerate(document["annotations"], 1)]
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes([dict(row) for row in rows]), "bbox")
        if limit is not None:
            run.params.imgIds = sorted(truth.getImgIds())[:limit]
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(METRICS, map(float, run.stats), strict=True))


def _annotation(number: int, row: dict) -> dict:
    """A row with all that COCOeval reads."""
    return {"id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], "ignore": 0, **row}


def _results(results) -> list[dict]:
    if isinstance(results, list):
        return results
    rows = read_json(results, "results")
    keys = ("image_id", "category_id", "bbox", "score")
    if not isinstance(rows, list) or any(
        not isinstance(row, dict) or any(key not in row for key in keys) for row in rows
    ):
        raise ValueError(f"{results} is no COCO results file: expected a list of {{{', '.join(keys)}}}.")
    return rows


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
        ValueError: the model's classes are not those of the data.
    """
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
            for box, label, crowd in zip(example.boxes, example.classes, example.crowd, strict=True):
                truth = {"image_id": number, "category_id": data.categories[label], "bbox": _bbox(box, height, width)}
                documents["annotations"].append(truth | {"iscrowd": int(crowd)})
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
