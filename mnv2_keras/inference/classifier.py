"""Photos to class names, in milliseconds and without TensorFlow."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from mnv2_keras.images import ImageSource, find_images, grey_photo
from mnv2_keras.inference.engines import ENGINES, KerasEngine, LitertEngine, OpenvinoEngine
from mnv2_keras.inference.model_cache import litert_content
from mnv2_keras.labels import Prediction, imagenet_labels, labels_beside
from mnv2_keras.preprocessing import preprocess_image

_CLOSED = "This Classifier was closed: make another."


@dataclass(frozen=True)
class Classification:
    """What `stream` says about one image.

    Attributes:
        source: what was given: a path or an array.
        predictions: the best classes, the best first; empty for a broken image.
        error: why the image could not be used; None for a good one.
    """

    source: object
    predictions: list[Prediction]
    error: Exception | None = None

    def as_dict(self) -> dict:
        """As JSON holds it."""
        found: dict = {"photo": str(self.source) if isinstance(self.source, str | os.PathLike) else None}
        if self.error is not None:
            return found | {"error": str(self.error)}
        return found | {"predictions": [each._asdict() for each in self.predictions]}


class Classifier:
    """Names what is on photos. Safe to use from several threads; a context manager.

    The first use of some weights converts them to LiteRT, in a process of its own, and keeps the file in the cache; from then
    on neither TensorFlow nor Keras is imported (engine "keras" apart).

    Args:
        weights: an archive, folder, checkpoint, Keras file or registered name; a .tflite of a classifier; or "digits", the int8
            network for handwritten digits (white on black) that is installed with the package.
        engine: "litert", "openvino" (an optional extra; it may compute in bfloat16) or "keras".
        threads: of one prediction; None for all cores. Keras has its own.
        precision: "float32", "float16" (weights in half precision) or "dynamic" (kernels in int8). For int8 give a .tflite that
            `export_litert` wrote.
        resolution: side of the network's input in pixels; None for the weights' own.
        labels: one for each class; None for a .tflite's own, those in `labels.txt` beside a .keras or .tflite file, or ImageNet's.
        say: called with a sentence before something that takes long; None writes it to standard error.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: an argument out of its range, or weights without a classifier.
    """

    def __init__(
        self,
        weights="mobilenet_v2_1.0_224",
        engine: str = "litert",
        threads: int | None = None,
        *,
        precision: str = "float32",
        resolution: int | None = None,
        labels: Sequence[str] | None = None,
        say=None,
    ):
        if engine not in ENGINES:
            raise ValueError(f"engine is {engine!r}: expected one of {', '.join(ENGINES)}.")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads is {threads!r}: expected a whole number of at least 1, or None for all cores.")
        if resolution is not None and (
            isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1
        ):
            raise ValueError(
                f"resolution is {resolution!r}: expected a side of at least 1 pixel, or None for the weights' own."
            )
        if engine == "keras" and threads is not None:
            raise ValueError(
                "engine 'keras' shares the threads of its backend: leave threads out, or use engine='litert'."
            )
        if engine == "keras" and precision != "float32":
            raise ValueError(f"engine 'keras' computes in float32, not {precision!r}: use engine='litert'.")
        self._engine, labels, normalization = _open(weights, engine, threads, precision, resolution, labels, say)
        height, width, channels = self._engine.input_shape
        if channels not in (1, 3):
            self._engine.close()
            raise ValueError(
                f"{weights} takes images of {channels} channels: a Classifier reads photos in RGB or grey."
            )
        self._size, self._channels = (height, width), channels
        self._scaling = None if normalization is None else scaling_of(weights, normalization, channels)
        self._workers = threads or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._closed = False
        self.labels = _checked_labels(labels, self._engine.output_shape[0])

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of threads and memory. Images that are being computed are finished first; a stream that goes on is refused."""
        with self._lock:
            self._closed, pool, self._pool = True, self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        self._engine.close()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self._size

    def predict(self, images, top: int = 5) -> list[list[Prediction]]:
        """The best classes of each image, best first.

        Args:
            images: a path, a folder, the bytes of a file, a PIL image, a uint8 photo (H, W, 3), or in grey (H, W, 1) or (H, W),
                of any size, a batch (N, H, W, C) of them, or a list of these. A float32 array of the network's own size counts
                as preprocessed, in [-1, 1] or as the .tflite's metadata says. A network of one channel sees colour photos in grey.
            top: how many classes to name.

        Returns:
            A list for each image, also for a single one.

        Raises:
            ValueError: a broken image (`ImageError`), an array of another type or shape, or `top` below 1.
            FileNotFoundError: there is no such file.
        """
        _check_top(top)
        self._check_open()
        images = _as_list(images)
        if len(images) == 1:
            return [self._best(self._engine.run(self._prepare(images[0])), top)]
        return [each.predictions for each in self.stream(images, top, on_error="raise")]

    def embed(self, images) -> np.ndarray:
        """Pooled features of each image: what the network knows of it before the classes.

        Args:
            images: as in `predict`.

        Returns:
            float32 (N, C), C being 1280 up to alpha 1.0.

        Raises:
            ValueError: as in `predict`; or a .tflite that gives its classes only.
        """
        self._check_open()
        if self._engine.outputs < 2:
            raise ValueError("This .tflite gives classes only: give the weights it was made from to embed images.")
        images = _as_list(images)
        features = [
            each for _, each, _ in self._many(images, lambda x, alone: self._engine.run(x, 1, alone).ravel(), "raise")
        ]
        return np.stack(features)

    def stream(self, images: Iterable, top: int = 5, on_error: str = "skip") -> Iterator[Classification]:
        """Classify any number of images, in their order, on all cores.

        Each core decodes, preprocesses and computes images of its own; a few per core are under way at a time, so memory does
        not grow with the number of images.

        Args:
            images: as in `predict`; what is no list, array, path or picture, such as a generator, is read as results are taken.
            top: how many classes to name.
            on_error: "skip" yields a broken image with its `error` and goes on; "raise" raises it.

        Raises:
            ValueError: `top` below 1, another `on_error`, a Classifier that is closed (also meanwhile); with "raise" also what
                `predict` raises.
            FileNotFoundError: a path by itself that is not there.
        """
        _check_top(top)
        if on_error not in ("skip", "raise"):
            raise ValueError(f"on_error is {on_error!r}: expected 'skip' or 'raise'.")
        self._check_open()
        # By themselves these would be taken apart: into letters, bytes, rows.
        if isinstance(images, ImageSource | np.ndarray | list | tuple):
            images = _as_list(images)
        return self._stream(images, top, on_error)

    def _stream(self, images: Iterable, top: int, on_error: str) -> Iterator[Classification]:
        for source, scores, error in self._many(images, self._engine_scores, on_error):
            yield Classification(source, [] if error else self._best(scores, top), error)

    def _engine_scores(self, image: np.ndarray, alone: bool) -> np.ndarray:
        return self._engine.run(image, 0, alone)

    def _many(self, images: Iterable, compute, on_error: str) -> Iterator[tuple]:
        """(source, result, error) of each image, in order."""
        waiting: deque[tuple[object, Future]] = deque()

        def work(image):
            return compute(self._prepare(image), False)

        def finished():
            source, future = waiting.popleft()
            try:
                return source, future.result(), None
            except CancelledError:
                raise ValueError(_CLOSED) from None
            except (ValueError, OSError) as error:
                if on_error == "raise":
                    raise
                return source, None, error

        try:
            for image in images:
                waiting.append((image, self._submit(work, image)))
                if len(waiting) >= 3 * self._workers:
                    yield finished()
            while waiting:
                yield finished()
        finally:
            for _, future in waiting:
                future.cancel()

    def _submit(self, work, image) -> Future:
        with self._lock:  # which `close` takes too: no pool is made, or given work, behind its back
            self._check_open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="mnv2")
            return self._pool.submit(work, image)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(_CLOSED)

    def _prepare(self, image) -> np.ndarray:
        if isinstance(image, np.ndarray) and image.dtype.kind == "f":
            if image.shape != (*self._size, self._channels):
                raise ValueError(
                    f"a float image has shape {image.shape}: floats count as preprocessed and must have shape "
                    f"{(*self._size, self._channels)}, values in [-1, 1]; give a photo as uint8."
                )
            return image.astype(np.float32, copy=False)
        found = preprocess_image(image if self._channels == 3 else grey_photo(image), self._size)[..., : self._channels]
        if self._scaling is not None:
            found *= self._scaling[0]
            found += self._scaling[1]
        return found

    def _best(self, scores: np.ndarray, top: int) -> list[Prediction]:
        """As `decode_predictions` decides: best first, the lower index where scores are equal."""
        if np.isnan(scores.max()):  # NaN wins over every number
            raise ValueError("The scores hold NaN: check the model's weights and the image.")
        order = np.argsort(-scores, kind="stable")[:top]
        return [Prediction(int(i), self.labels[i], float(scores[i])) for i in order]


