"""The confusion matrix against scikit-learn's, to the pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from mnv2_keras.data.drawn_shapes import DrawnShapes
from mnv2_keras.evaluation.segmentation import ConfusionMatrix, evaluate_segmenter


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), classes=st.integers(1, 30), parts=st.integers(1, 4), ignored=st.sampled_from([255, None]))
def test_equals_scikit_learn(seed, classes, parts, ignored):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (parts, 9, 7)).astype(np.uint8)
    if ignored is not None:
        truth[random.uniform(size=truth.shape) < 0.2] = ignored
    predicted = random.integers(0, classes, truth.shape).astype(np.uint8)
    matrix = ConfusionMatrix(classes, ignored)
    for part in zip(truth, predicted, strict=True):
        matrix.update(*part)
    judged = truth != 255
    t, p = truth[judged], predicted[judged]
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(t, p, labels=range(classes)))
    assert matrix.pixel_accuracy == pytest.approx(accuracy_score(t, p))
    present = sorted({*t.tolist(), *p.tolist()})
    assert matrix.mean_iou == pytest.approx(jaccard_score(t, p, labels=present, average="macro"))
    np.testing.assert_allclose(matrix.iou[present], jaccard_score(t, p, labels=present, average=None))
    assert np.isnan(np.delete(matrix.iou, present)).all()


def test_streams_past_32_bits():
    matrix = ConfusionMatrix(2)
    matrix.counts[1, 1] = 2**40
    matrix.update(np.ones((3, 3), np.uint8), np.ones((3, 3), np.uint8))
    assert matrix.counts[1, 1] == 2**40 + 9


def test_nothing_judged():
    matrix = ConfusionMatrix(3)
    matrix.update(np.full((4, 4), 255), np.zeros((4, 4)))
    assert np.isnan(matrix.mean_iou)
    assert np.isnan(matrix.pixel_accuracy)
    assert matrix.as_dict()["mean_iou"] is None
    assert matrix.as_dict(["a", "b", "c"])["iou"] == {"a": None, "b": None, "c": None}


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "expected the same"),
        (np.full((2, 2), 3), np.zeros((2, 2)), "the true mask has the label 3: expected 0 to 2"),
        (np.zeros((2, 2)), np.full((2, 2), -1), "the predicted mask has the label -1"),
    ],
)
def test_bad_masks_count_nothing(truth, predicted, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(truth, predicted)
    assert not matrix.counts.any()
    with pytest.raises(ValueError, match="classes is 0"):
        ConfusionMatrix(0)


def test_plot(tmp_path):
    matrix = ConfusionMatrix(3)
    matrix.update(np.uint8([0, 0, 1, 1, 2]), np.uint8([0, 1, 1, 1, 0]))
    path = matrix.plot(tmp_path / "deep" / "confusion.png", ["sky", "tree", "house"])
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 10


def test_evaluate_goes_photo_by_photo():
    class Perfect:
        classes = 4

        def __init__(self, pairs):
            self.answers = {photo.tobytes(): mask for photo, mask in pairs}

        def segment(self, photo):
            return type("Found", (), {"labels": self.answers[photo.tobytes()]})

    pairs, seen = DrawnShapes(5, 33), []
    matrix = evaluate_segmenter(Perfect(pairs), pairs, seen.append)
    assert matrix.mean_iou == 1
    assert matrix.counts.sum() == 5 * 33 * 33
    assert seen == [1, 2, 3, 4, 5]
