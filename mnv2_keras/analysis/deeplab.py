"""Mobile DeepLabv3 on MobileNetV2, counted from the plan alone."""

from collections.abc import Sequence

from mnv2_keras.analysis.cost_model import CostModel, Shape, checked_integer, checked_shape
from mnv2_keras.analysis.network import Analysis, walk_backbone
from mnv2_keras.architecture import make_plan

HEAD_FILTERS = 256
SKIP_FILTERS = 48
SKIP = "layer_4/depthwise_output"


def analyze_deeplab(
    alpha: float = 1.0,
    input_shape: Shape = (513, 513, 3),
    classes: int = 21,
    output_stride: int = 16,
    aspp_rates: Sequence[int] = (),
    decoder: bool = False,
    *,
    aspp_separable: bool = True,
    head: bool = True,
    activation_bytes: int = 4,
) -> Analysis:
    """Count the segmenter, up to logits at the size of the image.

    Source: DeepLab's `model.py` (`multi_scale_logits`, `extract_features`, `refine_by_decoder`).

    Args:
        alpha: width multiplier of the backbone; other than 1 with `divisible_by=1, min_depth=1`, as published.
        input_shape: (height, width, channels).
        classes: classes, the background among them.
        output_stride: 8, 16 or 32.
        aspp_rates: dilation of each branch of the atrous spatial pyramid, such as (6, 12, 18); none in the
            mobile network.
        decoder: refine at stride 4.
        aspp_separable: the branches of the pyramid are depthwise and pointwise, DeepLab's default; False for full 3x3
            convolutions, as in the paper's Table 7.
        head: False leaves out everything between the backbone and the logits (DeepLab's
            `aspp_with_batch_norm=False`).
        activation_bytes: of one number in an activation.

    Returns:
        The analysis; its stages are "backbone" and "head".

    Raises:
        ValueError: an argument is out of its range.
    """
    shape = checked_shape(input_shape)
    classes = checked_integer("classes", classes)
    if isinstance(aspp_rates, str) or not isinstance(aspp_rates, Sequence):
        raise ValueError(f"aspp_rates is {aspp_rates!r}: expected a sequence such as (6, 12, 18), or () for none.")
    rates = [checked_integer("a rate in aspp_rates", rate) for rate in aspp_rates]
    if not head and (rates or decoder):
        raise ValueError("head is False, which leaves no room for aspp_rates or decoder: pass head=True.")
    widths = {} if alpha == 1 else {"divisible_by": 1, "min_depth": 1}
    plan = make_plan(alpha, channels=shape[2], output_stride=output_stride, **widths)
    ledger = CostModel(activation_bytes)

    def layer(x, name, filters=HEAD_FILTERS, **options):
        ledger.begin(name, name, "head")
        return ledger.convolution(x, filters, name, **options)

    def separable(x, name, rate=1):
        ledger.begin(f"{name}_depthwise", f"{name}_depthwise", "head")
        x = ledger.depthwise(x, f"{name}_depthwise", rate=rate)
        return layer(x, f"{name}_pointwise")

    def resize(x, size, name):
        ledger.begin(name, name, "head")
        return ledger.resize(x, size, name)

    taps = walk_backbone(ledger, ledger.tensor(shape), plan, final_endpoint=plan.blocks[-1].endpoint)
    x = features = taps[plan.blocks[-1].endpoint]
    size = features.shape[:2]
    if head:
        ledger.begin("image_pooling", "image_pooling", "head")
        pooled = ledger.pool(features, "image_pooling/AvgPool")
        pooled = ledger.convolution(pooled, HEAD_FILTERS, "image_pooling")
        branches = [resize(pooled, size, "image_pooling/resize"), layer(features, "aspp0")]
        for i, rate in enumerate(rates, start=1):
            name = f"aspp{i}"
            branches.append(
                separable(features, name, rate) if aspp_separable else layer(features, name, kernel=3, rate=rate)
            )
        x = layer(ledger.concatenate(branches), "concat_projection")
    if decoder:
        skip = layer(taps[SKIP], "decoder/feature_projection0", SKIP_FILTERS)
        x = ledger.concatenate([resize(x, skip.shape[:2], "decoder/resize"), skip])
        for i in range(2):
            x = separable(x, f"decoder/decoder_conv{i}")
    x = layer(x, "logits/semantic", classes, bias=True, normalization=None)
    x = resize(x, shape[:2], "logits/resize")
    return Analysis(plan, shape, x.shape, ledger.close([x]), ledger.activation_bytes)
