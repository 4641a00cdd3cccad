"""What `Classifier`, `Detector` and `Segmenter` share: opening weights, labels, feeding, streaming, closing.

In all three

- `engine` is "litert", "openvino" (an optional extra) or "keras". For the first two the weights are converted to a `.tflite` file
  once, in a subprocess, and kept in the cache; later neither TensorFlow nor Keras is imported;
- `threads` is the number of threads of one prediction, None for all cores; Keras' backend has its own;
- `precision` is "float32", "float16" (weights in half precision) or "dynamic" (kernels in int8, arithmetic on floats). An int8 file
  is made by `mnv2 export` and given as the weights;
- `labels` are the names of the classes, or the path of a text file with one in each line. None takes those in the `.tflite` file,
  else those in `labels.txt` beside a `.keras` or `.tflite` file if it has as many, else those of the published data set of that
  many classes, else "class N";
- `on_error` of a stream is "skip", which gives a result with the attribute `error` for an image that cannot be used, or "raise";
- `on_message` is called with a sentence before work that takes long; None prints it on standard error.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import Image

from mnv2_keras.checks import one_of, whole_number
from mnv2_keras.images import ImageSource, find_images, read_image
from mnv2_keras.inference.engines import ENGINES, Engine, KerasEngine, LitertEngine, OpenvinoEngine
from mnv2_keras.inference.model_cache import litert_content, path_of
from mnv2_keras.labels import labels_beside

ON_ERROR = ("skip", "raise")


@dataclass(frozen=True)
class Settings:
    """How weights are opened; see the top of this module."""

    engine: str = "litert"
    threads: int | None = None
    precision: str = "float32"
    resolution: int | None = None
    on_message: Callable[[str], None] | None = None

    def check(self) -> None:
        """Refuse settings that do not exist or exclude each other.

        Raises:
            ValueError: one is out of its range, or goes with another engine.
        """
        one_of("engine", self.engine, ENGINES)
        if self.threads is not None:
            whole_number("threads", self.threads, note=", or None for all cores")
        if self.resolution is not None:
            whole_number("resolution", self.resolution, note=" (pixels of a side), or None for the weights' own")
        if self.engine == "keras" and self.threads is not None:
            raise ValueError(
                "engine 'keras' shares the threads of its backend: leave threads out, or use engine='litert'."
            )
        if self.engine == "keras" and self.precision != "float32":
            raise ValueError(f"engine 'keras' computes in float32, not {self.precision!r}: use engine='litert'.")


class OpenedWeights(NamedTuple):
    """Weights, ready to run.

    Attributes:
        name: of the weights, for messages.
        engine: runs the network; its outputs are those of `task_networks.task_network`, or a `.tflite` file's own.
        content: the `.tflite` file's bytes; None with Keras.
        labels: those in the `.tflite` file, or None.
        missing: label files that the `.tflite` file's metadata names and the file does not hold.
        scaling: (factor, summand) from [-1, 1] to the network's values; None where these are [-1, 1].
    """

    name: str
    engine: Engine
    content: bytes | None = None
    labels: Sequence[str] | None = None
    missing: Sequence[str] = ()
    scaling: tuple[np.ndarray, np.ndarray] | None = None


def weights_name(weights) -> str:
    """What messages call weights: their path or registered name, or the model's name."""
    return str(weights) if isinstance(weights, str | os.PathLike) else repr(getattr(weights, "name", weights))


