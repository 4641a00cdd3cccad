"""Who does the arithmetic: LiteRT, OpenVINO or Keras, all behind `run(image) -> outputs`."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ENGINES = ("litert", "openvino", "keras")


class End:
    """How an input or output of a .tflite keeps its numbers.

    Args:
        details: what `Interpreter.get_input_details` or `get_output_details` says of it.
    """

    def __init__(self, details: dict):
        self.index = details["index"]
        self._dtype = np.dtype(details["dtype"])
        self._scale, self._zero_point = details["quantization"]  # a scale of 0: plain numbers
        self.dtype = self._dtype.name

    @property
    def levels(self) -> tuple[float, float] | None:
        """(mean, std) under which `stored` keeps pixels from 0 to 255 as they are, its least number black; None but for 8 bits."""
        if self.dtype not in ("uint8", "int8"):
            return None
        return float(self._zero_point - np.iinfo(self._dtype).min), 1 / (self._scale or 1)

    @property
    def is_plain_integer(self) -> bool:
        """Whether it holds integers that nothing gives a meaning."""
        return self._dtype.kind != "f" and not self._scale and self.levels is None

    def stored(self, values: np.ndarray) -> np.ndarray:
        """float32 values as the file takes them."""
        if self._dtype.kind == "f":
            return values
        limits = np.iinfo(self._dtype)
        steps = np.rint(values * np.float32(1 / (self._scale or 1))) + np.float32(self._zero_point)
        return np.clip(steps, limits.min, limits.max, out=steps).astype(self._dtype)

    def real(self, stored: np.ndarray) -> np.ndarray:
        """What the file gives as float32 values."""
        if not self._scale:
            return stored
        return (stored.astype(np.float32) - self._zero_point) * np.float32(self._scale)


class LitertEngine:
    """A .tflite in LiteRT. Each thread that runs at the same time gets an interpreter of its own.

    Args:
        content: the file.
        threads: of one run; None for all cores.

    Attributes:
        input_shape: (H, W, C).
        input: how the input is kept.
        outputs: number of outputs.
        output_shape: of the first output, its batch axis left out.
    """

    def __init__(self, content: bytes, threads: int | None = None):
        self._content = content
        self._threads = threads or os.cpu_count() or 1
        self._idle: dict[int, list] = {}
        self._lock = threading.Lock()
        first = self._open(self._threads)
        self._give_back(first, self._threads)
        details = first.get_input_details()[0]
        self.input, self._ends = End(details), [End(each) for each in first.get_output_details()]
        self.input_shape = tuple(int(side) for side in details["shape"][1:])
        self.outputs = len(self._ends)
        self.output_shape = tuple(int(side) for side in first.get_output_details()[0]["shape"][1:])

    def _open(self, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=self._content, num_threads=threads)
        interpreter.allocate_tensors()
        return interpreter

    @contextmanager
    def _borrowed(self, threads: int) -> Iterator:
        with self._lock:
            idle = self._idle.setdefault(threads, [])
            interpreter = idle.pop() if idle else None
        interpreter = interpreter or self._open(threads)
        try:
            yield interpreter
        finally:
            self._give_back(interpreter, threads)

    def _give_back(self, interpreter, threads: int) -> None:
        with self._lock:
            self._idle.setdefault(threads, []).append(interpreter)

    def run(self, image: np.ndarray, output: int = 0, alone: bool = True) -> np.ndarray:
        """One output, float32 without the batch axis.

        Args:
            image: float32 (H, W, C) in the network's values.
            output: which of the outputs.
            alone: whether to use all threads; False uses one, for callers that run many at once.
        """
        with self._borrowed(self._threads if alone else 1) as interpreter:
            # A copy less than `set_tensor` makes.
            interpreter.tensor(self.input.index)()[0] = self.input.stored(image)
            interpreter.invoke()
            end = self._ends[output]
            return end.real(interpreter.get_tensor(end.index)[0])

    def close(self) -> None:
        """Let go of the interpreters."""
        with self._lock:
            self._idle.clear()


class OpenvinoEngine:
    """The same .tflite in OpenVINO, which chooses its own arithmetic: bfloat16 where the processor has units for it.

    Args:
        content: the file.
        threads: of one run, and of all that run at once; None for OpenVINO's choice.
    """

    #: OpenVINO's first look at NumPy waits for itself when two threads take it at once: one takes it, before there are others.
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
        core = openvino.Core()
        # Its TensorFlow Lite frontend reads files only.
        with tempfile.NamedTemporaryFile(suffix=".tflite", delete=False) as file:
            file.write(content)
        try:
            model = core.read_model(file.name)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot read this .tflite ({str(error).splitlines()[0]}).") from error
        finally:
            Path(file.name).unlink()
        from ai_edge_litert.interpreter import Interpreter

        scheme = Interpreter(model_content=content)  # OpenVINO does not say what the numbers of an int8 file mean
        self.input = End(scheme.get_input_details()[0])
        self._ends = [End(each) for each in scheme.get_output_details()]
        model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
        self._settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self._alone = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"} | self._settings)
        self._model, self._core = model, core
        self._together = None
        self._lock = threading.Lock()
        self._idle: dict[bool, list] = {True: [], False: []}
        self.input_shape = tuple(int(side) for side in self._alone.inputs[0].shape)[1:]
        self.outputs = len(self._alone.outputs)
        self.output_shape = tuple(int(side) for side in self._alone.outputs[0].shape)[1:]

    @contextmanager
    def _borrowed(self, alone: bool) -> Iterator:
        with self._lock:
            if not alone and self._together is None:
                settings = {"PERFORMANCE_HINT": "THROUGHPUT"} | self._settings
                self._together = self._core.compile_model(self._model, "CPU", settings)
            compiled = self._alone if alone else self._together
            request = self._idle[alone].pop() if self._idle[alone] else compiled.create_infer_request()
        try:
            yield request
        finally:
            with self._lock:
                self._idle[alone].append(request)

    def run(self, image: np.ndarray, output: int = 0, alone: bool = True) -> np.ndarray:
        """As in `LitertEngine.run`."""
        with self._borrowed(alone) as request:
            request.infer({0: self.input.stored(image[None])}, share_inputs=True)
            return self._ends[output].real(request.get_output_tensor(output).data[0].copy())

    def close(self) -> None:
        """Let go of the compiled model."""
        with self._lock:
            self._idle = {True: [], False: []}


class KerasEngine:
    """The Keras model itself: slow and heavy, but any weights, any backend.

    Args:
        model: a classifier.
    """

    def __init__(self, model):
        import keras

        self._to_numpy = keras.ops.convert_to_numpy
        pooled = [layer.output for layer in model.layers if layer.name == "global_pool"]
        self._model = keras.Model(model.input, [model.output, *pooled])
        self._lock = threading.Lock()
        self.input_shape = tuple(model.input_shape[1:])
        self.outputs = 1 + len(pooled)
        self.output_shape = tuple(model.output_shape[1:])

    def run(self, image: np.ndarray, output: int = 0, alone: bool = True) -> np.ndarray:
        """As in `LitertEngine.run`."""
        with self._lock:
            return self._to_numpy(self._model(image[None], training=False)[output])[0]

    def close(self) -> None:
        """Nothing to let go of."""
