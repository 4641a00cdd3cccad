"""Drawn shapes: image, boxes and mask of one picture agree, and a seed gives one picture."""

import numpy as np
import pytest

from mnv2_keras.data.drawn_shapes import SHAPE_NAMES, DrawnShapes, draw_on_blotches, draw_on_gradient, draw_shapes, drawn_shapes


@pytest.mark.parametrize("draw", [draw_on_gradient, draw_on_blotches])
def test_boxes_and_mask_are_of_one_picture(draw):
    """A box holds its shape tightly: only a later shape hides a part of it."""
    for seed in range(40):
        picture = draw(seed, 64)
        assert set(np.unique(picture.mask)) <= {0, *(picture.classes + 1)}
        outside = np.ones((64, 64), bool)
        for box in np.rint(picture.boxes * 64).astype(int):
            outside[box[0] : box[2], box[1] : box[3]] = False
        assert not picture.mask[outside].any()
        ymin, xmin, ymax, xmax = np.rint(picture.boxes[-1] * 64).astype(int)
        last = picture.mask[ymin:ymax, xmin:xmax] == picture.classes[-1] + 1
        assert all(last[edge].any() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1]))


def test_boxes_are_valid_and_the_same_for_a_seed():
    one, again = draw_shapes(5, 64), draw_shapes(5, 64)
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.boxes, again.boxes)
    assert not np.array_equal(one.image, draw_shapes(6, 64).image)
    data, held_out = drawn_shapes(50, 48), drawn_shapes(50, 48, held_out=True)
    assert len(data.examples) == len(list(data.examples)) == 50
    assert not {example.number for example in data.examples} & {example.number for example in held_out.examples}
    classes = np.concatenate([example.classes for example in data.examples])
    assert set(classes.tolist()) == {0, 1, 2}
    for example in data.examples:
        assert 1 <= len(example.boxes) <= 4
        assert example.boxes.min() >= 0
        assert example.boxes.max() <= 1
        assert (example.boxes[:, 2:] > example.boxes[:, :2]).all()


def test_masks_hold_all_shapes_and_are_the_same_for_a_seed():
    shapes = DrawnShapes(60, 65)
    pictures = list(shapes)
    assert len(pictures) == len(shapes) == 60
    for picture, mask in pictures:
        assert picture.shape == (65, 65, 3)
        assert picture.dtype == mask.dtype == np.uint8
        assert mask.max() < len(SHAPE_NAMES)
    np.testing.assert_array_equal(pictures[5][0], shapes.draw(5)[0])
    assert not np.array_equal(pictures[5][0], DrawnShapes(60, 65, seed=1).draw(5)[0])
    shares = np.bincount(np.concatenate([mask.ravel() for _, mask in pictures])) / (60 * 65 * 65)
    assert (shares > 0.03).all()
