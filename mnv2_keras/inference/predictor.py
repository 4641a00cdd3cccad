"""What `Classifier`, `Detector` and `Segmenter` share: opening weights, labels, feeding, streaming, closing."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from mnv2_keras.checks import one_of, whole_number
from mnv2_keras.deprecation import renamed_arguments
from mnv2_keras.images import ImageSource, find_images, read_image
from mnv2_keras.inference.engines import ENGINES, Engine, KerasEngine, LitertEngine, OpenvinoEngine
from mnv2_keras.inference.model_cache import litert_content, model_content, path_of
from mnv2_keras.labels import class_labels, labels_beside, published_labels

ON_ERROR = ("skip", "raise")


class OpenedWeights(NamedTuple):
    """Weights, ready to run."""

    name: str  # for messages
    engine: Engine  # its outputs are those of `task_networks.task_network`, or a `.tflite` file's own
    content: bytes | None = None  # the `.tflite` file; None with Keras
    labels: Sequence[str] | None = None  # those in the `.tflite` file
    missing: Sequence[str] = ()  # label files that the metadata names and the file does not hold
    scaling: tuple | None = None  # (factor, summand) from [-1, 1] to the network's values; None where these are [-1, 1]


def open_weights(
    weights,
    task: str,
    engine: str | None = None,
    threads: int | None = None,
    precision: str = "float32",
    resolution: int | None = None,
    on_message: Callable[[str], None] | None = None,
    keras_call: Callable | None = None,
) -> OpenedWeights:
    """Open whatever holds a network of a task ("classification", "detection" or "segmentation").

    Args:
        weights, engine, threads, precision, on_message: as in `Predictor`.
        resolution: side of the network's input in pixels; None for the weights' own.
        keras_call: from the Keras model to what computes the outputs of a batch in its place, for engine "keras".

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they hold no network of the task, or cannot be converted, read or run; an option is out of its range.
    """
    is_path = isinstance(weights, str | os.PathLike)
    name = str(weights) if is_path else repr(getattr(weights, "name", weights))
    engine = engine or ("litert" if is_path else "keras")
    one_of("engine", engine, ENGINES)
    if threads is not None:
        whole_number("threads", threads, note=", or None for all cores")
    if resolution is not None:
        whole_number("resolution", resolution, note=" (pixels of a side), or None for the weights' own")
    if engine == "keras" and threads is not None:
        raise ValueError("engine 'keras' shares the threads of its backend: leave threads out, or use engine='litert'.")
    if engine == "keras" and precision != "float32":
        raise ValueError(f"engine 'keras' computes in float32, not {precision!r}: use engine='litert'.")
    if not is_path and not hasattr(weights, "layers"):
        raise ValueError(f"weights is {type(weights).__name__}: expected a path, a registered name or a Keras model.")
    if not is_path and resolution is not None:
        raise ValueError("A Keras model has its own resolution: build it with input_shape, and leave resolution out.")
    if engine == "keras":
        from mnv2_keras.inference.task_networks import task_network

        model = weights
        if is_path:
            from mnv2_keras.conversion import open_model

            model = open_model(weights, size=resolution and (resolution, resolution))[0]
        network, size = task_network(model, task, name)
        return OpenedWeights(name, KerasEngine(network, keras_call and keras_call(model), size))
    if is_path:
        content = litert_content(weights, precision, resolution, on_message, task)
    else:
        content = model_content(weights, precision, task)
    runner = _file_engine(name, content, engine, threads)
    if not is_path or path_of(weights).suffix != ".tflite":  # a converted file takes [-1, 1] and holds no labels
        return OpenedWeights(name, runner, content)
    from mnv2_keras.tflite.metadata import labels_in_file, metadata_of

    metadata = metadata_of(content, name)
    scaling = _scaling(name, metadata.normalization, runner.input)
    return OpenedWeights(name, runner, content, labels_in_file(content, name), metadata.missing, scaling)


def labels_of_weights(opened: OpenedWeights, weights, classes: int) -> Sequence[str] | None:
    """The labels that come with weights: in the file, else in `labels.txt` next to it; None without any.

    Raises:
        ValueError: the file's metadata names labels that it does not hold.
    """
    if opened.missing:
        raise ValueError(
            f"{opened.name} does not hold the {opened.missing[0]} that its metadata names, so its end was cut off: copy or export "
            "it again, or give labels."
        )
    return opened.labels or (labels_beside(weights, classes) if classes else None)


def _file_engine(name: str, content: bytes, engine: str, threads: int | None) -> Engine:
    try:
        runner = {"litert": LitertEngine, "openvino": OpenvinoEngine}[engine](content, threads)
    except (ValueError, RuntimeError) as error:
        if "OpenVINO" in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} is not a .tflite that LiteRT can run ({reason}): make it again.") from error
    if runner.input.is_plain_integer:
        runner.close()
        raise ValueError(
            f"{name} takes {runner.input.dtype} without a scale, which says nothing about brightness: export it with a float32 or "
            "uint8 input."
        )
    return runner


def _scaling(name: str, normalization, info) -> tuple[np.ndarray, np.ndarray] | None:
    """(factor, summand) from [-1, 1] to the values that an input takes, `(pixel - mean) / std`; None for [-1, 1].

    uint8 takes the pixels unchanged, whatever scale and metadata say: MediaPipe feeds it so, and files are made for that. int8
    takes what the metadata says; without it, the 256 levels of its range.
    """
    if normalization is None or info.dtype == "uint8":
        normalization = info.levels
    if normalization is None or normalization == (127.5, 127.5):
        return None
    channels = info.shape[-1]
    mean, std = (np.asarray(values, np.float32) for values in normalization)
    for kind, values in (("means", mean), ("deviations", std)):
        if values.size not in (1, channels):
            raise ValueError(f"{name} has {values.size} {kind} in its metadata for {channels} channels: export it again.")
    return np.float32(127.5) / std, (np.float32(127.5) - mean) / std


class Predictor:
    """An opened network, images fed to it, and a pool of threads for streams.

    `Classifier`, `Detector` and `Segmenter` are predictors. Each is safe to use from several threads, and a context manager.
    They share these arguments. On the first use of weights their LiteRT file is made in a subprocess and kept in the cache; from
    then on only engine "keras" imports TensorFlow and Keras.

    Args:
        weights: an archive, folder, checkpoint, registered name, Keras file or Keras model, or a `.tflite` file of the task.
        engine: "litert", "openvino" (an optional extra; it may compute in bfloat16) or "keras". None is "keras" for a Keras model,
            else "litert".
        threads: of one prediction; None for all cores. Keras uses the threads of its backend.
        precision: "float32", "float16" (weights in half precision) or "dynamic" (kernels in int8, arithmetic on floats). For int8
            give a `.tflite` that `export_litert` wrote.
        labels: the names of the classes, or a text file with one in each line. None takes those in the `.tflite` file, else those
            in `labels.txt` in the folder of a `.keras` or `.tflite` file if their number is that of the classes, else those of the
            published data set of that many classes, else "class N".
        on_message: called with a sentence before work that takes long; None prints it on standard error.

    Attributes:
        labels: names of the classes.
        classes: their number; 0 where a file does not tell.
        content: the bytes of the `.tflite` file that runs; None with Keras.
        size: (height, width) of the network's input in pixels.

    Raises:
        FileNotFoundError: there are no such weights or labels.
        ValueError: an argument out of its range, another number of labels, or weights without a network of the task.
    """

    # A subclass has `_check_network(opened)`, which sets `classes` from the engine's outputs and refuses networks of another task,
    # `_compute(image, use_all_threads)` for the result of one image, and `_failed(image, error)`.
    _TASK: str
    _FIRST_CLASS = 0
    _CHANNELS: Sequence[int] = (3,)

    def __init__(self, weights, engine, threads, precision, labels, on_message, resolution=None, keras_call=None):
        opened = open_weights(weights, self._TASK, engine, threads, precision, resolution, on_message, keras_call)
        self._engine, self.content, self._scaling = opened.engine, opened.content, opened.scaling
        try:
            self._check_network(opened)
            *size, self._channels = self._engine.input.shape
            if self._channels not in self._CHANNELS:
                raise ValueError(
                    f"{opened.name} takes images of {self._channels} channels: a {type(self).__name__} reads photos in RGB"
                    f"{' or grey' if 1 in self._CHANNELS else ''}."
                )
            self.size = tuple(size)
            self.labels = self._class_labels(labels, weights, opened)
        except BaseException:
            self._engine.close()
            raise
        self._workers = threads or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._closed = False

    def _class_labels(self, labels, weights, opened: OpenedWeights) -> tuple[str, ...]:
        """The names of the classes, by the rule of `Predictor`."""
        if labels is None:
            labels = labels_of_weights(opened, weights, self.classes)
        if labels is None:
            numbers = range(self._FIRST_CLASS, self._FIRST_CLASS + self.classes)
            # A segmenter that gives labels alone does not tell their number: Google's are of Pascal VOC.
            labels = published_labels(self._TASK, self.classes or 21) or [f"class {number}" for number in numbers]
        return class_labels(labels, self.classes)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Release threads and memory. Images that are being computed are finished first; an unfinished stream raises."""
        with self._lock:
            self._closed, pool, self._pool = True, self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        self._engine.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"This {type(self).__name__} was closed: make another.")

    def _scaled(self, prepared: np.ndarray) -> np.ndarray:
        """float32 in [-1, 1] as the network's values, in place."""
        if self._scaling is not None:
            prepared *= self._scaling[0]
            prepared += self._scaling[1]
        return prepared

    def _run(self, prepared: np.ndarray, outputs: Sequence[int] | None, use_all_threads: bool) -> list[np.ndarray]:
        """As `Engine.run`; ValueError where an output is not finite."""
        arrays = self._engine.run(prepared, outputs, use_all_threads)
        if not all(np.isfinite(values).all() for values in arrays):
            raise ValueError(
                "The network's outputs are NaN or infinite: its weights come from a diverged training, or the image holds NaN."
            )
        return arrays

    def _stream(self, images, compute: Callable, on_error: str) -> Iterator:
        """Results of `compute(image, False)` in order, computed on all cores; the arguments are checked now."""
        one_of("on_error", on_error, ON_ERROR)
        self._check_open()
        # Iterated over, these would give letters, bytes or rows.
        if isinstance(images, ImageSource | list | tuple) or hasattr(images, "__array__"):
            images = single_images(images)
        return self._results(images, compute, on_error)

    def _results(self, images: Iterable, compute: Callable, on_error: str) -> Iterator:
        waiting: deque[tuple[object, Future]] = deque()

        def finished():
            image, future = waiting.popleft()
            try:
                return future.result()
            except CancelledError:
                self._check_open()  # says that it was closed
                raise
            except (ValueError, OSError) as error:
                if on_error == "raise":
                    raise
                return self._failed(image, error)

        try:
            for image in images:
                waiting.append((image, self._submit(compute, image)))
                if len(waiting) >= 3 * self._workers:
                    yield finished()
            while waiting:
                yield finished()
        finally:
            for _, future in waiting:
                future.cancel()

    def _submit(self, compute: Callable, image) -> Future:
        with self._lock:  # `close` takes it too, so that no pool is created or used after it
            self._check_open()
            self._pool = self._pool or ThreadPoolExecutor(self._workers, thread_name_prefix="mnv2")
            return self._pool.submit(compute, image, False)