def scaling_of(weights, normalization, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """What [-1, 1] is multiplied with, and what is added, to get `(pixel - mean) / std`."""
    mean, std = (np.asarray(each, np.float32) for each in normalization)
    for name, each in (("means", mean), ("deviations", std)):
        if each.size not in (1, channels):
            raise ValueError(f"{weights} has {each.size} {name} in its metadata for {channels} channels: make it anew.")
    return np.float32(127.5) / std, (np.float32(127.5) - mean) / std


def _open(weights, engine: str, threads, precision: str, resolution, labels, say):
    """(engine, labels, (mean, std) of the input where it is not [-1, 1])."""
    if engine == "keras" or not isinstance(weights, str | os.PathLike):
        model = _keras_model(weights, resolution)
        from mnv2_keras.inference.model_cache import check_classifier, make_classifier_file

        if engine == "keras":
            check_classifier(model)
            if labels is None:
                labels = labels_beside(weights, model.output_shape[-1])
            return KerasEngine(model), labels, None
        content = make_classifier_file(model, precision)
    else:
        content = litert_content(weights, precision, resolution, say)
    try:
        opened = {"litert": LitertEngine, "openvino": OpenvinoEngine}[engine](content, threads)
    except (ValueError, RuntimeError) as error:
        if "OpenVINO" in str(error):
            raise
        raise ValueError(
            f"{weights} is no .tflite that LiteRT can run ({str(error).splitlines()[0]}): make it anew."
        ) from error
    if len(opened.input_shape) != 3 or len(opened.output_shape) != 1:
        opened.close()
        raise ValueError(
            f"{weights} makes {opened.output_shape} of an input of shape {opened.input_shape}: a Classifier needs a file "
            "that makes (classes,) of (H, W, C), such as `mnv2 export` writes."
        )
    if opened.input.is_plain_integer:
        raise ValueError(
            f"{weights} takes {opened.input.dtype} without a scale, which says nothing about brightness: export it with a float32 "
            "or uint8 input."
        )
    said = None
    if Path(str(weights)).suffix == ".tflite":  # the user's own; what the cache holds is known
        said = _said_by(weights, content, labels is None)
    if labels is None:
        labels = known_labels(weights, content, opened.output_shape[0])
    return opened, labels, normalization_of(said, opened.input)


def _said_by(weights, content: bytes, labels_needed: bool):
    """(mean, std) in a file's metadata, or None."""
    from mnv2_keras.tflite import read_metadata

    about = read_metadata(content)
    if labels_needed and about.missing:
        raise ValueError(
            f"{weights} does not hold the {about.missing[0]} that its metadata names, so its end was cut off: copy or export it "
            "again, or give labels."
        )
    return about.normalization


def normalization_of(said, end):
    """(mean, std) of the pixels from 0 to 255 that an input takes; None for [-1, 1].

    uint8 takes the pixels as they are, whatever scale and metadata say: MediaPipe does so, and files are made for it. int8 takes
    what the metadata says; without any, the 256 levels of its range.
    """
    if said is None or end.dtype == "uint8":
        return end.levels
    return None if said == (127.5, 127.5) else said


def known_labels(weights, content: bytes, classes: int) -> Sequence[str] | None:
    """The labels within a .tflite file that was made of some weights, else those beside the weights, else None."""
    return _labels_of(content) or labels_beside(weights, classes)


def _keras_model(weights, resolution):
    if not isinstance(weights, str | os.PathLike):
        if not hasattr(weights, "layers"):
            raise ValueError(
                f"weights is {type(weights).__name__}: expected a path, a registered name or a Keras model."
            )
        if resolution is not None:
            raise ValueError(
                "A Keras model has its own resolution: build it with input_shape, and leave resolution out."
            )
        return weights
    from mnv2_keras.conversion import open_model

    return open_model(weights, size=(resolution, resolution) if resolution else None)[0]


def _labels_of(content: bytes) -> list[str] | None:
    """The labels in a file's metadata, by the archive alone: fast, and enough."""
    import io
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.endswith(".txt")]
            return archive.read(names[0]).decode().splitlines() if names else None
    except (zipfile.BadZipFile, UnicodeDecodeError):
        return None


def _checked_labels(labels, classes: int) -> tuple[str, ...]:
    if labels is None:
        return imagenet_labels(classes) if classes in (1000, 1001) else tuple(f"class {i}" for i in range(classes))
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for {classes} classes: give one for each.")
    return tuple(labels)


def _check_top(top: int) -> None:
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top is {top!r}: ask for at least 1 class.")


def _as_list(images) -> list:
    """Every image by itself."""
    if isinstance(images, bytes | Image.Image):
        return [images]
    if isinstance(images, str | os.PathLike):
        return find_images(images)
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    found = []
    for image in images:
        folder = isinstance(image, str | os.PathLike) and Path(image).is_dir()
        found += find_images(image) if folder else [image]
    return found
