"""`mnv2 detect`: its files, its table and its exit codes."""

import json

import pytest
from command_line import run
from training_tasks import small_detector

from mnv2_keras.inference.detector import Detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A detector with its labels next to it."""
    folder = tmp_path_factory.mktemp("detector")
    small_detector().save(folder / "detector.keras")
    (folder / "labels.txt").write_text("circle\nsquare\ntriangle\n")
    return folder / "detector.keras"


def test_boxes_pictures_and_labels_of_photos(converted_here, weights, shared_cache, testdata, tmp_path, monkeypatch):
    photo = testdata / "images" / "cat.bmp"
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    arguments = ["--weights", weights, "--score", "0", "--top", "3", "-o", tmp_path / "out"]
    result = run(monkeypatch, "detect", photo, tmp_path / "broken.jpg", "--json", *arguments)
    assert result.exit_code == 1, "one photo could not be used"
    (line,) = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    row = json.loads(line)
    with Detector(weights, score_threshold=0.0, max_detections=5) as detector:
        labels = [detection.label for detection in detector.detect(photo).detections[:3]]
    assert [detection["label"] for detection in row["detections"]] == labels
    assert (tmp_path / "out" / "cat_detections.png").is_file()
    assert json.loads(result.stdout.splitlines()[0]) == row
    assert run(monkeypatch, "detect", photo, *arguments).exit_code == 0
