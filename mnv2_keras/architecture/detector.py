"""SSD and SSDLite on MobileNetV2: the unrolled plan of the detector, and the shapes of its anchors.

Source: arXiv:1801.04381, section 6.2; Object Detection API, `ssdlite_mobilenet_v2_coco.config` and
`ssd_mobilenet_v2_coco.config`, `feature_map_generators`, `convolutional_box_predictor`, `multiple_grid_anchor_generator`.
"""

import itertools
import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

from mnv2_keras.architecture.backbone import Convolution, Plan, make_plan
from mnv2_keras.checks import whole_number

#: Channels of the four extra feature maps at alpha = 1.
EXTRA_DEPTHS = (512, 256, 256, 128)
#: Least number of channels of a layer in the published detectors.
MIN_DEPTH = 16
#: The Object Detection API refuses images with a smaller side, in pixels.
MIN_SIDE = 33
#: Pixels of the image per step of the first feature map; each later map has twice the pixels per step.
FIRST_STRIDE = 16
_STDDEV = 0.03


class AnchorShape(NamedTuple):
    """One anchor of a feature map."""

    scale: float  # side of a square anchor of the same area, as a part of the shorter side of the image
    ratio: float  # width / height


def _float32(value: float) -> float:
    """The value as the configuration's proto holds it."""
    return struct.unpack("f", struct.pack("f", value))[0]


def _anchor_shapes() -> tuple[tuple[AnchorShape, ...], ...]:
    """The shapes of each map; the first has three (`reduce_boxes_in_lowest_layer`)."""
    low, high, last = _float32(0.2), _float32(0.95), len(EXTRA_DEPTHS) + 1
    scales = [low + (high - low) * i / last for i in range(1, last + 1)] + [1.0]
    ratios = (1.0, 2.0, 0.5, 3.0, _float32(0.3333))
    maps = [((0.1, 1.0), (low, 2.0), (low, 0.5))]
    for scale, next_scale in itertools.pairwise(scales):
        maps.append((*((scale, ratio) for ratio in ratios), (math.sqrt(scale * next_scale), 1.0)))
    return tuple(tuple(itertools.starmap(AnchorShape, shapes)) for shapes in maps)


#: The anchors at each place of each feature map, in the order of the predictors' channels.
ANCHOR_SHAPES = _anchor_shapes()


class Predictor(NamedTuple):
    """What is predicted for the anchors of one feature map; each branch ends in a 1x1 or 3x3 convolution with a bias."""

    anchors: int  # for each place of the map
    boxes: tuple[Convolution, ...]
    classes: tuple[Convolution, ...]


@dataclass(frozen=True)
class DetectorPlan:
    """Every layer of a detector with its sizes, in network order."""

    backbone: Plan
    classes: int  # without the background
    feature_maps: tuple[str, ...]  # endpoints of the backbone that the first predictors read
    extra_maps: tuple[tuple[Convolution, ...], ...]  # the layers of each further map; each reads the map before it
    predictors: tuple[Predictor, ...]  # one for each map, those of the backbone first


def make_detector_plan(
    alpha: float = 1.0,
    *,
    channels: int = 3,
    classes: int = 90,
    separable: bool = True,
    predictor_kernel: int | None = None,
    min_depth: int = MIN_DEPTH,
) -> DetectorPlan:
    """Unroll SSDLite, or the classic SSD, into its layers.

    Args:
        alpha, classes, separable, predictor_kernel, min_depth: as in `build_ssdlite_mobilenetv2`.
        channels: channels of the input image.

    Raises:
        ValueError: an argument is out of its range; the message says which and what is expected.
    """
    classes = whole_number("classes", classes, note=", without the background")
    kernel = (3 if separable else 1) if predictor_kernel is None else predictor_kernel
    if kernel not in ((3,) if separable else (1, 3)):
        expected = "3, the only one a separable predictor has" if separable else "1 or 3"
        raise ValueError(f"predictor_kernel is {predictor_kernel!r}: expected {expected}.")
    backbone = make_plan(alpha, channels=channels, finegrain_classification_mode=False, min_depth=min_depth)
    # What the last block with a stride sees before its stride: `layer_15/expansion_output`.
    strided = [block for block in backbone.blocks if block.stride == 2][-1]
    feature_maps = (f"{strided.endpoint}/expansion_output", backbone.last.endpoint)

    def filtered(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False):
        """The layers of one convolution: a depthwise and a 1x1 one where the detector is separable."""
        if not separable:
            return (Convolution(name, inputs, outputs, kernel, stride, bias=bias, stddev=_STDDEV),)
        return (
            Convolution(f"{name}_depthwise", inputs, inputs, kernel, stride, depthwise=True, stddev=_STDDEV),
            Convolution(name, inputs, outputs, bias=bias, stddev=_STDDEV),
        )

    extra_maps, inputs = [], backbone.last.outputs
    for i, depth in enumerate(EXTRA_DEPTHS, start=2):
        narrow, wide = (max(int(d * backbone.alpha), min_depth) for d in (depth // 2, depth))
        name = f"{backbone.last.endpoint}_1_Conv2d_{i}_1x1_{narrow}"
        squeeze = Convolution(name, inputs, narrow, stddev=_STDDEV)
        name = f"{backbone.last.endpoint}_2_Conv2d_{i}_3x3_s2_{wide}"
        extra_maps.append((squeeze, *filtered(name, narrow, wide, 3, stride=2)))
        inputs = wide

    widths = [backbone.endpoints[name].channels for name in feature_maps]
    widths += [layers[-1].outputs for layers in extra_maps]
    predictors = []
    for i, (width, shapes) in enumerate(zip(widths, ANCHOR_SHAPES, strict=True)):
        boxes, scores = (
            filtered(f"BoxPredictor_{i}/{branch}", width, len(shapes) * values, kernel, bias=True)
            for branch, values in (("BoxEncodingPredictor", 4), ("ClassPredictor", classes + 1))
        )
        predictors.append(Predictor(len(shapes), boxes, scores))
    return DetectorPlan(backbone, classes, feature_maps, tuple(extra_maps), tuple(predictors))
