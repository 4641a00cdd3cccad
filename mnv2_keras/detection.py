"""Pre- and post-processing of the detector: a photo to the network's input, the network's outputs to boxes.

There are two versions of the post-processing: `postprocess_detections` is TensorFlow, for batches and inside graphs,
`postprocess_arrays` is NumPy, for `Detector`, which works without TensorFlow. TensorFlow is imported only by the first one.
"""

import functools
import os
import sys
from numbers import Integral

import numpy as np

from mnv2_keras.boxes import CENTRE_SCALE, SIZE_SCALE, area, change_frame, clip_boxes, decode_boxes, suppress
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

    encodings = tf.convert_to_tensor(box_encodings, tf.float32)
    logits = tf.convert_to_tensor(class_predictions_with_background, tf.float32)
    anchors = tf.convert_to_tensor(anchors, tf.float32)
    _check_shapes(encodings.shape, logits.shape, anchors.shape)
    limits = check_limits(score_threshold, iou_threshold, max_per_class, max_total)
    window = tf.convert_to_tensor(_WHOLE_IMAGE if clip_window is None else clip_window, tf.float32)
    window = window[None] if window.shape.rank == 1 else window
    _check_window(window.shape, tf.get_static_value(window), encodings.shape[0])
    return _graph()(encodings, logits, anchors, window, *limits)


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
    relative = change_frame(tf.gather(clipped, best["indices"], batch_dims=1), window)
    real = tf.range(max_total) < best["num"][:, None]
    return {
        "boxes": tf.where(real[..., None], relative, 0.0),
        "scores": best["scores"],
        "classes": best["classes"],
        "num": best["num"],
    }


def _check_shapes(encodings, logits, anchors) -> None:
    """Shapes are tuples, or TensorFlow's with None for what is unknown."""

    def agree(*sides) -> bool:
        return len({side for side in sides if side is not None}) <= 1

    ranks = len(encodings), len(logits), len(anchors)
    if (
        ranks != (3, 3, 2)
        or not encodings[2] == anchors[1] == 4
        or (logits[2] or 2) < 2
        or not agree(encodings[0], logits[0])
        or not agree(encodings[1], logits[1], anchors[0])
    ):
        raise ValueError(
            f"box_encodings {encodings}, class_predictions_with_background {logits} and anchors {anchors} do not fit: expected "
            "(B, A, 4), (B, A, classes + 1) and (A, 4). `ssd_anchors(input_shape)` has the anchors of the model's input."
        )


def _check_window(shape, value, batch: int | None) -> None:
    if len(shape) != 2 or shape[1] != 4 or shape[0] not in (1, None, batch):
        raise ValueError(f"clip_window has shape {tuple(shape)}: expected (4,) or ({batch or 'B'}, 4).")
    if value is not None and not (value[:, :2] < value[:, 2:]).all():
        raise ValueError(f"clip_window is {value.tolist()}: expected ymin < ymax and xmin < xmax.")


def check_limits(
    score_threshold: float = 1e-8, iou_threshold: float = 0.6, max_per_class: int = 100, max_total: int = 100
) -> tuple[float, float, int, int]:
    """The arguments that both versions of the post-processing share, checked.

    Raises:
        ValueError: a threshold that is not from 0 to 1, or a number of boxes below 1.
    """
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
    encodings, logits, anchors = (
        np.asarray(values, np.float32) for values in (box_encodings, class_predictions_with_background, anchors)
    )
    _check_shapes(encodings.shape, logits.shape, anchors.shape)
    limits = check_limits(**limits)
    window = np.atleast_2d(np.asarray(_WHOLE_IMAGE if clip_window is None else clip_window, np.float32))
    _check_window(window.shape, window, len(encodings))
    window = np.broadcast_to(window, (len(encodings), 4))
    most = limits[3]
    result = {
        "boxes": np.zeros((len(encodings), most, 4), np.float32),
        "scores": np.zeros((len(encodings), most), np.float32),
        "classes": np.zeros((len(encodings), most), np.int32),
        "num": np.zeros(len(encodings), np.int32),
    }
    for i, image in enumerate(zip(encodings, logits, window, strict=True)):
        boxes, scores, classes = _postprocess_image(*image, anchors, *limits)
        number = result["num"][i] = len(boxes)
        result["boxes"][i, :number], result["scores"][i, :number], result["classes"][i, :number] = (
            boxes,
            scores,
            classes,
        )
    return result


