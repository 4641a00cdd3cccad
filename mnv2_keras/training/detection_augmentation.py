"""Augmentation of images with boxes in training: the flip and the crop of the published recipe.

Source: Object Detection API `core/preprocessor.py`, `random_horizontal_flip` and `ssd_random_crop`.

Both take and return an image (H, W, C), boxes float32 (N, 4) as ymin, xmin, ymax, xmax in parts of the image, and classes (N,);
their `seed`, two integers, gives all draws.
"""

import tensorflow as tf

from mnv2_keras.boxes import area

#: One of these is drawn for each image: how much of some object the crop must show.
LEAST_COVERED = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
ASPECT_RATIOS, AREAS = (0.5, 2.0), (0.1, 1.0)
#: The part of the images that are not cropped.
UNCROPPED = 0.15


def random_horizontal_flip(image, boxes, classes, seed):
    """Mirror every second image."""

    def flipped():
        ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
        return tf.reverse(image, [1]), tf.stack([ymin, 1 - xmax, ymax, 1 - xmin], axis=-1)

    image, boxes = tf.cond(tf.random.stateless_uniform([], seed) < 0.5, flipped, lambda: (image, boxes))
    return image, boxes, classes


def crop_to_window(image, boxes, classes, window, least_inside):
    """Cut an image at a window, a box (4,); an object stays when enough of it is inside, and its box is cut with the image.

    `least_inside` is the part of an object's box that must be inside; 0 takes all objects that are partly inside.

    Source: `preprocessor._strict_random_crop_image`.
    """
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    ymin, xmin, ymax, xmax = (
        tf.cast(tf.round(side * length), tf.int32) for side, length in zip(tf.unstack(window), [height, width] * 2, strict=True)
    )
    low, high = tf.maximum(boxes[:, :2], window[:2]), tf.minimum(boxes[:, 2:], window[2:])
    common = tf.reduce_prod(tf.maximum(high - low, 0.0), axis=-1)
    stays = tf.reduce_all(high > low, axis=-1) & (tf.math.divide_no_nan(common, area(boxes)) >= least_inside)
    size = tf.tile(window[2:] - window[:2], [2])
    cut = (tf.concat([low, high], axis=-1) - tf.tile(window[:2], [2])) / size
    return image[ymin:ymax, xmin:xmax], tf.boolean_mask(cut, stays), tf.boolean_mask(classes, stays)


def ssd_random_crop(image, boxes, classes, seed):
    """Cut most images at a random window of 0.1 to 1 of their area, so that objects come in all sizes and partly hidden."""
    seeds = tf.random.split(seed, 3)
    drawn = tf.random.stateless_uniform([], seeds[0], 0, len(LEAST_COVERED), tf.int32)
    least_covered = tf.gather(tf.constant(LEAST_COVERED), drawn)

    def cropped():
        _, _, window = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.clip_by_value(boxes, 0.0, 1.0)[None],
            seeds[1],
            min_object_covered=least_covered,
            aspect_ratio_range=ASPECT_RATIOS,
            area_range=AREAS,
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return crop_to_window(image, boxes, classes, window[0, 0], least_covered)

    # As in the original program, an image is cropped where the draw is above the share of uncropped images.
    return tf.cond(tf.random.stateless_uniform([], seeds[2]) > UNCROPPED, cropped, lambda: (image, boxes, classes))


def augmentation(flip: bool = True, crop: bool = True):
    """The two, one after the other, as `detection_batches` takes them; None for neither."""
    steps = [step for step, chosen in ((random_horizontal_flip, flip), (ssd_random_crop, crop)) if chosen]

    def augment(image, boxes, classes, seed):
        for number, step in enumerate(steps):
            image, boxes, classes = step(image, boxes, classes, tf.random.fold_in(seed, number))
        return image, boxes, classes

    return augment if steps else None
