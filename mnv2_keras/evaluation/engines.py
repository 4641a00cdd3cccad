"""The probabilities that an evaluation judges: batches through an `Engine`."""

import os
from collections.abc import Sequence

import numpy as np

from mnv2_keras.checks import one_of
from mnv2_keras.inference.model_cache import path_of
from mnv2_keras.inference.predictor import labels_of_weights, open_weights

ENGINES = ("keras", "litert")


class JudgedClassifier:
    """A classifier that gives probabilities for batches, also where the network ends in logits.

    Args:
        weights: as in `evaluation.classification.evaluate`.
        engine: "keras" or "litert".

    Attributes:
        name, engine: of the weights; "keras" or "litert".
        size, channels: of the input, (height, width) in pixels.
        classes: number of outputs.
    """

    def __init__(self, weights, engine: str):
        opened = open_weights(weights, "classification", engine, 1 if engine == "litert" else None)
        self.engine, self._opened, self._weights = engine, opened, weights
        shape, output = opened.engine.input.shape, opened.engine.outputs[0].shape
        if len(shape) != 3 or len(output) != 1:
            raise ValueError(
                f"{opened.name} takes {shape} and gives {output}: expected a classifier of a fixed input size, (H, W, C) to "
                "(classes,)."
            )
        self.size, self.channels, self.classes = shape[:2], shape[2], output[0]
        path = path_of(weights) if isinstance(weights, str | os.PathLike) else None
        self.name = path.name if path else weights.name
        softmax_last = opened.content is not None and _ends_in_softmax(opened.content)
        self._logits = not (softmax_last or _adds_up(opened.engine.run_batch(np.zeros((1, *shape), np.float32))[0]))

    @property
    def labels(self) -> Sequence[str] | None:
        """The labels that come with the weights, or None. Errors are those of `labels_of_weights`."""
        return labels_of_weights(self._opened, self._weights, self.classes)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, H, W, C) in [-1, 1] to probabilities (B, classes)."""
        if self._opened.scaling:
            factor, summand = self._opened.scaling
            images = images * factor + summand
        values = self._opened.engine.run_batch(images)
        return softmax(values) if self._logits else values


def _adds_up(values: np.ndarray) -> bool:
    """Whether the outputs for one image are probabilities: none negative, and 1 in total."""
    return values.min() >= 0 and abs(float(values.sum()) - 1) < 0.01


def _ends_in_softmax(content: bytes) -> bool:
    """Whether a `.tflite` file gives probabilities.

    In steps of 1/256 the many small probabilities of an int8 softmax are 0: they need not add up to 1.
    """
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
