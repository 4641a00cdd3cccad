"""The classifier and the base, counted from the plan alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mnv2_keras.analysis.cost_model import (
    NORMALIZATIONS,
    CostModel,
    Layer,
    Shape,
    Tensor,
    checked_integer,
    checked_shape,
)
from mnv2_keras.architecture import Block, Convolution, Plan, make_plan


@dataclass(frozen=True)
class Analysis:
    """What a network holds, costs and keeps in memory, for one image.

    Attributes:
        plan: the backbone's plan.
        input_shape: (height, width, channels).
        output_shape: (height, width, channels) of the last layer; (1, 1, classes) for a classifier.
        rows: one for each convolution layer or block, in network order.
        activation_bytes: of one number in an activation.
        anchors: number of anchor boxes; None but for detectors.

    Activation memory is counted as an interpreter has it that runs one operation after the other and frees a tensor
    after its last use: while a convolution runs, its input and its output are alive, and whatever a later operation
    still wants, such as the input of a block with a residual. Normalisation, activation and addition work in place,
    concatenation copies nothing, padding and weights are not counted, and the image is freed after its last use like
    any other tensor.
    """

    plan: Plan
    input_shape: Shape
    output_shape: Shape
    rows: tuple[Layer, ...]
    activation_bytes: int = 4
    anchors: int | None = None

    def part(self, *stages: str) -> "Analysis":
        """The rows of some stages only, such as `part("extras", "predictors")` of a detector; sums are then theirs.

        Raises:
            ValueError: a stage that the network does not have.
        """
        known = dict.fromkeys(row.stage for row in self.rows)
        for stage in stages:
            if stage not in known:
                raise ValueError(f"{stage!r} is no stage of this network: expected one of {', '.join(known)}.")
        return replace(self, rows=tuple(row for row in self.rows if row.stage in stages))

    def _sum(self, field: str) -> int:
        return sum(getattr(row, field) for row in self.rows)

    @property
    def parameters(self) -> int:
        """Kernels and biases, as the published tables of TF-Slim count (without batch norm)."""
        return self._sum("parameters")

    @property
    def folded(self) -> int:
        """Parameters after the batch norms are folded into the convolutions: kernels and one bias for each channel."""
        return (self.parameters + self.trainable) // 2

    @property
    def trainable(self) -> int:
        """Kernels, biases, gamma and beta."""
        return self._sum("trainable")

    @property
    def non_trainable(self) -> int:
        """Moving means and variances."""
        return self._sum("non_trainable")

    @property
    def total(self) -> int:
        """All values of all variables, Keras' `count_params()`."""
        return self.trainable + self.non_trainable

    @property
    def variables(self) -> int:
        """Number of variables (not of values)."""
        return self._sum("variables")

    @property
    def multiply_adds(self) -> int:
        """Of all convolutions, the logits among them, for one image."""
        return self._sum("multiply_adds")

    @property
    def padded_multiply_adds(self) -> int:
        """The same as TensorFlow 1 computes dilated convolutions: on an input padded to a multiple of the rate."""
        return self._sum("padded_multiply_adds")

    @property
    def peak_activation_memory(self) -> int:
        """Bytes alive during the operation that has most (see the class)."""
        return max(row.activation_memory for row in self.rows)

    @property
    def peak_at(self) -> str:
        """TF-Slim scope of that operation, such as `expanded_conv_1/expand`; the first where several are equal."""
        operations = [operation for row in self.rows for operation in row.operations]
        return max(operations, key=lambda operation: operation.memory).name

    @property
    def bottleneck_memory(self) -> int:
        """The largest sum of input and output in bytes with every block as one operation (the paper's equation 2)."""
        return max(row.bottleneck_memory for row in self.rows)

    @property
    def bottleneck_at(self) -> str:
        """TF-Slim scope of the row with that sum; the first where several are equal."""
        return max(self.rows, key=lambda row: row.bottleneck_memory).name

    def as_dict(self) -> dict:
        """All figures, ready for JSON: the totals, and `rows`."""
        return {
            "alpha": self.plan.alpha,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            **({} if self.anchors is None else {"anchors": self.anchors}),
            "parameters": self.parameters,
            "folded": self.folded,
            "trainable": self.trainable,
            "non_trainable": self.non_trainable,
            "total": self.total,
            "variables": self.variables,
            "multiply_adds": self.multiply_adds,
            "activation_bytes": self.activation_bytes,
            "peak_activation_memory": self.peak_activation_memory,
            "peak_at": self.peak_at,
            "bottleneck_memory": self.bottleneck_memory,
            "bottleneck_at": self.bottleneck_at,
            "rows": [row.as_dict() for row in self.rows],
        }


