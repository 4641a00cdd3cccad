"""MobileNetV2 as the paper draws it: Table 2, channel rounding, and the unrolled plan of layers.

Source: arXiv:1801.04381, Tables 1 and 2; TF-Slim `mobilenet_v2.V2_DEF`, `mobilenet.mobilenet_base` and `conv_blocks`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

from mnv2_keras.checks import one_of, real_number, whole_number


class Row(NamedTuple):
    """One line of Table 2 in arXiv:1801.04381."""

    t: int  # expansion factor
    c: int  # output channels at alpha = 1
    n: int  # repeats
    s: int  # stride of the first repeat


#       t    c  n  s      input of the row at 224 px
TABLE_2 = (
    Row(1, 16, 1, 1),  # 112 x 112 x 32
    Row(6, 24, 2, 2),  # 112 x 112 x 16
    Row(6, 32, 3, 2),  #  56 x  56 x 24
    Row(6, 64, 4, 2),  #  28 x  28 x 32
    Row(6, 96, 3, 1),  #  14 x  14 x 64
    Row(6, 160, 3, 2),  # 14 x  14 x 96
    Row(6, 320, 1, 1),  #  7 x   7 x 160
)

#: Expansion sizes and the parts of a split convolution are multiples of this, whatever `divisible_by` says of the widths.
EXPANSION_DIVISOR = 8


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """Round a channel count to a multiple of `divisor`, never losing more than a tenth of it.

    Source: TF-Slim `conv_blocks._make_divisible`. The product alpha * c comes in untruncated (Keras Applications truncates
    it to an integer first and differs in 15 rows of Table 2 at alphas from 0.10 to 2.00).

    Args:
        value: number of channels before rounding, a float.
        divisor: the result is a multiple of it, but for `minimum`.
        minimum: the least result; None for `divisor`.
    """
    rounded = max(divisor if minimum is None else minimum, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def split_divisible(total: int, ways: int) -> tuple[int, ...]:
    """Cut `total` channels into `ways` parts, multiples of 8, as equal as that allows.

    Source: TF-Slim `conv_blocks._split_divisible`.

    Raises:
        ValueError: `total` is not a multiple of 8.
    """
    if total % EXPANSION_DIVISOR:
        raise ValueError(
            f"{total} channels cannot be split {ways} ways: expected a multiple of {EXPANSION_DIVISOR}. Use split_expansion=1 and "
            f"split_projection=1, or divisible_by={EXPANSION_DIVISOR}."
        )
    parts, used = [], 0
    for i in range(1, ways + 1):
        part = total // ways // EXPANSION_DIVISOR * EXPANSION_DIVISOR
        while used + part < total * i / ways:
            part += EXPANSION_DIVISOR
        parts.append(part)
        used += part
    return tuple(parts)


class Endpoint(NamedTuple):
    """What an endpoint offers to the layers that are built on it."""

    channels: int
    stride: int  # pixels of the image per step of the map; 0 after a global pooling


@dataclass(frozen=True)
class Convolution:
    """One convolution, and what follows it: normalisation and activation, or only a bias."""

    name: str  # TF-Slim scope, such as `Conv` or `expanded_conv_3/depthwise`
    inputs: int  # channels
    outputs: int
    kernel: int = 1  # side of the kernel
    stride: int = 1
    rate: int = 1  # dilation
    depthwise: bool = False  # one filter for each channel
    bias: bool = False  # a bias in place of normalisation and activation
    stddev: float | None = 0.09  # of the truncated normal that the kernel starts from; None for Glorot's uniform
    endpoint: str | None = None  # TF-Slim endpoint, such as `layer_1`; None where it is the name

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """In TF-Slim's layout, which is Keras' too."""
        return self.kernel, self.kernel, self.inputs, 1 if self.depthwise else self.outputs


@dataclass(frozen=True)
class Block:
    """One inverted residual with a linear bottleneck (paper section 3.2-3.4, Table 1; TF-Slim `expanded_conv`)."""

    name: str  # TF-Slim scope, `expanded_conv`, `expanded_conv_1`, ...
    endpoint: str  # TF-Slim endpoint, `layer_2`, ...
    row: int  # index of its row in the table
    inputs: int
    hidden: int
    outputs: int
    stride: int
    rate: int
    expand: tuple[Convolution, ...]  # 1x1, widens: one, or one for each group of a split one; none where t = 1
    project: tuple[Convolution, ...]  # 1x1, linear, narrows: one, or one for each group

    @property
    def depthwise(self) -> Convolution:
        """The 3x3 convolution of each channel."""
        return Convolution(f"{self.name}/depthwise", self.hidden, self.hidden, 3, self.stride, self.rate, True)

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output: both have the same shape."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True)
class Plan:
    """Every layer of one backbone with its sizes, in network order."""

    alpha: float
    table: tuple[Row, ...]
    stem: Convolution
    blocks: tuple[Block, ...]
    last: Convolution

    @property
    def layers(self) -> tuple[Convolution | Block, ...]:
        """All layers in network order; the i-th has the endpoint `layer_{i + 1}`."""
        return (self.stem, *self.blocks, self.last)

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """All convolutions in TF-Slim's order of creation."""
        inner = (layer for block in self.blocks for layer in (*block.expand, block.depthwise, *block.project))
        return (self.stem, *inner, self.last)

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """The endpoints at which a backbone of this plan can end, in network order (not the parts of split convolutions)."""
        endpoints, stride = {}, 1
        for layer in self.layers:
            if isinstance(layer, Block) and layer.expand:
                endpoints[f"{layer.endpoint}/expansion_output"] = Endpoint(layer.hidden, stride)
            stride *= layer.stride
            if isinstance(layer, Block):
                endpoints[f"{layer.endpoint}/depthwise_output"] = Endpoint(layer.hidden, stride)
                endpoints[f"{layer.endpoint}/output"] = Endpoint(layer.outputs, stride)
            endpoints[layer.endpoint] = Endpoint(layer.outputs, stride)
        return endpoints

    def end(self, final_endpoint: str | None = None) -> str:
        """The endpoint at which a backbone ends: `final_endpoint`, or the last one for None.

        Raises:
            ValueError: the plan has no such endpoint.
        """
        if final_endpoint is None:
            return self.last.endpoint
        return one_of("final_endpoint", final_endpoint, self.endpoints)

    @property
    def output_stride(self) -> int:
        """Pixels of the image per step of the last layer's output."""
        return math.prod(layer.stride for layer in self.layers)


