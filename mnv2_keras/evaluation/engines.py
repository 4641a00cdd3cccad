"""What computes the probabilities that are judged: Keras by the batch, or LiteRT image by image on all cores."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mnv2_keras.labels import labels_beside

ENGINES = ("keras", "litert")


class KerasRunner:
    """A Keras classifier.

    Attributes:
        name: of the weights.
        size, channels: of the input.
        classes: number of outputs.
        labels: found beside the weights, or None.
    """

    engine = "keras"

    def __init__(self, model, name: str, path: Path | None):
        import tensorflow as tf

        from mnv2_keras.networks.endpoints import check_input

        check_input(model)
        height, width, self.channels = model.input_shape[1:]
        if not height or not width or len(model.output_shape) != 2:
            raise ValueError(
                f"{name} takes {model.input_shape} and gives {model.output_shape}: expected a classifier of a fixed input size, "
                "(B, H, W, C) to (B, classes)."
            )
        self.size, self.classes = (height, width), model.output_shape[-1]
        self.name, self.labels = name, labels_beside(path, self.classes)
        self._run = tf.function(lambda images: model(images, training=False), reduce_retracing=True)
        blank = np.zeros((1, *self.size, self.channels), np.float32)
        self._logits = not adds_up(self._run(blank).numpy()[0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, H, W, C) in [-1, 1] to probabilities (B, classes)."""
        values = self._run(images).numpy()
        return softmax(values) if self._logits else values


class LitertRunner:
    """A .tflite classifier of any precision."""

    engine = "litert"

    def __init__(self, content: bytes, name: str, path: Path | None):
        from mnv2_keras.inference.classifier import normalization_of, scaling_of
        from mnv2_keras.inference.engines import LitertEngine
        from mnv2_keras.tflite import TfliteFile, read_metadata

        self._engine = LitertEngine(content, threads=1)
        *size, self.channels = self._engine.input_shape
        self.size = tuple(size)
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)
        probe = self._engine.run(np.zeros(self._engine.input_shape, np.float32), alone=False)
        if probe.ndim != 1:
            raise ValueError(f"{name} gives {probe.shape} for an image: expected a classifier, (classes,).")
        self.classes = len(probe)
        file = TfliteFile(content)
        # In steps of 1/256 the many small probabilities of an int8 softmax are 0: they need not add up to 1.
        self._logits = not (ends_in_softmax(file) or adds_up(probe))
        normalization = normalization_of(read_metadata(content).normalization, self._engine.input)
        self._scaling = None if normalization is None else scaling_of(name, normalization, self.channels)
        self.name, self.labels = name, labels_within(content) or labels_beside(path, self.classes)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, H, W, C) in [-1, 1] to probabilities (B, classes)."""
        if self._scaling:
            factor, shift = self._scaling
            images = images * factor + shift
        values = np.stack(list(self._threads.map(lambda image: self._engine.run(image, alone=False), images)))
        return softmax(values) if self._logits else values


def adds_up(values: np.ndarray) -> bool:
    """Whether what a network gives for one image are probabilities: none negative, and together 1."""
    return values.min() >= 0 and abs(float(values.sum()) - 1) < 0.01


def ends_in_softmax(file) -> bool:
    """Whether a `TfliteFile` gives probabilities, whatever it keeps them in."""
    kinds = reversed(file.kinds)
    return next((kind for kind in kinds if kind not in ("QUANTIZE", "DEQUANTIZE", "RESHAPE")), None) == "SOFTMAX"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (B, classes) to probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def open_engine(weights, engine: str = "keras") -> KerasRunner | LitertRunner:
    """What runs these weights. See `evaluation.classification.evaluate`."""
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}: expected keras or litert.")
    if hasattr(weights, "layers"):
        if engine == "keras":
            return KerasRunner(weights, weights.name, None)
        from mnv2_keras.inference.model_cache import make_classifier_file

        return LitertRunner(make_classifier_file(weights, "float32"), weights.name, None)
    path = Path(weights).expanduser()
    if path.suffix == ".tflite":
        if not path.is_file():
            raise FileNotFoundError(f"There is no .tflite file {path}: check the path.")
        return LitertRunner(path.read_bytes(), path.name, path)
    if engine == "litert":
        from mnv2_keras.inference.model_cache import litert_content

        return LitertRunner(litert_content(weights, "float32", None), path.name, path)
    from mnv2_keras.conversion import open_model

    return KerasRunner(open_model(weights)[0], path.name, path)


def labels_within(content: bytes) -> Sequence[str] | None:
    """Of a .tflite's metadata."""
    from mnv2_keras.tflite.metadata import associated_files

    files = [value for name, value in sorted(associated_files(content).items()) if name.endswith(".txt")]
    return tuple(files[0].decode().splitlines()) if files else None
