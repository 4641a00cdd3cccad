"""Which network a set of variable shapes belongs to: alpha, widths, classes, options; for all three networks."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mnv2_keras.architecture import TABLE_2, Plan, Row, make_plan
from mnv2_keras.architecture.detector import ANCHOR_SHAPES, EXTRA_DEPTHS, MIN_DEPTH, make_detector_plan
from mnv2_keras.convert.names import CLASSIFIER, DETECTOR, backbone_shapes, depth

Shapes = Mapping[str, tuple[int, ...]]

_PUBLISHED = (1.0, 1.4, 1.3, 0.75, 0.5, 0.35)
_ALPHA_IN_NAME = re.compile(r"mobilenet_v2_(\d+(?:\.\d+)?)_|_dm(\d{2})_")
#: (min_depth, divisible_by): TF-Slim's, DeepLab's for alpha other than 1, the detectors'.
_ROUNDINGS = ((8, 8), (1, 1), (16, 8))


@dataclass(frozen=True)
class InferredArchitecture:
    """A backbone, as its shapes show it.

    Attributes:
        options: arguments of `make_plan` and `normalization`, enough to build the same backbone.
        classes: outputs of the classifier; None without one.
        channels: channels of the input image.
        has_last: whether the last convolution (`Conv_1`) is there.
        root: scope of the backbone's variables.
        stem: channels of the first convolution.
        final_endpoint: where the backbone ends; None for the last convolution.
        normalization: "batch_norm" or "group_norm".
        strides_known: whether the blocks are Table 2's. Shapes do not hold strides, so those of another table have to be given.
    """

    options: dict
    classes: int | None
    channels: int
    has_last: bool
    root: str
    stem: int
    final_endpoint: str | None
    normalization: str
    strides_known: bool

    @property
    def alpha(self) -> float | None:
        """The width multiplier; None if the widths are not a multiple of Table 2's."""
        return None if "table" in self.options else self.options["alpha"]

    @property
    def plan(self) -> Plan:
        """The backbone's plan."""
        return make_plan(channels=self.channels, **self.options)

    def describe(self) -> str:
        """The network as errors name it."""
        alpha = "other widths" if self.alpha is None else f"alpha {self.alpha}"
        return f"{alpha} (stem {self.stem} channels)"


def _alphas(hint: str):
    """Candidates: from the file's name, the published ones, then multiples of 0.1, 0.05 and 0.01 up to 4."""
    match = _ALPHA_IN_NAME.search(hint)
    if match:
        yield float(match[1]) if match[1] else int(match[2]) / 10
    yield from _PUBLISHED
    yield from (i / 100 for step in (10, 5, 1) for i in range(step, 401, step))


def _widths(shapes: Shapes, root: str) -> list[tuple[int, int]]:
    """(hidden, outputs) of every complete block, in order; the network may end within the next one."""
    hidden, outputs = {}, {}
    block = re.compile(rf"{root}/expanded_conv(?:_(\d+))?/(depthwise/depthwise_weights|project(?:_part_\d+)?/weights)$")
    for name, shape in shapes.items():
        if match := block.match(name):
            index = int(match[1] or 0)
            if match[2].startswith("depthwise"):
                hidden[index] = shape[2]
            else:
                outputs[index] = outputs.get(index, 0) + shape[3]
    count = len(outputs)
    if sorted(outputs) != list(range(count)) or hidden.keys() - {count} != outputs.keys():
        return []
    return [(hidden[i], outputs[i]) for i in range(count)]


def _end(shapes: Shapes, root: str, count: int) -> str:
    """The endpoint at which a network without `Conv_1` ends: after `count` blocks, or within the next one."""
    scope = f"{root}/expanded_conv_{count}"
    if f"{scope}/depthwise/depthwise_weights" in shapes:
        return f"layer_{count + 2}/depthwise_output"
    if any(name.startswith(f"{scope}/expand") for name in shapes):
        return f"layer_{count + 2}/expansion_output"
    return f"layer_{count + 1}"


def _ways(shapes: Shapes, kind: str) -> int:
    """Groups of the split expansions or projections: the largest number of parts."""
    return 1 + max((int(m[1]) for name in shapes if (m := re.search(rf"/{kind}_part_(\d+)/", name))), default=0)


