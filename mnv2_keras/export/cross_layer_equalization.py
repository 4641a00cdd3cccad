"""Cross-layer equalisation: bring the channels of linear bottlenecks to similar ranges before they share one int8 scale.

One scale serves all channels of a tensor: a channel of small values is stored coarsely, and one that is not centred wastes
half of the range. Between a projection and the expansions after it nothing is nonlinear. So the projection may shift and
scale each channel, and the expansions undo it: the network computes the same. An addition ties its tensors to one factor.

Source: arXiv:1906.04721, which equalises through ReLU6 too. On these networks that clips values beyond the calibrated range
and costs more than it brings (docs/benchmarks.md), so ReLU6 layers are left as they are.
"""

from collections.abc import Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mnv2_keras.export.statistics import Channels
from mnv2_keras.tflite import TfliteFile

_NONE = schema.ActivationFunctionType.NONE

#: The largest factor: calibration says little about a channel that it hardly saw active.
_LARGEST = 64.0
#: 1 gives all channels one range, but larger inputs increase the rounding errors of the expansions.
_SHARE = 0.3


def equalize(file: TfliteFile, channels: Mapping[int, Channels], share: float = _SHARE) -> TfliteFile:
    """A float file whose bottlenecks have centred channels of similar ranges.

    Args:
        file: the float32 file; it is not changed.
        channels: statistics of its tensors on photos.
        share: 0 only centres the channels, 1 gives all of them one range.

    Returns:
        A file of the same operators, which computes the same within float precision.
    """
    file = file.copy()
    for group in _groups(file):
        _equalize_group(file, group, channels, share)
    return file


def _groups(file: TfliteFile) -> list[list[int]]:
    """Groups of tensors that additions tie to one factor; only those that can be equalised."""
    groups = {t: [t] for t in file.producer}  # tied tensors share one list
    for operator, kind in file.operators:
        tensors = [t for t in (*operator.inputs, *operator.outputs) if t in groups] if kind == "ADD" else []
        for t in tensors[1:]:
            if groups[t] is not (group := groups[tensors[0]]):
                group += groups[t]
                groups |= dict.fromkeys(groups[t], group)
    return [group for group in {id(group): group for group in groups.values()}.values() if _is_linear(file, group)]


def _is_linear(file: TfliteFile, group: list[int]) -> bool:
    """Whether every tensor comes from a linear kernel or an addition of the group, and goes to 1x1 kernels only."""
    kinds, ends = file.kinds, {*file.graph.inputs, *file.graph.outputs}
    for t in group:
        readers = file.consumers.get(t, [])
        if t in ends or not readers or not all(kinds[i] == "ADD" or _is_pointwise(file, i) for i in readers):
            return False
        source, kind = file.graph.operators[file.producer[t]], kinds[file.producer[t]]
        if kind not in ("ADD", "CONV_2D") or source.builtinOptions.fusedActivationFunction != _NONE:
            return False
        # An addition may have a term that no projection can scale; a kernel may be used twice.
        if not (set(source.inputs) <= set(group) if kind == "ADD" else _has_own_kernel(file, source)):
            return False
    return True


def _has_own_kernel(file: TfliteFile, operator) -> bool:
    """Whether an operator has a bias, and a kernel that no other layer uses."""
    return len(operator.inputs) == 3 and operator.inputs[2] >= 0 and len(file.consumers[operator.inputs[1]]) == 1


def _is_pointwise(file: TfliteFile, index: int) -> bool:
    """Whether it is a 1x1 convolution: it has no padding, so a shift of its input is a shift of its output."""
    operator = file.graph.operators[index]
    if file.kinds[index] != "CONV_2D" or not _has_own_kernel(file, operator):
        return False
    _, height, width, channels = file.shape(operator.inputs[1])
    return (height, width) == (1, 1) and channels == file.shape(operator.inputs[0])[-1]


def _equalize_group(file: TfliteFile, group: list[int], channels: Mapping[int, Channels], share: float) -> None:
    shift, spans = {}, []
    for t in group:
        # The mean of a sum is the sum of the means; that does not hold for centres of ranges.
        shift[t] = channels[t].mean
        span = np.maximum(channels[t].high - shift[t], shift[t] - channels[t].low)
        spans.append(span / max(span.max(), 1e-9))
    factor = np.minimum(1 / np.maximum(np.max(spans, axis=0), 1e-9), _LARGEST) ** share
    for t in group:
        source = file.graph.operators[file.producer[t]]
        if file.kind(source) == "CONV_2D":
            kernel, bias = (values.astype(np.float64) for values in file.kernel_and_bias(source))
            _set_kernel(file, source, kernel * factor.reshape(-1, 1, 1, 1), (bias - shift[t]) * factor)
    for t in group:
        for reader in (file.graph.operators[i] for i in file.consumers[t]):
            if file.kind(reader) == "CONV_2D":
                kernel, bias = (values.astype(np.float64) for values in file.kernel_and_bias(reader))
                _set_kernel(file, reader, kernel / factor, bias + kernel.reshape(len(kernel), -1) @ shift[t])


def _set_kernel(file: TfliteFile, operator, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Store a kernel, and a bias of the operator's own: a bias of zeros may be shared."""
    image, source, old_bias = operator.inputs
    file.store(source, kernel.astype(np.float32))
    own = file.add_tensor(file.name(old_bias), bias.shape, np.float32)
    file.store(own, bias.astype(np.float32))
    operator.inputs = [image, source, own]
