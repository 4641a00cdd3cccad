"""Table 2 of the paper with the figures of a counted network."""

import itertools
from dataclasses import replace

from mnv2_keras.analysis.cost_model import Layer
from mnv2_keras.analysis.network import Analysis

_SUMS = ("parameters", "trainable", "total", "multiply_adds", "activation_memory")


def _operator(row: Layer) -> str:
    """The operator as Table 2 spells it."""
    if row.table_row is not None:
        return "bottleneck"
    first = row.operations[0]
    sides = {"pool": first.input_shape[:2], "resize": ()}.get(first.kind, (first.kernel, first.kernel))
    names = {"convolution": "conv2d", "depthwise": "dwise", "pool": "avgpool", "resize": "resize"}
    return f"{names[first.kind]} {'x'.join(map(str, sides))}".rstrip()


def _line(group: Analysis) -> dict:
    """One line of `summary_table`."""
    first, last = group.rows[0], group.rows[-1]
    convolves = first.multiply_adds > 0
    return {
        "operator": _operator(first),
        "endpoints": list(dict.fromkeys((first.endpoint, last.endpoint))),
        "input_shape": list(first.input_shape),
        "t": None if first.table_row is None else group.plan.table[first.table_row].t,
        "c": last.output_shape[2],
        "n": len(group.rows),
        "s": max(operation.stride for operation in first.operations) if convolves else None,
        "rate": max(operation.rate for operation in last.operations) if convolves else None,
        "output_shape": list(last.output_shape),
        **group.figures(*_SUMS),
    }


def summary_table(analysis: Analysis) -> list[dict]:
    """Table 2 of the paper with shapes, parameters and multiply-adds, ready for a terminal or JSON.

    A line for the first convolution, for each row of the table, the last convolution and each layer of the head, and one for the
    total.

    Returns:
        Dicts with the keys `operator`; `endpoints` (the first and the last, or the only one); `input_shape` and `output_shape`
        (lists of height, width, channels); `t`, `c`, `n`, `s` as in Table 2, after the width multiplier and after
        `output_stride` turned strides into dilation, and `rate`, the dilation of the line's last layer (None where they have no
        meaning); `parameters` (kernels and biases), `trainable`, `total`, `multiply_adds`, and `activation_memory` in bytes,
        the peak within the line.
    """
    # Rows outside the table are groups of one.
    rows = itertools.groupby(analysis.rows, lambda row: row.endpoint if row.table_row is None else row.table_row)
    total = {
        "operator": "total",
        "endpoints": [],
        "input_shape": list(analysis.input_shape),
        **dict.fromkeys(("t", "c", "n", "s", "rate")),
        "output_shape": list(analysis.output_shape),
        **analysis.figures(*_SUMS),
    }
    return [*(_line(replace(analysis, rows=tuple(group))) for _, group in rows), total]