class PhotoResult:
    """The base of dataclasses with `source`, `photo` and `error`."""

    def _about(self) -> dict:
        """The photo's path, and its size or its error, as JSON holds them."""
        photo = {"photo": str(self.source) if self.source else None}
        if self.error is not None:
            return photo | {"error": str(self.error)}
        return photo | dict(zip(("height", "width"), self.photo.shape[:2], strict=True))

    def _check_photo(self) -> None:
        if self.error is not None:
            raise ValueError(f"There is no picture of a photo that could not be used: {self.error}")


class PhotoPredictor(Predictor):
    """A predictor whose results hold the photo itself."""

    @renamed_arguments(skip_broken=("on_error", bool))
    def stream(self, photos: Iterable, on_error: str | bool = "raise") -> Iterator:
        """The result of each photo, in order, computed on all cores; a few per core are in memory at a time.

        Args:
            photos: paths, uint8 arrays (H, W, 3), bytes of files or PIL images; or a folder or one of these. A generator is read as
                results are taken.
            on_error: "skip" gives a result with its `error` for a photo that cannot be used, and continues; "raise" raises.

        Raises:
            ValueError: another `on_error`, or closed, also meanwhile; with "raise" also for a photo that cannot be used.
            FileNotFoundError: a folder or single path that does not exist.
        """
        if isinstance(on_error, bool):  # the value of the old argument skip_broken
            results = self._stream(photos, self._compute, "skip" if on_error else "raise")
            return (result.error or result for result in results)
        return self._stream(photos, self._compute, on_error)

    def _photo(self, image) -> np.ndarray:
        """An image as uint8 (H, W, 3)."""
        photo = read_image(image) if isinstance(image, ImageSource) else as_array(image)
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
            raise ValueError(f"a photo is uint8 of shape (H, W, 3), not {photo.dtype} {photo.shape}.")
        return photo


