"""Mobile DeepLabv3: the paper's segmentation network (section 6.3) on MobileNetV2."""

from collections.abc import Sequence

import keras
from keras import layers

from mnv2_keras.architecture import Aspp, Decoder, SegmenterPlan, make_segmenter_plan
from mnv2_keras.layers import ResizeLike
from mnv2_keras.networks.backbone import ConvConfig, backbone, convolution, convolutions
from mnv2_keras.networks.builder import image_input, plan_for
from mnv2_keras.weights import fill

#: Decay and epsilon of the head's batch norms; the backbone has TF-Slim's 0.997 and 1e-3.
MOMENTUM, EPSILON = 0.9997, 1e-5


def build_deeplabv3_mobilenetv2(
    alpha: float = 1.0,
    input_shape=(513, 513, 3),
    *,
    classes: int = 21,
    output_stride: int = 16,
    aspp_rates: Sequence[int] = (),
    decoder: bool = False,
    weights=None,
    head: bool = True,
    aspp_separable: bool = True,
    dropout_rate: float = 0.1,
    weight_decay: float = 0.0,
    batch_norm_momentum: float = 0.997,
    batch_norm_epsilon: float = 1e-3,
    include_preprocessing: bool = False,
    min_depth: int | None = None,
    divisible_by: int | None = None,
    plan: SegmenterPlan | None = None,
    name: str = "DeepLabV3",
) -> keras.Model:
    """Build DeepLabv3 on MobileNetV2; by default the paper's mobile one, without atrous branches or decoder.

    Source: arXiv:1801.04381, section 6.3; DeepLab's `model.py` and `core/feature_extractor.py` with `mobilenet_v2`.

    Args:
        alpha: width multiplier (`depth_multiplier`), any number above 0; the head's widths do not depend on it.
        input_shape: (H, W, C), any size, square or not; H and W may be None. Values in [-1, 1], or 0 to 255 with
            `include_preprocessing`.
        classes: number of classes, the background among them.
        output_stride: 8, 16 or 32 pixels of the image to a step of the features.
        aspp_rates: dilation of each atrous branch: none, or (6, 12, 18) at stride 16 and (12, 24, 36) at 8.
        decoder: refine with the features of stride 4 (DeepLabv3+).
        weights: None (fresh), "imagenet" (the backbone alone), a name from `list_checkpoints("segmentation")`, or a local
            archive, folder, checkpoint, `.keras`, `.h5` or `.weights.h5`; a classifier's gives the backbone alone.
        head: False leaves out everything between the backbone and the logits (`aspp_with_batch_norm=False`).
        aspp_separable: whether the atrous branches are depthwise and pointwise.
        dropout_rate: before the logits, in training (DeepLab keeps 0.9).
        weight_decay: 4e-5 in the published training: L2 on all kernels but the depthwise ones.
        batch_norm_momentum, batch_norm_epsilon: of the backbone; the head has 0.9997 and 1e-5.
        include_preprocessing: take 0 to 255 and scale to [-1, 1] inside.
        min_depth, divisible_by: rounding of the backbone's widths; None as published: 8 and 8 for alpha 1, otherwise 1 and 1.
        plan: a plan of `make_segmenter_plan`, in place of the arguments that describe one.
        name: of the model.

    Returns:
        A functional model: float32 images (B, H, W, C) to logits (B, H, W, classes).

    Raises:
        ValueError: an argument out of its range, or weights that do not fit; the message says what to do.
    """
    image, x = image_input(input_shape, (513, 513, 3), include_preprocessing)
    plan = plan_for(
        build_deeplabv3_mobilenetv2,
        make_segmenter_plan,
        plan,
        image.shape[3],
        alpha=alpha,
        classes=classes,
        output_stride=output_stride,
        aspp_rates=aspp_rates,
        decoder=decoder,
        head=head,
        aspp_separable=aspp_separable,
        min_depth=min_depth,
        divisible_by=divisible_by,
    )
    config = ConvConfig(momentum=batch_norm_momentum, epsilon=batch_norm_epsilon, weight_decay=weight_decay)
    endpoints = backbone(x, plan.backbone, config, plan.features)
    config = ConvConfig(momentum=MOMENTUM, epsilon=EPSILON, weight_decay=weight_decay, activation="relu")
    x = endpoints[plan.features]
    if plan.aspp:
        x = atrous_spatial_pyramid_pooling(x, plan.aspp, config)
        x = layers.Dropout(dropout_rate, name="concat_projection-dropout")(x)
    if plan.decoder:
        x = refined(x, endpoints[plan.decoder.endpoint], plan.decoder, config)
    x = convolution(x, plan.logits, config)
    # Logits stay in float32 under mixed precision: float16 cannot tell close classes apart.
    x = ResizeLike(name="logits-resize", dtype="float32")([x, image])
    model = keras.Model(image, x, name=name)
    if weights is not None:
        fill(model, weights, plan.backbone.alpha, None)
    return model


def atrous_spatial_pyramid_pooling(x, plan: Aspp, config: ConvConfig):
    """The mean over the image and filters at several dilations, concatenated and projected: (B, h, w, C) to (B, h, w, 256).

    Source: DeepLab `model.extract_features`.
    """
    # The published window is the whole map at every size (`scale_dimension` rounds as SAME strides do).
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="image_pooling-mean")(x)
    pooled = convolution(pooled, plan.pooling, config)
    branches = [ResizeLike(name="image_pooling-resize")([pooled, x])]
    branches += [convolutions(x, branch, config) for branch in plan.branches]
    return convolution(layers.Concatenate(name="aspp-concat")(branches), plan.projection, config)


def refined(x, early, plan: Decoder, config: ConvConfig):
    """The decoder: upsample x (B, h, w, 256), append the early features (B, H, W, C), filter twice: (B, H, W, 256).

    Source: DeepLab `model.refine_by_decoder` with `decoder_output_stride` [4].
    """
    early = convolution(early, plan.skip, config)
    x = ResizeLike(name="decoder-resize")([x, early])
    return convolutions(layers.Concatenate(name="decoder-concat")([x, early]), plan.filters, config)
