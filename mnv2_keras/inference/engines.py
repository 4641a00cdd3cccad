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
        """Whether it holds integers without a scale that are no pixels: nothing says what they mean."""
        return self._dtype.kind != "f" and not self._scale and self.levels is None

    def quantized(self, values: np.ndarray) -> np.ndarray:
        """float32 values as the tensor stores them; floats for a float tensor, and values of its own type, stay as they are."""
        if self._dtype.kind == "f" or values.dtype == self._dtype:
            return values
        limits = np.iinfo(self._dtype)
        steps = np.rint(values * np.float32(1 / (self._scale or 1))) + np.float32(self._zero_point)
        return np.clip(steps, limits.min, limits.max, out=steps).astype(self._dtype)

    def dequantized(self, stored: np.ndarray) -> np.ndarray:
        """What the tensor stores as float32 values; plain numbers stay as they are."""
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

    def run(
        self, image: np.ndarray, outputs: Sequence[int] | None = None, use_all_threads: bool = True
    ) -> list[np.ndarray]:
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


class _Pool:
    """Interpreters that are borrowed by one thread at a time; as many exist as are in use at the same time."""

    def __init__(self, make: Callable[[bool], object]):
        self._make, self._lock = make, threading.Lock()
        self._idle: dict[bool, list] = {True: [], False: []}

    @contextmanager
    def borrowed(self, use_all_threads: bool) -> Iterator:
        with self._lock:
            idle = self._idle[use_all_threads]
            interpreter = idle.pop() if idle else None
        interpreter = interpreter or self._make(use_all_threads)
        try:
            yield interpreter
        finally:
            with self._lock:
                self._idle[use_all_threads].append(interpreter)

    def clear(self) -> None:
        with self._lock:
            self._idle = {True: [], False: []}


class _FileEngine:
    """What the engines of `.tflite` files share: each thread has an interpreter of its own."""

    _workers: ThreadPoolExecutor | None = None

    def run_batch(self, images: np.ndarray) -> np.ndarray:
        """See `Engine`."""
        if self._workers is None:
            self._workers = ThreadPoolExecutor(os.cpu_count() or 1)
        return np.stack(list(self._workers.map(lambda image: self.run(image, (0,), False)[0], images)))

    def close(self) -> None:
        """See `Engine`."""
        if self._workers is not None:
            self._workers.shutdown()
        self._pool.clear()


class LitertEngine(_FileEngine):
    """A `.tflite` file in LiteRT. See `Engine`.

    Args:
        content: the file's bytes.
        threads: of one run; None for all cores.

    Raises:
        ValueError, RuntimeError: LiteRT's own, for a file it cannot run.
    """

    def __init__(self, content: bytes, threads: int | None = None):
        self._content, self._threads = content, threads or os.cpu_count() or 1
        self._pool = _Pool(self._open)
        with self._pool.borrowed(True) as interpreter:
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

    def run(
        self, image: np.ndarray, outputs: Sequence[int] | None = None, use_all_threads: bool = True
    ) -> list[np.ndarray]:
        """See `Engine`."""
        with self._pool.borrowed(use_all_threads) as interpreter:
            # One copy less than `set_tensor` makes.
            interpreter.tensor(self._place)()[0] = self.input.quantized(image)
            interpreter.invoke()
            return [
                self.outputs[i].dequantized(interpreter.get_tensor(self._places[i])[0])
                for i in (range(len(self.outputs)) if outputs is None else outputs)
            ]


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
        self._compile(True)
        self._lock = threading.Lock()
        self._pool = _Pool(self._open)

    def _compile(self, use_all_threads: bool) -> None:
        hint = {"PERFORMANCE_HINT": "LATENCY" if use_all_threads else "THROUGHPUT"}
        self._compiled[use_all_threads] = self._core.compile_model(self._model, "CPU", hint | self._settings)

    def _open(self, use_all_threads: bool):
        with self._lock:
            if use_all_threads not in self._compiled:
                self._compile(use_all_threads)
            return self._compiled[use_all_threads].create_infer_request()

    def run(
        self, image: np.ndarray, outputs: Sequence[int] | None = None, use_all_threads: bool = True
    ) -> list[np.ndarray]:
        """See `Engine`."""
        with self._pool.borrowed(use_all_threads) as request:
            request.infer({0: self.input.quantized(image[None])}, share_inputs=True)
            return [
                self.outputs[i].dequantized(request.get_output_tensor(i).data[0].copy())
                for i in (range(len(self.outputs)) if outputs is None else outputs)
            ]


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
        shapes = model.compute_output_shape((1, *shape))
        self.outputs = [
            TensorInfo(each[1:], keras.backend.standardize_dtype(output.dtype))
            for each, output in zip(shapes, model.outputs, strict=True)
        ]

    def run(
        self, image: np.ndarray, outputs: Sequence[int] | None = None, use_all_threads: bool = True
    ) -> list[np.ndarray]:
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
