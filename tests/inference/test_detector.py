"""`Detector` on a small network: photos, labels, and networks that are not detectors."""

import keras
import numpy as np
import pytest
from training_tasks import small_detector

from mnv2_keras import build_ssdlite_mobilenetv2
from mnv2_keras.inference.detector import Detector


@pytest.fixture(scope="module")
def model():
    return small_detector()


def test_detections_of_a_photo(model, testdata):
    detector = Detector(model, labels=["circle", "square", "triangle"], score_threshold=0.0, max_detections=5)
    result = detector.detect(testdata / "images" / "cat.bmp")
    assert len(result.detections) == 5
    scores = [detection.score for detection in result.detections]
    assert scores == sorted(scores, reverse=True)
    assert result.picture().size == result.photo.shape[1::-1]
    assert result.as_dict()["detections"][0]["label"] == result.detections[0].label
    with pytest.raises(ValueError, match="a photo is uint8"):
        detector.detect(np.zeros((5, 5)))


def test_labels_in_the_folder_of_the_weights_need_their_number(model, tmp_path):
    (tmp_path / "labels.txt").write_text("of\nsomething\nelse\nhere\n")
    model.save(tmp_path / "other.keras")
    labels = Detector(tmp_path / "other.keras", "keras").labels
    assert labels == ("class 1", "class 2", "class 3"), "four lines are not its labels"


def test_models_that_are_not_detectors_of_one_size_are_refused():
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
