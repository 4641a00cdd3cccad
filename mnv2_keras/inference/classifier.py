"""Photos to class names, in milliseconds and without TensorFlow."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mnv2_keras.checks import whole_number
from mnv2_keras.deprecation import renamed_arguments
from mnv2_keras.images import grey_photo
from mnv2_keras.inference.predictor import OpenedWeights, Predictor, as_array, single_images
from mnv2_keras.labels import Prediction
from mnv2_keras.preprocessing import preprocess_image


@dataclass(frozen=True)
class Classification:
    """The result of `Classifier.stream` for one image.

    Attributes:
        source: the image as it was given: a path, an array, ...
        predictions: the best classes, the best first; empty where there is an error.
        error: why the image could not be used; None for a good one.
    """

    source: object
    predictions: list[Prediction]
    error: Exception | None = None

    def as_dict(self) -> dict:
        """The result as JSON holds it."""
        photo = {"photo": str(self.source) if isinstance(self.source, str | os.PathLike) else None}
        if self.error is not None:
            return photo | {"error": str(self.error)}
        return photo | {"predictions": [prediction._asdict() for prediction in self.predictions]}


class Classifier(Predictor):
    """Names the classes of photos.

    Args:
        weights: as in `Predictor`; "digits" is the int8 network for handwritten digits (white on black) that is installed with the
            package.
        engine, threads, precision, labels, on_message: as in `Predictor`. The published data set of 1000 or 1001 classes is
            ImageNet.
        resolution: side of the network's input in pixels; None for the weights' own.

    Raises:
        FileNotFoundError, ValueError: as in `Predictor`.
    """

    _TASK = "classification"
    _CHANNELS = (1, 3)

    @renamed_arguments(say="on_message")
    def __init__(
        self,
        weights="mobilenet_v2_1.0_224",
        engine: str | None = "litert",
        threads: int | None = None,
        *,
        precision: str = "float32",
        resolution: int | None = None,
        labels: Sequence[str] | str | os.PathLike | None = None,
        on_message=None,
    ):
        super().__init__(weights, engine, threads, precision, labels, on_message, resolution)

    def _check_network(self, opened: OpenedWeights) -> None:
        shape, output = self._engine.input.shape, self._engine.outputs[0].shape
        if len(shape) != 3 or len(output) != 1:
            raise ValueError(
                f"{opened.name} makes {output} of an input of shape {shape}: a Classifier needs a file that makes (classes,) of "
                "(H, W, C), such as `mnv2 export` writes."
            )
        self.classes = output[0]

    def predict(self, images, top: int = 5) -> list[list[Prediction]]:
        """The best classes of each image, the best first.

        Args:
            images: a path, a folder, the bytes of a file, a PIL image, a uint8 photo (H, W, 3), or in grey (H, W, 1) or (H, W),
                of any size, a batch (N, H, W, C) of them, or a list of these. A float32 array of the network's own size counts
                as preprocessed, in [-1, 1] or as the `.tflite`'s metadata says. A network of one channel gets colour photos in
                grey.
            top: how many classes to name.

        Returns:
            A list for each image, also for a single one.

        Raises:
            ValueError: a broken image (`ImageError`), an array of another type or shape, or `top` below 1.
            FileNotFoundError: there is no such file.
        """
        whole_number("top", top)
        self._check_open()
        images = single_images(images)
        if len(images) == 1:
            return [self._compute(images[0], top=top).predictions]
        return [result.predictions for result in self.stream(images, top, on_error="raise")]

    def embed(self, images) -> np.ndarray:
        """Pooled features of each image: what the network computes before the classes.

        Args:
            images: as in `predict`.

        Returns:
            float32 (N, C); C is 1280 up to alpha 1.0.

        Raises:
            ValueError: as in `predict`; or a `.tflite` that gives its classes only.
        """
        self._check_open()
        if len(self._engine.outputs) < 2:
            raise ValueError("This .tflite gives classes only: give the weights it was made from to embed images.")

        def features(image, use_all_threads: bool) -> np.ndarray:
            return self._engine.run(self._prepare(image), (1,), use_all_threads)[0].ravel()

        return np.stack(list(self._stream(images, features, "raise")))

    def stream(self, images: Iterable, top: int = 5, on_error: str = "skip") -> Iterator[Classification]:
        """Classify any number of images, in their order, on all cores; a few per core are in memory at a time.

        Args:
            images: as in `predict`; other iterables, such as a generator, are read as results are taken.
            top: how many classes to name.
            on_error: "skip" gives a result with its `error` for a broken image, and continues; "raise" raises.

        Raises:
            ValueError: `top` below 1, another `on_error`, or closed, also meanwhile; with "raise" also what `predict` raises.
            FileNotFoundError: a folder or single path that does not exist.
        """
        whole_number("top", top)
        return self._stream(images, partial(self._compute, top=top), on_error)

    def _compute(self, image, use_all_threads: bool = True, top: int = 5) -> Classification:
        scores = self._run(self._prepare(image), (0,), use_all_threads)[0]
        # As `decode_predictions` orders them: the lower index first where scores are equal.
        order = np.argsort(-scores, kind="stable")[:top]
        return Classification(image, [Prediction(int(i), self.labels[i], float(scores[i])) for i in order])

    def _failed(self, image, error: Exception) -> Classification:
        return Classification(image, [], error)

    def _prepare(self, image) -> np.ndarray:
        image = as_array(image)
        if isinstance(image, np.ndarray) and image.dtype.kind == "f":
            shape = (*self.size, self._channels)
            if image.shape != shape:
                raise ValueError(
                    f"a float image has shape {image.shape}: floats count as preprocessed and must have shape {shape}, values in "
                    "[-1, 1]; give a photo as uint8."
                )
            low, high = (self._scaled(np.full(self._channels, end, np.float32)) for end in (-1, 1))
            slack = 0.01 * (high - low)
            if (image < low - slack).any() or (image > high + slack).any():
                raise ValueError(
                    f"a float image holds values from {image.min():g} to {image.max():g}, this network takes {low.min():g} to "
                    f"{high.max():g}: give a photo as uint8, or preprocess it (preprocess_image)."
                )
            return image.astype(np.float32, copy=False)
        photo = image if self._channels == 3 else grey_photo(image)
        return self._scaled(preprocess_image(photo, self.size)[..., : self._channels])