def open_weights(weights, task: str, settings: Settings, keras_call: Callable | None = None) -> OpenedWeights:
    """Open whatever holds a network: an archive, folder, checkpoint, registered name, Keras file or model, or `.tflite` file.

    Args:
        weights: the network.
        task: "classification", "detection" or "segmentation".
        settings: checked already.
        keras_call: from the Keras model to what computes the outputs of a batch in its place, for engine "keras".

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they hold no network of the task, or cannot be converted, read or run.
    """
    name, is_path = weights_name(weights), isinstance(weights, str | os.PathLike)
    if not is_path and not hasattr(weights, "layers"):
        raise ValueError(f"weights is {type(weights).__name__}: expected a path, a registered name or a Keras model.")
    if not is_path and settings.resolution is not None:
        raise ValueError("A Keras model has its own resolution: build it with input_shape, and leave resolution out.")
    if settings.engine == "keras":
        from mnv2_keras.inference.task_networks import task_network

        model = weights
        if is_path:
            from mnv2_keras.conversion import open_model

            size = (settings.resolution, settings.resolution) if settings.resolution else None
            model = open_model(weights, size=size)[0]
        network, size = task_network(model, task, name)
        return OpenedWeights(name, KerasEngine(network, keras_call and keras_call(model), size))
    if not is_path:
        from mnv2_keras.inference.model_cache import model_content

        return _open_file(name, model_content(weights, settings.precision, task), settings)
    content = litert_content(weights, settings.precision, settings.resolution, settings.on_message, task)
    opened = _open_file(name, content, settings)
    if path_of(weights).suffix != ".tflite":  # a converted file takes [-1, 1] and holds no labels
        return opened
    from mnv2_keras.tflite.metadata import labels_in_file, metadata_of

    metadata = metadata_of(content, name)
    scaling = _scaling(name, metadata.normalization, opened.engine.input)
    return opened._replace(labels=labels_in_file(content), missing=metadata.missing, scaling=scaling)


def _open_file(name: str, content: bytes, settings: Settings) -> OpenedWeights:
    try:
        engine = {"litert": LitertEngine, "openvino": OpenvinoEngine}[settings.engine](content, settings.threads)
    except (ValueError, RuntimeError) as error:
        if "OpenVINO" in str(error):
            raise
        raise ValueError(
            f"{name} is no .tflite that LiteRT can run ({str(error).splitlines()[0]}): make it again."
        ) from error
    if engine.input.is_plain_integer:
        engine.close()
        raise ValueError(
            f"{name} takes {engine.input.dtype} without a scale, which says nothing about brightness: export it with a float32 or "
            "uint8 input."
        )
    return OpenedWeights(name, engine, content)


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
            raise ValueError(
                f"{name} has {values.size} {kind} in its metadata for {channels} channels: export it again."
            )
    return np.float32(127.5) / std, (np.float32(127.5) - mean) / std


def class_labels(
    labels: Sequence[str] | str | os.PathLike | None,
    weights,
    opened: OpenedWeights,
    classes: int | None,
    default: Callable[[int | None], Sequence[str]],
) -> tuple[str, ...]:
    """The names of the classes, by the rule at the top of this module.

    Args:
        labels: the caller's, or None.
        weights: as the caller gave them.
        opened: the weights.
        classes: their number; None where the file does not tell.
        default: from the number of classes to the names that are used when there are no others.

    Raises:
        FileNotFoundError: there is no such file of labels.
        ValueError: another number of labels, or a `.tflite` file whose labels were cut off.
    """
    if labels is None:
        if opened.missing:
            raise ValueError(
                f"{opened.name} does not hold the {opened.missing[0]} that its metadata names, so its end was cut off: copy or "
                "export it again, or give labels."
            )
        labels = opened.labels or (labels_beside(weights, classes) if classes else None)
    elif isinstance(labels, str | os.PathLike):
        path = Path(labels).expanduser()
        try:
            labels = path.read_text("utf-8-sig").splitlines()
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no file of labels {path}: check the path.") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}): save it as UTF-8.") from error
    if labels is None:
        labels = default(classes)
    elif classes and len(labels) != classes:
        raise ValueError(f"{len(labels)} labels were given for {classes} classes: give one for each.")
    return tuple(labels)


