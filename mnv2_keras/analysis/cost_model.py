"""The costs of a network that is walked instead of built: what each operation holds, computes, and keeps in memory.

The walks of `network` read like the builders: they call `convolution`, `add`, ... on tensors that have a shape and no
values. `close` then knows when each tensor is needed for the last time, and so which are alive when.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from mnv2_keras.architecture import Convolution
from mnv2_keras.checks import image_shape, one_of, whole_number

Shape = tuple[int, int, int]

#: Variables of one normalised channel: (trainable: gamma and beta, not trainable: moving mean and moving variance).
NORMALIZATIONS = {"batch_norm": (2, 2), "group_norm": (2, 0)}


def known_shape(input_shape: object) -> Shape:
    """An image's (height, width, channels) as three ints.

    Raises:
        ValueError: anything else; a size must be known to be counted.
    """
    sides = tuple(input_shape) if isinstance(input_shape, tuple | list) else ()
    if len(sides) != 3:
        image_shape("input_shape", input_shape, (224, 224, 3))
    names, note = ("height", "width", "channels"), ", counting needs a height and a width"
    return tuple(whole_number(f"{name} in input_shape", n, note=note) for name, n in zip(names, sides, strict=True))


def output_size(size: int, stride: int) -> int:
    """Steps of a convolution along one side: ceil(size / stride), with SAME as with explicit padding."""
    return -(-size // stride)


class Tensor(NamedTuple):
    """A tensor of a walk: (height, width, channels) of one image, and the buffers that hold it."""

    shape: Shape
    buffers: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One convolution, pooling, resizing or addition, for one image."""

    name: str  # TF-Slim scope, such as `expanded_conv_3/expand`
    kind: str  # "convolution", "depthwise", "pool", "resize" or "add"
    input_shape: Shape
    output_shape: Shape
    kernel: int = 0  # side of the kernel; 0 for operations without one
    stride: int = 1
    rate: int = 1
    parameters: int = 0  # kernels and biases
    trainable: int = 0  # the same with gamma and beta
    non_trainable: int = 0  # moving statistics
    variables: int = 0  # number of variables
    multiply_adds: int = 0  # of a convolution; 0 for other operations
    #: The same where TensorFlow 1 pads a dilated convolution's input up to a multiple of its rate (SpaceToBatchND) and convolves
    #: the padding as well.
    padded_multiply_adds: int = 0
    memory: int = 0  # bytes of the tensors that are alive while it runs
    glorot: bool = False  # whether the kernel starts from Glorot's uniform, not from a truncated normal


def _sum_of(field: str, doc: str) -> property:
    return property(lambda self: sum(getattr(operation, field) for operation in self.operations), doc=doc)


class Counted:
    """Sums over `operations`: what a layer or a network holds and costs, for one image."""

    parameters = _sum_of("parameters", "Kernels and biases, as TF-Slim's published tables count (without batch norm).")
    trainable = _sum_of("trainable", "Kernels, biases, gamma and beta.")
    non_trainable = _sum_of("non_trainable", "Moving means and variances.")
    variables = _sum_of("variables", "Number of variables (not of values).")
    multiply_adds = _sum_of("multiply_adds", "Of all convolutions, the logits included.")
    padded_multiply_adds = _sum_of("padded_multiply_adds", "With TensorFlow 1's padding of dilation (see `Operation`).")

    @property
    def total(self) -> int:
        """All values of all variables, Keras' `count_params()`."""
        return self.trainable + self.non_trainable

    @property
    def activation_memory(self) -> int:
        """Bytes alive during the operation that has most."""
        return max(operation.memory for operation in self.operations)

    def figures(self, *names: str) -> dict:
        """Some of the figures by name, ready for JSON."""
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class Layer(Counted):
    """One row of an analysis: a convolution layer, a block of several, or a step without weights."""

    endpoint: str  # TF-Slim endpoint, such as `layer_5`
    name: str  # TF-Slim scope, such as `expanded_conv_3`
    stage: str  # "backbone", "classifier", "extras", "predictors" or "head"
    table_row: int | None  # index of its row in the table; None outside the table
    operations: tuple[Operation, ...]
    activation_bytes: int  # of one number in an activation

    @property
    def input_shape(self) -> Shape:
        """(height, width, channels)."""
        return self.operations[0].input_shape

    @property
    def output_shape(self) -> Shape:
        """(height, width, channels)."""
        return self.operations[-1].output_shape

    @property
    def bottleneck_memory(self) -> int:
        """Bytes of input and output, with the layer as one operation that never holds its complete inner tensors.

        Source: equation 2 and section 5 of the paper, without the term O(max(s^2, s'^2)).
        """
        return (math.prod(self.input_shape) + math.prod(self.output_shape)) * self.activation_bytes

    def as_dict(self) -> dict:
        """The row's figures, ready for JSON."""
        names = ("endpoint", "name", "stage", "table_row", "input_shape", "output_shape", "parameters", "trainable")
        costs = ("non_trainable", "multiply_adds", "activation_memory", "bottleneck_memory")
        return self.figures(*names, *costs)


