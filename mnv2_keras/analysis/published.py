"""Published and computed figures: the table of the checkpoints, and Tables 3, 5, 6 and 7 of the paper.

"Published" is what arXiv:1801.04381 or TF-Slim's nets/mobilenet/README.md prints; "computed" comes from the plan. Each
explanation says whether a computed figure gives the printed one when it is rounded or truncated.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

from mnv2_keras.analysis.network import Analysis, analyze, analyze_deeplab, analyze_ssdlite
from mnv2_keras.analysis.profiler import profiled_multiply_adds
from mnv2_keras.architecture import ASPP_RATES

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


class PublishedFigures(NamedTuple):
    """Figures as TF-Slim's table of checkpoints prints them."""

    multiply_adds_m: int  # million, truncated
    parameters_m: float  # million, two decimals


def published_figures(alpha: float, resolution: int | tuple[int, int]) -> PublishedFigures:
    """What TF-Slim's table would print for a classifier, computed.

    Source: TF-Slim nets/mobilenet/README.md. Its multiply-adds are truncated (18.887 million is printed as 18) and include the
    logits. Its parameters are kernels and biases with two decimals, truncated here (rounding gives the same 22 figures).

    Args:
        alpha: width multiplier.
        resolution: side of the square input in pixels, or (height, width).
    """
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    counted = analyze(alpha, (*size, 3))
    return PublishedFigures(counted.multiply_adds // 10**6, counted.parameters // 10**4 / 100)


@dataclass(frozen=True)
class Comparison:
    """One row of a table of the paper."""

    table: int  # number of the table
    row: str  # what the paper calls the row
    published: dict[str, str]  # printed figures, such as {"parameters": "14.8M"}; K, M and B are powers of 1000
    computed: dict[str, int]  # exact figures under the same keys where they can be computed, and others for the explanation
    explanation: str  # how printed and computed figures are related

    @property
    def agrees(self) -> bool:
        """Whether every printed figure that can be computed is the computed one, rounded or truncated."""
        return all(_reading(self.computed[key], self.published[key]) for key in self.published.keys() & self.computed)

    def as_dict(self) -> dict:
        """The row, ready for JSON."""
        return asdict(self) | {"agrees": self.agrees}


def _scaled(value: int, printed: str) -> tuple[Fraction, int]:
    """The value in steps of the printed figure's last digit, and the printed figure in the same steps."""
    number = printed.rstrip("".join(_UNITS))
    unit = _UNITS.get(printed[len(number) :], 1)
    return Fraction(value * 10 ** len(number.partition(".")[2]), unit), int(number.replace(".", ""))


def _reading(value: int, printed: str) -> str | None:
    """How the value becomes the printed figure: "rounded", "truncated", or None for neither."""
    exact, digits = _scaled(value, printed)
    if floor(exact + Fraction(1, 2)) == digits:
        return "rounded"
    return "truncated" if floor(exact) == digits else None


def _text(value: int, noun: str, printed: str) -> str:
    """`14,776,629 parameters (rounded: 14.8M)`, or `1,234 bytes (not the printed 15)`."""
    reading = _reading(value, printed)
    return f"{value:,} {noun} ({reading}: {printed})" if reading else f"{value:,} {noun} (not the printed {printed})"


# Spatial size, widest tensor, its memory in Kb.
_TABLE_3 = ((112, "16", "400K"), (56, "32", "200K"), (28, "64", "100K"), (14, "160", "62K"), (7, "320", "32K"), (1, "1280", "2K"))
_TABLE_3_MAX = "400K"


def _bytes_text(memory: int, printed: str) -> str:
    """As `_text` for a memory; the printed figure may also be its first digits only, or rounded up."""
    if _reading(memory, printed):
        return _text(memory, "bytes", printed)
    exact, digits = _scaled(memory, printed)
    leading = 10 ** (len(str(digits)) - len(str(digits).rstrip("0")))
    if floor(exact / leading) * leading == digits:
        return f"{memory:,} bytes (cut to its first digits: {printed})"
    up = ", and only rounding up gives it" if ceil(exact) == digits else ""
    return f"{memory:,} bytes (not the printed {printed}: {memory / 1000:.1f} K, {memory / 1024:.1f} Ki{up})"


def table_3() -> list[Comparison]:
    """Table 3: the widest tensor that must be materialised at each spatial size, and its memory in 16-bit floats.

    The published column is MobileNetV2's. Another edition of the paper prints "1/O(1)" at 112x112, where the first layers can
    run channel by channel (section 5), and 200K as the maximum. Computed is what section 5 leaves in memory: inputs and outputs
    of blocks, the first convolution together with the first block and the last one together with the pooling.

    Returns:
        A comparison for each size and one for the maximum, with `channels` and `memory` (bytes where computed).
    """
    counted = analyze(activation_bytes=2)
    blocks = [row for row in counted.rows if row.table_row is not None]
    stem, last = counted.rows[0], next(row for row in counted.rows if row.name == counted.plan.last.name)
    widest = {1: counted.plan.last.outputs}  # most output channels of a block with this output size
    leaving = {}  # most output channels of a block with this input size
    for row in blocks:
        (size_in, *_), (size_out, _, channels) = row.input_shape, row.output_shape
        widest[size_out] = max(widest.get(size_out, 0), channels)
        leaving[size_in] = max(leaving.get(size_in, 0), channels)

    comparisons = []
    for size, channels, memory in _TABLE_3:
        here = f"{size}x{size}"
        computed = {"channels": widest[size], "memory": 2 * size * size * widest[size]}
        text = f"{size} x {size} x {channels} x 2 = {_bytes_text(2 * size * size * int(channels), memory)}."
        if int(channels) == leaving.get(size) != widest[size]:
            text = (
                f"The paper takes the widest output of the rows of Table 2 that have their input at {here}: {channels} channels; "
                f"their output has half that size. At {here} no block has more than {widest[size]} output channels, "
                f"{computed['memory']:,} bytes. The printed memory belongs to the printed channels: {text}"
            )
        for row, partner in ((stem, "first block"), (last, "pooling")):
            height, width, inner = row.output_shape
            if height == size:
                text += (
                    f" The {inner} channels of {row.name} ({2 * height * width * inner:,} bytes) are not counted: they run channel "
                    f"by channel together with the {partner} and never exist all at once (section 5)."
                )
        comparisons.append(Comparison(3, here, {"channels": channels, "memory": memory}, computed, text))

    top = max(comparisons, key=lambda comparison: comparison.computed["memory"])
    text = (
        f"One tensor at {top.row}: {_bytes_text(top.computed['memory'], _TABLE_3_MAX)}. Input and output together, with each block "
        f"as one operation (equation 2), are {counted.bottleneck_memory:,} bytes at {counted.bottleneck_at}; one operation after "
        f"the other, without the method of section 5, {counted.peak_activation_memory:,} bytes are alive at {counted.peak_at}."
    )
    return [*comparisons, Comparison(3, "max", {"memory": _TABLE_3_MAX}, {"memory": top.computed["memory"]}, text)]


_TABLE_6 = {"mAP": "22.1", "parameters": "4.3M", "multiply_adds": "0.8B", "CPU": "200ms"}


def _detector(separable: bool, classes: int = 80) -> tuple[Analysis, Analysis]:
    """The paper's detector at 320x320 with 3x3 predictors, and what it has on top of the backbone."""
    detector = analyze_ssdlite(1.0, (320, 320, 3), classes, separable, predictor_kernel=3)
    return detector, detector.part("extras", "predictors")


def _costs(network: Analysis, printed: dict[str, str]) -> str:
    """The computed parameters and multiply-adds, and how they become the printed ones."""
    parameters = _text(network.trainable, "trainable parameters", printed["parameters"])
    return f"{parameters} and {_text(network.multiply_adds, 'multiply-adds', printed['multiply_adds'])}"


def table_5() -> list[Comparison]:
    """Table 5: SSD against SSDLite on MobileNetV2, "making predictions for 80 classes".

    Published: 14.8M and 1.25B, 2.1M and 0.35B. The resolution is that of the paper's section 6.2, 320x320.

    Returns:
        Two comparisons with `parameters` (trainable) and `multiply_adds` of extra maps and predictors, and, computed only,
        those of the whole network.
    """
    comparisons = []
    for name, separable, published in (
        ("SSD", False, {"parameters": "14.8M", "multiply_adds": "1.25B"}),
        ("SSDLite", True, {"parameters": "2.1M", "multiply_adds": "0.35B"}),
    ):
        detector, head = _detector(separable)
        computed = {
            "parameters": head.trainable,
            "multiply_adds": head.multiply_adds,
            "network_parameters": detector.trainable,
            "network_multiply_adds": detector.multiply_adds,
        }
        kind, printed = "depthwise 3x3 and pointwise" if separable else "full 3x3", published["multiply_adds"]
        text = (
            f"Extra feature maps and predictors without the backbone, 320x320, 80 classes, {kind} convolutions: "
            f"{_costs(head, published)}. The whole network has {detector.trainable:,} and {detector.multiply_adds:,}."
        )
        doubled = _reading(2 * head.multiply_adds, printed)
        if doubled and not _reading(head.multiply_adds, printed):
            per_step, steps = _scaled(1, printed)
            total = detector.part("backbone").multiply_adds + int(steps / per_step)
            text += (
                f" Twice the multiply-adds, {2 * head.multiply_adds:,}, is the printed {printed} ({doubled}), as if "
                f"multiplications and additions were counted separately. With {printed} the network of Table 6 would have "
                f"{_text(total, 'multiply-adds', _TABLE_6['multiply_adds'])}."
            )
        comparisons.append(Comparison(5, name, published, computed, text))
    return comparisons


def table_6_row() -> Comparison:
    """Table 6's row "MNet V2 + SSDLite".

    Published: mAP 22.1 on COCO test-dev, 4.3M parameters, 0.8B multiply-adds, 200 ms on a Pixel 1, at 320x320.
    """
    detector, _ = _detector(separable=True)
    published, _ = _detector(separable=True, classes=90)
    text = (
        f"320x320 and 80 classes: {_costs(detector, _TABLE_6)}. The published configuration has 90 classes: "
        f"{_costs(published, _TABLE_6)}. mAP and CPU were measured by the authors."
    )
    computed = {"parameters": detector.trainable, "multiply_adds": detector.multiply_adds}
    return Comparison(6, "MNet V2 + SSDLite", dict(_TABLE_6), computed, text)


#: The scales of "MF", multi-scale and flipped inputs: [0.5:0.25:1.75] in DeepLab's model zoo, of a crop of 513.
EVALUATION_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_CROP = 513

# Output stride, ASPP, MF, then mIOU, parameters and multiply-adds as printed.
_TABLE_7 = (
    (16, True, False, "75.70", "4.52M", "5.8B"),
    (8, True, True, "78.42", "4.52M", "387B"),
    (16, False, False, "75.32", "2.11M", "2.75B"),
    (8, False, True, "77.33", "2.11M", "152.6B"),
)


def table_7_rows() -> list[Comparison]:
    """Table 7's rows "MNet V2*": Mobile DeepLabv3 with its head on the second last feature map.

    Published: mIOU on PASCAL VOC 2012 val, parameters and multiply-adds. OS is the output stride, MF is multi-scale and
    flipped inputs. DeepLab's model zoo prints the last row's multiply-adds with one digit more, 152.59B.

    Returns:
        Four comparisons with `parameters` (trainable) and `multiply_adds` (of the convolutions), and, computed only,
        `padded_multiply_adds` and `profiled` (see `profiled_multiply_adds`).
    """
    comparisons = []
    for stride, aspp, multi_scale, miou, parameters, multiply_adds in _TABLE_7:
        rates = ASPP_RATES[stride] if aspp else ()

        def network(side, stride=stride, rates=rates):
            return analyze_deeplab(1.0, (side, side, 3), 21, stride, rates, aspp_separable=False)

        single = network(_CROP)
        crops = [int((_CROP - 1) * scale + 1) for scale in EVALUATION_SCALES]
        passes = [network(crop) for crop in crops for _ in ("unchanged", "flipped")] if multi_scale else []
        sums = ("multiply_adds", "padded_multiply_adds")
        computed = {
            "parameters": single.trainable,
            **{name: sum(getattr(counted, name) for counted in passes or [single]) for name in sums},
            "profiled": profiled_multiply_adds(single, passes),
        }
        inputs = f"{_CROP}x{_CROP}"
        if multi_scale:
            inputs = f"Six scales from {crops[0]} to {crops[-1]} pixels, each also flipped"
        if aspp:
            inputs += ", full 3x3 convolutions in the ASPP"
        texts = {key: _text(computed[key], "multiply-adds", multiply_adds) for key in list(computed)[1:]}
        text = (
            f"{inputs}: {_text(single.trainable, 'trainable parameters', parameters)}. Convolutions only: "
            f"{texts['multiply_adds']}. As TensorFlow 1 runs the dilated ones, on padded input: {texts['padded_multiply_adds']}. "
            f"Half of all operations that its profiler counts in the graph, without the softmax: "
            f"{texts['profiled']}. mIOU was measured by the authors."
        )
        label = f"MNet V2*, OS {stride}{', ASPP' if aspp else ''}{', MF' if multi_scale else ''}"
        published = {"mIOU": miou, "parameters": parameters, "multiply_adds": multiply_adds}
        comparisons.append(Comparison(7, label, published, computed, text))
    return comparisons
