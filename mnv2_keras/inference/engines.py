"""What runs a network: LiteRT, OpenVINO or Keras, all behind the protocol `Engine`."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

ENGINES = ("litert", "openvino", "keras")


class TensorInfo:
    """Shape and number format of one input or output of a network.

    Args:
        shape: without the batch axis.
        dtype: NumPy's.
        scale, zero_point: of a quantised tensor, `real = scale * (stored - zero_point)`; a scale of 0 stands for plain numbers.
    """

    def __init__(self, shape, dtype=np.float32, scale: float = 0.0, zero_point: int = 0):
        self.shape = tuple(None if side is None else int(side) for side in shape)
        self._dtype, self._scale, self._zero_point = np.dtype(dtype), scale, zero_point
        self.dtype = self._dtype.name

    @classmethod
    def of_litert(cls, details: dict) -> "TensorInfo":
        """Of an element of `Interpreter.get_input_details` or `get_output_details`."""
        return cls(details["shape"][1:], details["dtype"], *details["quantization"])

    @property
    def levels(self) -> tuple[float, float] | None:
        """(mean, std) with which `quantized` stores pixels from 0 to 255 unchanged, its least number being black.

        None for other types than uint8 and int8.
        """
        if self.dtype not in ("uint8", "int8"):
            return None
        return float(self._zero_point - np.iinfo(self._dtype).min), 1 / (self._scale or 1)

    @property
    def is_plain_integer(self) -> bool:
        """Whether it holds integers without a scale that are not pixels: nothing says what they mean."""
        return self._dtype.kind != "f" and not self._scale and self.levels is None

    def quantized(self, values: np.ndarray) -> np.ndarray:
        """float32 values as the tensor stores them; floats for a float tensor, and values of the tensor's type, are unchanged."""
        if self._dtype.kind == "f" or values.dtype == self._dtype:
            return values
        limits = np.iinfo(self._dtype)
        steps = np.rint(values * np.float32(1 / (self._scale or 1))) + np.float32(self._zero_point)
        return np.clip(steps, limits.min, limits.max, out=steps).astype(self._dtype)

    def dequantized(self, stored: np.ndarray) -> np.ndarray:
        """What the tensor stores as float32 values; plain numbers are unchanged."""
        if not self._scale:
            return stored
        return (stored.astype(np.float32) - self._zero_point) * np.float32(self._scale)


class Engine(Protocol):
    """A network of one image input, ready to run. `run` may be called from several threads at the same time.

    Attributes:
        input: the input (H, W, C).
        outputs: the outputs.
    """

    input: TensorInfo
    outputs: list[TensorInfo]

    def run(self, image: np.ndarray, outputs: Sequence[int] | None = None, use_all_threads: bool = True) -> list[np.ndarray]:
        """The network's outputs for one image, without the batch axis; quantised ones as float32.

        Args:
            image: float32 (H, W, C) in the network's values, or of the input's own type.
            outputs: the indices of the outputs to return; None for all.
            use_all_threads: False computes on one thread, for callers that run several images at the same time.
        """

    def run_batch(self, images: np.ndarray) -> np.ndarray:
        """The first output for images (B, H, W, C), with the batch axis, on all cores."""

    def close(self) -> None:
        """Release memory and threads."""


class _FileEngine:
    """What the engines of `.tflite` files share: an interpreter is borrowed by one thread at a time.

    A subclass has `_open(use_all_threads)`, which makes an interpreter, and `_infer(interpreter, stored, indices)`, which returns
    the outputs of these indices as they are stored, for an input (1, H, W, C) as it is stored.
    """

    def __init__(self):
        self._idle: dict[bool, list] = {True: [], False: []}
        self._workers: ThreadPoolExecutor | None = None

    @contextmanager
    def _borrowed(self, use_all_threads: bool) -> Iterator:
        idle = self._idle[use_all_threads]
        try:
            interpreter = idle.pop()  # atomic, as `append` is
        except IndexError:
            interpreter = self._open(use_all_threads)
        try:
            yield interpreter
        finally:
            idle.append(interpreter)

    def run(self, image, outputs=None, use_all_threads: bool = True) -> list[np.ndarray]:
        """See `Engine`."""
        indices = range(len(self.outputs)) if outputs is None else outputs
        with self._borrowed(use_all_threads) as interpreter:
            arrays = self._infer(interpreter, self.input.quantized(image[None]), indices)
            return [self.outputs[i].dequantized(array[0]) for i, array in zip(indices, arrays, strict=True)]

    def run_batch(self, images: np.ndarray) -> np.ndarray:
        """See `Engine`."""
        self._workers = self._workers or ThreadPoolExecutor(os.cpu_count() or 1)
        return np.stack(list(self._workers.map(lambda image: self.run(image, (0,), False)[0], images)))

    def close(self) -> None:
        """See `Engine`."""
        if self._workers is not None:
            self._workers.shutdown()
        self._idle = {True: [], False: []}


