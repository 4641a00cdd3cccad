"""The detector: four extra feature maps, and on each of the six maps a box and a class predictor."""

from keras import layers

from mnv2_keras.analysis.ssdlite import ANCHORS, ANCHORS_LOWEST, EXTRA_DEPTHS, MIN_DEPTH
from mnv2_keras.architecture import Plan
from mnv2_keras.networks.backbone import ConvConfig, convolution, depthwise


def extra_maps(x, plan: Plan, style: ConvConfig, separable: bool = True, min_depth: int = MIN_DEPTH) -> list:
    """Four more feature maps, each half as high and wide as the one before.

    Source: Object Detection API `feature_map_generators.multi_resolution_feature_maps`; paper section 6.2.

    Args:
        x: the backbone's last layer, (B, h, w, C).
        plan: the backbone's, for its alpha and the endpoint of `x`, which begins the names of the layers: "layer_19".
        separable: depthwise-separable convolutions (SSDLite), or full ones (the classic SSD).
        min_depth: no layer gets fewer channels.

    Returns:
        Four tensors (B, ceil(h/2^i), ceil(w/2^i), d), i = 1..4, with d = 512, 256, 256, 128 at alpha = 1.
    """
    maps = []
    for i, depth in enumerate(EXTRA_DEPTHS, start=2):
        narrow, wide = (max(int(d * plan.alpha), min_depth) for d in (depth // 2, depth))
        x = convolution(x, narrow, 1, f"{plan.last.endpoint}_1_Conv2d_{i}_1x1_{narrow}", style)
        name = f"{plan.last.endpoint}_2_Conv2d_{i}_3x3_s2_{wide}"
        if separable:
            x = convolution(depthwise(x, f"{name}_depthwise", style, stride=2), wide, 1, name, style)
        else:
            x = convolution(x, wide, 3, name, style, stride=2)
        maps.append(x)
    return maps


def predictors(maps: list, classes: int, style: ConvConfig, separable: bool = True, kernel: int = 3) -> dict:
    """What each anchor of each map says: where its box is, and what is in it.

    Source: Object Detection API `convolutional_box_predictor.ConvolutionalBoxPredictor`, weights not shared between maps.

    Args:
        maps: feature maps (B, h, w, C), the finest first.
        classes: number of classes without the background.
        separable: a depthwise 3x3 before each 1x1 predictor (SSDLite), or none (the classic SSD).
        kernel: side of the classic predictors' kernels.

    Returns:
        `box_encodings` (B, A, 4) as ty, tx, th, tw and `class_predictions_with_background` (B, A, classes + 1), logits with the
        background first; both float32. Anchors run by map, row, column, and shape of box.
    """
    found = {"BoxEncodingPredictor": [], "ClassPredictor": []}
    for i, x in enumerate(maps):
        for branch, codes in (("BoxEncodingPredictor", 4), ("ClassPredictor", classes + 1)):
            name = f"BoxPredictor_{i}-{branch}"
            y = depthwise(x, f"{name}_depthwise", style) if separable else x
            y = layers.Conv2D(
                codes * (ANCHORS if i else ANCHORS_LOWEST),
                1 if separable else kernel,
                padding="same",
                kernel_initializer=style.initializer(),
                kernel_regularizer=style.regularizer(),
                name=name,
            )(y)
            found[branch].append(layers.Reshape((-1, codes), name=f"{name}-rows")(y))
    # Codes and logits stay in float32 under mixed precision: what follows are exponentials.
    return {
        name: layers.Concatenate(axis=1, dtype="float32", name=name)(parts)
        for name, parts in zip(("box_encodings", "class_predictions_with_background"), found.values(), strict=True)
    }
