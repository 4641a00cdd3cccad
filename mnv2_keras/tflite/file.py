"""A .tflite file as plain objects: its operators, tensors and constants, to read and to edit.

The format's classes come with ai-edge-litert.
"""

import copy
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from mnv2_keras.checks import user_path
from mnv2_keras.quant_params import QuantParams
from mnv2_keras.tflite.metadata import BUFFER, Metadata, append_files, metadata_of

_IDENTIFIER = b"TFL3"
#: Bytes of a .tflite file; the largest of MobileNetV2 has 25 MB.
MAX_BYTES = 2**30

#: Alignment of buffers in bytes: what the format requires and kernels read fastest.
_ALIGNMENT = 16

_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_NAMES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
_DTYPES = {getattr(schema.TensorType, name.upper()): np.dtype(name) for name in _NAMES}
TYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class _AlignedBuffer(schema.BufferT):
    """A buffer that is written at an aligned place; the generated class does not align."""

    def Pack(self, builder):  # the generated classes' name
        data = None
        if self.data is not None:
            raw = np.ascontiguousarray(self.data).view(np.uint8).reshape(-1)
            builder.StartVector(1, raw.size, _ALIGNMENT)
            builder.head -= raw.size
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
        model: the generated object of the file.
        graph: the subgraph's generated object: `tensors`, `operators`, `inputs`, `outputs`. Inputs and outputs, also those of
            the operators, are lists of indices of tensors.

    Raises:
        FileNotFoundError, ValueError: as in `read_tflite`.
    """

    def __init__(self, source: str | os.PathLike | bytes):
        self.source, self._content = read_tflite(source)
        self.model = schema.ModelT.InitFromPackedBuf(self._content, 0)
        if len(self.model.subgraphs) != 1:
            raise ValueError(
                f"{self.source} has {len(self.model.subgraphs)} subgraphs: a MobileNetV2 is one graph without branches."
            )
        self.graph = self.model.subgraphs[0]
        for holder in (self.graph, *self.graph.operators):
            for name in ("inputs", "outputs"):
                indices = getattr(holder, name)
                setattr(holder, name, [] if indices is None else [int(index) for index in indices])

    # Reading

    def kind(self, operator) -> str:
        """An operator's name: "CONV_2D", ...; for a custom operator, its own name."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        # Up to 126 the old field holds the code, and very old files leave the new one at 0.
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        return code.customCode.decode() if builtin == schema.BuiltinOperator.CUSTOM else _OPERATORS[builtin]

    @property
    def kinds(self) -> list[str]:
        """The operators' names, in the order they run."""
        return [self.kind(operator) for operator in self.graph.operators]

    @property
    def operators(self) -> list[tuple]:
        """(operator, name) in the order they run."""
        return list(zip(self.graph.operators, self.kinds, strict=True))

    def name(self, tensor: int) -> str:
        """A tensor's name."""
        return (self.graph.tensors[tensor].name or b"").decode()

    def shape(self, tensor: int) -> tuple[int, ...]:
        """A tensor's shape."""
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(side) for side in shape)

    def dtype(self, tensor: int) -> np.dtype:
        """A tensor's type; object for one that NumPy does not have, such as int4."""
        return _DTYPES.get(self.graph.tensors[tensor].type, np.dtype(object))

    def stored(self, tensor: int) -> np.ndarray | None:
        """A constant as it is stored (int8, ...); None for what is computed."""
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        if data is None or not len(data):
            return None
        return np.asarray(data, np.uint8).view(self.dtype(tensor)).reshape(self.shape(tensor))

    def quantization(self, tensor: int) -> QuantParams | None:
        """What a tensor's stored integers stand for; None for a tensor that is not quantised."""
        parameters = self.graph.tensors[tensor].quantization
        if parameters is None or parameters.scale is None or not len(parameters.scale):
            return None
        scale, zero_point = np.asarray(parameters.scale, np.float32), np.asarray(parameters.zeroPoint, np.int64)
        if len(scale) == 1:
            return QuantParams(float(scale[0]), int(zero_point[0]), self.dtype(tensor))
        return QuantParams(scale, zero_point, self.dtype(tensor), parameters.quantizedDimension)

    def constant(self, tensor: int) -> np.ndarray | None:
        """A constant's real values, float32 where it is quantised; None for what is computed."""
        stored, params = self.stored(tensor), self.quantization(tensor)
        return stored if stored is None or params is None else params.dequantize(stored)

    def kernel_and_bias(self, operator) -> tuple[np.ndarray, np.ndarray | None]:
        """The real values of a layer's second and third input; None for a bias that it does not have."""
        kernel, *bias = (self.constant(t) if t >= 0 else None for t in operator.inputs[1:3])
        return kernel, bias[0] if bias else None

    @cached_property
    def producer(self) -> dict[int, int]:
        """From a computed tensor to the index of the operator that computes it."""
        return {t: i for i, operator in enumerate(self.graph.operators) for t in operator.outputs}

    @cached_property
    def consumers(self) -> dict[int, list[int]]:
        """From a tensor to the indices of the operators that read it."""
        readers: dict[int, list[int]] = {}
        for i, operator in enumerate(self.graph.operators):
            for tensor in operator.inputs:
                readers.setdefault(tensor, []).append(i)
        return readers

    @property
    def size(self) -> int:
        """Bytes of the file that was read."""
        return len(self._content)

    @cached_property
    def metadata(self) -> Metadata:
        """The file's metadata, with the files appended to the model; empty for a file without.

        Raises:
            ValueError: the metadata is damaged.
        """
        return metadata_of(self._content, Path(self.source).name)

    # Editing

    def copy(self) -> "TfliteFile":
        """A copy that can be edited while this one stays as it is."""
        duplicate = copy.copy(self)
        duplicate._forget_connections()
        # Edits replace the data of buffers and never change it in place, so both files share it.
        shared = {id(buffer): schema.BufferT(data=buffer.data) for buffer in self.model.buffers}
        duplicate.model = copy.deepcopy(self.model, shared)
        duplicate.graph = duplicate.model.subgraphs[0]
        return duplicate

    def set_metadata(self, metadata: Metadata) -> None:
        """Replace the metadata and the associated files."""
        entries = [entry for entry in self.model.metadata or [] if entry.name != BUFFER]
        buffer = self.add_buffer(np.frombuffer(metadata.packed(), np.uint8))
        self.model.metadata = [*entries, schema.MetadataT(name=BUFFER, buffer=buffer)]
        self.metadata = metadata

    def add_operator_code(self, kind: str, version: int) -> int:
        """Index of an operator code, added if the file does not have it yet."""
        builtin = getattr(schema.BuiltinOperator, kind)
        for i, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
                return i
        self.model.operatorCodes.append(
            schema.OperatorCodeT(deprecatedBuiltinCode=min(builtin, 127), version=version, builtinCode=builtin)
        )
        return len(self.model.operatorCodes) - 1

    def new_operator(self, kind: str, version: int, inputs: Sequence[int], outputs: Sequence[int], options) -> schema.OperatorT:
        """A new builtin operator, to be put into `graph.operators`; `options` is the generated object of its options."""
        return schema.OperatorT(
            opcodeIndex=self.add_operator_code(kind, version),
            inputs=list(inputs),
            outputs=list(outputs),
            builtinOptionsType=getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T")),
            builtinOptions=options,
        )

    def add_buffer(self, data: np.ndarray | None) -> int:
        """Index of a new buffer."""
        raw = None if data is None else np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.model.buffers.append(schema.BufferT(data=raw))
        return len(self.model.buffers) - 1

    def store(self, tensor: int, values: np.ndarray) -> None:
        """Give a constant new values and their type, in its own buffer (two tensors may share one)."""
        self.graph.tensors[tensor].buffer = self.add_buffer(values)
        self.graph.tensors[tensor].type = TYPE_CODES[values.dtype]

    def set_quantization(self, tensor: int, params: QuantParams) -> None:
        """Give a tensor its scales and zero points (its type is set by `store` or `add_tensor`)."""
        scale = np.atleast_1d(np.asarray(params.scale, np.float32))
        self.graph.tensors[tensor].quantization = schema.QuantizationParametersT(
            scale=scale,
            zeroPoint=np.broadcast_to(np.asarray(params.zero_point, np.int64), scale.shape).copy(),
            quantizedDimension=params.axis or 0,
        )

    def add_tensor(self, name: str, shape, dtype, buffer: int = 0) -> int:
        """Index of a new tensor; a computed one unless a buffer is given."""
        self.graph.tensors.append(
            schema.TensorT(
                shape=np.asarray(shape, np.int32), type=TYPE_CODES[np.dtype(dtype)], buffer=buffer, name=name.encode(), hasRank=True
            )
        )
        self._forget_connections()  # whoever adds a tensor is about to connect it
        return len(self.graph.tensors) - 1

    def _forget_connections(self) -> None:
        for cached in ("producer", "consumers"):
            self.__dict__.pop(cached, None)

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
        return append_files(content, self.metadata.files) if self.metadata.files else content

    def _drop_unused_buffers(self) -> None:
        holders = [*self.graph.tensors, *(self.model.metadata or [])]
        # The format keeps buffer 0 empty.
        used = sorted({0, *(holder.buffer for holder in holders)})
        place = {old: new for new, old in enumerate(used)}
        self.model.buffers = [self.model.buffers[i] for i in used]
        for holder in holders:
            holder.buffer = place[holder.buffer]


