"""COCO's metrics: by hand, against pycocotools itself, and results that do not belong to the data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mnv2_keras.cli.main import command_line
from mnv2_keras.evaluation.coco import METRICS, evaluate_coco

PROGRAMS = Path(__file__).parents[1] / "programs"


def documents():
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in (1, 2)],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]},
            {"image_id": 2, "category_id": 2, "bbox": [20, 20, 50, 50]},
            {"image_id": 2, "category_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    }
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9},
        {"image_id": 2, "category_id": 2, "bbox": [20, 20, 50, 34], "score": 0.8},  # IoU 0.68
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 80, 80], "score": 0.7},  # in the crowd: not counted
    ]
    return truth, rows


def test_metrics_by_hand_and_by_pycocotools_itself(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, rows = documents()
    metrics = evaluate_coco(truth, rows)
    assert tuple(metrics) == METRICS
    # The second box passes the thresholds 0.50, 0.55, 0.60 and 0.65 of ten.
    np.testing.assert_allclose([metrics["AP"], metrics["AP50"], metrics["AP75"]], [0.7, 1.0, 0.5], atol=1e-6)

    complete = [
        {"id": i, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3]} | box for i, box in enumerate(truth["annotations"], 1)
    ]
    truth["annotations"] = complete
    for name, content in (("truth", truth), ("results", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    reference = COCO(str(tmp_path / "truth.json"))
    run = COCOeval(reference, reference.loadRes(str(tmp_path / "results.json")), "bbox")
    for step in (run.evaluate, run.accumulate, run.summarize):
        step()
    metrics = evaluate_coco(tmp_path / "truth.json", tmp_path / "results.json")
    np.testing.assert_array_equal(list(metrics.values()), run.stats)
    first = evaluate_coco(truth, rows, limit=1)
    np.testing.assert_allclose(first["AP"], 1.0)


def test_no_detections_and_no_objects():
    truth, rows = documents()
    assert evaluate_coco(truth, [])["AP"] == 0
    assert evaluate_coco(truth | {"annotations": []}, rows)["AP"] == -1


def test_results_of_another_data_set_are_refused(tmp_path):
    truth, rows = documents()
    with pytest.raises(ValueError, match="another data set"):
        evaluate_coco(truth, [rows[0] | {"image_id": 9}])
    with pytest.raises(FileNotFoundError, match="no results file"):
        evaluate_coco(truth, tmp_path / "none.json")
    short = [rows[0], rows[1] | {"bbox": [1, 2, 3]}]
    with pytest.raises(ValueError, match=r"results\[1\] has the bbox \[1, 2, 3\]: expected x, y, width and height"):
        evaluate_coco(truth, short)
    with pytest.raises(ValueError, match=r"annotations\[0\] has the bbox \[1\]"):
        evaluate_coco(truth | {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1]}]}, rows)
    for content, message in (
        ("[{", "not a complete JSON"),
        ('[{"image_id": 1}]', "not a COCO results file"),
        (json.dumps(short), r"bad.json: results\[1\] has the bbox"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            evaluate_coco(truth, tmp_path / "bad.json")


def test_the_command_prints_a_table(tmp_path):
    truth, rows = documents()
    for name, content in (("truth", truth), ("results", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    arguments = ["--annotations", str(tmp_path / "truth.json"), "--results", str(tmp_path / "results.json")]
    done = CliRunner().invoke(command_line(), ["evaluate", "detection", *arguments], catch_exceptions=False)
    assert re.search(r"AP50\W+1\.0000", done.stdout)
    assert re.search(r"AP_small\W+absent", done.stdout)


def test_the_command_judges_a_results_file_without_tensorflow(tmp_path):
    truth, rows = documents()
    for name, content in (("truth", truth), ("results", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    arguments = ["--annotations", str(tmp_path / "truth.json"), "--results", str(tmp_path / "results.json"), "--json"]
    command = [sys.executable, PROGRAMS / "mnv2_without_tensorflow.py", "evaluate", "detection", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # which names what was imported, and is slow
    assert json.loads(done.stdout) == evaluate_coco(truth, rows)