class CostModel:
    """Records the operations of one walk, in the order in which they would run.

    Args:
        activation_bytes: of one number in an activation.
        normalization: of the convolutions, "batch_norm" or "group_norm".
    """

    def __init__(self, activation_bytes: int = 4, normalization: str = "batch_norm"):
        self.activation_bytes = whole_number("activation_bytes", activation_bytes)
        self.normalization = one_of("normalization", normalization, NORMALIZATIONS)
        self._rows: list[tuple] = []
        #: Of each operation: index of its row, the operation, the buffers that it reads and those that it writes.
        self._records: list[tuple[int, Operation, tuple[int, ...], tuple[int, ...]]] = []
        self._bytes: list[int] = []

    def tensor(self, shape: Shape) -> Tensor:
        """A tensor in a new buffer: the image, or an operation's output."""
        self._bytes.append(math.prod(shape) * self.activation_bytes)
        return Tensor(shape, (len(self._bytes) - 1,))

    def begin(self, endpoint: str, name: str, stage: str, table_row: int | None = None) -> None:
        """Start a row; the operations that follow belong to it."""
        self._rows.append((endpoint, name, stage, table_row))

    def _record(self, x: Tensor, output: Tensor, operation: Operation) -> Tensor:
        self._records.append((len(self._rows) - 1, operation, x.buffers, output.buffers))
        return output

    def row(self, x: Tensor, layer: Convolution, stage: str) -> Tensor:
        """A convolution that is a row."""
        self.begin(layer.endpoint or layer.name, layer.name, stage)
        return self.convolution(x, layer)

    def convolution(self, x: Tensor, *parts: Convolution, name: str | None = None) -> Tensor:
        """A convolution with its bias, or its normalisation and activation.

        Args:
            parts: the convolution, or each group of a split one.
            name: of a split one.
        """
        first, filters = parts[0], sum(part.outputs for part in parts)
        shape = (*(output_size(side, first.stride) for side in x.shape[:2]), filters)
        weights = sum(math.prod(part.kernel_shape) for part in parts)
        parameters = weights + filters * first.bias
        trainable, non_trainable = (0, 0) if first.bias else NORMALIZATIONS[self.normalization]
        operation = Operation(
            name=name or first.name,
            kind="depthwise" if first.depthwise else "convolution",
            input_shape=x.shape,
            output_shape=shape,
            kernel=first.kernel,
            stride=first.stride,
            rate=first.rate,
            parameters=parameters,
            trainable=parameters + filters * trainable,
            non_trainable=filters * non_trainable,
            variables=len(parts) * (1 + first.bias + trainable + non_trainable),
            multiply_adds=weights * math.prod(shape[:2]),
            padded_multiply_adds=weights * math.prod(output_size(side, first.rate) * first.rate for side in shape[:2]),
            glorot=first.stddev is None,
        )
        return self._record(x, self.tensor(shape), operation)

    def pool(self, x: Tensor, name: str) -> Tensor:
        """The mean over the whole map, (1, 1, channels)."""
        shape = (1, 1, x.shape[2])
        return self._record(x, self.tensor(shape), Operation(name, "pool", x.shape, shape))

    def resize(self, x: Tensor, size: tuple[int, int], name: str) -> Tensor:
        """Another height and width; the same tensor where they are right already."""
        if x.shape[:2] == size:
            return x
        shape = (*size, x.shape[2])
        return self._record(x, self.tensor(shape), Operation(name, "resize", x.shape, shape))

    def add(self, shortcut: Tensor, x: Tensor, name: str) -> Tensor:
        """`x` with `shortcut` added in place."""
        both = Tensor(x.shape, shortcut.buffers + x.buffers)
        return self._record(both, x, Operation(name, "add", x.shape, x.shape))

    def concatenate(self, tensors: Iterable[Tensor]) -> Tensor:
        """The tensors' channels in one tensor, without a copy: each operation writes its part of it."""
        shapes, buffers = zip(*tensors, strict=True)
        return Tensor((*shapes[0][:2], sum(shape[2] for shape in shapes)), sum(buffers, ()))

    def close(self, outputs: Iterable[Tensor]) -> tuple[Layer, ...]:
        """The rows, with what is alive during each operation; the outputs live to the end."""
        first: dict[int, int] = {}
        last = {buffer: len(self._records) for output in outputs for buffer in output.buffers}
        for i, (_, _, reads, writes) in enumerate(self._records):
            for buffer in reads:
                first.setdefault(buffer, 0)  # the image is there from the start
            for buffer in reads + writes:
                first.setdefault(buffer, i)
                last[buffer] = max(last.get(buffer, i), i)
        members: list[list[Operation]] = [[] for _ in self._rows]
        for i, (row, operation, _, _) in enumerate(self._records):
            alive = sum(self._bytes[buffer] for buffer, start in first.items() if start <= i <= last[buffer])
            members[row].append(replace(operation, memory=alive))
        rows = zip(self._rows, members, strict=True)
        return tuple(Layer(*row, tuple(operations), self.activation_bytes) for row, operations in rows if operations)
