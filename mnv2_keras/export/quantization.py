"""A float .tflite file to one that computes in int8, operator by operator.

The scheme is that of TensorFlow Lite's 8-bit quantisation specification: activations have one scale per tensor, kernels are
symmetric with one scale per output channel, biases are int32. An operator without a rule here stays in float, between a
DEQUANTIZE and a QUANTIZE.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mnv2_keras.quant_params import QuantParams
from mnv2_keras.tflite import TfliteFile

#: Those that move or compare stored numbers: input and output must have one scale.
_MOVING = "AVERAGE_POOL_2D CONCATENATION MAX_POOL_2D PAD RESHAPE RESIZE_BILINEAR SPLIT SPLIT_V SQUEEZE STRIDED_SLICE"
SAME_SCALE = set(_MOVING.split())
#: Operators with an int8 kernel: the first version that has it.
_VERSIONS = dict.fromkeys((*SAME_SCALE, "ADD", "ARG_MAX", "LOGISTIC", "MEAN", "MUL", "RELU", "RELU6", "SOFTMAX", "SUB"), 2) | {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "RESHAPE": 1,
    "SQUEEZE": 1,
}
#: Those whose output scale the specification fixes.
FIXED = {"SOFTMAX": QuantParams(1 / 256, -128), "LOGISTIC": QuantParams(1 / 256, -128)}

#: Operators with a kernel: the axis of its output channels.
KERNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}

#: Version and options of the operators between float and int8.
_CASTS = {"QUANTIZE": (1, schema.QuantizeOptionsT), "DEQUANTIZE": (2, schema.DequantizeOptionsT)}

_FLOAT = np.dtype("float32")
_SIGNED = np.dtype("int8")

#: A channel this far below the largest of its tensor is dead: some published stems have such, near 1e-21.
_DEAD = 1e-8


@dataclass(frozen=True)
class Kernel:
    """A kernel in int8."""

    stored: np.ndarray  # int8, in the file's layout
    scale: np.ndarray  # float32, one per output channel (a single one for a fully connected layer)
    bias: np.ndarray | None = None  # float32 real values that replace the file's; None keeps the file's


def kernel_scale(kernel: np.ndarray, axis: int, input_scale: float = 0.0, bias: np.ndarray | None = None) -> np.ndarray:
    """float32 scales with which each output channel fits into -127 to 127, and its bias into int32.

    A dead channel gets the median scale of the others: with a scale near 1e-23 its bias would overflow.
    """
    largest = np.max(np.abs(kernel), axis=tuple(i for i in range(kernel.ndim) if i != axis)).astype(np.float64)
    alive = largest > _DEAD * largest.max(initial=0)
    scale = np.where(alive, largest, np.median(largest[alive]) if alive.any() else 127.0) / 127
    if bias is not None and input_scale:
        scale = np.maximum(scale, np.abs(bias) / (input_scale * 2.0**30))
    return scale.astype(np.float32)


def round_kernel(kernel: np.ndarray, axis: int, scale: np.ndarray) -> np.ndarray:
    """A kernel to the nearest stored numbers, int8."""
    sides = [1] * kernel.ndim
    sides[axis] = -1
    return np.clip(np.rint(kernel / scale.reshape(sides)), -127, 127).astype(np.int8)


def activation_tensors(file: TfliteFile) -> list[int]:
    """The float tensors that are computed, inputs included, in network order."""
    computed = [*file.graph.inputs, *(t for operator in file.graph.operators for t in operator.outputs)]
    return [t for t in computed if file.dtype(t) == _FLOAT]


def activation_scheme(file: TfliteFile, ranges: Mapping[int, tuple[float, float]]) -> dict[int, QuantParams]:
    """Quantisation of each computed tensor: what covers its range, shared where operators require it."""
    groups = {t: [t] for t in ranges}  # tensors of one scale share one list
    for operator, kind in file.operators:
        members = [t for t in (*operator.inputs, *operator.outputs) if t in groups] if kind in SAME_SCALE else []
        for t in members[1:]:
            if groups[t] is not (group := groups[members[0]]):
                group += groups[t]
                groups |= dict.fromkeys(groups[t], group)
    scheme = {}
    for t, group in groups.items():
        lows, highs = zip(*(ranges[member] for member in group), strict=True)
        scheme[t] = QuantParams.covering(min(lows), max(highs))
    return scheme | {operator.outputs[0]: FIXED[kind] for operator, kind in file.operators if kind in FIXED}


class _Int8Writer:
    """Turns one file from float to int8, in place."""

    def __init__(self, file: TfliteFile, scheme: Mapping[int, QuantParams], kernels: Mapping[int, Kernel]):
        self.file, self.scheme, self.kernels = file, scheme, kernels
        self.operators = []
        self.copies: dict[int, int] = {}  # in float of int8 tensors, in int8 of float ones

    def convert(self, input_type: np.dtype, output_type: np.dtype) -> None:
        graph = self.file.graph
        # A float output is computed in float: 1/256 is a coarse step for a probability.
        in_float = set(graph.outputs) if output_type == _FLOAT else set()
        plan = [
            (operator, kind, kind in _VERSIONS and not (kind in FIXED and in_float & set(operator.outputs)))
            for operator, kind in self.file.operators
        ]
        self.int8_tensors = {t for operator, _, is_int8 in plan if is_int8 for t in operator.outputs} & set(self.scheme)
        inputs = [self._input(t, input_type) for t in graph.inputs]
        for operator, kind, is_int8 in plan:
            if is_int8:
                self._int8_operator(operator, kind)
            else:
                operator.inputs = [self._in(t, _FLOAT) for t in operator.inputs]
            self.operators.append(operator)
        outputs = [self._output(t, output_type) for t in graph.outputs]
        for signature in self.file.model.signatureDefs or []:
            for entries, old, new in ((signature.inputs, graph.inputs, inputs), (signature.outputs, graph.outputs, outputs)):
                for entry in entries:
                    entry.tensorIndex = dict(zip(old, new, strict=True)).get(entry.tensorIndex, entry.tensorIndex)
        graph.inputs, graph.outputs, graph.operators = inputs, outputs, self.operators

    def _add_copy(self, tensor: int, dtype: np.dtype, params: QuantParams | None = None) -> int:
        """A new tensor of the same name and shape."""
        copy = self.file.add_tensor(self.file.name(tensor), self.file.shape(tensor), dtype)
        self.file.graph.tensors[copy].shapeSignature = self.file.graph.tensors[tensor].shapeSignature
        if params is not None:
            self.file.set_quantization(copy, params)
        return copy

    def _add_cast(self, kind: str, source: int, target: int) -> None:
        version, options = _CASTS[kind]
        self.operators.append(self.file.new_operator(kind, version, [source], [target], options()))

    def _make_int8(self, tensor: int) -> None:
        """Make a computed tensor an int8 one."""
        self.file.graph.tensors[tensor].type = schema.TensorType.INT8
        self.file.set_quantization(tensor, self.scheme[tensor])

    def _outer(self, tensor: int, params: QuantParams, is_input: bool) -> int:
        """A uint8 input or output of the file, before or behind an int8 tensor."""
        outer = self._add_copy(tensor, np.dtype("uint8"), params.as_uint8())
        self._add_cast("QUANTIZE", *((outer, tensor) if is_input else (tensor, outer)))
        return outer

    def _input(self, tensor: int, dtype: np.dtype) -> int:
        if dtype == _FLOAT or tensor not in self.scheme:
            return tensor
        self.int8_tensors.add(tensor)
        self._make_int8(tensor)
        return tensor if dtype == _SIGNED else self._outer(tensor, self.scheme[tensor], is_input=True)

    def _output(self, tensor: int, dtype: np.dtype) -> int:
        inner = self._in(tensor, _FLOAT if dtype == _FLOAT else _SIGNED)
        if dtype in (_FLOAT, _SIGNED) or tensor not in self.scheme:
            return inner
        return self._outer(inner, self.scheme[tensor], is_input=False)

    def _in(self, tensor: int, dtype: np.dtype) -> int:
        """The tensor in float or int8; through a cast where it is of the other type."""
        is_int8 = dtype == _SIGNED
        if tensor not in self.scheme or (tensor in self.int8_tensors) == is_int8:
            return tensor
        if tensor not in self.copies:
            self.copies[tensor] = self._add_copy(tensor, dtype, self.scheme[tensor] if is_int8 else None)
            self._add_cast("QUANTIZE" if is_int8 else "DEQUANTIZE", tensor, self.copies[tensor])
        return self.copies[tensor]

    def _int8_operator(self, operator, kind: str) -> None:
        if kind in KERNEL_AXIS:
            operator.inputs = [self._in(operator.inputs[0], _SIGNED), *self._kernel_and_bias(operator, kind)]
        else:
            constants = [self._constant(t) if t >= 0 else t for t in operator.inputs]
            operator.inputs = [self._in(t, _SIGNED) for t in constants]
        for t in operator.outputs:
            if t in self.scheme:
                self._make_int8(t)
        version = max(self.file.model.operatorCodes[operator.opcodeIndex].version, _VERSIONS[kind])
        operator.opcodeIndex = self.file.add_operator_code(kind, version)

    def _constant(self, tensor: int) -> int:
        """A float operand that is a constant, in int8 over its own range."""
        values = self.file.stored(tensor)
        if values is None or values.dtype != _FLOAT:
            return tensor
        params = QuantParams.covering(values.min(), values.max())
        copy = self._add_copy(tensor, _SIGNED, params)
        self.file.store(copy, params.quantize(values))
        return copy

    def _kernel_and_bias(self, operator, kind: str) -> list[int]:
        """Tensors for one operator: a bias that operators share would need one scale for each input."""
        file, (first, source, *bias_tensor) = self.file, operator.inputs
        input_scale = self.scheme[first].scale
        kernel = self.kernels.get(source) or nearest_kernel(file, operator, kind, input_scale)
        bias = file.kernel_and_bias(operator)[1] if kernel.bias is None else kernel.bias
        copy = self._add_copy(source, _SIGNED)
        file.store(copy, kernel.stored)
        file.set_quantization(copy, QuantParams(kernel.scale, axis=KERNEL_AXIS[kind] if len(kernel.scale) > 1 else 0))
        if bias is None:
            return [copy]
        scale = np.float64(input_scale) * kernel.scale.astype(np.float64)
        stored = np.clip(np.rint(bias / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        name = file.name(bias_tensor[0] if min(bias_tensor, default=-1) >= 0 else source)
        target = file.add_tensor(name, bias.shape, np.int32)
        file.store(target, stored)
        file.set_quantization(target, QuantParams(scale, dtype=np.dtype("int32"), axis=0))
        return [copy, target]


def nearest_kernel(file: TfliteFile, operator, kind: str, input_scale: float) -> Kernel:
    """An operator's kernel, rounded to the nearest."""
    values, bias = file.kernel_and_bias(operator)
    if kind == "FULLY_CONNECTED":  # older Android runtimes know one scale only
        scale = kernel_scale(values.reshape(1, -1), 0, input_scale, None if bias is None else np.abs(bias).max())
        return Kernel(round_kernel(values.reshape(1, -1), 0, scale).reshape(values.shape), scale)
    scale = kernel_scale(values, KERNEL_AXIS[kind], input_scale, bias)
    return Kernel(round_kernel(values, KERNEL_AXIS[kind], scale), scale)


