"""Mobile DeepLabv3 on MobileNetV2: the unrolled plan of the segmenter.

Source: arXiv:1801.04381, section 6.3; DeepLab's `model.py` and `core/feature_extractor.py`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mnv2_keras.architecture.backbone import Convolution, Plan, make_plan
from mnv2_keras.checks import whole_number

#: Published output strides.
OUTPUT_STRIDES = (8, 16, 32)
#: Published dilations of the atrous branches at each output stride that has any.
ASPP_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}
#: Channels of every layer of the head but the two below.
FILTERS = 256
#: Channels that the decoder keeps of the early features.
SKIP_FILTERS = 48
#: The early features of the decoder, of stride 4.
SKIP = "layer_4/depthwise_output"


@dataclass(frozen=True)
class Aspp:
    """Atrous spatial pyramid pooling: branches side by side, then a projection of all of them.

    Attributes:
        pooling: of the mean over the map, which is the first branch.
        branches: the layers of each further branch.
        projection: of all branches.
    """

    pooling: Convolution
    branches: tuple[tuple[Convolution, ...], ...]
    projection: Convolution


@dataclass(frozen=True)
class Decoder:
    """DeepLabv3+'s decoder: features of an early endpoint beside the upsampled ones, then two filters.

    Attributes:
        endpoint: of the early features in the backbone.
        skip: the layer that narrows them.
        filters: the layers that read both.
    """

    endpoint: str
    skip: Convolution
    filters: tuple[Convolution, ...]


@dataclass(frozen=True)
class SegmenterPlan:
    """Every layer of a segmenter with its sizes, in network order.

    Attributes:
        backbone: the plan of the backbone; the segmenter reads its last block, not its last convolution.
        classes: number of classes, the background included.
        aspp: None for the bare network without a head.
        decoder: None for a network without a decoder.
        logits: the last convolution.
    """

    backbone: Plan
    classes: int
    aspp: Aspp | None
    decoder: Decoder | None
    logits: Convolution

    @property
    def features(self) -> str:
        """The endpoint of the backbone that the head reads: `layer_18`."""
        return self.backbone.blocks[-1].endpoint

    @property
    def head(self) -> tuple[Convolution, ...]:
        """All convolutions after the backbone, in DeepLab's order of creation."""
        aspp, decoder = self.aspp, self.decoder
        layers = (aspp.pooling, *itertools.chain(*aspp.branches), aspp.projection) if aspp else ()
        return (*layers, *((decoder.skip, *decoder.filters) if decoder else ()), self.logits)


def _separable(name: str, inputs: int, rate: int = 1) -> tuple[Convolution, ...]:
    """3x3 depthwise, then 1x1 (DeepLab `split_separable_conv2d`)."""
    return (
        Convolution(f"{name}_depthwise", inputs, inputs, 3, rate=rate, depthwise=True, stddev=0.33),
        Convolution(f"{name}_pointwise", inputs, FILTERS, stddev=0.06),
    )


def _aspp(inputs: int, rates: tuple[int, ...], separable: bool) -> Aspp:
    """Source: DeepLab `model.extract_features`."""

    def glorot(name, inputs=inputs, **options):
        return Convolution(name, inputs, FILTERS, stddev=None, **options)

    branches = [(glorot("aspp0"),)]
    for i, rate in enumerate(rates, start=1):
        name = f"aspp{i}"
        branches.append(_separable(name, inputs, rate) if separable else (glorot(name, kernel=3, rate=rate),))
    projection = glorot("concat_projection", FILTERS * (1 + len(branches)))
    return Aspp(glorot("image_pooling"), tuple(branches), projection)


def _decoder(plan: Plan) -> Decoder:
    """Source: DeepLab `model.refine_by_decoder` with `decoder_output_stride` [4]."""
    name = "decoder/feature_projection0"
    skip = Convolution(name, plan.endpoints[SKIP].channels, SKIP_FILTERS, stddev=None)
    first, second = (f"decoder/decoder_conv{i}" for i in range(2))
    return Decoder(SKIP, skip, (*_separable(first, FILTERS + SKIP_FILTERS), *_separable(second, FILTERS)))


def make_segmenter_plan(
    alpha: float = 1.0,
    *,
    channels: int = 3,
    classes: int = 21,
    output_stride: int = 16,
    aspp_rates: Sequence[int] = (),
    decoder: bool = False,
    head: bool = True,
    aspp_separable: bool = True,
    **rounding,
) -> SegmenterPlan:
    """Unroll DeepLabv3 into its layers; by default the paper's mobile network, without atrous branches or decoder.

    Source: DeepLab `core/feature_extractor._mobilenet_v2` (rounding of widths) and `model.py` (head).

    Args:
        alpha: width multiplier of the backbone, any number above 0; the widths of the head do not depend on it.
        channels: channels of the input image.
        classes: number of classes, the background included.
        output_stride: 8, 16 or 32 pixels of the image per step of the features.
        aspp_rates: dilation of each atrous branch, such as those of `ASPP_RATES`; () for none.
        decoder: refine with the features of stride 4 (DeepLabv3+).
        head: False leaves out everything between backbone and logits (`aspp_with_batch_norm=False`).
        aspp_separable: whether the atrous branches are depthwise and pointwise, or full 3x3 convolutions.
        rounding: `min_depth` and `divisible_by` of the backbone's widths, as in `make_plan`; None or left out for the published
            ones: 8 and 8 for alpha 1, otherwise 1 and 1.

    Raises:
        ValueError: an argument is out of its range; the message says which and what is expected.
    """
    classes = whole_number("classes", classes, note=", the background counted")
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride is {output_stride!r}: expected 8, 16 or 32.")
    if isinstance(aspp_rates, str) or not isinstance(aspp_rates, Sequence):
        raise ValueError(f"aspp_rates is {aspp_rates!r}: expected a sequence such as (6, 12, 18), or () for none.")
    rates = tuple(whole_number("a rate in aspp_rates", rate) for rate in aspp_rates)
    if not head and (rates or decoder):
        raise ValueError("head is False, which leaves no room for aspp_rates or decoder: pass head=True.")
    multiple = 8 if alpha == 1 else 1
    rounding = {"min_depth": multiple, "divisible_by": multiple} | {k: v for k, v in rounding.items() if v is not None}
    plan = make_plan(alpha, channels=channels, output_stride=output_stride, **rounding)
    width = plan.blocks[-1].outputs
    aspp = _aspp(width, rates, aspp_separable) if head else None
    width = FILTERS if head else width
    refined = _decoder(plan) if decoder else None
    logits = Convolution("logits/semantic", width, classes, bias=True, stddev=0.01)
    return SegmenterPlan(plan, classes, aspp, refined, logits)
