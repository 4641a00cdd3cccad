"""What training does to a photo before the network sees it; every draw comes from a seed, so any epoch can be had again.

Each function takes one uint8 image (H, W, C), a size (height, width) and a seed (two int64), and returns float32
(height, width, C) in [-1, 1]. They run inside `tf.data`.
"""

import math
from types import MappingProxyType

import tensorflow as tf

from mnv2_keras.preprocessing import preprocess_image

#: TF-Slim's `distorted_bounding_box_crop`.
AREA, ASPECT = (0.05, 1.0), (0.75, 1.33)
_RESIZES = (
    tf.raw_ops.ResizeBilinear,
    tf.raw_ops.ResizeNearestNeighbor,
    tf.raw_ops.ResizeBicubic,
    tf.raw_ops.ResizeArea,
)


def _brightness(image, seed):
    return tf.image.stateless_random_brightness(image, 32 / 255, seed)


def _saturation(image, seed):
    return tf.image.stateless_random_saturation(image, 0.5, 1.5, seed)


def _hue(image, seed):
    return tf.image.stateless_random_hue(image, 0.2, seed)


def _contrast(image, seed):
    return tf.image.stateless_random_contrast(image, 0.5, 1.5, seed)


#: TF-Slim's four orders of colour distortion.
COLOR_ORDERS = (
    (_brightness, _saturation, _hue, _contrast),
    (_saturation, _brightness, _contrast, _hue),
    (_contrast, _hue, _brightness, _saturation),
    (_hue, _saturation, _contrast, _brightness),
)


def split_seed(seed, count: int):
    """Seeds for `count` draws that know nothing of each other, (count, 2)."""
    return tf.random.experimental.stateless_split(seed, count)


def crop_window(shape, seed):
    """A random part of the image: 5 to 100 % of its area, 0.75 to 1.33 times as wide as high.

    Source: TF-Slim `inception_preprocessing.distorted_bounding_box_crop`.

    Args:
        shape: (H, W, C) of the image, a tensor.
        seed: two int64.

    Returns:
        begin and size, each int32 (3,), as `tf.slice` takes them. The whole image when a hundred tries found none.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=ASPECT,
        area_range=AREA,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return begin, size


def distort_color(image, order, seed):
    """Brightness, saturation, hue and contrast, in one of TF-Slim's four orders, and the result clipped to [0, 1].

    Source: TF-Slim `inception_preprocessing.distort_color`, `fast_mode=False`.

    Args:
        image: float32 (H, W, 3) in [0, 1].
        order: int32 from 0 to 3, an index of `COLOR_ORDERS`.
        seed: two int64.
    """
    seeds = split_seed(seed, 4)

    def distorted(steps):
        def run():
            result = image
            for i, step in enumerate(steps):
                result = step(result, seeds[i])
            return result

        return run

    return tf.clip_by_value(tf.switch_case(order, [distorted(steps) for steps in COLOR_ORDERS]), 0.0, 1.0)


def inception(image, size: tuple[int, int], seed):
    """Crop, resize by one of four methods, flip, distort colours.

    Source: TF-Slim `inception_preprocessing.preprocess_for_train`, `fast_mode=False`: all it has. Its own default is
    `fast_mode=True`, bilinear and two of the distortions; the paper does not say which of them it used.
    """
    seeds = split_seed(seed, 5)
    channels = image.shape[-1]
    image = tf.slice(image, *crop_window(tf.shape(image), seeds[0]))
    image = tf.image.convert_image_dtype(image, tf.float32)
    image.set_shape((None, None, channels))
    method = tf.random.stateless_uniform((), seeds[1], 0, len(_RESIZES), tf.int32)
    image = tf.switch_case(
        method, [lambda resize=resize: resize(images=image[None], size=size)[0] for resize in _RESIZES]
    )
    image = tf.image.stateless_random_flip_left_right(image, seeds[2])
    if channels == 3:  # grey has no colours to distort
        order = tf.random.stateless_uniform((), seeds[3], 0, len(COLOR_ORDERS), tf.int32)
        image = distort_color(image, order, seeds[4])
    image = (image - 0.5) * 2.0
    image.set_shape((*size, channels))
    return image


def flip(image, size: tuple[int, int], seed):
    """A random crop of the photo (30 % of its area and more) and a flip: enough to fine-tune on a few hundred photos."""
    seeds = split_seed(seed, 2)
    channels = image.shape[-1]
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seeds[0],
        min_object_covered=0.1,
        aspect_ratio_range=ASPECT,
        area_range=(0.3, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.slice(image, begin, extent)
    image.set_shape((None, None, channels))
    return tf.image.stateless_random_flip_left_right(evaluated(image, size, central_fraction=1.0), seeds[1])


#: Of `affine`: degrees, factor, slope, and part of the side.
ROTATION, SCALE, SHEAR, SHIFT = 15.0, (0.85, 1.15), 0.2, 0.08


def affine(image, size: tuple[int, int], seed):
    """Turn, scale, slant and shift a little: what handwriting does. The background goes on at the edges."""
    draws = tf.random.stateless_uniform((5,), seed, -1.0, 1.0)
    height, width = size
    angle = draws[0] * (ROTATION * math.pi / 180)
    scale = (SCALE[0] + SCALE[1]) / 2 + draws[1] * (SCALE[1] - SCALE[0]) / 2
    cos, sin, shear = tf.cos(angle) / scale, tf.sin(angle) / scale, draws[2] * SHEAR
    # Output (x, y) shows input (a x + b y + c, d x + e y + f): turned about the centre, then shifted.
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
    """TF-Slim's evaluation preprocessing, nothing random; the seed is for others. Grey stays grey."""
    del seed
    channels = image.shape[-1]
    return preprocess_image(image, size, central_fraction=central_fraction)[..., :channels]


#: A recipe's `augmentation`, by name.
AUGMENTATIONS = MappingProxyType({"inception": inception, "flip": flip, "affine": affine, "none": evaluated})
