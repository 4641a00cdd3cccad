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

        from mnv2_keras.taps import check_input

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

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, H, W, C) in [-1, 1] to probabilities (B, classes)."""
        return as_probabilities(self._run(images).numpy())


class LitertRunner:
    """A .tflite classifier of any precision."""

    engine = "litert"

    def __init__(self, content: bytes, name: str, path: Path | None):
        from mnv2_keras.inference.engines import LitertEngine

        self._engine = LitertEngine(content, threads=1)
        *size, self.channels = self._engine.input_shape
        self.size = tuple(size)
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)
        probe = self._engine.run(np.zeros(self._engine.input_shape, np.float32), alone=False)
        if probe.ndim != 1:
            raise ValueError(f"{name} gives {probe.shape} for an image: expected a classifier, (classes,).")
        self.classes = len(probe)
        self.name, self.labels = name, labels_within(content) or labels_beside(path, self.classes)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, H, W, C) in [-1, 1] to probabilities (B, classes)."""
        return as_probabilities(
            np.stack(list(self._threads.map(lambda image: self._engine.run(image, alone=False), images)))
        )


def as_probabilities(values: np.ndarray) -> np.ndarray:
    """Logits to probabilities; what is none negative and adds up to about 1 stays (int8 sums are off by a step per class)."""
    values = values.astype(np.float32)
    if values.min() >= 0 and np.allclose(values.sum(1), 1, atol=0.1):
        return values
    powers = np.exp(values - values.max(1, keepdims=True))
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
    from mnv2_keras.models.conversion import open_model

    return KerasRunner(open_model(weights)[0], path.name, path)


def labels_within(content: bytes) -> Sequence[str] | None:
    """Of a .tflite's metadata."""
    from mnv2_keras.export.metadata import associated_files

    files = [value for name, value in sorted(associated_files(content).items()) if name.endswith(".txt")]
    return tuple(files[0].decode().splitlines()) if files else None
