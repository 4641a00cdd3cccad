"""Augmentation of images with boxes: mirrored, and cropped as the published SSD."""

import numpy as np
import tensorflow as tf

from mnv2_keras.training import detection_augmentation as augmentation


def test_half_the_images_are_mirrored():
    image, boxes = np.arange(12).reshape(1, 4, 3), np.float32([[0.1, 0.2, 0.3, 0.6]])
    mirrored = 0
    for number in range(200):
        turned, moved, _ = augmentation.random_horizontal_flip(
            tf.constant(image), tf.constant(boxes), tf.constant([0]), [0, number]
        )
        if np.array_equal(turned, image[:, ::-1]):
            mirrored += 1
            np.testing.assert_allclose(moved, [[0.1, 0.4, 0.3, 0.8]], atol=1e-6)
        else:
            np.testing.assert_array_equal(moved, boxes)
    assert 70 < mirrored < 130


def test_a_crop_by_hand():
    image = tf.reshape(tf.range(100), (10, 10, 1))
    boxes = np.float32([[0.4, 0.4, 0.8, 0.8], [0, 0, 0.6, 0.6], [0, 0, 0.2, 0.2]])
    cut, left, classes = augmentation.crop_to_window(image, boxes, tf.constant([5, 6, 7]), tf.constant([0.5, 0.5, 1, 1]), 0.5)
    np.testing.assert_array_equal(cut[..., 0], np.arange(100).reshape(10, 10)[5:, 5:])
    np.testing.assert_allclose(left, [[0, 0, 0.6, 0.6]], atol=1e-6)  # of the second only a thirty-sixth is inside
    assert classes.numpy().tolist() == [5]
    _, left, classes = augmentation.crop_to_window(image, boxes, tf.constant([5, 6, 7]), tf.constant([0.5, 0.5, 1, 1]), 0.0)
    assert classes.numpy().tolist() == [5, 6]


def test_crops_keep_to_the_published_ranges():
    image, boxes = tf.zeros((100, 100, 3)), tf.constant([[0.3, 0.3, 0.7, 0.7]])
    uncut = 0
    for number in range(60):
        cut, left, classes = augmentation.ssd_random_crop(image, boxes, tf.constant([0]), [0, number])
        height, width = cut.shape[:2]
        uncut += (height, width) == (100, 100)
        assert 0.08 <= height * width / 1e4 <= 1
        assert 0.45 <= width / height <= 2.2
        assert len(left) == len(classes) <= 1
        assert np.min(left, initial=0) >= 0
        assert np.max(left, initial=0) <= 1 + 1e-6
    assert 1 <= uncut <= 40