def classifier_logits(inputs: int, classes: int) -> Convolution:
    """The last layer of the classifier (TF-Slim `mobilenet.mobilenet`, scope `Logits`)."""
    return Convolution("Logits/Conv2d_1c_1x1", inputs, classes, bias=True, endpoint="Logits")


def _pointwise(name: str, inputs: int, outputs: int, ways: int) -> tuple[Convolution, ...]:
    """A 1x1 convolution split `ways` ways; unsplit where a part would be narrower than 8 (TF-Slim `split_conv`)."""
    if ways == 1 or min(inputs // ways, outputs // ways) < EXPANSION_DIVISOR:
        return (Convolution(name, inputs, outputs),)
    sizes = zip(split_divisible(inputs, ways), split_divisible(outputs, ways), strict=True)
    return tuple(Convolution(f"{name}_part_{i}", *size) for i, size in enumerate(sizes))


@dataclass(frozen=True)
class PlanOptions:
    """The arguments of `make_plan`, checked; `build_mobilenetv2` describes them. `channels` are those of the image."""

    alpha: float = 1.0
    channels: int = 3
    table: Iterable = TABLE_2
    stem_channels: int = 32
    last_channels: int = 1280
    output_stride: int | None = None
    finegrain_classification_mode: bool = True
    min_depth: int = 8
    divisible_by: int = 8
    split_expansion: int = 1
    split_projection: int = 1

    def __post_init__(self):
        note = ", the factor on every layer's width (published: 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)"
        checked = {"alpha": real_number("alpha", self.alpha, 0, above=True, note=note), "table": _rows(self.table)}
        checked |= {f.name: whole_number(f.name, getattr(self, f.name)) for f in fields(self) if f.type is int}
        stride = self.output_stride
        if stride is not None and whole_number("output_stride", stride) > 1 and stride % 2:
            raise ValueError(f"output_stride is {stride}: expected None, 1 or an even number (typically 8, 16 or 32).")
        self.__dict__.update(checked)

    def width(self, channels: float) -> int:
        """Width of a layer that has `channels` at alpha = 1."""
        return make_divisible(channels * self.alpha, self.divisible_by, self.min_depth)


def _rows(table: Iterable) -> tuple[Row, ...]:
    """The checked rows of a table."""
    try:
        rows = tuple(Row(*row) for row in table)
    except TypeError:
        raise ValueError(f"table is {table!r}: expected rows of four whole numbers (t, c, n, s) as in TABLE_2.") from None
    if not rows:
        raise ValueError("table has no rows: expected at least one (t, c, n, s) as in TABLE_2.")
    for i, row in enumerate(rows):
        for field, value in row._asdict().items():
            whole_number(f"{field} of row {i} of the table", value)
    return rows


def make_plan(alpha: float = 1.0, **options) -> Plan:
    """Unroll Table 2 into the layers of one backbone.

    Source: TF-Slim `mobilenet.mobilenet_base` (widths, strides, rates) and `mobilenet_v2.mobilenet` (last width).

    Args:
        alpha: width multiplier; any finite number above 0.
        options: the other fields of `PlanOptions`.

    Raises:
        ValueError: an argument is out of its range; the message says which and what is expected.
    """
    chosen = PlanOptions(alpha, **options)
    current_stride, rate = 1, 1

    def place(stride: int) -> tuple[int, int]:
        """The layer's (stride, rate): dilation takes over after the network's stride has reached `output_stride`."""
        nonlocal current_stride, rate
        if current_stride == chosen.output_stride:
            placed = 1, rate
            rate *= stride
        else:
            placed = stride, 1
            current_stride *= stride
        return placed

    stem = Convolution("Conv", chosen.channels, chosen.width(chosen.stem_channels), 3, *place(2), endpoint="layer_1")
    blocks: list[Block] = []
    inputs = stem.outputs
    for index, (t, c, n, s) in enumerate(chosen.table):
        for stride in (s, *(n - 1) * (1,)):
            i = len(blocks)
            name = f"expanded_conv_{i}" if i else "expanded_conv"
            # TF-Slim spells "no expansion" as an expansion to 1x the input, rounded by 1.
            hidden = make_divisible(inputs * t, 1 if t == 1 else EXPANSION_DIVISOR)
            outputs = chosen.width(c)
            widens = hidden > inputs
            expand = _pointwise(f"{name}/expand", inputs, hidden, chosen.split_expansion) if widens else ()
            project = _pointwise(f"{name}/project", hidden, outputs, chosen.split_projection)
            sizes = inputs, hidden, outputs
            blocks.append(Block(name, f"layer_{i + 2}", index, *sizes, *place(stride), expand, project))
            inputs = outputs
    wide = chosen.last_channels
    if chosen.finegrain_classification_mode and chosen.alpha < 1:
        wide /= chosen.alpha  # undoes the multiplication by alpha in `width`, as TF-Slim does it
    # A 1x1 convolution has stride 1 and nothing to dilate.
    last = Convolution("Conv_1", inputs, chosen.width(wide), endpoint=f"layer_{len(blocks) + 2}")
    return Plan(chosen.alpha, chosen.table, stem, tuple(blocks), last)