def infer_architecture(shapes: Shapes, hint: str = "") -> InferredArchitecture | None:
    """The network of variables with these names and shapes; None if it is not MobileNetV2.

    Args:
        shapes: variables of the network itself, without optimiser slots.
        hint: the file's name, to choose between alphas of equal widths.
    """
    root = DETECTOR if any(name.startswith(DETECTOR) for name in shapes) else CLASSIFIER
    stem, widths = shapes.get(f"{root}/Conv/weights"), _widths(shapes, root)
    if stem is None or len(stem) != 4 or not widths:
        return None
    last = shapes.get(f"{root}/Conv_1/weights")
    logits = shapes.get(f"{root}/Logits/Conv2d_1c_1x1/weights")
    normalization = "group_norm" if f"{root}/Conv/GroupNorm/gamma" in shapes else "batch_norm"
    fixed = {"split_expansion": _ways(shapes, "expand"), "split_projection": _ways(shapes, "project"), "output_stride": None}
    count, blocks = len(widths), sum(row.n for row in TABLE_2)
    end = None if last is not None else _end(shapes, root, count)

    def fits(options: dict) -> bool:
        try:
            plan = make_plan(channels=stem[2], **options)
        except ValueError:
            return False
        if plan.stem.outputs != stem[3] or [(b.hidden, b.outputs) for b in plan.blocks[:count]] != widths:
            return False
        # Variables after the end may be missing; those that exist have to fit.
        return all(
            shapes.get(name) == shape
            for name, shape in backbone_shapes(plan, normalization, root).items()
            if end is None or depth(name)[0] < count or name in shapes
        )

    def architecture(options: dict, strides_known: bool) -> InferredArchitecture:
        classes = logits and logits[3]
        return InferredArchitecture(options, classes, stem[2], end is None, root, stem[3], end, normalization, strides_known)

    if count == blocks or (end is not None and count < blocks):
        for min_depth, divisible_by in _ROUNDINGS:
            for alpha in _alphas(hint):
                for finegrain in (True, False):
                    options = fixed | {
                        "alpha": alpha,
                        "finegrain_classification_mode": finegrain,
                        "min_depth": min_depth,
                        "divisible_by": divisible_by,
                    }
                    if fits(options):
                        return architecture(options, strides_known=True)
    options = fixed | _own_widths(stem[3], widths, last)
    return architecture(options, strides_known=count == blocks) if fits(options) else None


def _own_widths(stem: int, widths: list[tuple[int, int]], last) -> dict:
    """Options with explicit widths, for other tables than the paper's and unusual alphas.

    Shapes do not hold strides: they are Table 2's if the number of blocks is, else 1.
    """
    strides = [row.s if i == 0 else 1 for row in TABLE_2 for i in range(row.n)]
    if len(widths) != len(strides):
        strides = [1] * len(widths)
    inputs = [stem, *(outputs for _, outputs in widths)]
    table = tuple(
        Row(max(1, round(hidden / before)), outputs, 1, stride)
        for (hidden, outputs), before, stride in zip(widths, inputs, strides, strict=False)
    )
    return {
        "alpha": 1.0,
        "table": table,
        "stem_channels": stem,
        "last_channels": last[3] if last else 1280,
        "min_depth": 1,
        "divisible_by": 1,
    }


def infer_detector(shapes: Shapes, name: object) -> dict:
    """Arguments of `build_ssdlite_mobilenetv2`, and `channels`; the names of the extra maps tell alpha.

    Args:
        shapes: variables of the network itself.
        name: of the file, for the message.

    Raises:
        ValueError: the variables are another detector's.
    """
    kernel, stem = shapes.get("BoxPredictor_1/ClassPredictor/weights"), shapes.get(f"{DETECTOR}/Conv/weights")
    wide = [int(m[1]) for v in shapes if (m := re.search(r"/layer_19_2_Conv2d_2_3x3_s2_(\d+)/weights$", v))]
    if kernel and stem and wide:
        # The published alphas, then every hundredth, then the one that gives exactly this width.
        alphas = (*_PUBLISHED, *(i / 100 for i in range(1, 401)), wide[0] / EXTRA_DEPTHS[0])
        for min_depth, alpha in itertools.product((MIN_DEPTH, 8), alphas):
            if max(int(EXTRA_DEPTHS[0] * alpha), min_depth) != wide[0]:
                continue
            plan = make_detector_plan(alpha, channels=stem[2], min_depth=min_depth)
            expected = backbone_shapes(plan.backbone, root=DETECTOR)
            if all(shapes.get(variable) == shape for variable, shape in expected.items()):
                separable = "BoxPredictor_0/ClassPredictor_depthwise/depthwise_weights" in shapes
                return {
                    "alpha": alpha,
                    "classes": kernel[3] // len(ANCHOR_SHAPES[1]) - 1,
                    "separable": separable,
                    "predictor_kernel": None if separable else kernel[0],
                    "min_depth": min_depth,
                    "channels": stem[2],
                }
    raise ValueError(
        f"{name} holds a detector, but not SSD or SSDLite on MobileNetV2: expected {DETECTOR}/Conv/weights, "
        f"{DETECTOR}/layer_19_2_Conv2d_2_3x3_s2_512/weights, BoxPredictor_1/ClassPredictor/weights and so on, of one alpha."
    )


def infer_segmenter(shapes: Shapes, hint: str) -> dict:
    """Arguments of `build_deeplabv3_mobilenetv2`, and `channels` and the number of atrous `branches`.

    Args:
        shapes: variables of the network itself.
        hint: the file's name, to choose between alphas of equal widths, and for the message.

    Raises:
        ValueError: no alpha gives the backbone's widths.
    """
    backbone = infer_architecture(shapes, hint)
    if backbone is None or backbone.alpha is None:
        raise ValueError(
            f"{hint} holds a segmentation network on a backbone whose widths are not a multiple of Table 2's: only DeepLab on "
            "MobileNetV2 with a width multiplier can be converted."
        )
    return {
        "alpha": backbone.alpha,
        "channels": backbone.channels,
        "classes": shapes["logits/semantic/weights"][3],
        "head": "concat_projection/weights" in shapes,
        "decoder": "decoder/feature_projection0/weights" in shapes,
        "aspp_separable": "aspp1/weights" not in shapes,
        "min_depth": backbone.options["min_depth"],
        "divisible_by": backbone.options["divisible_by"],
        "branches": sum(bool(re.fullmatch(r"aspp[1-9]\d*(_pointwise)?/weights", name)) for name in shapes),
    }
