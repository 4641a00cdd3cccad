"""Books for a network that is walked instead of built: what each operation holds, costs, and keeps in memory.

The walks (`network`, `ssdlite`, `deeplab`) read like the builders: they call `convolution`, `depthwise`, `add`, ... on
tensors that have a shape and no values. `close` then knows when each tensor is needed for the last time, and so what is
alive when.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

Shape = tuple[int, int, int]

#: Variables of one normalised channel: (trainable: gamma and beta, not trainable: moving mean and moving variance).
NORMALIZATIONS = {"batch_norm": (2, 2), "group_norm": (2, 0)}


def checked_integer(name: str, value: object, least: int = 1) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least {least}.")
    return int(value)


def checked_shape(input_shape: object) -> Shape:
    """An image's (height, width, channels) as three ints.

    Raises:
        ValueError: anything else; a size must be known to be counted.
    """
    try:
        height, width, channels = input_shape
    except (TypeError, ValueError):
        raise ValueError(
            f"input_shape is {input_shape!r}: expected (height, width, channels) such as (224, 224, 3)."
        ) from None
    if height is None or width is None:
        raise ValueError(f"input_shape is {input_shape!r}: counting needs a height and a width, such as (224, 224, 3).")
    names = ("height", "width", "channels")
    return tuple(
        checked_integer(f"{name} in input_shape", n) for name, n in zip(names, (height, width, channels), strict=True)
    )


def output_size(size: int, stride: int) -> int:
    """Steps of a convolution along one side: ceil(size / stride).

    TensorFlow's SAME is defined so. Explicit padding adds k_eff - 1, which makes it floor((size - 1) / stride) + 1: the
    same number for every size.
    """
    return -(-size // stride)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a walk: (height, width, channels) of one image, and the buffers that hold it."""

    shape: Shape
    buffers: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One convolution, pooling, resizing or addition, for one image.

    Attributes:
        name: TF-Slim scope, such as `expanded_conv_3/expand`.
        kind: "convolution", "depthwise", "pool", "resize" or "add".
        input_shape, output_shape: (height, width, channels).
        kernel: side of the kernel; 0 where there is none.
        stride, rate: of the convolution.
        parameters: kernels and biases.
        trainable: the same and gamma and beta.
        non_trainable: moving statistics.
        variables: number of variables.
        multiply_adds: of the convolution; zero for all else.
        padded_multiply_adds: the same where TensorFlow 1 pads a dilated convolution's input up to a multiple of its
            rate (SpaceToBatchND) and convolves the padding as well.
        memory: bytes of the tensors alive while it runs.
    """

    name: str
    kind: str
    input_shape: Shape
    output_shape: Shape
    kernel: int = 0
    stride: int = 1
    rate: int = 1
    parameters: int = 0
    trainable: int = 0
    non_trainable: int = 0
    variables: int = 0
    multiply_adds: int = 0
    padded_multiply_adds: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Layer:
    """One row of an analysis: a convolution layer, a block of several, or a step without weights.

    Attributes:
        endpoint: TF-Slim endpoint, such as `layer_5`.
        name: TF-Slim scope, such as `expanded_conv_3`.
        stage: "backbone", "classifier", "extras", "predictors" or "head".
        table_row: index of its row in the table; None outside the table.
        operations: what it consists of, in order.
        activation_bytes: of one number.
    """

    endpoint: str
    name: str
    stage: str
    table_row: int | None
    operations: tuple[Operation, ...]
    activation_bytes: int

    def _sum(self, field: str) -> int:
        return sum(getattr(operation, field) for operation in self.operations)

    @property
    def input_shape(self) -> Shape:
        """(height, width, channels)."""
        return self.operations[0].input_shape

    @property
    def output_shape(self) -> Shape:
        """(height, width, channels)."""
        return self.operations[-1].output_shape

    @property
    def parameters(self) -> int:
        """Kernels and biases."""
        return self._sum("parameters")

    @property
    def trainable(self) -> int:
        """Kernels, biases, gamma and beta."""
        return self._sum("trainable")

    @property
    def non_trainable(self) -> int:
        """Moving means and variances."""
        return self._sum("non_trainable")

    @property
    def variables(self) -> int:
        """Number of variables (not of values)."""
        return self._sum("variables")

    @property
    def multiply_adds(self) -> int:
        """Of the convolutions, for one image."""
        return self._sum("multiply_adds")

    @property
    def padded_multiply_adds(self) -> int:
        """With the padding of dilated convolutions in TensorFlow 1 (see `Operation`)."""
        return self._sum("padded_multiply_adds")

    @property
    def activation_memory(self) -> int:
        """Bytes alive during the operation of this layer that has most."""
        return max(operation.memory for operation in self.operations)

    @property
    def bottleneck_memory(self) -> int:
        """Bytes of input and output, the layer being one operation that never holds its inner tensors whole.

        Source: equation 2 and section 5 of the paper, without the term O(max(s^2, s'^2)).
        """
        height, width, channels = self.input_shape
        out_height, out_width, out_channels = self.output_shape
        return (height * width * channels + out_height * out_width * out_channels) * self.activation_bytes

    def as_dict(self) -> dict:
        """The row's figures, ready for JSON."""
        return {
            "endpoint": self.endpoint,
            "name": self.name,
            "stage": self.stage,
            "table_row": self.table_row,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "parameters": self.parameters,
            "trainable": self.trainable,
            "non_trainable": self.non_trainable,
            "multiply_adds": self.multiply_adds,
            "activation_memory": self.activation_memory,
            "bottleneck_memory": self.bottleneck_memory,
        }


@dataclass(frozen=True)
class _Entry:
    row: int
    operation: Operation
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class CostModel:
    """Takes down the operations of one walk, in the order in which they would run."""

    def __init__(self, activation_bytes: int = 4):
        self.activation_bytes = checked_integer("activation_bytes", activation_bytes)
        self._rows: list[dict] = []
        self._entries: list[_Entry] = []
        self._bytes: list[int] = []

    def tensor(self, shape: Shape) -> Tensor:
        """A tensor with a buffer of its own: the image, or an operation's output."""
        height, width, channels = shape
        self._bytes.append(height * width * channels * self.activation_bytes)
        return Tensor(shape, (len(self._bytes) - 1,))

    def begin(self, endpoint: str, name: str, stage: str, table_row: int | None = None) -> None:
        """Start a row; the operations that follow belong to it."""
        self._rows.append({"endpoint": endpoint, "name": name, "stage": stage, "table_row": table_row})

    def _book(self, x: Tensor, output: Tensor, operation: Operation) -> Tensor:
        self._entries.append(_Entry(len(self._rows) - 1, operation, x.buffers, output.buffers))
        return output

    def convolution(
        self,
        x: Tensor,
        filters: int,
        name: str,
        *,
        kernel: int = 1,
        stride: int = 1,
        rate: int = 1,
        bias: bool = False,
        normalization: str | None = "batch_norm",
        parts: Sequence[tuple[int, int]] | None = None,
        depthwise: bool = False,
    ) -> Tensor:
        """A convolution with what belongs to it: bias, normalisation, activation.

        Args:
            parts: (inputs, outputs) of each group of a split convolution; None for a whole one.
            depthwise: one filter for each channel (`filters` is then x's channels).
        """
        height, width, channels = x.shape
        shape = (output_size(height, stride), output_size(width, stride), filters)
        parts = ((1, filters),) if depthwise else parts or ((channels, filters),)
        weights = kernel**2 * sum(inputs * outputs for inputs, outputs in parts)
        parameters = weights + filters * bias
        trainable, non_trainable = NORMALIZATIONS[normalization] if normalization else (0, 0)
        padded = [output_size(side, rate) * rate for side in shape[:2]]
        operation = Operation(
            name=name,
            kind="depthwise" if depthwise else "convolution",
            input_shape=x.shape,
            output_shape=shape,
            kernel=kernel,
            stride=stride,
            rate=rate,
            parameters=parameters,
            trainable=parameters + filters * trainable,
            non_trainable=filters * non_trainable,
            variables=len(parts) * (1 + bias + trainable + non_trainable),
            multiply_adds=weights * shape[0] * shape[1],
            padded_multiply_adds=weights * padded[0] * padded[1],
        )
        return self._book(x, self.tensor(shape), operation)

    def depthwise(self, x: Tensor, name: str, **options) -> Tensor:
        """A 3x3 filter for each channel; the options are those of `convolution`."""
        return self.convolution(x, x.shape[2], name, kernel=3, depthwise=True, **options)

    def pool(self, x: Tensor, name: str) -> Tensor:
        """The mean over the whole map, (1, 1, channels)."""
        shape = (1, 1, x.shape[2])
        return self._book(x, self.tensor(shape), Operation(name, "pool", x.shape, shape))

    def resize(self, x: Tensor, size: tuple[int, int], name: str) -> Tensor:
        """Another height and width; the same tensor where they are right already."""
        if x.shape[:2] == size:
            return x
        shape = (*size, x.shape[2])
        return self._book(x, self.tensor(shape), Operation(name, "resize", x.shape, shape))

    def add(self, kept: Tensor, x: Tensor, name: str) -> Tensor:
        """`x` with `kept` added in place."""
        both = Tensor(x.shape, kept.buffers + x.buffers)
        return self._book(both, x, Operation(name, "add", x.shape, x.shape))

    def concatenate(self, tensors: Iterable[Tensor]) -> Tensor:
        """All channels side by side, where they are: whoever made them wrote into parts of one tensor."""
        tensors = tuple(tensors)
        channels = sum(tensor.shape[2] for tensor in tensors)
        buffers = tuple(buffer for tensor in tensors for buffer in tensor.buffers)
        return Tensor((*tensors[0].shape[:2], channels), buffers)

    def close(self, outputs: Iterable[Tensor]) -> tuple[Layer, ...]:
        """The rows, with what is alive during each operation; the outputs live to the end."""
        end = len(self._entries)
        born: dict[int, int] = {}
        last = {buffer: end for output in outputs for buffer in output.buffers}
        for i, entry in enumerate(self._entries):
            for buffer in entry.reads:
                born.setdefault(buffer, 0)  # the image is there from the start
            for buffer in entry.reads + entry.writes:
                born.setdefault(buffer, i)
                last[buffer] = max(last.get(buffer, i), i)
        members: list[list[Operation]] = [[] for _ in self._rows]
        for i, entry in enumerate(self._entries):
            alive = sum(self._bytes[buffer] for buffer, start in born.items() if start <= i <= last[buffer])
            members[entry.row].append(replace(entry.operation, memory=alive))
        return tuple(
            Layer(**row, operations=tuple(operations), activation_bytes=self.activation_bytes)
            for row, operations in zip(self._rows, members, strict=True)
            if operations
        )
