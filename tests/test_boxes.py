"""Anchors, the box code, overlaps and suppression, against other implementations and by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnv2_keras.boxes import decode_boxes, encode_boxes, intersection_over_union, ssd_anchors, suppress


def random_boxes(rng, count):
    low, size = rng.uniform(0, 0.8, (count, 2)), rng.uniform(0.02, 0.6, (count, 2))
    return np.concatenate([low, low + size], -1).astype(np.float32)


def test_anchors_of_an_oblong_image():
    anchors = ssd_anchors((150, 300, 3))
    assert len(anchors) == 3 * 10 * 19 + 6 * (5 * 10 + 3 * 5 + 2 * 3 + 1 * 2 + 1 * 1)
    height, width = (anchors[0, 2:] - anchors[0, :2]).tolist()
    # A tenth of the shorter side in both directions.
    np.testing.assert_allclose([height * 150, width * 300], [15, 15], rtol=1e-5)
    centre = (anchors[0, :2] + anchors[0, 2:]) / 2
    np.testing.assert_allclose(centre, [0.5 / 10, 0.5 / 19], rtol=1e-5)


def test_anchors_are_not_clipped():
    anchors = ssd_anchors((300, 300))
    assert anchors.min() < 0
    np.testing.assert_allclose(anchors.max(), 1.44, atol=0.01)


@pytest.mark.parametrize("shape", [(300,), (0, 300), (None, None, 3), "300", 300])
def test_anchors_need_a_size(shape):
    with pytest.raises(ValueError, match="input_shape is"):
        ssd_anchors(shape)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_code_is_undone(seed):
    rng = np.random.default_rng(seed)
    boxes, anchors = random_boxes(rng, 20), random_boxes(rng, 20)
    np.testing.assert_allclose(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, atol=2e-5)


def test_the_code_by_hand():
    anchor, box = np.float32([[0.2, 0.2, 0.6, 0.4]]), np.float32([[0.3, 0.2, 0.7, 0.6]])
    expected = [[10 * 0.1 / 0.4, 10 * 0.1 / 0.2, 0, 5 * np.log(2)]]
    np.testing.assert_allclose(encode_boxes(box, anchor), expected, atol=1e-5)


def test_overlaps_equal_pycocotools():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    boxes, others = random_boxes(rng, 30), random_boxes(rng, 20)

    def xywh(b):
        return np.stack([b[:, 1], b[:, 0], b[:, 3] - b[:, 1], b[:, 2] - b[:, 0]], -1).astype(np.float64)

    theirs = mask.iou(xywh(boxes), xywh(others), [0] * 20)
    np.testing.assert_allclose(intersection_over_union(boxes, others), theirs, atol=1e-5)


def test_boxes_without_area_overlap_nothing():
    flat = np.float32([[0.5, 0.5, 0.5, 0.9], [0.2, 0.2, 0.2, 0.2]])
    whole = np.float32([[0, 0, 1, 1], [0.2, 0.2, 0.2, 0.2]])
    np.testing.assert_array_equal(intersection_over_union(flat, whole), 0)


def plainly(boxes, scores, wanted, max_per_class, max_total, iou_threshold):
    """The same by the definition: each class by itself, one box after the other."""
    overlaps = np.asarray(intersection_over_union(boxes, boxes))
    found = []
    for label, row in enumerate(scores):
        kept = []
        for i in sorted(range(len(row)), key=lambda i: (-row[i], i)):
            if row[i] == -np.inf or len(kept) == max_per_class:
                break
            if all(overlaps[i, j] <= iou_threshold for j in kept):
                kept.append(i)
        found += [(-row[i], label, rank, i) for rank, i in enumerate(kept) if wanted[i]]
    return [(label, i) for _, label, _, i in sorted(found)[:max_total]]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([1, 5, 40]),
)
def test_suppression_is_greedy_and_ties_go_by_class_and_place(seed, classes, iou, max_per_class, max_total):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 60)
    scores = rng.integers(0, 12, (classes, 60)).astype(np.float32) / 12  # many are equal
    scores[rng.uniform(size=scores.shape) < 0.2] = -np.inf
    wanted = rng.uniform(size=60) < 0.8
    found = suppress(boxes[None], scores[None], wanted[None], max_per_class, max_total, iou)
    count = int(found["num"][0])
    pairs = list(zip(found["classes"][0, :count].numpy(), found["indices"][0, :count].numpy(), strict=True))
    assert pairs == plainly(boxes, scores, wanted, max_per_class, max_total, iou)
    assert not np.any(found["scores"][0, count:]), "zero after the last one"
    np.testing.assert_array_equal(found["scores"][0, :count], [scores[pair] for pair in pairs])


def test_it_looks_further_where_the_best_are_all_the_same():
    """4,000 views of one thing hide the second thing from the first look."""
    boxes = np.tile(np.float32([[0, 0, 0.5, 0.5]]), (4001, 1))
    boxes[4000] = [0.5, 0.5, 1, 1]
    scores = np.linspace(1, 0.5, 4001, dtype=np.float32)[None]
    found = suppress(boxes[None], scores[None], np.ones((1, 4001), bool), 100, 10, 0.6)
    assert found["num"].numpy().tolist() == [2]
    assert found["indices"][0, :2].numpy().tolist() == [0, 4000]
