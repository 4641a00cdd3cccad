"""COCO's box metrics, computed by pycocotools from results, without TensorFlow."""

import contextlib
import io
import math
from numbers import Real

from mnv2_keras.data.detection import check_boxes, coco_document, coco_id, uniform_coco
from mnv2_keras.data.reading import read_json

#: The twelve numbers of `COCOeval.summarize`, in its order.
METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


def evaluate_coco(annotations, results, *, limit: int | None = None) -> dict[str, float]:
    """COCO's twelve box metrics.

    Args:
        annotations: a COCO JSON file, or a dict of the same form.
        results: a COCO results file, or a list of `{"image_id", "category_id", "bbox", "score"}`, boxes as x, y, width, height in
            pixels.
        limit: only the first images by id, this many, as in pycocotools' demonstration; None for all.

    Returns:
        `AP` (IoU 0.50 to 0.95), `AP50`, `AP75`, `AP_small`, ..., `AR_1`, ..., 0 to 1; -1 if there are no objects of that size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file; a box that is not four numbers; results of images or categories that are not among the
            annotations.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ValueError("pycocotools is not installed: pip install 'mnv2-keras[detection]'.") from error
    if isinstance(annotations, dict):
        check_boxes(annotations["annotations"], "annotations")
        document = uniform_coco(annotations, "annotations")
    else:
        document = coco_document(annotations)
    results = _results(results)
    images, categories = ({row["id"] for row in document[part]} for part in ("images", "categories"))
    for row in results:
        if row["image_id"] not in images or row["category_id"] not in categories:
            raise ValueError(
                f"The results hold image {row['image_id']} and category {row['category_id']}, which the annotations do not both "
                "have: they are of another data set, or number their categories differently."
            )
    if not document["annotations"]:
        return dict.fromkeys(METRICS, -1.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        # Each annotation with all that COCOeval reads. Ids count from 1: COCOeval takes the id 0 for "no match", and an id twice
        # for one annotation.
        truth.dataset = document | {
            "annotations": [
                {"area": row["bbox"][2] * row["bbox"][3], "ignore": 0, **row, "id": i}
                for i, row in enumerate(document["annotations"], 1)
            ]
        }
        truth.createIndex()
        detections = COCO()
        if results:
            detections = truth.loadRes([dict(row) for row in results])
        else:  # which loadRes does not take
            detections.dataset = document | {"annotations": []}
            detections.createIndex()
        run = COCOeval(truth, detections, "bbox")
        if limit is not None:
            run.params.imgIds = sorted(truth.getImgIds())[:limit]
        for step in (run.evaluate, run.accumulate, run.summarize):
            step()
    return dict(zip(METRICS, map(float, run.stats), strict=True))


def _results(results) -> list[dict]:
    if isinstance(results, list):
        return _checked(results, "results")
    rows = read_json(results, "results")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= {*_RESULT_KEYS} for row in rows):
        raise ValueError(f"{results} is not a COCO results file: expected a list of {{{', '.join(_RESULT_KEYS)}}}.")
    return _checked(rows, f"{results}: results")


def _checked(rows: list[dict], where: str) -> list[dict]:
    """A copy of the results with uniform ids; a ValueError names a box or score that is not of finite numbers."""
    check_boxes(rows, where)
    for i, row in enumerate(rows):
        for name, values in ("score", [row["score"]]), ("bbox", row["bbox"]):
            if not all(isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) for value in values):
                raise ValueError(f"{where}[{i}] has the {name} {row[name]!r}: expected finite numbers.")
    keys = "image_id", "category_id"
    return [row | {key: coco_id(row[key], f"{where}[{i}]", key) for key in keys} for i, row in enumerate(rows)]