def quantize_int8(
    file: TfliteFile,
    ranges: Mapping[int, tuple[float, float]],
    kernels: Mapping[int, Kernel] | None = None,
    input_type: str = "uint8",
    output_type: str | None = None,
) -> TfliteFile:
    """A float file in int8.

    Args:
        file: the float32 file; it is not changed.
        ranges: (low, high) of every computed float tensor, by its index in the file.
        kernels: quantised kernels, by the index of the kernel's tensor; the others are rounded to the nearest.
        input_type: "uint8", "int8" or "float32".
        output_type: the same; None for `input_type`.

    Returns:
        The int8 file. With a float output, an operator such as SOFTMAX there is computed in float; otherwise in int8.
    """
    scheme = activation_scheme(file, ranges)
    file = file.copy()
    _Int8Writer(file, scheme, kernels or {}).convert(np.dtype(input_type), np.dtype(output_type or input_type))
    _drop_unused_tensors(file)
    return file


def _drop_unused_tensors(file: TfliteFile) -> None:
    """Remove the float constants that int8 ones have replaced."""
    graph = file.graph
    holders = [graph, *graph.operators]
    used = sorted({t for holder in holders for t in (*holder.inputs, *holder.outputs) if t >= 0})
    place = {old: new for new, old in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[t] for t in used]
    for holder in holders:
        holder.inputs, holder.outputs = ([place[t] for t in side] for side in (holder.inputs, holder.outputs))
    for signature in file.model.signatureDefs or []:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = place[entry.tensorIndex]
