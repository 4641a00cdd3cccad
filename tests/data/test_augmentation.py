"""Augmentation of photos: TF-Slim's, statistically, and our own."""

import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras.data.augmentation import AUGMENTATIONS, COLOR_ORDERS, affine, crop_window, distort_color, evaluated, inception


def seeds(count):
    return tf.constant([[7, i] for i in range(count)], tf.int64)


def furthest(a, b):
    """The largest difference between two empirical distribution functions."""
    places = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (a, b)]
    return np.max(np.abs(shares[0] - shares[1]))


def test_crops_are_spread_as_tf_slims():
    """Against the stateful operation TF-Slim calls: the same quantiles of area and aspect."""
    shape = tf.constant([120, 160, 3])
    ours = tf.map_fn(lambda seed: crop_window(shape, seed)[1], seeds(1000), fn_output_signature=tf.int32).numpy()
    tf.random.set_seed(1)

    @tf.function
    def genuine(_):
        return tf.image.sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(0.75, 1.33),
            area_range=(0.05, 1.0),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )[1]

    expected = tf.map_fn(genuine, tf.range(1000), fn_output_signature=tf.int32).numpy()
    for measure in (lambda s: s[:, 0] * s[:, 1] / (120 * 160), lambda s: s[:, 1] / s[:, 0]):
        assert furthest(measure(ours), measure(expected)) < 1.95 * np.sqrt(2 / 1000)  # Kolmogorov-Smirnov, 1 in 1000
    area, aspect = ours[:, 0] * ours[:, 1] / (120 * 160), ours[:, 1] / ours[:, 0]
    assert 0.045 < area.min() < 0.11  # at least a tenth of the image is covered
    assert area.max() > 0.9
    assert 0.72 < aspect.min() < 0.78
    assert 1.25 < aspect.max() < 1.4


def test_each_order_of_colours_is_drawn_and_done_as_named():
    image = tf.random.stateless_uniform((6, 5, 3), [1, 2])
    factors = tf.random.experimental.stateless_split(tf.constant([3, 4], tf.int64), 4)
    results = [distort_color(image, tf.constant(i), tf.constant([3, 4], tf.int64)).numpy() for i in range(4)]
    for steps, result in zip(COLOR_ORDERS, results, strict=True):
        expected = image
        for i, step in enumerate(steps):
            expected = step(expected, seed=factors[i])
        np.testing.assert_allclose(result, np.clip(expected, 0, 1), atol=1e-6)
    names = [[step.func.__name__.removeprefix("stateless_random_") for step in steps] for steps in COLOR_ORDERS]
    assert names == [
        ["brightness", "saturation", "hue", "contrast"],
        ["saturation", "brightness", "contrast", "hue"],
        ["contrast", "hue", "brightness", "saturation"],
        ["hue", "saturation", "contrast", "brightness"],
    ]


def test_the_range_of_each_distortion():
    """Brightness by up to 32/255, hue by a fifth of the circle, saturation and contrast by 0.5 to 1.5."""
    grey = tf.fill((2, 2, 3), 0.5)
    brightness = [float(COLOR_ORDERS[0][0](grey, seed=seed)[0, 0, 0]) - 0.5 for seed in seeds(300)]
    assert 0.95 * 32 / 255 < max(brightness) <= 32 / 255
    assert -32 / 255 <= min(brightness) < -0.95 * 32 / 255
    two = tf.constant([[[0.4] * 3, [0.6] * 3]])
    contrast = [float(tf.reduce_max(COLOR_ORDERS[0][3](two, seed=seed)) - 0.5) / 0.1 for seed in seeds(300)]
    assert 0.5 <= min(contrast) < 0.55
    assert 1.45 < max(contrast) <= 1.5 + 1e-4


def test_inception_flips_every_second_image():
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[None, :, None], (32, 1, 3))
    run = tf.function(lambda seed: inception(tf.constant(ramp), (16, 16), seed))
    outputs = np.stack([run(seed).numpy() for seed in seeds(200)])
    assert outputs.shape == (200, 16, 16, 3)
    assert outputs.min() >= -1
    assert outputs.max() <= 1
    mirrored = outputs[:, :, 0].mean((1, 2)) > outputs[:, :, -1].mean((1, 2))
    assert 70 < mirrored.sum() < 130  # 4 sigma
    np.testing.assert_array_equal(run(seeds(3)[2]), outputs[2])


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_keeps_to_its_promise(name, channels):
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8))
    result = AUGMENTATIONS[name](image, (9, 7), seeds(1)[0])
    assert result.shape == (9, 7, channels)
    assert result.dtype == tf.float32
    assert np.abs(result).max() <= 1 + 1e-6
    again = AUGMENTATIONS[name](image, (9, 7), seeds(1)[0])
    np.testing.assert_array_equal(result, again)


def test_affine_moves_ink_about_but_keeps_it():
    image = np.zeros((28, 28, 1), np.uint8)
    image[9:19, 9:19] = 255
    results = np.stack([affine(tf.constant(image), (28, 28), seed) for seed in seeds(100)])
    ink = (results + 1).sum((1, 2, 3)) / (evaluated(tf.constant(image), (28, 28)).numpy() + 1).sum()
    assert 0.65 < ink.min() < 0.9
    assert 1.1 < ink.max() < 1.5
    y = ((results + 1) * np.arange(28)[:, None, None]).sum((1, 2, 3)) / (results + 1).sum((1, 2, 3))
    assert y.std() > 0.7
    assert abs(y.mean() - 13.5) < 0.7
