"""Make the channels of linear bottlenecks alike before they share one int8 scale, without changing what the network computes.

One scale serves all channels of a tensor, so a channel of small values is stored coarsely, and one whose values lie around
another centre wastes half of the range. Between a projection and the expansions after it nothing is nonlinear: each channel
may be shifted and scaled by the projection, and the expansions take it back. Additions tie the tensors of a stage together.

Source: cross-layer equalisation, arXiv:1906.04721. It does the same through ReLU6 too; on these networks that cuts off what
calibration has not seen and costs more than it brings (docs/benchmarks.md), so ReLU6 layers are left alone.
"""

from collections.abc import Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mnv2_keras.export.statistics import Channels
from mnv2_keras.tflite import TfliteFile

_NONE = schema.ActivationFunctionType.NONE

#: No channel is enlarged more: what calibration never saw alive says little about it.
_LARGEST = 64.0
#: How far channels become alike: 1 is fully, but larger inputs make more of the expansions' own rounding.
_SHARE = 0.3


def equalize(content: bytes, channels: Mapping[int, Channels], share: float = _SHARE) -> bytes:
    """A float file whose bottlenecks' channels are centred and more alike.

    Args:
        content: the float32 .tflite file.
        channels: what its tensors hold on photos.
        share: 0 only centres the channels, 1 makes them all alike.

    Returns:
        A file of the same operators, equal to the given one within float noise.
    """
    file = TfliteFile(content)
    for group in _groups(file):
        _equalize_group(file, group, channels, share)
    return file.to_bytes()


def _groups(file: TfliteFile) -> list[list[int]]:
    """Tensors that must share their factors, because additions tie them together; only where that is possible."""
    leader: dict[int, int] = {}

    def find(t: int) -> int:
        leader.setdefault(t, t)
        while leader[t] != t:
            t = leader[t]
        return t

    for operator, kind in zip(file.graph.operators, file.kinds, strict=True):
        tensors = [int(t) for t in (*operator.inputs, *operator.outputs) if int(t) in file.producer]
        for t in tensors if kind == "ADD" else ():
            leader[find(t)] = find(tensors[0])
        for t in operator.outputs:
            find(int(t))
    groups: dict[int, list[int]] = {}
    for t in leader:
        groups.setdefault(find(t), []).append(t)
    return [group for group in groups.values() if _is_linear(file, group)]


def _is_linear(file: TfliteFile, group: list[int]) -> bool:
    """Whether every tensor comes from a linear kernel or an addition of the group, and goes to 1x1 kernels only."""
    kinds = file.kinds
    outside = {int(t) for t in (*file.graph.inputs, *file.graph.outputs)}
    for t in group:
        readers = file.consumers.get(t, [])
        if t in outside or not readers or not all(kinds[i] == "ADD" or _is_pointwise(file, i) for i in readers):
            return False
        maker = file.graph.operators[file.producer[t]]
        kind = file.kind(maker)
        if kind not in ("ADD", "CONV_2D") or maker.builtinOptions.fusedActivationFunction != _NONE:
            return False
        if kind == "ADD" and not {int(each) for each in maker.inputs} <= set(group):
            return False  # something is added that nobody can scale
        if kind == "CONV_2D" and not _is_own(file, maker):
            return False
    return True


def _is_own(file: TfliteFile, operator) -> bool:
    """Whether an operator has a bias, and a kernel that no other layer uses."""
    return len(operator.inputs) == 3 and operator.inputs[2] >= 0 and len(file.consumers[int(operator.inputs[1])]) == 1


def _is_pointwise(file: TfliteFile, index: int) -> bool:
    """Whether it is a 1x1 convolution: it sees no padding, so a shift of its input is a shift of its output."""
    operator = file.graph.operators[index]
    if file.kinds[index] != "CONV_2D" or not _is_own(file, operator):
        return False
    _, height, width, channels = file.shape(int(operator.inputs[1]))
    return (height, width) == (1, 1) and channels == file.shape(int(operator.inputs[0]))[-1]


def _equalize_group(file: TfliteFile, group: list[int], channels: Mapping[int, Channels], share: float) -> None:
    shift, spans = {}, []
    for t in group:
        # Means add up in an addition as the values do; the middles of the ranges would not.
        shift[t] = channels[t].mean
        span = np.maximum(channels[t].high - shift[t], shift[t] - channels[t].low)
        spans.append(span / max(span.max(), 1e-9))
    factor = np.minimum(1 / np.maximum(np.max(spans, axis=0), 1e-9), _LARGEST) ** share
    for t in group:
        maker = file.graph.operators[file.producer[t]]
        if file.kind(maker) == "CONV_2D":
            kernel, bias = (file.constant(int(each)).astype(np.float64) for each in maker.inputs[1:])
            file.store(int(maker.inputs[1]), (kernel * factor.reshape(-1, 1, 1, 1)).astype(np.float32))
            _set_bias(file, maker, (bias - shift[t]) * factor)
    for t in group:
        for i in file.consumers[t]:
            reader = file.graph.operators[i]
            if file.kind(reader) == "CONV_2D":
                kernel, bias = (file.constant(int(each)).astype(np.float64) for each in reader.inputs[1:])
                _set_bias(file, reader, bias + kernel.reshape(len(kernel), -1) @ shift[t])
                file.store(int(reader.inputs[1]), (kernel / factor).astype(np.float32))


def _set_bias(file: TfliteFile, operator, values: np.ndarray) -> None:
    """Give an operator a bias of its own: one of zeros may be shared."""
    twin = file.add_tensor(file.name(int(operator.inputs[2])), values.shape, np.float32)
    file.store(twin, values.astype(np.float32))
    operator.inputs = np.array([*operator.inputs[:2], twin], np.int32)
