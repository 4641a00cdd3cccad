"""A .tflite file as plain objects: its operators, tensors and numbers, to read and to edit.

The format's classes come with ai-edge-litert; neither TensorFlow nor an interpreter's run is needed.
"""

import os
from functools import cached_property
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from mnv2_keras.tflite.metadata import BUFFER, Metadata, append_files, associated_files, metadata_of, unpack_metadata

_IDENTIFIER = b"TFL3"

#: Where a page of weights begins: what the format asks of a buffer, and what kernels read fastest.
_ALIGNMENT = 16

_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_DTYPES = {
    schema.TensorType.FLOAT32: np.dtype("float32"),
    schema.TensorType.FLOAT16: np.dtype("float16"),
    schema.TensorType.FLOAT64: np.dtype("float64"),
    schema.TensorType.INT8: np.dtype("int8"),
    schema.TensorType.UINT8: np.dtype("uint8"),
    schema.TensorType.INT16: np.dtype("int16"),
    schema.TensorType.INT32: np.dtype("int32"),
    schema.TensorType.INT64: np.dtype("int64"),
    schema.TensorType.BOOL: np.dtype("bool"),
}
TYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class _AlignedBuffer(schema.BufferT):
    """A buffer that is written where its numbers are aligned, which the generated class does not see to."""

    def Pack(self, builder):  # the generated classes' name
        data = None
        if self.data is not None:
            raw = np.ascontiguousarray(self.data).view(np.uint8).reshape(-1)
            builder.StartVector(1, raw.size, _ALIGNMENT)
            builder.head = builder.head - raw.size
            builder.Bytes[builder.head : builder.head + raw.size] = raw.tobytes()
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class TfliteFile:
    """A .tflite file in memory, its first (and here only) graph opened.

    Args:
        source: a path, or the bytes of the file.

    Attributes:
        source: the file's name for messages.
        model: the generated object of the whole file.
        graph: the subgraph's generated object: `tensors`, `operators`, `inputs`, `outputs`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .tflite, or a truncated or damaged one.
    """

    def __init__(self, source: str | os.PathLike | bytes):
        self.source, self._content = read_tflite(source)
        self.model = schema.ModelT.InitFromPackedBuf(self._content, 0)
        if len(self.model.subgraphs) != 1:
            raise ValueError(
                f"{self.source} has {len(self.model.subgraphs)} subgraphs: a MobileNetV2 is one graph without branches."
            )
        self.graph = self.model.subgraphs[0]

    # Reading

    def kind(self, operator) -> str:
        """What an operator does: "CONV_2D", ...; a custom one's own name."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        # Up to 126 the old field holds the code, and very old files leave the new one at 0.
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        return code.customCode.decode() if builtin == schema.BuiltinOperator.CUSTOM else _OPERATORS[builtin]

    @property
    def kinds(self) -> list[str]:
        """What the operators do, in the order they run."""
        return [self.kind(operator) for operator in self.graph.operators]

    def name(self, tensor: int) -> str:
        """A tensor's name."""
        return (self.graph.tensors[tensor].name or b"").decode()

    def shape(self, tensor: int) -> tuple[int, ...]:
        """A tensor's shape."""
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(side) for side in shape)

    def dtype(self, tensor: int) -> np.dtype:
        """A tensor's type; object for one NumPy has none for, such as int4."""
        return _DTYPES.get(self.graph.tensors[tensor].type, np.dtype(object))

    def stored(self, tensor: int) -> np.ndarray | None:
        """A constant as it is stored (int8, ...); None for what is computed."""
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        if data is None or not len(data):
            return None
        return np.asarray(data, np.uint8).view(self.dtype(tensor)).reshape(self.shape(tensor))

    def quantization(self, tensor: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(scales, zero points), one each or one for each channel; None for a tensor that is not quantised."""
        parameters = self.graph.tensors[tensor].quantization
        if parameters is None or parameters.scale is None or not len(parameters.scale):
            return None
        return np.asarray(parameters.scale, np.float32), np.asarray(parameters.zeroPoint, np.int64)

    def constant(self, tensor: int) -> np.ndarray | None:
        """A constant's real values, float32 where it is quantised: `scale * (stored - zero point)`."""
        stored = self.stored(tensor)
        quantization = self.quantization(tensor)
        if stored is None or quantization is None:
            return stored
        sides = [1] * stored.ndim
        if len(quantization[0]) > 1:
            sides[self.graph.tensors[tensor].quantization.quantizedDimension] = -1
        scale, zero_point = (values.reshape(sides) for values in quantization)
        return ((stored.astype(np.float64) - zero_point) * scale).astype(np.float32)

    @cached_property
    def producer(self) -> dict[int, int]:
        """Computed tensor to the index of the operator it comes from."""
        return {int(t): i for i, operator in enumerate(self.graph.operators) for t in operator.outputs}

    @cached_property
    def consumers(self) -> dict[int, list[int]]:
        """Tensor to the indices of the operators that read it."""
        found: dict[int, list[int]] = {}
        for i, operator in enumerate(self.graph.operators):
            for tensor in operator.inputs:
                found.setdefault(int(tensor), []).append(i)
        return found

    @cached_property
    def associated_files(self) -> dict[str, bytes]:
        """The files appended to the model, such as its labels, by name."""
        return associated_files(self._content)

    @property
    def metadata(self) -> Metadata:
        """The file's metadata; empty for a file without.

        Raises:
            ValueError: the metadata is damaged.
        """
        buffers = [entry.buffer for entry in self.model.metadata or [] if entry.name == BUFFER]
        table = bytes(self.model.buffers[buffers[0]].data) if buffers else None
        return unpack_metadata(table, self.associated_files, Path(self.source).name)

    # Editing

    def set_metadata(self, metadata: Metadata) -> None:
        """Replace the metadata and the associated files."""
        entries = [entry for entry in self.model.metadata or [] if entry.name != BUFFER]
        buffer = self.add_buffer(np.frombuffer(metadata.packed(), np.uint8))
        self.model.metadata = [*entries, schema.MetadataT(name=BUFFER, buffer=buffer)]
        self.associated_files = dict(metadata.files)

    def add_operator_code(self, kind: str, version: int) -> int:
        """Index of the operator code; added where the file has none like it."""
        builtin = getattr(schema.BuiltinOperator, kind)
        for i, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
                return i
        self.model.operatorCodes.append(
            schema.OperatorCodeT(deprecatedBuiltinCode=min(builtin, 127), version=version, builtinCode=builtin)
        )
        return len(self.model.operatorCodes) - 1

    def add_buffer(self, data: np.ndarray | None) -> int:
        """Index of a new buffer."""
        raw = None if data is None else np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.model.buffers.append(schema.BufferT(data=raw))
        return len(self.model.buffers) - 1

    def store(self, tensor: int, values: np.ndarray) -> None:
        """Give a constant new values and their type, in a buffer of its own (two tensors may share one)."""
        self.graph.tensors[tensor].buffer = self.add_buffer(values)
        self.graph.tensors[tensor].type = TYPE_CODES[values.dtype]

    def set_quantization(self, tensor: int, scale, zero_point, axis: int = 0) -> None:
        """Give a tensor its scales and zero points."""
        self.graph.tensors[tensor].quantization = schema.QuantizationParametersT(
            scale=np.atleast_1d(np.asarray(scale, np.float32)),
            zeroPoint=np.atleast_1d(np.asarray(zero_point, np.int64)),
            quantizedDimension=axis,
        )

    def add_tensor(self, name: str, shape, dtype, buffer: int = 0) -> int:
        """Index of a new tensor; a computed one unless it is given a buffer."""
        self.graph.tensors.append(
            schema.TensorT(
                shape=np.asarray(shape, np.int32),
                type=TYPE_CODES[np.dtype(dtype)],
                buffer=buffer,
                name=name.encode(),
                hasRank=True,
            )
        )
        return len(self.graph.tensors) - 1

    def to_bytes(self) -> bytes:
        """The file, its associated files appended. Buffers that nothing refers to any more are left out."""
        self._drop_unused_buffers()
        size = sum(0 if buffer.data is None else len(buffer.data) for buffer in self.model.buffers)
        builder = flatbuffers.Builder(size + (1 << 20))
        buffers = self.model.buffers
        self.model.buffers = [_AlignedBuffer(data=buffer.data) for buffer in buffers]
        try:
            builder.Finish(self.model.Pack(builder), _IDENTIFIER)
        finally:
            self.model.buffers = buffers
        content = bytes(builder.Output())
        return append_files(content, self.associated_files) if self.associated_files else content

    def _drop_unused_buffers(self) -> None:
        holders = [*self.graph.tensors, *(self.model.metadata or [])]
        # The format keeps buffer 0 empty.
        used = sorted({0, *(holder.buffer for holder in holders)})
        place = {old: new for new, old in enumerate(used)}
        self.model.buffers = [self.model.buffers[i] for i in used]
        for holder in holders:
            holder.buffer = place[holder.buffer]


def read_tflite(source: str | os.PathLike | bytes) -> tuple[str, bytes]:
    """(name for messages, content) of a .tflite file that holds together.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .tflite, or a truncated or damaged one.
    """
    if isinstance(source, bytes | bytearray):
        name, content = f"a model of {len(source)} bytes", bytes(source)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"There is no .tflite file {path}: check the path.")
        name, content = str(path), path.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ValueError(
            f"{name} is not a .tflite file (it does not begin like one): give a file made by export_litert."
        )
    try:
        open_interpreter(content)
    except ValueError as error:
        raise ValueError(
            f"{name} is truncated or damaged ({str(error).splitlines()[0]}): make or copy it again."
        ) from error
    return name, content


def read_metadata(source: str | os.PathLike | bytes) -> Metadata:
    """Metadata of a .tflite file.

    Args:
        source: a path, or the bytes of the file.

    Returns:
        Its metadata; empty for a file without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no .tflite file, or a damaged one.
    """
    name, content = read_tflite(source)
    return metadata_of(content, Path(name).name)


def add_metadata(model: bytes, metadata: Metadata) -> bytes:
    """A .tflite file's bytes with metadata in place of what it may have had."""
    file = TfliteFile(model)
    file.set_metadata(metadata)
    return file.to_bytes()


def open_interpreter(content: bytes, threads: int | None = None, every_tensor: bool = False) -> Interpreter:
    """An interpreter over a file's bytes, its tensors not yet allocated.

    Args:
        threads: None for as many as there are cores.
        every_tensor: keep the values between the layers readable; slower, by LiteRT's own kernels instead of XNNPACK's.
    """
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if every_tensor else OpResolverType.AUTO
    return Interpreter(
        model_content=content,
        num_threads=threads or os.cpu_count(),
        experimental_op_resolver_type=resolver,
        experimental_preserve_all_tensors=every_tensor,
    )
