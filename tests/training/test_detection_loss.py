"""Targets, mining and losses against the Object Detection API's, on its own encodings and logits."""

import numpy as np
import pytest

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.training.detection_loss import assign_targets, detection_loss, hard_examples, match_anchors

ANCHORS = ssd_anchors((300, 300))


@pytest.fixture(scope="module")
def golden(testdata):
    return np.load(testdata / "golden" / "detection" / "ssdlite_postprocess_loss_golden.npz")


@pytest.fixture(scope="module")
def outputs():
    return {
        "box_encodings": np.random.Generator(np.random.PCG64(1)).normal(0, 1, (2, 1917, 4)).astype(np.float32),
        "class_predictions_with_background": np.random.Generator(np.random.PCG64(2))
        .normal(-4, 1.5, (2, 1917, 91))
        .astype(np.float32),
    }


def padded(boxes, classes):
    """Images with different numbers of objects as one batch."""
    most = max(map(len, boxes))
    truth = {
        "boxes": np.zeros((len(boxes), most, 4), np.float32),
        "classes": np.zeros((len(boxes), most), np.int32),
        "num": np.array([len(each) for each in boxes], np.int32),
    }
    for i, (box, label) in enumerate(zip(boxes, classes, strict=True)):
        truth["boxes"][i, : len(box)] = np.reshape(box, (-1, 4))
        truth["classes"][i, : len(box)] = label
    return truth


@pytest.mark.parametrize("case", ["loss_a", "loss_b"])
def test_equals_the_object_detection_api(golden, outputs, case):
    truth = padded(*([golden[f"{case}/{kind}_{i}"] for i in range(2)] for kind in ("gt_boxes", "gt_classes0")))
    targets = assign_targets(**truth, anchors=ANCHORS, class_count=90)
    np.testing.assert_array_equal(targets.match, golden[f"{case}/match"])
    np.testing.assert_array_equal(np.argmax(targets.classes, -1), golden[f"{case}/cls_target_argmax"])
    np.testing.assert_array_equal(np.sum(targets.classes, -1), 1)
    np.testing.assert_array_equal(np.asarray(targets.match) >= 0, golden[f"{case}/reg_weights"] > 0)
    images, anchors = golden[f"{case}/pos_image_anchor"].T
    genuine = golden[f"{case}/pos_reg_targets"]
    np.testing.assert_allclose(np.asarray(targets.encodings)[images, anchors], genuine, atol=2e-5)

    losses = detection_loss(outputs, truth, ANCHORS)
    for name, key in (("localization", "loc"), ("classification", "cls")):
        np.testing.assert_allclose(losses[name], golden[f"{case}/{name}_loss"], rtol=1e-4)
        np.testing.assert_allclose(losses[f"anchorwise_{name}"], golden[f"{case}/anchorwise_{key}_loss"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(losses["positives"], golden[f"{case}/mined_num_positives"])
    np.testing.assert_array_equal(losses["negatives"], golden[f"{case}/mined_num_negatives"])


def test_objects_claim_their_best_anchor_and_the_first_claim_wins():
    anchors = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0.5, 1, 1]], np.float32)
    small = [0.0, 0.0, 0.1, 0.1]  # IoU 0.04 with its best anchor
    twice = [[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 0.99]]
    match = match_anchors(np.float32([[small, *twice]]), [3], anchors)
    np.testing.assert_array_equal(match, [[0, -1, 1]])
    # Padding claims nothing, and without objects everything is background.
    np.testing.assert_array_equal(match_anchors(np.float32([[small, *twice]]), [0], anchors), [[-1, -1, -1]])
    np.testing.assert_array_equal(match_anchors(np.zeros((1, 0, 4), np.float32), [0], anchors), [[-1, -1, -1]])


def test_an_object_no_anchor_overlaps_takes_the_first_anchor():
    """As in the genuine program, where the arg max of nothing but zeros is 0."""
    anchors = np.array([[0, 0, 0.4, 0.4], [0.1, 0.1, 0.5, 0.5]], np.float32)
    for box in ([0.9, 0.9, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2]):
        np.testing.assert_array_equal(match_anchors(np.float32([[box]]), [1], anchors), [[0, -1]])


def test_mining_keeps_three_negatives_per_positive_and_one_of_equal_boxes():
    boxes = np.zeros((1, 12, 4), np.float32)
    boxes[0, :, 0] = np.arange(12)
    boxes[0, :, 2] = np.arange(12) + 1
    boxes[0, :, 3] = 1
    losses = np.arange(12, 0, -1, dtype=np.float32)[None]
    nothing = np.zeros((1, 12), bool)
    np.testing.assert_array_equal(np.flatnonzero(hard_examples(boxes, losses, nothing)), [0, 1, 2])
    two = nothing.copy()
    two[0, [5, 11]] = True
    np.testing.assert_array_equal(np.flatnonzero(hard_examples(boxes, losses, two)), [0, 1, 2, 3, 4, 5, 6, 11])
    boxes[0, 11] = boxes[0, 0]  # the same box as a worse one's: the positive goes
    np.testing.assert_array_equal(np.flatnonzero(hard_examples(boxes, losses, two)), [0, 1, 2, 5])


def test_no_objects_at_all_is_a_finite_loss(outputs):
    losses = detection_loss(outputs, padded([[], []], [[], []]), ANCHORS)
    assert float(losses["localization"]) == 0
    assert 0 < float(losses["classification"]) < 1e4
    np.testing.assert_array_equal(losses["negatives"], [3, 3])
