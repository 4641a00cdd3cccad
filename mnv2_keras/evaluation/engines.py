"""The probabilities that an evaluation judges: batches through an `Engine`."""

import os

import numpy as np

from mnv2_keras.checks import one_of
from mnv2_keras.inference.model_cache import path_of
from mnv2_keras.inference.predictor import Settings, open_weights
from mnv2_keras.labels import labels_beside

ENGINES = ("keras", "litert")


class JudgedClassifier:
    """A classifier that gives probabilities for batches, whatever it ends in.

    Args:
        weights: as in `evaluation.classification.evaluate`.
        engine: "keras" or "litert".

    Attributes:
        name: of the weights.
        engine: "keras" or "litert".
        size: (height, width) of the input in pixels.
        channels: of the input.
        classes: number of outputs.
        labels: in the file or beside the weights; None where there are none.
    """

    def __init__(self, weights, engine: str):
        opened = open_weights(weights, "classification", Settings(engine, 1 if engine == "litert" else None))
        self.engine, self._opened, is_path = engine, opened, isinstance(weights, str | os.PathLike)
        *size, self.channels = opened.engine.input.shape
        output = opened.engine.outputs[0].shape
        if len(size) != 2 or len(output) != 1:
            raise ValueError(
                f"{opened.name} takes {opened.engine.input.shape} and gives {output}: expected a classifier of a fixed input size, "
                "(H, W, C) to (classes,)."
            )
        self.size, self.classes = tuple(size), output[0]
        self.name = path_of(weights).name if is_path else weights.name
        self.labels = opened.labels or (labels_beside(path_of(weights), self.classes) if is_path else None)
        # In steps of 1/256 the many small probabilities of an int8 softmax are 0: they need not add up to 1.
        blank = np.zeros((1, *self.size, self.channels), np.float32)
        softmax_last = opened.content is not None and ends_in_softmax(opened.content)
        self._logits = not (softmax_last or adds_up(opened.engine.run_batch(blank)[0]))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, H, W, C) in [-1, 1] to probabilities (B, classes)."""
        if self._opened.scaling:
            factor, summand = self._opened.scaling
            images = images * factor + summand
        values = self._opened.engine.run_batch(images)
        return softmax(values) if self._logits else values


def adds_up(values: np.ndarray) -> bool:
    """Whether the outputs for one image are probabilities: none negative, and 1 in total."""
    return values.min() >= 0 and abs(float(values.sum()) - 1) < 0.01


def ends_in_softmax(content: bytes) -> bool:
    """Whether a `.tflite` file gives probabilities, in whatever type it stores them."""
    from mnv2_keras.tflite import TfliteFile

    kinds = reversed(TfliteFile(content).kinds)
    return next((kind for kind in kinds if kind not in ("QUANTIZE", "DEQUANTIZE", "RESHAPE")), None) == "SOFTMAX"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (B, classes) to probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def open_engine(weights, engine: str = "keras") -> JudgedClassifier:
    """What runs these weights; a `.tflite` file runs in LiteRT whatever `engine` is.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: another engine; see `predictor.open_weights`.
    """
    one_of("engine", engine, ENGINES)
    is_file = isinstance(weights, str | os.PathLike) and path_of(weights).suffix == ".tflite"
    return JudgedClassifier(weights, "litert" if is_file else engine)