def _steps(
    ledger: CostModel, x: Tensor, layer: Convolution | Block, normalization: str
) -> Iterator[tuple[str, Tensor]]:
    """One layer's endpoints as they come up; what follows an endpoint is booked only if the walk goes on."""
    if isinstance(layer, Convolution):
        options = {"kernel": layer.kernel, "stride": layer.stride, "rate": layer.rate, "normalization": normalization}
        yield layer.endpoint, ledger.convolution(x, layer.outputs, layer.name, **options)
        return

    def pointwise(x, parts, name):
        sizes = [(part.inputs, part.outputs) for part in parts]
        filters = sum(part.outputs for part in parts)
        return ledger.convolution(x, filters, f"{layer.name}/{name}", parts=sizes, normalization=normalization)

    y = x
    if layer.expand:
        y = pointwise(y, layer.expand, "expand")
        yield f"{layer.endpoint}/expansion_output", y
    options = {"stride": layer.stride, "rate": layer.rate, "normalization": normalization}
    y = ledger.depthwise(y, f"{layer.name}/depthwise", **options)
    yield f"{layer.endpoint}/depthwise_output", y
    y = pointwise(y, layer.project, "project")
    if layer.residual:
        y = ledger.add(x, y, f"{layer.name}/add")
    yield f"{layer.endpoint}/output", y
    yield layer.endpoint, y


def walk_backbone(
    ledger: CostModel, x: Tensor, plan: Plan, normalization: str = "batch_norm", final_endpoint: str | None = None
) -> dict[str, Tensor]:
    """Walk Table 2 from the first convolution to the last, or to `final_endpoint`.

    Returns:
        The endpoints passed, in network order; the last one is the output.

    Raises:
        ValueError: the plan has no such endpoint.
    """
    taps: dict[str, Tensor] = {}
    for layer in plan.layers:
        row = layer.row if isinstance(layer, Block) else None
        ledger.begin(layer.endpoint, layer.name, "backbone", row)
        for endpoint, tensor in _steps(ledger, x, layer, normalization):
            taps[endpoint] = x_next = tensor
            if endpoint == final_endpoint:
                return taps
        x = x_next
    if final_endpoint is not None:
        raise ValueError(f"final_endpoint is {final_endpoint!r}: expected one of {', '.join(taps)}.")
    return taps


def analyze(
    alpha: float = 1.0,
    input_shape: Shape = (224, 224, 3),
    *,
    classes: int | None = 1001,
    include_top: bool = True,
    normalization: str = "batch_norm",
    explicit_padding: bool = False,
    activation_bytes: int = 4,
    final_endpoint: str | None = None,
    **plan_options,
) -> Analysis:
    """Count the network that `build_mobilenetv2` builds from the arguments of the same names, without building it.

    Args:
        alpha: width multiplier.
        input_shape: (height, width, channels) of the image, all known.
        classes: number of classes; 0 or None for the pooled features.
        include_top: False for the base.
        normalization: "batch_norm" or "group_norm".
        explicit_padding: makes no difference to any figure: the sizes are the same, and padding is not counted.
        activation_bytes: of one number in an activation: 4 for float32, 2 for the paper's 16-bit floats, 1 for int8.
        final_endpoint: the endpoint at which the base stops.
        plan_options: those of `make_plan` (table, stem_channels, last_channels, output_stride,
            finegrain_classification_mode, min_depth, divisible_by, split_expansion, split_projection).

    Returns:
        The analysis: a row for each layer, and totals. `analyze().multiply_adds` is 300,775,552, `.parameters`
        3,472,041.

    Raises:
        ValueError: an argument is out of its range.
    """
    shape = checked_shape(input_shape)
    classes = checked_integer("classes", classes or 0, least=0)
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}: expected one of {', '.join(NORMALIZATIONS)}.")
    plan = make_plan(alpha, channels=shape[2], **plan_options)
    ledger = CostModel(activation_bytes)
    *_, x = walk_backbone(ledger, ledger.tensor(shape), plan, normalization, final_endpoint).values()
    if include_top:
        ledger.begin("global_pool", "global_pool", "classifier")
        x = ledger.pool(x, "global_pool")
        if classes:
            ledger.begin("Logits", "Logits/Conv2d_1c_1x1", "classifier")
            x = ledger.convolution(x, classes, "Logits/Conv2d_1c_1x1", bias=True, normalization=None)
    return Analysis(plan, shape, x.shape, ledger.close([x]), ledger.activation_bytes)