def read_tflite(source: str | os.PathLike | bytes) -> tuple[str, bytes]:
    """(name for messages, content) of a valid .tflite file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a .tflite file, or a truncated or damaged one.
    """
    if isinstance(source, bytes | bytearray):
        name, content = f"a model of {len(source)} bytes", bytes(source)
    else:
        path = user_path(source)
        if not path.is_file():
            raise FileNotFoundError(f"There is no .tflite file {path}: check the path.")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes: expected a .tflite of at most {MAX_BYTES:,}.")
        name, content = str(path), path.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ValueError(f"{name} is not a .tflite file (it does not begin like one): give a file made by export_litert.")
    try:
        open_interpreter(content)
    except ValueError as error:
        raise ValueError(f"{name} is truncated or damaged ({str(error).splitlines()[0]}): make or copy it again.") from error
    return name, content


def read_metadata(source: str | os.PathLike | bytes) -> Metadata:
    """The metadata of a .tflite file, given by its path or bytes; empty for a file without.

    Raises:
        FileNotFoundError, ValueError: as in `read_tflite`; the metadata is damaged.
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
        threads: None for one per core.
        every_tensor: keep the values between the layers readable; it uses LiteRT's own kernels, slower than XNNPACK's.
    """
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if every_tensor else OpResolverType.AUTO
    return Interpreter(
        model_content=content,
        num_threads=threads or os.cpu_count(),
        experimental_op_resolver_type=resolver,
        experimental_preserve_all_tensors=every_tensor,
    )
