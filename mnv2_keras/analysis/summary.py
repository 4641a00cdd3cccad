"""Table 2 of the paper with the figures of a counted network."""

from dataclasses import replace

from mnv2_keras.analysis.cost_model import Layer
from mnv2_keras.analysis.network import Analysis


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


def _line(group: Analysis) -> dict:
    """One line of `summary_table`."""
    rows, plan = group.rows, group.plan
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
        **_sums(group),
    }


def _sums(rows: Analysis) -> dict[str, int]:
    figures = ("parameters", "trainable", "total", "multiply_adds", "activation_memory")
    return {figure: getattr(rows, figure) for figure in figures}


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
        **_sums(analysis),
    }
    return [*(_line(replace(analysis, rows=tuple(group))) for group in groups), total]