def _postprocess_image(encodings, logits, window, anchors, score_threshold, iou_threshold, max_per_class, max_total):
    """(boxes, scores, classes) of one image, the best score first."""
    boxes, count = _decoded(encodings, anchors), len(anchors)
    low, high = window[:2], window[2:]
    clipped = np.concatenate([np.clip(boxes[:, :2], low, high), np.clip(boxes[:, 2:], low, high)], axis=1)
    flat = logits[:, 1:].T.ravel()  # (classes * A): equal scores are in order of class, then of anchor
    places = np.flatnonzero(flat > _least_logit(score_threshold))
    scores = _sigmoid(flat[places])
    real = (scores > score_threshold) & ~np.isnan(boxes).any(1)[places % count]
    places, scores = places[real], scores[real]
    visible = _areas(clipped) > 0  # NaN fails
    suppressed = functools.partial(_suppressed, boxes, visible, iou_threshold, max_per_class, max_total)
    # In most photos the best scores hold all boxes of the result, and sorting them alone is faster.
    most, chosen, complete = 20 * max_total, None, False
    if len(places) > most:
        best = np.flatnonzero(scores >= -np.partition(-scores, most)[most])
        best = best[np.argsort(-scores[best], kind="stable")]
        chosen, complete = suppressed(places[best])
    if not complete:
        best = np.argsort(-scores, kind="stable")
        chosen, _ = suppressed(places[best])
    chosen = best[chosen]
    corners = clipped[places[chosen] % count]
    relative = np.concatenate([corners[:, :2] - low, corners[:, 2:] - low], axis=1) / np.tile(high - low, 2)
    return relative, scores[chosen], places[chosen] // count


def _least_logit(score: float) -> float:
    """A logit below which no score is above `score`, to leave most sigmoids out."""
    return -np.inf if score == 0 else np.inf if score == 1 else np.log(score / (1 - score)) - 1e-3


def _decoded(encodings, anchors):
    """`boxes.decode_boxes` in NumPy."""
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + size / 2
    centre = encodings[:, :2] / np.float32(CENTRE_SCALE) * size + centre
    with np.errstate(over="ignore", invalid="ignore"):
        half = np.exp(encodings[:, 2:] / np.float32(SIZE_SCALE)) * size / 2
        return np.concatenate([centre - half, centre + half], axis=1)


def _sigmoid(logits):
    with np.errstate(over="ignore"):
        scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    scores[logits >= _SATURATED] = 1
    return scores


def _areas(boxes):
    with np.errstate(invalid="ignore"):
        return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _suppressed(boxes, visible, iou_threshold, max_per_class, max_total, places):
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: (A, 4), not clipped.
        visible: (A,), boxes that may be in the result; the others suppress, and count for `max_per_class`, too.
        places: class * A + anchor of each candidate, by falling score.

    Returns:
        The indices into `places` of the result, and whether it has `max_total` of them.
    """
    classes, anchors = np.divmod(places, len(boxes))
    chosen: list[int] = []
    shown: list[int] = []
    per_class: dict[int, int] = {}
    for start in range(0, len(places), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(places)))
        others = np.concatenate([np.array(chosen, np.intp), block])
        overlaps = _overlap_more(boxes[anchors[block]], boxes[anchors[others]], iou_threshold)
        overlaps &= classes[block, None] == classes[others]
        dropped, among = overlaps[:, : len(chosen)].any(1), overlaps[:, len(chosen) :]
        for i, (kind, seen) in enumerate(zip(classes[block].tolist(), visible[anchors[block]].tolist(), strict=True)):
            number = per_class.get(kind, 0)
            if dropped[i] or number == max_per_class:
                continue
            dropped |= among[i]
            per_class[kind] = number + 1
            chosen.append(start + i)
            if seen:
                shown.append(start + i)
                if len(shown) == max_total:
                    return np.array(shown, np.intp), True
    return np.array(shown, np.intp), False


def _overlap_more(boxes, others, threshold: float):
    """Bool (N, M): whether intersection over union is above the threshold; False for boxes without area."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = np.maximum(high - low, 0)
    common = sides[..., 0] * sides[..., 1]
    areas, other_areas = _areas(boxes), _areas(others)
    union = areas[:, None] + other_areas[None] - common
    with np.errstate(divide="ignore", invalid="ignore"):
        return (common / union > np.float32(threshold)) & (areas[:, None] > 0) & (other_areas[None] > 0)
