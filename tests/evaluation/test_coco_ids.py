"""COCO's ids, crowds and scores as users' files hold them."""

import json

import numpy as np
import pytest

from mnv2_keras.data.detection import read_coco
from mnv2_keras.evaluation.coco import evaluate_coco


def document(*annotation_ids, **annotation):
    """Two images of one large object each."""
    rows = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 100, 100], **annotation} for i in (1, 2)]
    for row, number in zip(rows, annotation_ids, strict=False):
        row["id"] = number
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 200} for i in (1, 2)]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}


def results(**values):
    return [{"image_id": i, "category_id": 1, "bbox": [0, 0, 100, 100], "score": 0.9, **values} for i in (1, 2)]


@pytest.mark.parametrize("ids", [(0, 1), (1, 1), (0, 0), ()])
def test_perfect_results_score_1_whatever_the_annotation_ids(ids):
    pytest.importorskip("pycocotools")
    assert evaluate_coco(document(*ids), results())["AP"] == pytest.approx(1)


@pytest.mark.parametrize("detections", [[], results(bbox=[150, 150, 9, 9])])
def test_sizes_that_do_not_occur_give_minus_1(detections):
    pytest.importorskip("pycocotools")
    metrics = evaluate_coco(document(1, 2), detections)
    assert (metrics["AP"], metrics["AP_large"], metrics["AP_small"], metrics["AR_medium"]) == (0, 0, -1, -1)


@pytest.mark.parametrize("values", [{"score": "0.9"}, {"score": None}, {"score": float("nan")}, {"bbox": [0, 0, float("nan"), 1]}])
def test_a_result_that_is_not_of_numbers_is_named(values):
    pytest.importorskip("pycocotools")
    with pytest.raises(ValueError, match=rf"results\[0\] has the {next(iter(values))}"):
        evaluate_coco(document(1, 2), results(**values))


def read(folder, content):
    path = folder / "boxes.json"
    path.write_text(json.dumps(content), "utf-8-sig")
    return read_coco(path, folder)


@pytest.mark.parametrize(("crowd", "expected"), [("0", False), (None, False), ("1", True), (True, True), (1.0, True)])
def test_iscrowd_is_read_as_a_number(tmp_path, crowd, expected):
    assert [example.crowd.tolist() for example in read(tmp_path, document(iscrowd=crowd)).examples] == [[expected]] * 2


def test_ids_as_text_and_as_numbers_are_the_same(tmp_path):
    content = document(category_id="1")
    content["images"][0]["id"] = "1"
    assert [len(example.boxes) for example in read(tmp_path, content).examples] == [1, 1]


@pytest.mark.parametrize("part", ["images", "categories"])
def test_an_id_twice_is_refused(tmp_path, part):
    content = document()
    content[part].append(dict(content[part][0]))
    with pytest.raises(ValueError, match=rf"{part}\[\d\].* has the id 1, as {part}\[0\]"):
        read(tmp_path, content)


@pytest.mark.parametrize("value", [[1], None, 1.5])
def test_an_id_of_another_type_is_named(tmp_path, value):
    with pytest.raises(ValueError, match=r"annotations\[0\] has the image_id"):
        read(tmp_path, document(image_id=value))


def test_ids_of_numpy_are_numbers():
    pytest.importorskip("pycocotools")
    detections = [row | {"image_id": np.int64(row["image_id"]), "category_id": np.int64(1)} for row in results()]
    assert evaluate_coco(document(1, 2), detections)["AP"] == pytest.approx(1)