class Predictor:
    """An opened network, images fed to it, and a pool of threads for streams. Safe to use from several threads.

    A subclass says what the network must be (`_check_network`) and computes the result of one image (`_compute`) or the result
    that carries an error (`_failed`).

    Attributes:
        labels: names of the classes.
        classes: their number; 0 where a file does not tell.
        content: the bytes of the `.tflite` file that runs; None with Keras.
    """

    _TASK: str
    _CHANNELS: Sequence[int] = (3,)

    def __init__(self, weights, settings: Settings, labels, keras_call: Callable | None = None):
        settings.check()
        opened = open_weights(weights, self._TASK, settings, keras_call)
        self._engine, self.content = opened.engine, opened.content
        try:
            self._check_network(opened)
            *size, channels = self._engine.input.shape
            if channels not in self._CHANNELS:
                raise ValueError(
                    f"{opened.name} takes images of {channels} channels: a {type(self).__name__} reads photos in RGB"
                    f"{' or grey' if 1 in self._CHANNELS else ''}."
                )
            self._size, self._channels = tuple(size), channels
            self._scaling = opened.scaling
            self.labels = class_labels(labels, weights, opened, self.classes, self._default_labels)
        except BaseException:
            self._engine.close()
            raise
        self._workers = settings.threads or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._closed = False

    def _check_network(self, opened: OpenedWeights) -> None:
        """Set `classes` from the engine's outputs; ValueError for a network of another task."""
        raise NotImplementedError

    def _default_labels(self, classes: int | None) -> Sequence[str]:
        raise NotImplementedError

    def _compute(self, image, use_all_threads: bool = True):
        raise NotImplementedError

    def _failed(self, image, error: Exception):
        raise NotImplementedError

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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""
        return self._size

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(self._closed_message())

    def _closed_message(self) -> str:
        return f"This {type(self).__name__} was closed: make another."

    # Feeding

    def _photo(self, image) -> np.ndarray:
        """An image as uint8 (H, W, 3)."""
        photo = read_image(image) if isinstance(image, ImageSource) else np.asarray(image)
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
            raise ValueError(f"a photo is uint8 of shape (H, W, 3), not {photo.dtype} {photo.shape}.")
        return photo

    def _scaled(self, prepared: np.ndarray) -> np.ndarray:
        """float32 in [-1, 1] as the network's values, in place."""
        if self._scaling is not None:
            prepared *= self._scaling[0]
            prepared += self._scaling[1]
        return prepared

    @staticmethod
    def _check_finite(values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise ValueError(
                "The network's outputs are NaN or infinite: its weights come from a diverged training, or the image holds NaN."
            )

    # Streaming

    def _open_stream(self, images, compute: Callable, on_error: str) -> Iterator:
        """Results of `compute(image, False)` in order, computed on all cores; the arguments are checked now."""
        one_of("on_error", on_error, ON_ERROR)
        self._check_open()
        # Iterated over, these would give letters, bytes or rows.
        if isinstance(images, ImageSource | np.ndarray | list | tuple):
            images = single_images(images)
        return self._stream(images, compute, on_error)

    def _stream(self, images: Iterable, compute: Callable, on_error: str) -> Iterator:
        waiting: deque[tuple[object, Future]] = deque()

        def finished():
            image, future = waiting.popleft()
            try:
                return future.result()
            except CancelledError:
                raise ValueError(self._closed_message()) from None
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
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="mnv2")
            return self._pool.submit(compute, image, False)


class PhotoPredictor(Predictor):
    """A predictor whose results hold the photo itself."""

    def stream(self, photos: Iterable, on_error: str | bool = "raise") -> Iterator:
        """The result of each photo, in order, computed on all cores; a few per core are in memory at a time.

        Args:
            photos: paths, uint8 arrays (H, W, 3), bytes of files or PIL images; or a folder or one of these. A generator is read as
                results are taken.
            on_error: "skip" gives a result with its `error` for a photo that cannot be used, and goes on; "raise" raises.

        Raises:
            ValueError: another `on_error`, or closed, also meanwhile; with "raise" also for a photo that cannot be used.
            FileNotFoundError: a folder or single path that does not exist.
        """
        if isinstance(on_error, bool):  # the value of the old argument skip_broken
            results = self._open_stream(photos, self._compute, "skip" if on_error else "raise")
            return (result.error or result for result in results)
        return self._open_stream(photos, self._compute, on_error)


def default_engine(weights) -> str:
    """For photos to boxes and masks: a Keras model that is in memory already runs as it is, all else in LiteRT."""
    return "keras" if hasattr(weights, "layers") else "litert"


def source_of(image) -> Path | None:
    """The path of an image that was given as one."""
    return Path(image) if isinstance(image, str | os.PathLike) else None


def single_images(images) -> list:
    """A list of single images: batches are split, folders replaced by the images below them."""
    if isinstance(images, bytes | Image.Image):
        return [images]
    if isinstance(images, str | os.PathLike):
        return find_images(images)
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    singles = []
    for image in images:
        is_folder = isinstance(image, str | os.PathLike) and Path(image).is_dir()
        singles += find_images(image) if is_folder else [image]
    return singles
