"""The detector's loss: which object each anchor is matched to, and how wrong its prediction is.

Source: Object Detection API `target_assigner`, `argmax_matcher`, `losses.HardExampleMiner` and `SSDMetaArch.loss`, with the
values of `ssdlite_mobilenet_v2_coco.config`.

Shapes: anchors are (A, 4), objects' boxes (B, M, 4), padded to one length, their classes (B, M) from 0, and `num` (B,) is how many
of them are real; boxes are corners as parts of the image.
"""

from typing import NamedTuple

import tensorflow as tf

from mnv2_keras.boxes import decode_boxes, encode_boxes, intersection_over_union

MATCHED_IOU = 0.5
#: Mining uses one of several boxes that are nearly the same, and at most 3000 boxes.
MINING_IOU, MINING_BOXES = 0.99, 3000
NEGATIVES_PER_POSITIVE, LEAST_NEGATIVES = 3, 3


class Targets(NamedTuple):
    """What each anchor should predict."""

    match: tf.Tensor  # (B, A) int32: index of the object, -1 for background
    classes: tf.Tensor  # (B, A, classes + 1) float32: one-hot, the background first
    encodings: tf.Tensor  # (B, A, 4) float32; zero for background


def match_anchors(boxes, num, anchors):
    """The object that each anchor is matched to, int32 (B, A): its index, or -1 for background.

    It is the object with the largest IoU, if that is 0.5 or more. In addition each object gets its best anchor, whatever the IoU
    and the anchor's own best object are. Where several are equal, the first anchor and the first object count.
    """
    # One row more than there are objects, so that argmax has a row also in an image without objects.
    boxes = tf.pad(tf.cast(boxes, tf.float32), [[0, 0], [0, 1], [0, 0]])
    real = tf.range(tf.shape(boxes)[1])[None] < tf.cast(num, tf.int32)[:, None]
    overlaps = tf.where(real[..., None], intersection_over_union(boxes, anchors), -1.0)
    own = tf.argmax(overlaps, axis=1, output_type=tf.int32)
    own = tf.where(tf.reduce_max(overlaps, axis=1) >= MATCHED_IOU, own, -1)
    claims = tf.one_hot(tf.argmax(overlaps, axis=2), tf.shape(overlaps)[2]) * tf.cast(real[..., None], tf.float32)
    claimant = tf.argmax(claims, axis=1, output_type=tf.int32)
    return tf.where(tf.reduce_max(claims, axis=1) > 0, claimant, own)


def assign_targets(boxes, classes, num, anchors, class_count: int) -> Targets:
    """What each anchor should predict for a batch of labelled images; `class_count` is without the background."""
    match = match_anchors(boxes, num, anchors)
    positive = match >= 0
    places = tf.maximum(match, 0)
    boxes, classes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]]), tf.pad(classes, [[0, 0], [0, 1]])
    labels = tf.where(positive, tf.cast(tf.gather(classes, places, batch_dims=1), tf.int32) + 1, 0)
    encodings = encode_boxes(tf.gather(boxes, places, batch_dims=1), anchors)
    return Targets(match, tf.one_hot(labels, class_count + 1), tf.where(positive[..., None], encodings, 0.0))


def hard_examples(boxes, class_losses, positive):
    """The anchors that count, bool (B, A): all positives, and the worst of the negatives, three for each positive.

    Of predicted boxes that are nearly the same only the worst counts, also among positives.

    Predicted boxes are (B, A, 4), class losses and bool positives (B, A). Source: Object Detection API
    `losses.HardExampleMiner`, `loss_type: CLASSIFICATION`.
    """

    def mined(image):
        boxes, losses, positive = image
        chosen = tf.image.non_max_suppression(boxes, losses, MINING_BOXES, iou_threshold=MINING_IOU)
        hits = tf.gather(positive, chosen)
        allowed = tf.maximum(NEGATIVES_PER_POSITIVE * tf.reduce_sum(tf.cast(hits, tf.int32)), LEAST_NEGATIVES)
        counts = hits | (tf.cumsum(tf.cast(~hits, tf.int32)) <= allowed)
        return tf.scatter_nd(chosen[:, None], tf.cast(counts, tf.int32), tf.shape(losses)) > 0

    return tf.map_fn(mined, (boxes, class_losses, positive), fn_output_signature=tf.bool)


def detection_loss(outputs: dict, truth: dict, anchors, total=lambda count: count) -> dict:
    """The loss of a batch, without L2 (which is the model's own, `model.losses`).

    Args:
        outputs: the model's, `box_encodings` (B, A, 4) and `class_predictions_with_background` (B, A, classes + 1).
        truth, anchors: `boxes`, `classes` and `num`, and the model's anchors.
        total: number of positives in these images to that in the complete batch, where several devices share it.

    Returns:
        `localization` and `classification`, float32 scalars: Huber's loss of the box codes of the positives, and sigmoid
        cross-entropy over all classes and the background, both summed over the mined anchors and divided by the number of
        positives in the batch. `positives` and `negatives` int32 (B,): how many were mined. `anchorwise_localization` and
        `anchorwise_classification` (B, A): before mining.
    """
    encodings, logits = outputs["box_encodings"], outputs["class_predictions_with_background"]
    targets = assign_targets(truth["boxes"], truth["classes"], truth["num"], anchors, logits.shape[-1] - 1)
    positive = targets.match >= 0
    off = tf.abs(encodings - targets.encodings)
    huber = tf.reduce_sum(tf.where(off <= 1, off**2 / 2, off - 0.5), axis=-1)
    localization = tf.where(positive, huber, 0.0)
    classification = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets.classes, logits), axis=-1)
    boxes = decode_boxes(tf.stop_gradient(encodings), anchors)
    mined = hard_examples(boxes, tf.stop_gradient(classification), positive)
    scale = 1.0 / tf.maximum(total(tf.reduce_sum(tf.cast(positive, tf.float32))), 1.0)
    return {
        "localization": tf.reduce_sum(tf.where(mined, localization, 0.0)) * scale,
        "classification": tf.reduce_sum(tf.where(mined, classification, 0.0)) * scale,
        "positives": tf.reduce_sum(tf.cast(positive & mined, tf.int32), axis=1),
        "negatives": tf.reduce_sum(tf.cast(~positive & mined, tf.int32), axis=1),
        "anchorwise_localization": localization,
        "anchorwise_classification": classification,
    }
