"""Around the detector: a photo into its input, its outputs into boxes."""

import os
from numbers import Integral, Real

import numpy as np
import tensorflow as tf

from mnv2_keras.boxes import area, change_frame, clip_boxes, decode_boxes, suppress
from mnv2_keras.images import read_image
from mnv2_keras.preprocessing import normalize_image, resize_bilinear_v1

_WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


def preprocess_detection_image(image, size: int | tuple[int, int] = (300, 300)):
    """A photo as the detector's input: the whole of it, normalised, then resized; the aspect ratio is not kept.

    Source: Object Detection API `ssd_mobilenet_v2_feature_extractor.preprocess` and `fixed_shape_resizer` (TF1's bilinear).

    Args:
        image: a path, or the bytes of a file (see `read_image`); or an array or TensorFlow tensor (H, W, 3), (H, W, 1), (H, W)
            or a batch (B, H, W, 3) of numbers from 0 to 255, uint8 or float.
        size: (height, width) of the result, or one int for a square.

    Returns:
        float32 (height, width, 3), or (B, height, width, 3) for a batch, from -1 to 1: a tensor for a tensor, else an array.

    Raises:
        ValueError: another rank or number of channels, no pixels, NaN; `ImageError` for a file that cannot be read.
        FileNotFoundError: no such file.
    """
    if tf.is_tensor(image):
        return _preprocess_tensor(image, size)
    image = np.asarray(read_image(image) if isinstance(image, str | os.PathLike | bytes) else image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim not in (3, 4) or image.shape[-1] not in (1, 3) or 0 in image.shape or image.dtype.kind not in "uif":
        raise ValueError(
            f"image is an array of {image.dtype} {image.shape}: expected numbers from 0 to 255 of shape (H, W, 3), (H, W, 1), "
            "(H, W) or (B, H, W, 3)."
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError("image holds NaN or infinite pixels: expected numbers from 0 to 255.")
    resized = resize_bilinear_v1(normalize_image(image), size)
    return np.repeat(resized, 3, axis=-1) if image.shape[-1] == 1 else resized


def _preprocess_tensor(image, size):
    if image.shape.rank not in (3, 4) or image.shape[-1] != 3:
        raise ValueError(f"image is a tensor of shape {image.shape}: expected (H, W, 3) or (B, H, W, 3).")
    height, width = (size, size) if isinstance(size, Integral) else size
    batch = normalize_image(image if image.shape.rank == 4 else image[None])
    resized = tf.raw_ops.ResizeBilinear(
        images=batch, size=[height, width], align_corners=False, half_pixel_centers=False
    )
    return resized if image.shape.rank == 4 else resized[0]


def postprocess_detections(
    box_encodings,
    class_predictions_with_background,
    anchors,
    *,
    score_threshold: float = 1e-8,
    iou_threshold: float = 0.6,
    max_per_class: int = 100,
    max_total: int = 100,
    clip_window=None,
) -> dict:
    """The detector's outputs as boxes, the likeliest first.

    Sigmoid; each class by itself: greedy non-maximum suppression of boxes that are not clipped yet; all classes together: clipped,
    those without area dropped, the best kept.

    Source: Object Detection API `SSDMetaArch.postprocess` and `post_processing.batch_multiclass_non_max_suppression`.

    Args:
        box_encodings: (B, A, 4), as the model's.
        class_predictions_with_background: (B, A, classes + 1) logits, as the model's.
        anchors: (A, 4), see `ssd_anchors`.
        score_threshold: boxes need a higher score.
        iou_threshold: a box goes when it overlaps a better one of its class by more.
        max_per_class: boxes kept in each class.
        max_total: boxes put out for each image.
        clip_window: ymin, xmin, ymax, xmax, (4,) or one for each image (B, 4), as parts of the input. Boxes are cut there, and
            put out relative to it. None is the whole input.

    Returns:
        `boxes` float32 (B, max_total, 4): ymin, xmin, ymax, xmax, 0 to 1; `scores` float32 (B, max_total); `classes` int32 (B,
        max_total), 0-based (COCO's published id less 1); `num` int32 (B,), how many are real: the rest is zero. Anchors with
        NaN in their box or score are left out.

    Raises:
        ValueError: shapes that do not fit, or an argument out of its range.
    """
    encodings = tf.convert_to_tensor(box_encodings, tf.float32)
    logits = tf.convert_to_tensor(class_predictions_with_background, tf.float32)
    anchors = tf.convert_to_tensor(anchors, tf.float32)
    _check_shapes(encodings.shape, logits.shape, anchors.shape)
    for name, value in (("max_per_class", max_per_class), ("max_total", max_total)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1.")
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}: expected a number from 0 to 1.")
    window = _window(_WHOLE_IMAGE if clip_window is None else clip_window, encodings.shape[0])
    return _postprocess(
        encodings,
        logits,
        anchors,
        window,
        float(score_threshold),
        float(iou_threshold),
        int(max_per_class),
        int(max_total),
    )


@tf.function(reduce_retracing=True)
def _postprocess(encodings, logits, anchors, window, score_threshold, iou_threshold, max_per_class, max_total):
    boxes = decode_boxes(encodings, anchors)
    window = tf.broadcast_to(window, [tf.shape(boxes)[0], 4])
    broken = tf.reduce_any(tf.math.is_nan(boxes), axis=-1)
    boxes = tf.where(broken[..., None], 0.0, boxes)
    scores = tf.transpose(tf.sigmoid(logits)[..., 1:], [0, 2, 1])
    # Written so that NaN fails.
    scores = tf.where((scores > score_threshold) & ~broken[:, None, :], scores, -np.inf)
    clipped = clip_boxes(boxes, window)
    kept = suppress(boxes, scores, area(clipped) > 0, max_per_class, max_total, iou_threshold)
    found = change_frame(tf.gather(clipped, kept["indices"], batch_dims=1), window)
    real = tf.range(max_total) < kept["num"][:, None]
    return {
        "boxes": tf.where(real[..., None], found, 0.0),
        "scores": kept["scores"],
        "classes": kept["classes"],
        "num": kept["num"],
    }


def _check_shapes(encodings, logits, anchors) -> None:
    fits = (
        encodings.rank == logits.rank == 3
        and anchors.rank == 2
        and encodings[-1] == anchors[-1] == 4
        and (logits[-1] or 2) >= 2
        and encodings[:2].is_compatible_with(logits[:2])
        and encodings[1:2].is_compatible_with(anchors[:1])
    )
    if not fits:
        raise ValueError(
            f"box_encodings {encodings}, class_predictions_with_background {logits} and anchors {anchors} do not fit: expected "
            "(B, A, 4), (B, A, classes + 1) and (A, 4). `ssd_anchors(input_shape)` has the anchors of the model's input."
        )


def _window(clip_window, batch):
    """The clip window as (1 or B, 4)."""
    window = tf.convert_to_tensor(clip_window, tf.float32)
    if window.shape.rank == 1:
        window = window[None]
    if window.shape.rank != 2 or window.shape[1] != 4 or window.shape[0] not in (1, None, batch):
        raise ValueError(f"clip_window has shape {window.shape}: expected (4,) or ({batch or 'B'}, 4).")
    value = tf.get_static_value(window)
    if value is not None and not (value[:, :2] < value[:, 2:]).all():
        raise ValueError(f"clip_window is {value.tolist()}: expected ymin < ymax and xmin < xmax.")
    return window
