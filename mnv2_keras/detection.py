"""Pre- and post-processing of the detector: a photo to the network's input, the network's outputs to boxes.

`postprocess_detections` is TensorFlow, for batches and inside graphs; `postprocess_arrays` is NumPy, for `Detector`, which works
without TensorFlow. Both use the checks here and the arithmetic of `boxes`; only the suppression differs.
"""

import functools
import os
import sys
from collections import Counter
from numbers import Integral

import numpy as np

from mnv2_keras.boxes import area, change_frame, clip_boxes, decode_boxes, intersection_over_union, suppress
from mnv2_keras.checks import real_number, whole_number
from mnv2_keras.images import read_image
from mnv2_keras.preprocessing import normalize_image, resize_bilinear_v1

_WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
#: TensorFlow's sigmoid is exactly 1 from here on: logits above it give equal scores.
_SATURATED = np.float32(16.635532)
#: Candidates of which the overlaps are computed at once.
_BLOCK = 256


def preprocess_detection_image(image, size: int | tuple[int, int] = (300, 300)):
    """A photo as the detector's input: the whole photo, normalised, then resized; the aspect ratio is not kept.

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
    if type(image).__module__.partition(".")[0] == "tensorflow":
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
    tf = sys.modules["tensorflow"]
    height, width = (size, size) if isinstance(size, Integral) else size
    batch = normalize_image(image if image.shape.rank == 4 else image[None])
    resized = tf.raw_ops.ResizeBilinear(images=batch, size=[height, width], align_corners=False, half_pixel_centers=False)
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
    """The detector's outputs as boxes, the best score first; TensorFlow.

    Sigmoid; for each class greedy non-maximum suppression of the unclipped boxes; then, for all classes together, boxes are
    clipped, those without area are dropped, and the best are kept.

    Source: Object Detection API `SSDMetaArch.postprocess` and `post_processing.batch_multiclass_non_max_suppression`.

    Args:
        box_encodings: (B, A, 4), as the model's.
        class_predictions_with_background: (B, A, classes + 1) logits, as the model's.
        anchors: (A, 4), see `ssd_anchors`.
        score_threshold: boxes need a higher score.
        iou_threshold: a box is dropped when it overlaps a better one of its class by more.
        max_per_class: most boxes of each class.
        max_total: most boxes of each image.
        clip_window: ymin, xmin, ymax, xmax, (4,) or one for each image (B, 4), as parts of the input. Boxes are cut there, and
            are relative to it in the result. None is the whole input.

    Returns:
        `boxes` float32 (B, max_total, 4): ymin, xmin, ymax, xmax, 0 to 1; `scores` float32 (B, max_total); `classes` int32 (B,
        max_total), 0-based (COCO's published id less 1); `num` int32 (B,), the number of boxes: the rest is zero. Anchors with
        NaN in their box or score are left out.

    Raises:
        ValueError: shapes that do not fit, or an argument out of its range.
    """
    import tensorflow as tf

    def to_tensor(values):
        return tf.convert_to_tensor(values, tf.float32)

    inputs = box_encodings, class_predictions_with_background, anchors, clip_window
    inputs = _checked_inputs(to_tensor, tf.get_static_value, *inputs)
    return _graph()(*inputs, *_checked_limits(score_threshold, iou_threshold, max_per_class, max_total))


@functools.cache
def _graph():
    """The post-processing as one `tf.function` for the whole process."""
    import tensorflow as tf

    return tf.function(_postprocess, reduce_retracing=True)


def _postprocess(encodings, logits, anchors, window, score_threshold, iou_threshold, max_per_class, max_total):
    import tensorflow as tf

    boxes = decode_boxes(encodings, anchors)
    window = tf.broadcast_to(window, [tf.shape(boxes)[0], 4])
    broken = tf.reduce_any(tf.math.is_nan(boxes), axis=-1)
    boxes = tf.where(broken[..., None], 0.0, boxes)
    scores = tf.transpose(tf.sigmoid(logits)[..., 1:], [0, 2, 1])
    # Written so that NaN fails.
    scores = tf.where((scores > score_threshold) & ~broken[:, None, :], scores, -np.inf)
    clipped = clip_boxes(boxes, window)
    best = suppress(boxes, scores, area(clipped) > 0, max_per_class, max_total, iou_threshold)
    relative = change_frame(tf.gather(clipped, best.pop("indices"), batch_dims=1), window)
    real = tf.range(max_total) < best["num"][:, None]
    return {"boxes": tf.where(real[..., None], relative, 0.0), **best}


def _checked_inputs(to_float32, static_value, encodings, logits, anchors, window) -> tuple:
    """The encodings, logits, anchors and windows (1 or B, 4) in float32; sides that a graph does not know are None."""
    window = _WHOLE_IMAGE if window is None else window
    encodings, logits, anchors, window = (to_float32(values) for values in (encodings, logits, anchors, window))
    shapes = tuple(encodings.shape), tuple(logits.shape), tuple(anchors.shape)

    def agree(*sides) -> bool:
        return len({side for side in sides if side is not None}) <= 1

    if (
        tuple(map(len, shapes)) != (3, 3, 2)
        or not shapes[0][2] == shapes[2][1] == 4
        or (shapes[1][2] or 2) < 2
        or not agree(shapes[0][0], shapes[1][0])
        or not agree(shapes[0][1], shapes[1][1], shapes[2][0])
    ):
        raise ValueError(
            f"box_encodings {shapes[0]}, class_predictions_with_background {shapes[1]} and anchors {shapes[2]} do not fit: "
            "expected (B, A, 4), (B, A, classes + 1) and (A, 4). `ssd_anchors(input_shape)` has the anchors of the model's input."
        )
    window, batch = window[None] if len(window.shape) == 1 else window, shapes[0][0]
    if len(window.shape) != 2 or window.shape[1] != 4 or window.shape[0] not in (1, None, batch):
        raise ValueError(f"clip_window has shape {tuple(window.shape)}: expected (4,) or ({batch or 'B'}, 4).")
    corners = static_value(window)
    if corners is not None and not (corners[:, :2] < corners[:, 2:]).all():
        raise ValueError(f"clip_window is {corners.tolist()}: expected ymin < ymax and xmin < xmax.")
    return encodings, logits, anchors, window


def _checked_limits(score_threshold=1e-8, iou_threshold=0.6, max_per_class=100, max_total=100) -> tuple:
    return (
        real_number("score_threshold", score_threshold, 0, 1),
        real_number("iou_threshold", iou_threshold, 0, 1),
        whole_number("max_per_class", max_per_class),
        whole_number("max_total", max_total),
    )


def postprocess_arrays(
    box_encodings, class_predictions_with_background, anchors, *, clip_window=None, **limits
) -> dict[str, np.ndarray]:
    """`postprocess_detections` in NumPy: the same boxes in the same order, within float32's rounding of scores and boxes.

    Args:
        box_encodings, class_predictions_with_background, anchors, clip_window: as there.
        limits: `score_threshold`, `iou_threshold`, `max_per_class` and `max_total`, as there.

    Returns:
        As there, as arrays.

    Raises:
        ValueError: as there.
    """
    to_array = functools.partial(np.asarray, dtype=np.float32)
    inputs = box_encodings, class_predictions_with_background, anchors, clip_window
    encodings, logits, anchors, window = _checked_inputs(to_array, to_array, *inputs)
    limits = _checked_limits(**limits)
    batch, most = len(encodings), limits[3]
    result = {"boxes": np.zeros((batch, most, 4), np.float32), "scores": np.zeros((batch, most), np.float32)}
    result |= {"classes": np.zeros((batch, most), np.int32), "num": np.zeros(batch, np.int32)}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        boxes = decode_boxes(encodings, anchors)
        clipped = clip_boxes(boxes, window)
        relative, visible = change_frame(clipped, window), area(clipped) > 0  # NaN fails
        for i in range(batch):
            places, scores = _best_places(logits[i], boxes[i], visible[i], *limits)
            classes, indices = np.divmod(places, len(anchors))
            number = result["num"][i] = len(places)
            for name, values in (("boxes", relative[i, indices]), ("scores", scores), ("classes", classes)):
                result[name][i, :number] = values
    return result


def _best_places(logits, boxes, visible, score_threshold, iou_threshold, max_per_class, max_total):
    """(class * A + anchor) and score of one image's result, the best score first."""
    flat = logits[:, 1:].T.ravel()  # (classes * A): equal scores are in order of class, then of anchor
    places = np.flatnonzero(flat > _least_logit(score_threshold))
    scores = _sigmoid(flat[places])
    real = (scores > score_threshold) & ~np.isnan(boxes).any(1)[places % len(boxes)]
    places, scores = places[real], scores[real]
    # In most photos the best scores hold all boxes of the result, and sorting them alone is faster.
    for most in (20 * max_total, len(places)):
        least = -np.partition(-scores, most)[most] if most < len(places) else -np.inf
        best = np.flatnonzero(scores >= least)
        best = best[np.argsort(-scores[best], kind="stable")]
        chosen = _suppressed(boxes, visible, iou_threshold, max_per_class, max_total, places[best])
        if len(chosen) == max_total or most >= len(places):
            break
    return places[best[chosen]], scores[best[chosen]]


def _least_logit(score: float) -> float:
    """A logit below which no score is above `score`, to leave most sigmoids out."""
    return -np.inf if score == 0 else np.inf if score == 1 else np.log(score / (1 - score)) - 1e-3


def _sigmoid(logits):
    scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    scores[logits >= _SATURATED] = 1
    return scores


def _suppressed(boxes, visible, iou_threshold, max_per_class, max_total, places):
    """Greedy suppression within each class: indices into `places`, which are by falling score; at most `max_total`.

    Boxes that are not `visible` are not in the result, but they suppress, and count for `max_per_class`.
    """
    classes, anchors = np.divmod(places, len(boxes))
    chosen, shown, per_class = [], [], Counter()
    for start in range(0, len(places), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(places)))
        others = np.concatenate([np.array(chosen, np.intp), block])
        overlaps = intersection_over_union(boxes[anchors[block]], boxes[anchors[others]]) > np.float32(iou_threshold)
        overlaps &= classes[block, None] == classes[others]
        dropped, among = overlaps[:, : len(chosen)].any(1), overlaps[:, len(chosen) :]
        for i, (label, seen) in enumerate(zip(classes[block].tolist(), visible[anchors[block]].tolist(), strict=True)):
            if dropped[i] or per_class[label] == max_per_class:
                continue
            dropped |= among[i]
            per_class[label] += 1
            chosen.append(start + i)
            if seen:
                shown.append(start + i)
                if len(shown) == max_total:
                    return np.array(shown, np.intp)
    return np.array(shown, np.intp)
