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
#: Channels of the layers of the head, and of the layer that narrows the decoder's early features.
FILTERS, SKIP_FILTERS = 256, 48
#: The early features of the decoder, of stride 4.
SKIP = "layer_4/depthwise_output"


@dataclass(frozen=True)
class Aspp:
    """Atrous spatial pyramid pooling (ASPP): parallel branches, then a projection of their concatenation."""

    pooling: Convolution  # of the first branch, which reads the mean over the map
    branches: tuple[tuple[Convolution, ...], ...]  # the layers of each further branch
    projection: Convolution


@dataclass(frozen=True)
class Decoder:
    """DeepLabv3+'s decoder: early features are appended to the upsampled ones, then two filters."""

    endpoint: str  # of the early features in the backbone
    skip: Convolution  # narrows the early features
    filters: tuple[Convolution, ...]  # read both


@dataclass(frozen=True)
class SegmenterPlan:
    """Every layer of a segmenter with its sizes, in network order."""

    backbone: Plan  # the segmenter reads its last block, not its last convolution
    classes: int  # with the background
    aspp: Aspp | None  # None for a network without a head
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
    pooling, first = (Convolution(name, inputs, FILTERS, stddev=None) for name in ("image_pooling", "aspp0"))
    branches = [(first,)]
    for i, rate in enumerate(rates, start=1):
        full = Convolution(f"aspp{i}", inputs, FILTERS, 3, rate=rate, stddev=None)
        branches.append(_separable(full.name, inputs, rate) if separable else (full,))
    projection = Convolution("concat_projection", FILTERS * (1 + len(branches)), FILTERS, stddev=None)
    return Aspp(pooling, tuple(branches), projection)


def _decoder(plan: Plan) -> Decoder:
    """Source: DeepLab `model.refine_by_decoder` with `decoder_output_stride` [4]."""
    skip = Convolution("decoder/feature_projection0", plan.endpoints[SKIP].channels, SKIP_FILTERS, stddev=None)
    first = _separable("decoder/decoder_conv0", FILTERS + SKIP_FILTERS)
    return Decoder(SKIP, skip, (*first, *_separable("decoder/decoder_conv1", FILTERS)))


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
        alpha, classes, output_stride, aspp_rates, decoder, head, aspp_separable: as in `build_deeplabv3_mobilenetv2`.
        channels: channels of the input image.
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
    logits = Convolution("logits/semantic", FILTERS if head else width, classes, bias=True, stddev=0.01)
    return SegmenterPlan(plan, classes, aspp, _decoder(plan) if decoder else None, logits)
