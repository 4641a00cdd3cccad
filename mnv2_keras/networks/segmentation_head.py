"""DeepLabv3's head: image pooling, atrous branches, a projection, perhaps a decoder, logits at the size of the image."""

from collections.abc import Sequence
from dataclasses import replace

import keras
from keras import layers

from mnv2_keras.layers import ResizeLike
from mnv2_keras.networks.backbone import ConvConfig, convolution, depthwise

FILTERS = 256
SKIP_FILTERS = 48
#: What the decoder takes from the backbone: its stride is 4.
SKIP = "layer_4/depthwise_output"
#: Decay and epsilon of the head's batch norms; the backbone has TF-Slim's 0.997 and 1e-3.
MOMENTUM, EPSILON = 0.9997, 1e-5


def resize_like(x, like, name: str, **options):
    """`x` at the height and width of `like`. See `ResizeLike`."""
    return ResizeLike(name=name, **options)([x, like])


def _separable(x, name: str, style: ConvConfig, rate: int = 1):
    """3x3 depthwise, then 1x1 to 256, each with batch norm and ReLU (DeepLab `split_separable_conv2d`)."""
    x = depthwise(x, f"{name}_depthwise", replace(style, stddev=0.33), rate=rate)
    return convolution(x, FILTERS, 1, f"{name}_pointwise", replace(style, stddev=0.06))


def pyramid(
    features, style: ConvConfig, aspp_rates: Sequence[int] = (), separable: bool = True, dropout_rate: float = 0.1
):
    """Features beside their mean over the image and at several dilations, projected to 256 channels.

    Source: DeepLab `model.extract_features`.

    Args:
        features: the backbone's last map, (B, h, w, C).
        style: of the head: ReLU, epsilon 1e-5.
        aspp_rates: dilation of each atrous branch beside the 1x1 one; none in the mobile network.
        separable: whether the atrous branches are depthwise and pointwise, as is DeepLab's default, or full 3x3.
        dropout_rate: share of the result dropped in training.

    Returns:
        (B, h, w, 256).
    """
    glorot = replace(style, stddev=None)
    # The published window is the whole map at every size (`scale_dimension` rounds as SAME strides do).
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="image_pooling-mean")(features)
    pooled = convolution(pooled, FILTERS, 1, "image_pooling", glorot)
    branches = [resize_like(pooled, features, "image_pooling-resize")]
    branches.append(convolution(features, FILTERS, 1, "aspp0", glorot))
    for i, rate in enumerate(aspp_rates, start=1):
        name = f"aspp{i}"
        branches.append(
            _separable(features, name, style, rate)
            if separable
            else convolution(features, FILTERS, 3, name, glorot, rate=rate)
        )
    x = convolution(layers.Concatenate(name="aspp-concat")(branches), FILTERS, 1, "concat_projection", glorot)
    return layers.Dropout(dropout_rate, name="concat_projection-dropout")(x)


def decoder(x, skip, style: ConvConfig):
    """Refine at the stride of `skip`: upsample, put the early features beside, filter twice.

    Source: DeepLab `model.refine_by_decoder` with `decoder_output_stride` [4].

    Shapes (NHWC): x (B, h, w, 256), skip (B, H, W, C) to (B, H, W, 256).
    """
    glorot = replace(style, stddev=None)
    skip = convolution(skip, SKIP_FILTERS, 1, "decoder-feature_projection0", glorot)
    x = layers.Concatenate(name="decoder-concat")([resize_like(x, skip, "decoder-resize"), skip])
    for i in range(2):
        x = _separable(x, f"decoder-decoder_conv{i}", style)
    return x


def segmentation(x, image, classes: int, style: ConvConfig):
    """Logits at the features' size, then at the image's.

    Source: DeepLab `model.get_branch_logits` and `model.predict_labels`.

    Shapes (NHWC): x (B, h, w, C), image (B, H, W, any) to (B, H, W, classes).
    """
    x = layers.Conv2D(
        classes,
        1,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.01),
        kernel_regularizer=style.regularizer(),
        name="logits-semantic",
    )(x)
    # Logits stay in float32 under mixed precision: float16 cannot tell close classes apart.
    return resize_like(x, image, "logits-resize", dtype="float32")