def _operator(row: Layer) -> str:
    """The operator as Table 2 spells it."""
    if row.table_row is not None:
        return "bottleneck"
    first = row.operations[0]
    height, width, _ = first.input_shape
    spelling = {
        "convolution": f"conv2d {first.kernel}x{first.kernel}",
        "depthwise": f"dwise {first.kernel}x{first.kernel}",
        "pool": f"avgpool {height}x{width}",
        "resize": "resize",
    }
    return spelling[first.kind]


def _line(rows: list[Layer], plan: Plan) -> dict:
    """One line of `summary_table`."""
    first, last = rows[0], rows[-1]
    bottleneck = first.table_row is not None
    convolves = first.multiply_adds > 0
    return {
        "operator": _operator(first),
        "endpoints": list(dict.fromkeys((first.endpoint, last.endpoint))),
        "input_shape": list(first.input_shape),
        "t": plan.table[first.table_row].t if bottleneck else None,
        "c": last.output_shape[2],
        "n": len(rows),
        "s": max(operation.stride for operation in first.operations) if convolves else None,
        "rate": max(operation.rate for operation in last.operations) if convolves else None,
        "output_shape": list(last.output_shape),
        **_sums(rows),
    }


def _sums(rows: Iterable[Layer]) -> dict[str, int]:
    rows = tuple(rows)
    return {
        "parameters": sum(row.parameters for row in rows),
        "trainable": sum(row.trainable for row in rows),
        "total": sum(row.trainable + row.non_trainable for row in rows),
        "multiply_adds": sum(row.multiply_adds for row in rows),
        "activation_memory": max(row.activation_memory for row in rows),
    }


def summary_table(analysis: Analysis) -> list[dict]:
    """Table 2 of the paper with shapes, parameters and multiply-adds, ready for a terminal or JSON.

    A line for the first convolution, each row of the table, the last convolution, the pooling and the logits (or
    whatever else the network ends in), and one for the total.

    Returns:
        Dicts with the keys `operator`; `endpoints` (the first and the last, or the only one); `input_shape` and
        `output_shape` (lists of height, width, channels); `t`, `c`, `n`, `s` as in Table 2, after the width multiplier
        and after `output_stride` turned strides into dilation, and `rate`, the dilation of the line's last layer (None
        where they mean nothing); `parameters` (kernels and biases), `trainable`, `total`, `multiply_adds`, and
        `activation_memory` in bytes, the peak within the line.
    """
    groups: list[list[Layer]] = []
    for row in analysis.rows:
        if groups and row.table_row is not None and groups[-1][0].table_row == row.table_row:
            groups[-1].append(row)
        else:
            groups.append([row])
    total = {
        "operator": "total",
        "endpoints": [],
        "input_shape": list(analysis.input_shape),
        **dict.fromkeys(("t", "c", "n", "s", "rate")),
        "output_shape": list(analysis.output_shape),
        **_sums(analysis.rows),
    }
    return [*(_line(group, analysis.plan) for group in groups), total]