def source_of(image) -> Path | None:
    """The path of an image that was given as one."""
    return Path(image) if isinstance(image, str | os.PathLike) else None


def as_array(image):
    """An image as a NumPy array where it is an array of any library (TensorFlow, PyTorch, JAX); anything else unchanged.

    Raises:
        ValueError: its channels come first.
    """
    if isinstance(image, ImageSource) or not hasattr(image, "__array__"):
        return image
    image = np.asarray(image)
    if image.ndim >= 3 and image.shape[-3] in (1, 3) and image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"the image has shape {image.shape}, channels first: expected (H, W, C), as image.transpose(1, 2, 0) gives it."
        )
    return image


def single_images(images) -> list:
    """A list of single images: batches are split, folders replaced by the images below them.

    Raises:
        ValueError: it is nothing of this.
        FileNotFoundError: a path that does not exist.
    """
    if isinstance(images, str | os.PathLike):
        return find_images(images)
    if isinstance(images, ImageSource):
        return [images]
    if hasattr(images, "__array__"):
        images = as_array(images)
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise ValueError(
            f"images is a {type(images).__name__}: expected a path, an array, a PIL image, bytes, or several of these."
        )

    def is_folder(image) -> bool:
        return isinstance(image, str | os.PathLike) and Path(image).is_dir()

    return [single for image in images for single in (find_images(image) if is_folder(image) else [image])]
