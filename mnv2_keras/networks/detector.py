"""SSDLite, the paper's detector, and the classic SSD, on the MobileNetV2 backbone."""

import dataclasses

import keras
from keras import layers

from mnv2_keras.architecture.detector import MIN_DEPTH, MIN_SIDE, DetectorPlan, make_detector_plan
from mnv2_keras.networks.backbone import ConvConfig, backbone, convolutions
from mnv2_keras.networks.builder import image_input, plan_for
from mnv2_keras.weights import fill


def build_ssdlite_mobilenetv2(
    alpha: float = 1.0,
    input_shape=(300, 300, 3),
    *,
    classes: int = 90,
    weights=None,
    separable: bool = True,
    predictor_kernel: int | None = None,
    min_depth: int = MIN_DEPTH,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 1e-3,
    weight_decay: float = 0.0,
    include_preprocessing: bool = False,
    plan: DetectorPlan | None = None,
    name: str = "SSDLiteMobilenetV2",
) -> keras.Model:
    """Build SSDLite on MobileNetV2.

    Source: arXiv:1801.04381, section 6.2; Object Detection API, `ssdlite_mobilenet_v2_coco.config` (`separable=True`) and
    `ssd_mobilenet_v2_coco.config` (`separable=False`).

    Args:
        alpha: width multiplier of backbone and extra maps, any number above 0.
        input_shape: (H, W, C); H and W of at least 33 pixels, or None. Values in [-1, 1], or 0 to 255 with
            `include_preprocessing`.
        classes: number of classes without the background; COCO's published ids need 90.
        weights: None (fresh), a name from `list_checkpoints()`, or a local archive, folder, checkpoint, `.keras`, `.h5` or
            `.weights.h5`. A classifier's checkpoint (or "imagenet") fills the backbone alone. A detector of another number of
            classes keeps its box predictors; its class predictors start afresh.
        separable: SSDLite; False for the classic SSD, with full convolutions in the extra maps and predictors.
        predictor_kernel: side of the predictors' kernels: 3 for SSDLite; for the classic SSD 1 as published (the default), or 3.
        min_depth: least number of channels of a layer. Classifiers have 8, which differs below alpha 0.75: pass 8 to take the
            backbone of one.
        batch_norm_momentum, batch_norm_epsilon: decay of the moving statistics; added to the variance.
        weight_decay: 4e-5 as published: L2 on all kernels but the backbone's depthwise ones.
        include_preprocessing: take 0 to 255 and scale to [-1, 1] inside.
        plan: a plan of `make_detector_plan`, in place of the arguments that describe one.
        name: of the model.

    Returns:
        A functional model of float32 images (B, H, W, C) to `box_encodings` (B, A, 4) and
        `class_predictions_with_background` (B, A, classes + 1), logits. `ssd_anchors` has the A anchors,
        `postprocess_detections` makes boxes of it.

    Raises:
        ValueError: an argument out of its range, or weights that do not fit; the message says what to do.
    """
    image, x = image_input(input_shape, (300, 300, 3), include_preprocessing, MIN_SIDE)
    plan = plan_for(
        build_ssdlite_mobilenetv2,
        make_detector_plan,
        plan,
        image.shape[3],
        alpha=alpha,
        classes=classes,
        separable=separable,
        predictor_kernel=predictor_kernel,
        min_depth=min_depth,
    )
    config = ConvConfig(momentum=batch_norm_momentum, epsilon=batch_norm_epsilon, weight_decay=weight_decay)
    endpoints = backbone(x, plan.backbone, config)
    config = dataclasses.replace(config, decay_depthwise=True)
    maps = [endpoints[name] for name in plan.feature_maps]
    for sequence in plan.extra_maps:  # each half as high and wide as the one before
        maps.append(convolutions(maps[-1], sequence, config))
    model = keras.Model(image, predictions(maps, plan, config), name=name)
    if weights is not None:
        fill(model, weights, plan.backbone.alpha, 224)
    return model


def predictions(maps: list, plan: DetectorPlan, config: ConvConfig) -> dict:
    """Box codes and class logits of each anchor, from feature maps (B, h, w, C), the finest first.

    Source: Object Detection API `convolutional_box_predictor.ConvolutionalBoxPredictor`, weights not shared between maps.

    Returns:
        `box_encodings` (B, A, 4) as ty, tx, th, tw and `class_predictions_with_background` (B, A, classes + 1), logits with the
        background first; both float32. Order of the anchors: map, row, column, shape of box.
    """
    outputs = {"box_encodings": [], "class_predictions_with_background": []}
    for x, predictor in zip(maps, plan.predictors, strict=True):
        for rows, branch in zip(outputs.values(), (predictor.boxes, predictor.classes), strict=True):
            y = convolutions(x, branch, config)
            name = branch[-1].name.replace("/", "-")
            rows.append(layers.Reshape((-1, branch[-1].outputs // predictor.anchors), name=f"{name}-rows")(y))
    # Codes and logits stay in float32 under mixed precision: what follows are exponentials.
    return {name: layers.Concatenate(axis=1, dtype="float32", name=name)(rows) for name, rows in outputs.items()}
