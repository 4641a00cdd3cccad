"""Boxes: the anchors of SSD, the box code, overlaps, and suppression. Boxes are ymin, xmin, ymax, xmax.

Decoding, overlaps and windows take NumPy arrays and TensorFlow tensors, also in a graph, and return what they were given.
Encoding and `suppress` are TensorFlow, which is imported by the functions, because `Detector` works without it.

Source: Object Detection API `multiple_grid_anchor_generator`, `faster_rcnn_box_coder`, `post_processing`.
"""

import math
import sys

import numpy as np

from mnv2_keras.architecture.detector import ANCHOR_SHAPES, FIRST_STRIDE

#: Factors of the box code: on offsets of the centre, and on logarithms of the size.
CENTRE_SCALE, SIZE_SCALE = 10.0, 5.0
_EPSILON = 1e-8


def ssd_anchors(input_shape) -> np.ndarray:
    """The anchors of SSD and SSDLite for one size of image.

    Source: Object Detection API `multiple_grid_anchor_generator.create_ssd_anchors`, `reduce_boxes_in_lowest_layer`. They are
    not clipped: those at the border reach over it.

    Args:
        input_shape: (H, W) or (H, W, C) in pixels, as the network's.

    Returns:
        float32 (A, 4): ymin, xmin, ymax, xmax as parts of the image's height and width. By map, row, column and shape, as the
        network's outputs. 300 x 300 has 1917, 320 x 320 has 2034.

    Raises:
        ValueError: no such shape.
    """
    sides = tuple(input_shape) if isinstance(input_shape, tuple | list) else ()
    if len(sides) not in (2, 3) or not all(isinstance(side, int | np.integer) and side > 0 for side in sides[:2]):
        raise ValueError(f"input_shape is {input_shape!r}: expected (height, width) or (height, width, channels) in pixels.")
    height, width = (int(side) for side in sides[:2])
    anchors = []
    for i, shapes in enumerate(ANCHOR_SHAPES):
        rows, columns = (-(-side // (FIRST_STRIDE << i)) for side in (height, width))
        y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
        h = [scale / math.sqrt(ratio) * min(height, width) / height for scale, ratio in shapes]
        w = [scale * math.sqrt(ratio) * min(height, width) / width for scale, ratio in shapes]
        centres, sizes = np.stack([y, x], -1).reshape(-1, 1, 2), np.stack([h, w], -1)[None]
        anchors.append(np.concatenate([centres - sizes / 2, centres + sizes / 2], -1).reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)


def _library(*boxes):
    """TensorFlow where one of them is a tensor, else NumPy."""
    is_tensor = any(type(values).__module__.partition(".")[0] == "tensorflow" for values in boxes)
    return sys.modules["tensorflow"] if is_tensor else np


def _corners(low, high):
    """(..., 2) and (..., 2) to boxes (..., 4)."""
    library = _library(low, high)
    return np.concatenate([low, high], axis=-1) if library is np else library.concat([low, high], axis=-1)


def _float32(library, boxes):
    return np.asarray(boxes, np.float32) if library is np else library.cast(boxes, library.float32)


def _centre_and_size(boxes):
    """(..., 4) corners to (..., 2) centres and (..., 2) sizes."""
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def encode_boxes(boxes, anchors):
    """Boxes as the network predicts them: relative to anchors.

    Source: Object Detection API `faster_rcnn_box_coder`, scales 10, 10, 5, 5.

    Args:
        boxes: (..., A, 4) corners.
        anchors: (A, 4) corners.

    Returns:
        float32 (..., A, 4) tensor: ty, tx, th, tw.
    """
    import tensorflow as tf

    boxes, anchors = tf.cast(boxes, tf.float32), tf.cast(anchors, tf.float32)
    (centre, size), (anchor_centre, anchor_size) = _centre_and_size(boxes), _centre_and_size(anchors)
    size, anchor_size = size + _EPSILON, anchor_size + _EPSILON
    offset = (centre - anchor_centre) / anchor_size * CENTRE_SCALE
    return tf.concat([offset, tf.math.log(size / anchor_size) * SIZE_SCALE], axis=-1)


def decode_boxes(encodings, anchors):
    """What `encode_boxes` encoded.

    Args:
        encodings: (..., A, 4): ty, tx, th, tw.
        anchors: (A, 4) corners.

    Returns:
        float32 (..., A, 4) corners, not clipped; the high ones are never below the low ones.
    """
    library = _library(encodings, anchors)
    encodings = _float32(library, encodings)
    anchor_centre, anchor_size = _centre_and_size(_float32(library, anchors))
    centre = encodings[..., :2] / CENTRE_SCALE * anchor_size + anchor_centre
    half = library.exp(encodings[..., 2:] / SIZE_SCALE) * anchor_size / 2
    return _corners(centre - half, centre + half)


def area(boxes):
    """(..., 4) corners to (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection_over_union(boxes, others):
    """How much each box overlaps each other one.

    Source: Object Detection API `box_list_ops.iou`: 0 where nothing is common, also for boxes without area.

    Args:
        boxes: (..., N, 4).
        others: (..., M, 4).

    Returns:
        float32 (..., N, M), 0 to 1.
    """
    library = _library(boxes, others)
    boxes, others = _float32(library, boxes)[..., :, None, :], _float32(library, others)[..., None, :, :]
    low, high = library.maximum(boxes[..., :2], others[..., :2]), library.minimum(boxes[..., 2:], others[..., 2:])
    sides = library.maximum(high - low, 0.0)
    common = sides[..., 0] * sides[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return library.where(common > 0, common / (area(boxes) + area(others) - common), 0.0)


def clip_boxes(boxes, window):
    """Cut boxes (B, N, 4) at windows (B, 4)."""
    library, low, high = _library(boxes), window[:, None, :2], window[:, None, 2:]
    return _corners(*(library.maximum(library.minimum(boxes[..., i : i + 2], high), low) for i in (0, 2)))


def change_frame(boxes, window):
    """Boxes (B, N, 4) as parts of windows (B, 4): the window's corners become 0, 0 and 1, 1."""
    low, size = window[:, None, :2], window[:, None, 2:] - window[:, None, :2]
    return _corners((boxes[..., :2] - low) / size, (boxes[..., 2:] - low) / size)


def suppress(boxes, scores, allowed, max_per_class: int, max_total: int, iou_threshold: float):
    """Greedy non-maximum suppression per class, then the best boxes of all classes.

    The result, and its order, is that of suppressing each class separately over all boxes, joining the classes and sorting
    (equal scores: the lower class, then the lower box first). Only the best scores are examined at first, and more where these
    were not enough. `tf.image.combined_non_max_suppression` does the work, on ranks in place of scores: its order of equal
    scores is undefined, and ranks are never equal.

    Source: Object Detection API `post_processing.multiclass_non_max_suppression`.

    Args:
        boxes: float32 (B, N, 4), finite.
        scores: float32 (B, C, N); -inf where a box is excluded for a class.
        allowed: bool (B, N): boxes that may be in the result. The others still suppress, and count for `max_per_class`.
        max_per_class: most boxes of a class.
        max_total: most boxes in the result.
        iou_threshold: a box is removed when its overlap with a better one of its class is larger.

    Returns:
        `scores` float32, `classes` int32, `indices` (into N) int32, each (B, max_total), zero after the first `num` int32 (B,).
    """
    import tensorflow as tf

    shape = tf.shape(scores)
    batch, classes, count = shape[0], shape[1], shape[2]
    flat = tf.reshape(scores, [batch, -1])

    def best(examined):
        top, places = tf.math.top_k(flat, examined)  # equal scores: the lower place first
        ranks = tf.range(examined, 0, -1)
        ranks = tf.where(tf.math.is_finite(top), tf.cast(ranks, tf.float32), 0.0)
        rows = tf.range(batch)[:, None] * tf.shape(flat)[1]
        ranked = tf.scatter_nd(tf.reshape(rows + places, [-1, 1]), tf.reshape(ranks, [-1]), [tf.size(flat)])
        remaining = tf.image.combined_non_max_suppression(
            boxes[:, :, None, :],
            tf.transpose(tf.reshape(ranked, shape), [0, 2, 1]),
            max_output_size_per_class=tf.minimum(max_per_class, count),
            max_total_size=tf.minimum(examined, max_per_class * classes),
            iou_threshold=iou_threshold,
            score_threshold=0.0,
            clip_boxes=False,
        ).nmsed_scores
        order = examined - tf.cast(tf.maximum(remaining, 1.0), tf.int32)
        place = tf.gather(places, order, batch_dims=1)
        remaining = tf.where(tf.gather(allowed, place % count, batch_dims=1), remaining, 0.0)
        lacking = tf.maximum(max_total - tf.shape(remaining)[1], 0)
        remaining = tf.pad(remaining, [[0, 0], [0, lacking]])
        first, position = tf.math.top_k(remaining, max_total)
        place = tf.gather(tf.pad(place, [[0, 0], [0, lacking]]), position, batch_dims=1)
        valid = first > 0
        number = tf.reduce_sum(tf.cast(valid, tf.int32), axis=1)
        # Further scores can matter where boxes are lacking and the last examined score was a finite one.
        unfinished = tf.reduce_any((number < max_total) & tf.math.is_finite(top[:, -1]))
        score = tf.where(valid, tf.gather(flat, place, batch_dims=1), 0.0)
        return score, tf.where(valid, place, 0), number, unfinished

    everything = tf.shape(flat)[1]
    # Most boxes show the same few objects: 20 * max_total boxes usually contain them all.
    examined = tf.minimum(20 * max_total, everything)
    _, score, place, number, _ = tf.while_loop(
        lambda examined, score, place, number, unfinished: unfinished & (examined < everything),
        lambda examined, *_: (tf.minimum(8 * examined, everything), *best(tf.minimum(8 * examined, everything))),
        (examined, *best(examined)),
    )
    return {"scores": score, "classes": place // count, "indices": place % count, "num": number}
