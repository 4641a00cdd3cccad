"""A float .tflite file to one that computes in int8: which numbers stand for which, operator by operator.

The scheme is TensorFlow Lite's own (its 8-bit quantisation specification): `real = scale * (stored - zero_point)`, activations
with one scale a tensor, kernels symmetric with one scale an output channel, biases int32. An operator that has no rule here
stays in float, between a DEQUANTIZE and a QUANTIZE.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mnv2_keras.quant_params import QuantParams
from mnv2_keras.tflite import TfliteFile

#: Operators with an int8 kernel: the first version that has it.
_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "ADD": 2,
    "ARG_MAX": 2,
    "SUB": 2,
    "MUL": 2,
    "MEAN": 2,
    "SOFTMAX": 2,
    "LOGISTIC": 2,
    "RELU": 2,
    "RELU6": 2,
    "RESHAPE": 1,
    "SQUEEZE": 1,
    "AVERAGE_POOL_2D": 2,
    "MAX_POOL_2D": 2,
    "CONCATENATION": 2,
    "RESIZE_BILINEAR": 2,
    "PAD": 2,
    "SPLIT": 2,
    "SPLIT_V": 2,
    "STRIDED_SLICE": 2,
}
#: Those that move or compare stored numbers, so that input and output must share one scale.
SAME_SCALE = {
    "RESHAPE",
    "SQUEEZE",
    "AVERAGE_POOL_2D",
    "MAX_POOL_2D",
    "CONCATENATION",
    "RESIZE_BILINEAR",
    "PAD",
    "SPLIT",
    "SPLIT_V",
    "STRIDED_SLICE",
}
#: Those whose output the specification gives a scale: (scale, zero point).
FIXED = {"SOFTMAX": (1 / 256, -128), "LOGISTIC": (1 / 256, -128)}

#: Operators with a kernel: the axis of its output channels.
KERNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}

_FLOAT = np.dtype("float32")
_SIGNED, _UNSIGNED = np.dtype("int8"), np.dtype("uint8")
INPUT_TYPES = ("uint8", "int8", "float32")

#: A channel this far below the largest of its tensor is dead: some published stems have such, near 1e-21.
_DEAD = 1e-8


@dataclass(frozen=True)
class Kernel:
    """A kernel in int8.

    Attributes:
        stored: int8, in the file's layout.
        scale: float32, one for each output channel (one in all for a fully connected layer).
        bias: float32 real values to use in place of the file's; None for those.
    """

    stored: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None = None


def kernel_scale(kernel: np.ndarray, axis: int, input_scale: float = 0.0, bias: np.ndarray | None = None) -> np.ndarray:
    """float32 scales that bring every output channel into -127 to 127, and its bias into int32.

    A dead channel takes the median scale of the others: scales near 1e-23 would make its bias overflow.
    """
    largest = np.max(np.abs(kernel), axis=tuple(i for i in range(kernel.ndim) if i != axis)).astype(np.float64)
    alive = largest > _DEAD * largest.max(initial=0)
    scale = np.where(alive, largest, np.median(largest[alive]) if alive.any() else 127.0) / 127
    if bias is not None and input_scale:
        scale = np.maximum(scale, np.abs(bias) / (input_scale * 2.0**30))
    return scale.astype(np.float32)


def round_kernel(kernel: np.ndarray, axis: int, scale: np.ndarray) -> np.ndarray:
    """To the nearest stored numbers."""
    sides = [1] * kernel.ndim
    sides[axis] = -1
    return np.clip(np.rint(kernel / scale.reshape(sides)), -127, 127).astype(np.int8)


def activation_tensors(file: TfliteFile) -> list[int]:
    """The float tensors that are computed, the inputs included, in the order they come about."""
    computed = [int(t) for t in file.graph.inputs]
    computed += [int(t) for operator in file.graph.operators for t in operator.outputs]
    return [t for t in computed if file.dtype(t) == _FLOAT]


def activation_scheme(file: TfliteFile, ranges: Mapping[int, tuple[float, float]]) -> dict[int, QuantParams]:
    """The meaning of every computed tensor's numbers: what its range asks for, shared where operators need it."""
    leader = {t: t for t in ranges}

    def find(t: int) -> int:
        while leader[t] != t:
            t = leader[t]
        return t

    for operator, kind in zip(file.graph.operators, file.kinds, strict=True):
        if kind in SAME_SCALE:
            tensors = [int(t) for t in (*operator.inputs, *operator.outputs) if int(t) in leader]
            for t in tensors[1:]:
                leader[find(t)] = find(tensors[0])
    shared: dict[int, list] = {}
    for t, span in ranges.items():
        shared.setdefault(find(t), []).append(span)
    scheme = {
        t: QuantParams.covering(min(low for low, _ in shared[find(t)]), max(high for _, high in shared[find(t)]))
        for t in ranges
    }
    for operator, kind in zip(file.graph.operators, file.kinds, strict=True):
        if kind in FIXED:
            scheme[int(operator.outputs[0])] = QuantParams(*FIXED[kind])
    return scheme