class LitertEngine(_FileEngine):
    """A `.tflite` file in LiteRT. See `Engine`.

    Args:
        content: the file's bytes.
        threads: of one run; None for all cores.

    Raises:
        ValueError, RuntimeError: LiteRT's own, for a file it cannot run.
    """

    def __init__(self, content: bytes, threads: int | None = None):
        super().__init__()
        self._content, self._threads = content, threads or os.cpu_count() or 1
        with self._borrowed(True) as interpreter:
            inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        if len(inputs) != 1:
            raise ValueError(f"it has {len(inputs)} inputs, one image is expected")
        self.input, self._place = TensorInfo.of_litert(inputs[0]), inputs[0]["index"]
        self.outputs, self._places = [TensorInfo.of_litert(o) for o in outputs], [o["index"] for o in outputs]

    def _open(self, use_all_threads: bool):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=self._content, num_threads=self._threads if use_all_threads else 1)
        interpreter.allocate_tensors()
        return interpreter

    def _infer(self, interpreter, stored: np.ndarray, indices: Sequence[int]) -> list[np.ndarray]:
        interpreter.tensor(self._place)()[:] = stored  # one copy less than `set_tensor` makes
        interpreter.invoke()
        return [interpreter.get_tensor(self._places[i]) for i in indices]


class OpenvinoEngine(_FileEngine):
    """The same `.tflite` file in OpenVINO, which computes in bfloat16 where the processor has units for it. See `Engine`.

    Args:
        content: the file's bytes.
        threads: of all runs together; None for OpenVINO's choice.

    Raises:
        ValueError: OpenVINO is not installed, or cannot read the file.
    """

    #: OpenVINO blocks for ever when two threads use its NumPy conversion for the first time at once: one does it beforehand.
    _first = threading.Lock()

    def __init__(self, content: bytes, threads: int | None = None):
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise ValueError(
                "engine 'openvino' needs OpenVINO: pip install 'mnv2-keras[openvino]', or use engine='litert'."
            ) from error
        with self._first:
            openvino.Type.f32.to_dtype()
        self._core = openvino.Core()
        # Its TensorFlow Lite frontend reads files only.
        with tempfile.NamedTemporaryFile(suffix=".tflite", delete=False) as file:
            file.write(content)
        try:
            self._model = self._core.read_model(file.name)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot read this .tflite ({str(error).splitlines()[0]}).") from error
        finally:
            Path(file.name).unlink()
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=content)  # OpenVINO does not give the scales of an int8 file
        self.input = TensorInfo.of_litert(interpreter.get_input_details()[0])
        self.outputs = [TensorInfo.of_litert(details) for details in interpreter.get_output_details()]
        self._model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in self._model.inputs})
        self._settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self._compiled: dict[bool, object] = {}
        self._lock = threading.Lock()
        with self._borrowed(True):
            pass  # compile now, so that a file that cannot run is refused here

    def _open(self, use_all_threads: bool):
        with self._lock:
            if use_all_threads not in self._compiled:
                hint = {"PERFORMANCE_HINT": "LATENCY" if use_all_threads else "THROUGHPUT"}
                self._compiled[use_all_threads] = self._core.compile_model(self._model, "CPU", hint | self._settings)
            return self._compiled[use_all_threads].create_infer_request()

    def _infer(self, interpreter, stored: np.ndarray, indices: Sequence[int]) -> list[np.ndarray]:
        interpreter.infer({0: stored}, share_inputs=True)
        return [interpreter.get_output_tensor(i).data.copy() for i in indices]


class KerasEngine:
    """A Keras model on Keras' own backend, which shares its threads. See `Engine`.

    Args:
        model: of one image input and a list of outputs.
        call: what computes the outputs of a batch in place of `model`, such as its average over several scales.
        size: (height, width) for a model that takes any.
    """

    def __init__(self, model, call: Callable | None = None, size: tuple[int, int] | None = None):
        import keras

        call = call or (lambda batch: model(batch, training=False))
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            call = tf.function(call, reduce_retracing=True)
        self._call, self._to_numpy, self._lock = call, keras.ops.convert_to_numpy, threading.Lock()
        height, width, channels = model.input_shape[1:]
        shape = (size or (height, width)) + (channels,)
        self.input = TensorInfo(shape)
        shapes, outputs = model.compute_output_shape((1, *shape)), model.outputs
        dtypes = [keras.backend.standardize_dtype(output.dtype) for output in outputs]
        self.outputs = [TensorInfo(shape[1:], dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    def run(self, image, outputs=None, use_all_threads: bool = True) -> list[np.ndarray]:
        """See `Engine`."""
        with self._lock:
            values = self._call(image[None])
            return [self._to_numpy(values[i])[0] for i in (range(len(values)) if outputs is None else outputs)]

    def run_batch(self, images: np.ndarray) -> np.ndarray:
        """See `Engine`."""
        with self._lock:
            return self._to_numpy(self._call(images)[0])

    def close(self) -> None:
        """See `Engine`."""
