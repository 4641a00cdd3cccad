"""`Detector` on a small network: photos, labels, its command, and networks that are no detectors."""

import json

import keras
import numpy as np
import pytest
from training_tasks import small_detector
from typer.testing import CliRunner

from mnv2_keras import build_ssdlite_mobilenetv2
from mnv2_keras.cli.main import command_line
from mnv2_keras.inference.detector import Detector


@pytest.fixture(scope="module")
def model():
    return small_detector()


def test_the_detector_and_its_command(model, testdata, tmp_path):
    detector = Detector(model, labels=["circle", "square", "triangle"], score_threshold=0.0, max_detections=5)
    photo = testdata / "images" / "cat.bmp"
    result = detector.detect(photo)
    assert len(result.detections) == 5
    scores = [detection.score for detection in result.detections]
    assert scores == sorted(scores, reverse=True)
    assert result.picture().size == result.photo.shape[1::-1]
    assert result.as_dict()["detections"][0]["label"] == result.detections[0].label
    with pytest.raises(ValueError, match="a photo is uint8"):
        detector.detect(np.zeros((5, 5)))

    folder = tmp_path / "weights"
    folder.mkdir()
    model.save(folder / "detector.keras")
    (folder / "labels.txt").write_text("circle\nsquare\ntriangle\n")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "labels.txt").write_text("of\nsomething\nelse\nhere\n")
    model.save(tmp_path / "other.keras")
    assert Detector(tmp_path / "other.keras").labels == ("class 1", "class 2", "class 3"), (
        "four lines are not its labels"
    )
    arguments = ["--weights", str(folder / "detector.keras"), "--score", "0", "--top", "3", "-o", str(tmp_path / "out")]
    runner = CliRunner()
    done = runner.invoke(command_line(), ["detect", str(photo), str(tmp_path / "broken.jpg"), "--json", *arguments])
    assert done.exit_code == 1, "one photo could not be used"
    (line,) = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    row = json.loads(line)
    labels = [detection.label for detection in result.detections[:3]]
    assert [detection["label"] for detection in row["detections"]] == labels
    assert (tmp_path / "out" / "cat_detections.png").is_file()
    assert json.loads(done.stdout.splitlines()[0]) == row
    assert runner.invoke(command_line(), ["detect", str(photo), *arguments]).exit_code == 0


def test_models_that_are_no_detectors_of_one_size_are_refused():
    open_size = build_ssdlite_mobilenetv2(0.1, (None, None, 3), classes=2)
    with pytest.raises(ValueError, match="any size"):
        Detector(open_size)
    with pytest.raises(ValueError, match="no detector"):
        Detector(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))


def test_weights_that_are_nan_are_refused(model):
    broken = keras.models.clone_model(model)
    layer = broken.get_layer("BoxPredictor_0-ClassPredictor")
    layer.bias.assign(np.full(layer.bias.shape, np.nan))
    with pytest.raises(ValueError, match="diverged"):
        Detector(broken).detect(np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(ValueError, match="2 labels were given for 3"):
        Detector(model, labels=["a", "b"])
