"""DeepLabv3's head: image pooling, atrous branches, a projection, perhaps a decoder, logits at the size of the image."""

from collections.abc import Sequence
from dataclasses import replace

import keras
from keras import layers, ops

from mnv2_keras.networks.backbone import ConvConfig, convolution, depthwise

FILTERS = 256
SKIP_FILTERS = 48
#: What the decoder takes from the backbone: its stride is 4.
SKIP = "layer_4/depthwise_output"
#: Decay and epsilon of the head's batch norms; the backbone has TF-Slim's 0.997 and 1e-3.
MOMENTUM, EPSILON = 0.9997, 1e-5


@keras.saving.register_keras_serializable(package="mnv2_keras")
class ResizeLike(layers.Layer):
    """Resize a map to another one's height and width: bilinear, the outermost samples on the outermost pixels.

    Source: TF1 `resize_bilinear(align_corners=True)`, which no Keras layer offers. With TensorFlow it is that very op
    (LiteRT has it built in), elsewhere two small matrix products.

    Shapes (NHWC): [(B, h, w, C), (B, H, W, any)] to (B, H, W, C); sides may be unknown.
    """

    def call(self, inputs):
        x, like = inputs
        height, width = ops.shape(like)[1:3]
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            # `size` is a constant where the sides are known, which makes the resize of a .tflite a static one.
            x = tf.raw_ops.ResizeBilinear(images=x, size=tf.stack([height, width]), align_corners=True)
            return tf.cast(x, self.compute_dtype)
        rows, columns = (
            _blend(x.shape[1 + i] or ops.shape(x)[1 + i], n, x.dtype) for i, n in enumerate((height, width))
        )
        return ops.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x)

    def compute_output_shape(self, input_shape):
        x, like = input_shape
        return (x[0], *like[1:3], x[3])


@keras.saving.register_keras_serializable(package="mnv2_keras")
class ArgMax(layers.Layer):
    """Logits (B, H, W, classes) to labels (B, H, W), int32.

    With TensorFlow it is the bare operation, which LiteRT has built in; `keras.ops.argmax` looks after negative zeros by
    operators that it has not.
    """

    def call(self, x):
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            return tf.argmax(x, axis=-1, output_type=tf.int32)
        return ops.cast(ops.argmax(x, axis=-1), "int32")

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape[:-1], dtype="int32")


def _blend(samples, outputs, dtype):
    """(outputs, samples) weights of the linear blend: each output's place among the samples, and its two neighbours."""
    place = ops.arange(outputs, dtype=dtype) * ((samples - 1) / max(outputs - 1, 1))
    return ops.maximum(0.0, 1.0 - ops.abs(place[:, None] - ops.arange(samples, dtype=dtype)[None]))


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
