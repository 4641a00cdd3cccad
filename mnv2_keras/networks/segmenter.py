"""Mobile DeepLabv3: the paper's segmentation network (section 6.3) on MobileNetV2."""

from collections.abc import Sequence
from numbers import Integral

import keras

from mnv2_keras.architecture import Plan, make_plan
from mnv2_keras.networks import segmentation_head as head_layers
from mnv2_keras.networks.backbone import ConvConfig, backbone
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.weights import fill

#: Published output strides; others are refused, since nobody has ever seen what they do.
OUTPUT_STRIDES = (8, 16, 32)


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
    include_preprocessing: bool = False,
    min_depth: int | None = None,
    divisible_by: int | None = None,
    name: str = "DeepLabV3",
) -> keras.Model:
    """Build DeepLabv3 on MobileNetV2; by default the paper's mobile one, without atrous pyramid or decoder.

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
        batch_norm_momentum: decay of the backbone's moving statistics; the head's is 0.9997.
        include_preprocessing: take 0 to 255 and scale to [-1, 1] inside.
        min_depth, divisible_by: rounding of the backbone's widths; None as published: 8 and 8 for alpha 1, otherwise 1 and 1.
        name: of the model.

    Returns:
        A functional model: float32 images (B, H, W, C) to logits (B, H, W, classes).

    Raises:
        ValueError: an argument out of its range, or weights that do not fit; the message says what to do.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras.config.image_data_format() is 'channels_first': DeepLab here is NHWC as in TF-Slim. Call "
            "keras.config.set_image_data_format('channels_last') and give images as (B, H, W, C)."
        )
    height, width, channels = _checked_shape(input_shape)
    if isinstance(classes, bool) or not isinstance(classes, Integral) or classes < 1:
        raise ValueError(f"classes is {classes!r}: expected a whole number of at least 1, the background counted.")
    aspp_rates = _checked_rates(aspp_rates)
    if not head and (aspp_rates or decoder):
        raise ValueError("head is False, which leaves no room for aspp_rates or decoder: pass head=True.")
    plan = segmenter_plan(alpha, channels, output_stride, min_depth, divisible_by)
    style = ConvConfig(momentum=batch_norm_momentum, weight_decay=weight_decay)
    image = keras.Input((height, width, channels), name="input")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocessing")(image) if include_preprocessing else image
    x = backbone(x, plan, style, plan.blocks[-1].endpoint)
    skip = endpoints(keras.Model(image, x))[head_layers.SKIP] if decoder else None
    style = ConvConfig(
        momentum=head_layers.MOMENTUM, epsilon=head_layers.EPSILON, weight_decay=weight_decay, activation="relu"
    )
    if head:
        x = head_layers.pyramid(x, style, aspp_rates, aspp_separable, dropout_rate)
    if decoder:
        x = head_layers.decoder(x, skip, style)
    model = keras.Model(image, head_layers.segmentation(x, image, int(classes), style), name=name)
    if weights is not None:
        fill(model, weights, alpha, None)
    return model


def segmenter_plan(
    alpha: float = 1.0,
    channels: int = 3,
    output_stride: int = 16,
    min_depth: int | None = None,
    divisible_by: int | None = None,
) -> Plan:
    """The backbone's plan as DeepLab has it: alpha other than 1 does not round to multiples of 8.

    Source: DeepLab `core/feature_extractor._mobilenet_v2`.

    Raises:
        ValueError: an argument out of its range.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride is {output_stride!r}: expected 8, 16 or 32.")
    multiple = 8 if alpha == 1 else 1
    return make_plan(
        alpha,
        channels=channels,
        output_stride=output_stride,
        min_depth=multiple if min_depth is None else min_depth,
        divisible_by=multiple if divisible_by is None else divisible_by,
    )


def _checked_shape(input_shape) -> tuple[int | None, int | None, int]:
    sides = tuple(input_shape) if isinstance(input_shape, tuple | list) else ()
    whole = [isinstance(side, Integral) and not isinstance(side, bool) and side > 0 for side in sides]
    if (
        len(sides) != 3
        or not whole[2]
        or not all(good or side is None for good, side in zip(whole, sides, strict=True))
    ):
        raise ValueError(
            f"input_shape is {input_shape!r}: expected (height, width, channels), height and width whole numbers or None, "
            "such as (513, 513, 3)."
        )
    return sides


def _checked_rates(aspp_rates) -> tuple[int, ...]:
    rates = tuple(aspp_rates) if isinstance(aspp_rates, Sequence) and not isinstance(aspp_rates, str) else (None,)
    if not all(isinstance(rate, Integral) and not isinstance(rate, bool) and rate > 0 for rate in rates):
        raise ValueError(f"aspp_rates is {aspp_rates!r}: expected whole numbers above 0, such as (6, 12, 18), or ().")
    return rates
