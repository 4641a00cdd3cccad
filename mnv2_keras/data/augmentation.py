"""Augmentation of photos for the training of classifiers; every draw comes from a seed, so any epoch can be repeated.

Each function takes one uint8 image (H, W, C), a size (height, width) and a seed (two int64), and returns float32
(height, width, C) in [-1, 1]. They run inside `tf.data`.
"""

import math
from functools import partial
from types import MappingProxyType

import tensorflow as tf

from mnv2_keras.preprocessing import preprocess_image

_RESIZES = (tf.raw_ops.ResizeBilinear, tf.raw_ops.ResizeNearestNeighbor, tf.raw_ops.ResizeBicubic, tf.raw_ops.ResizeArea)
_BRIGHTNESS = partial(tf.image.stateless_random_brightness, max_delta=32 / 255)
_SATURATION = partial(tf.image.stateless_random_saturation, lower=0.5, upper=1.5)
_HUE = partial(tf.image.stateless_random_hue, max_delta=0.2)
_CONTRAST = partial(tf.image.stateless_random_contrast, lower=0.5, upper=1.5)
#: TF-Slim's four orders of colour distortion.
COLOR_ORDERS = (
    (_BRIGHTNESS, _SATURATION, _HUE, _CONTRAST),
    (_SATURATION, _BRIGHTNESS, _CONTRAST, _HUE),
    (_CONTRAST, _HUE, _BRIGHTNESS, _SATURATION),
    (_HUE, _SATURATION, _CONTRAST, _BRIGHTNESS),
)


def split_seed(seed, count: int):
    """Seeds for `count` independent draws, (count, 2)."""
    return tf.random.experimental.stateless_split(seed, count)


def crop_window(shape, seed, area: tuple[float, float] = (0.05, 1.0)):
    """A random part of the image: 5 to 100 % of its area, 0.75 to 1.33 times as wide as high.

    Source: TF-Slim `inception_preprocessing.distorted_bounding_box_crop`.

    Args:
        shape: (H, W, C) of the image, a tensor.
        seed: two int64.
        area: range of the part's area, in place of TF-Slim's.

    Returns:
        begin and size, each int32 (3,), for `tf.slice`. The entire image if a hundred tries fail.
    """
    return tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=(0.75, 1.33),
        area_range=area,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )[:2]


def distort_color(image, order, seed):
    """Brightness, saturation, hue and contrast, in one of TF-Slim's four orders; the result is clipped to [0, 1].

    Source: TF-Slim `inception_preprocessing.distort_color`, `fast_mode=False`.

    Args:
        image: float32 (H, W, 3) in [0, 1].
        order: int32 from 0 to 3, an index of `COLOR_ORDERS`.
        seed: two int64.
    """
    seeds = split_seed(seed, 4)

    def distorted(steps):
        result = image
        for i, step in enumerate(steps):
            result = step(result, seed=seeds[i])
        return result

    return tf.clip_by_value(tf.switch_case(order, [partial(distorted, steps) for steps in COLOR_ORDERS]), 0.0, 1.0)


def inception(image, size: tuple[int, int], seed):
    """Crop, resize by one of four methods, mirror, distort colours.

    Source: TF-Slim `inception_preprocessing.preprocess_for_train`, `fast_mode=False`, in full. Its default is `fast_mode=True`,
    bilinear and two of the distortions; the paper does not say which one it used.
    """
    seeds = split_seed(seed, 5)
    channels = image.shape[-1]
    image = tf.slice(image, *crop_window(tf.shape(image), seeds[0]))
    image = tf.image.convert_image_dtype(image, tf.float32)
    image.set_shape((None, None, channels))
    method = tf.random.stateless_uniform((), seeds[1], 0, len(_RESIZES), tf.int32)
    image = tf.switch_case(method, [partial(resize, images=image[None], size=size) for resize in _RESIZES])[0]
    image = tf.image.stateless_random_flip_left_right(image, seeds[2])
    if channels == 3:  # grey has no colours
        order = tf.random.stateless_uniform((), seeds[3], 0, len(COLOR_ORDERS), tf.int32)
        image = distort_color(image, order, seeds[4])
    image = (image - 0.5) * 2.0
    image.set_shape((*size, channels))
    return image


def flip(image, size: tuple[int, int], seed):
    """A random crop of the photo (at least 30 % of its area), mirrored or not: enough to fine-tune on a few hundred photos."""
    seeds, channels = split_seed(seed, 2), image.shape[-1]
    image = tf.slice(image, *crop_window(tf.shape(image), seeds[0], (0.3, 1.0)))
    image.set_shape((None, None, channels))
    return tf.image.stateless_random_flip_left_right(evaluated(image, size, central_fraction=1.0), seeds[1])


#: Of `affine`: degrees, factor, slope, and part of the side.
ROTATION, SCALE, SHEAR, SHIFT = 15.0, (0.85, 1.15), 0.2, 0.08


def affine(image, size: tuple[int, int], seed):
    """Rotate, scale, shear and shift slightly, for handwriting. The background continues at the edges."""
    draws = tf.random.stateless_uniform((5,), seed, -1.0, 1.0)
    height, width = size
    angle = draws[0] * (ROTATION * math.pi / 180)
    scale = (SCALE[0] + SCALE[1]) / 2 + draws[1] * (SCALE[1] - SCALE[0]) / 2
    cos, sin, shear = tf.cos(angle) / scale, tf.sin(angle) / scale, draws[2] * SHEAR
    # Output (x, y) shows input (a x + b y + c, d x + e y + f): rotated about the centre, then shifted.
    a, b, d, e = cos, shear * cos - sin, sin, shear * sin + cos
    x, y = (width - 1) / 2, (height - 1) / 2
    c = x - a * x - b * y + draws[3] * SHIFT * width
    f = y - d * x - e * y + draws[4] * SHIFT * height
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=evaluated(image, size)[None],
        transforms=tf.stack([a, b, c, d, e, f, 0.0, 0.0])[None],
        output_shape=size,
        fill_value=-1.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]


def evaluated(image, size: tuple[int, int], seed=None, central_fraction: float = 0.875):
    """TF-Slim's preprocessing for evaluation; nothing is random, and the seed is ignored. Grey stays grey."""
    del seed
    return preprocess_image(image, size, central_fraction=central_fraction)[..., : image.shape[-1]]


#: A recipe's `augmentation`, by name.
AUGMENTATIONS = MappingProxyType({"inception": inception, "flip": flip, "affine": affine, "none": evaluated})