class _Writer:
    """One file on its way from float to int8."""

    def __init__(self, file: TfliteFile, scheme: Mapping[int, QuantParams], kernels: Mapping[int, Kernel]):
        self.file = file
        self.scheme = scheme
        self.kernels = kernels
        self.operators = []
        self.in_float: dict[int, int] = {}  # an int8 tensor's float twin
        self.in_int8: dict[int, int] = {}  # a float tensor's int8 twin

    def convert(self, input_type: np.dtype, output_type: np.dtype) -> None:
        file, graph = self.file, self.file.graph
        kinds = file.kinds
        outputs = {int(t) for t in graph.outputs}
        # A float output is best made in float: 1/256 is a coarse step for a probability.
        whole = [
            kind in _VERSIONS
            and not (kind in FIXED and output_type == _FLOAT and outputs & {int(t) for t in operator.outputs})
            for operator, kind in zip(graph.operators, kinds, strict=True)
        ]
        self.stored = {
            int(t) for operator, yes in zip(graph.operators, whole, strict=True) if yes for t in operator.outputs
        }
        self.stored &= set(self.scheme)
        graph.inputs = np.array([self._input(int(t), input_type) for t in graph.inputs], np.int32)
        for operator, kind, yes in zip(list(graph.operators), kinds, whole, strict=True):
            if yes:
                self._whole(operator, kind)
            else:
                operator.inputs = np.array([self._float(int(t)) for t in operator.inputs], np.int32)
                self.operators.append(operator)
        graph.outputs = np.array([self._output(int(t), output_type) for t in graph.outputs], np.int32)
        graph.operators = self.operators

    def _twin(self, tensor: int, dtype: np.dtype, affine: QuantParams | None) -> int:
        twin = self.file.add_tensor(self.file.name(tensor), self.file.shape(tensor), dtype)
        self.file.graph.tensors[twin].shapeSignature = self.file.graph.tensors[tensor].shapeSignature
        if affine is not None:
            # One step of uint8 is one of int8, counted from 0.
            self.file.set_quantization(twin, affine.scale, affine.zero_point + (128 if dtype == _UNSIGNED else 0))
        return twin

    def _link(self, kind: str, source: int, target: int) -> None:
        options = {"QUANTIZE": schema.QuantizeOptionsT, "DEQUANTIZE": schema.DequantizeOptionsT}[kind]
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self.file.add_operator_code(kind, 1 if kind == "QUANTIZE" else 2),
                inputs=np.array([source], np.int32),
                outputs=np.array([target], np.int32),
                builtinOptionsType=getattr(schema.BuiltinOptions, options.__name__.removesuffix("T")),
                builtinOptions=options(),
            )
        )

    def _set(self, tensor: int) -> None:
        """Make a computed tensor an int8 one."""
        affine = self.scheme[tensor]
        self.file.graph.tensors[tensor].type = schema.TensorType.INT8
        self.file.set_quantization(tensor, affine.scale, affine.zero_point)

    def _input(self, tensor: int, dtype: np.dtype) -> int:
        if dtype == _FLOAT or tensor not in self.scheme:
            return tensor
        self.stored.add(tensor)
        self._set(tensor)
        if dtype == _SIGNED:
            return tensor
        outside = self._twin(tensor, dtype, self.scheme[tensor])
        self._link("QUANTIZE", outside, tensor)
        return outside

    def _output(self, tensor: int, dtype: np.dtype) -> int:
        if dtype == _FLOAT:
            return self._float(tensor)
        if tensor not in self.scheme:
            return tensor
        inside = self._int8(tensor)
        if dtype == _SIGNED:
            return inside
        outside = self._twin(inside, dtype, self.scheme[tensor])
        self._link("QUANTIZE", inside, outside)
        return outside

    def _float(self, tensor: int) -> int:
        """The tensor in float, for an operator without an int8 kernel."""
        if tensor not in self.stored:
            return tensor
        if tensor not in self.in_float:
            self.in_float[tensor] = self._twin(tensor, _FLOAT, None)
            self._link("DEQUANTIZE", tensor, self.in_float[tensor])
        return self.in_float[tensor]

    def _int8(self, tensor: int) -> int:
        """The tensor in int8, for an operator that takes it so."""
        if tensor in self.stored or tensor not in self.scheme:
            return tensor
        if tensor not in self.in_int8:
            self.in_int8[tensor] = self._twin(tensor, _SIGNED, self.scheme[tensor])
            self._link("QUANTIZE", tensor, self.in_int8[tensor])
        return self.in_int8[tensor]

    def _whole(self, operator, kind: str) -> None:
        file = self.file
        inputs = [int(t) for t in operator.inputs]
        original = inputs[0]
        if kind in KERNEL_AXIS:
            bias = inputs[2] if len(inputs) > 2 and inputs[2] >= 0 else None
            inputs = [self._int8(original), inputs[1]] + ([] if bias is None else [bias])
            self._kernel(operator, kind, inputs, original)
        else:
            inputs = [self._constant(t) if t >= 0 else t for t in inputs]
            inputs = [self._int8(t) for t in inputs]
        operator.inputs = np.array(inputs, np.int32)
        for t in operator.outputs:
            if int(t) in self.scheme:
                self._set(int(t))
        code = file.model.operatorCodes[operator.opcodeIndex]
        operator.opcodeIndex = file.add_operator_code(kind, max(code.version, _VERSIONS[kind]))
        self.operators.append(operator)

    def _constant(self, tensor: int) -> int:
        """A float operand that is a constant, in int8 over its own range."""
        values = self.file.stored(tensor)
        if values is None or values.dtype != _FLOAT:
            return tensor
        affine = QuantParams.covering(values.min(), values.max())
        twin = self._twin(tensor, _SIGNED, affine)
        self.file.store(twin, affine.quantize(values))
        return twin

    def _kernel(self, operator, kind: str, inputs: list[int], original: int) -> None:
        """Kernel and bias; each operator gets tensors of its own, since a shared bias has one scale for each input."""
        file = self.file
        source = int(operator.inputs[1])
        bias = file.constant(inputs[2]) if len(inputs) > 2 else None
        input_scale = self.scheme[original].scale
        chosen = self.kernels.get(source) or nearest_kernel(file, operator, kind, input_scale)
        bias = bias if chosen.bias is None else chosen.bias
        twin = self._twin(source, _SIGNED, None)
        file.store(twin, chosen.stored)
        file.set_quantization(
            twin, chosen.scale, np.zeros(len(chosen.scale), np.int64), KERNEL_AXIS[kind] if len(chosen.scale) > 1 else 0
        )
        inputs[1] = twin
        if bias is not None:
            scale = np.float64(input_scale) * chosen.scale.astype(np.float64)
            stored = np.clip(np.rint(bias / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
            named = inputs[2] if len(inputs) > 2 else source
            target = file.add_tensor(file.name(named), bias.shape, np.int32)
            file.store(target, stored)
            file.set_quantization(target, scale, np.zeros(len(scale), np.int64))
            inputs[2:] = [target]


def nearest_kernel(file: TfliteFile, operator, kind: str, input_scale: float) -> Kernel:
    """An operator's kernel, rounded to the nearest."""
    values = file.constant(int(operator.inputs[1]))
    bias = file.constant(int(operator.inputs[2])) if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None
    if kind == "FULLY_CONNECTED":  # older Android runtimes know one scale only
        scale = kernel_scale(values.reshape(1, -1), 0, input_scale, None if bias is None else np.abs(bias).max())
        return Kernel(round_kernel(values.reshape(1, -1), 0, scale).reshape(values.shape), scale)
    scale = kernel_scale(values, KERNEL_AXIS[kind], input_scale, bias)
    return Kernel(round_kernel(values, KERNEL_AXIS[kind], scale), scale)


def quantize_int8(
    content: bytes,
    ranges: Mapping[int, tuple[float, float]],
    kernels: Mapping[int, Kernel] | None = None,
    input_type: str = "uint8",
    output_type: str | None = None,
) -> bytes:
    """A float file in int8.

    Args:
        content: the float32 .tflite file.
        ranges: (low, high) of every computed float tensor, by its index in the file.
        kernels: kernels chosen beforehand, by the index of the kernel's tensor; the others are rounded to the nearest.
        input_type: "uint8", "int8" or "float32".
        output_type: the same; None for the input's.

    Returns:
        The int8 file. Without float ends, an operator such as SOFTMAX is int8 as well; with them it is float at the output.
    """
    file = TfliteFile(content)
    scheme = activation_scheme(file, ranges)
    _Writer(file, scheme, kernels or {}).convert(np.dtype(input_type), np.dtype(output_type or input_type))
    _drop_unused_tensors(file)
    return file.to_bytes()


def _drop_unused_tensors(file: TfliteFile) -> None:
    """Take out the float constants that int8 ones have replaced."""
    graph = file.graph
    used = {int(t) for operator in graph.operators for t in (*operator.inputs, *operator.outputs) if t >= 0}
    used = sorted(used | {int(t) for t in (*graph.inputs, *graph.outputs)})
    place = {old: new for new, old in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[t] for t in used]
    for holder in graph.operators:
        holder.inputs = np.array([place[int(t)] for t in holder.inputs], np.int32)
        holder.outputs = np.array([place[int(t)] for t in holder.outputs], np.int32)
    signatures = [side for each in file.model.signatureDefs or [] for side in (each.inputs, each.outputs)]
    old = [[place.get(int(entry.tensorIndex)) for entry in side] for side in signatures]
    graph.inputs = np.array([place[int(t)] for t in graph.inputs], np.int32)
    graph.outputs = np.array([place[int(t)] for t in graph.outputs], np.int32)
    ends = [list(graph.inputs), list(graph.outputs)] * (len(signatures) // 2)
    for side, end, places in zip(signatures, ends, old, strict=True):
        for i, entry in enumerate(side):
            # An end that was replaced by one of another type stands where it stood.
            entry.tensorIndex = int(end[i]) if places[i] is None or places[i] not in end else places[i]
