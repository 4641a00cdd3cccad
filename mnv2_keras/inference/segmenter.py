"""Photos to masks: the class of each pixel, at the photo's own size."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnv2_keras.deprecation import renamed_arguments
from mnv2_keras.inference.predictor import OpenedWeights, PhotoPredictor, PhotoResult, source_of
from mnv2_keras.masks import fit_photo, pad_levels, pad_photo, voc_palette
from mnv2_keras.preprocessing import resize_bilinear_v1

#: Scales of DeepLab's model zoo for results with "MF": multi-scale and flipped.
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
#: Labels are uint8.
MOST_CLASSES = 256


@dataclass(frozen=True)
class Segmentation(PhotoResult):
    """The result of a `Segmenter` for one photo.

    Attributes:
        source: the photo's path, or None for an array.
        photo: uint8 (H, W, 3); None where there is an error.
        labels: uint8 (H, W), the class of each pixel; None where there is an error.
        names: of the classes, by label.
        error: why the photo could not be used; None for a good one.
    """

    source: Path | None
    photo: np.ndarray | None
    labels: np.ndarray | None
    names: Sequence[str]
    error: Exception | None = None

    @property
    def areas(self) -> dict[str, float]:
        """Share of the photo's pixels of each class on it, the largest first; they add up to 1."""
        return {self._name(label): share for label, share in self._shares()}

    def as_dict(self) -> dict:
        """Size and class areas, as JSON holds them."""
        return self._about() | ({} if self.error is not None else {"areas": self.areas})

    def picture(self, opacity: float = 0.6) -> Image.Image:
        """The photo, the mask in Pascal VOC's colours, and the mask over the photo, side by side above a legend.

        Raises:
            ValueError: the photo could not be used.
        """
        self._check_photo()
        palette, shares = voc_palette(), self._shares()
        photo, mask = Image.fromarray(self.photo), Image.fromarray(palette[self.labels])
        over = Image.composite(Image.blend(photo, mask, opacity), photo, Image.fromarray(self.labels > 0))
        height, width = self.labels.shape
        text = max(12, min(height, width) // 24)
        font = ImageFont.load_default(text)
        per_line = max(1, 3 * width // (12 * text))
        lines = -(-len(shares) // per_line)
        canvas = Image.new("RGB", (max(3 * width, 12 * text), height + lines * 2 * text), "white")
        for i, part in enumerate((photo, mask, over)):
            canvas.paste(part, (i * width, 0))
        draw = ImageDraw.Draw(canvas)
        for i, (label, share) in enumerate(shares):
            left, top = (i % per_line) * 12 * text + text // 2, height + (i // per_line) * 2 * text + text // 2
            draw.rectangle([left, top, left + text, top + text], fill=tuple(palette[label].tolist()), outline="black")
            draw.text((left + 1.5 * text, top), f"{self._name(label)} {share:.1%}", fill="black", font=font)
        return canvas

    def _name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else f"class {label}"

    def _shares(self) -> list[tuple[int, float]]:
        """(label, share of the photo) of each class present, the largest first."""
        shares = (np.bincount(self.labels.ravel()) / self.labels.size).tolist()
        return sorted(((label, share) for label, share in enumerate(shares) if share), key=lambda item: -item[1])


class Segmenter(PhotoPredictor):
    """Finds the class of each pixel of a photo.

    A photo that fits into the network's input is padded as DeepLab's exporter does; a larger one is shrunk first (its longest
    side to the input's), and its labels are enlarged again. The labels always have the photo's own size.

    Args:
        weights: as in `Predictor`; a `.tflite` file must give logits (1, h, w, classes) or labels (1, H, W). At most 256 classes.
        engine, threads, precision, labels, on_message: as in `Predictor`. The published data set of 21 classes is Pascal VOC.
            Several scales and `flip` need engine "keras", which is then the default.
        scales: factors on the photo's size, each from 0.1 to 8; the probabilities are averaged over them (`MULTI_SCALE` are the
            model zoo's).
        flip: whether to average over the mirrored photo too.

    Raises:
        FileNotFoundError, ValueError: as in `Predictor`.
    """

    _TASK = "segmentation"

    @renamed_arguments(names="labels")
    def __init__(
        self,
        weights="deeplabv3_mnv2_pascal_train_aug_2018_01_29",
        engine: str | None = None,
        threads: int | None = None,
        *,
        precision: str = "float32",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        labels: Sequence[str] | str | os.PathLike | None = None,
        on_message=None,
    ):
        scales, average = tuple(scales), None
        if not scales or not all(isinstance(scale, int | float) and 0.1 <= scale <= 8 for scale in scales):
            raise ValueError(f"scales is {scales!r}: expected numbers from 0.1 to 8, such as (0.75, 1.0, 1.25).")
        if scales != (1.0,) or flip:
            if Path(weights if isinstance(weights, str | os.PathLike) else "").suffix == ".tflite":
                raise ValueError(f"{weights} has one size and no mirror: several scales and flip need a Keras model.")
            if engine not in (None, "keras"):
                raise ValueError(f"engine {engine!r} has one size and no mirror: several scales and flip need 'keras'.")
            engine = "keras"

            def average(model):
                return MultiScale(model, scales, flip).outputs

        super().__init__(weights, engine, threads, precision, labels, on_message, keras_call=average)

    @property
    def names(self) -> tuple[str, ...]:
        """The same as `labels`."""
        return self.labels

    def _check_network(self, opened: OpenedWeights) -> None:
        shape, output = self._engine.input.shape, self._engine.outputs[0].shape
        if len(shape) != 3 or shape[2] != 3 or len(output) not in (2, 3):
            raise ValueError(f"{opened.name} is not a segmenter: expected one photo (1, H, W, 3) in, logits or labels out.")
        self._logits = len(output) == 3
        # Labels alone do not tell the number of classes; the small logits behind them do, where the file has them.
        logits = [info.shape for info in self._engine.outputs if len(info.shape) == 3]
        self.classes = logits[0][2] if logits else 0
        if self.classes > MOST_CLASSES:
            raise ValueError(f"{opened.name} has {self.classes} classes: labels are uint8, so {MOST_CLASSES} at most.")

    def segment(self, photo) -> Segmentation:
        """The class of each pixel of one photo.

        Args:
            photo: a path, or uint8 (H, W, 3), of any size.

        Raises:
            FileNotFoundError, ImageError: the file does not exist, or cannot be read as a picture.
            ValueError: an array of another shape or type; the network's outputs are NaN; closed.
        """
        self._check_open()
        return self._compute(photo)

    def _compute(self, image, use_all_threads: bool = True) -> Segmentation:
        photo = self._photo(image)
        fitted = fit_photo(photo, self.size)
        levels = self._engine.input.dtype == "uint8"
        prepared = pad_levels(fitted, self.size) if levels else self._scaled(pad_photo(fitted, self.size))
        labels = self._run(prepared, None, use_all_threads)[0]
        if self._logits:
            if labels.shape[:2] != self.size:
                labels = resize_bilinear_v1(labels, self.size, align_corners=True)
            labels = labels.argmax(-1)
        labels = labels[: fitted.shape[0], : fitted.shape[1]].astype(np.uint8)
        if fitted.shape != photo.shape:
            labels = np.asarray(Image.fromarray(labels).resize(photo.shape[1::-1], Image.Resampling.NEAREST))
        return Segmentation(source_of(image), photo, labels, self.labels)

    def _failed(self, image, error: Exception) -> Segmentation:
        return Segmentation(source_of(image), None, None, self.labels, error)


class MultiScale:
    """A segmenter's probabilities, averaged over scales and mirror images.

    Source: DeepLab `model.predict_labels_multi_scale`.

    Args:
        model: a segmenter of this package.
        scales: factors on the input's size.
        flip: whether to add the mirrored image at each scale.
    """

    def __init__(self, model, scales: Sequence[float], flip: bool = False):
        import keras

        from mnv2_keras.networks.endpoints import endpoints, feature_info

        # A copy that takes any size, with the same weights.
        free = keras.models.clone_model(model, input_tensors=keras.Input((None, None, model.input_shape[3])))
        free.set_weights(model.get_weights())
        self._model = keras.Model(free.input, endpoints(free)["logits/semantic"])
        self._stride = feature_info(model)["logits/semantic"].stride
        self._scales, self._flip = tuple(scales), flip

    def __call__(self, batch):
        """float32 (B, H, W, 3) in [-1, 1] to probabilities (B, H, W, classes), float32 tensors."""
        import tensorflow as tf

        size = batch.shape[1:3]

        def resize(x, scale):
            sides = [int((float(side) - 1) * scale + 1) for side in size]  # DeepLab's `scale_dimension`
            return tf.raw_ops.ResizeBilinear(images=x, size=sides, align_corners=True)

        probabilities = []
        for scale in self._scales:
            scaled = resize(batch, scale) if scale != 1 else batch
            for mirrored in (False, True) if self._flip else (False,):
                logits = self._model(scaled[:, :, ::-1] if mirrored else scaled, training=False)
                logits = logits[:, :, ::-1] if mirrored else logits
                # The genuine program resizes to the logits' size at scale 1 first, or at this scale where that is larger.
                logits = resize(logits, max(1.0, scale) / self._stride)
                probabilities.append(tf.nn.softmax(resize(logits, 1)))
        return tf.add_n(probabilities) / len(probabilities)

    def outputs(self, batch) -> list:
        """The outputs of `task_networks.task_network`: labels int32 (B, H, W), and the probabilities."""
        import tensorflow as tf

        probabilities = self(batch)
        return [tf.argmax(probabilities, -1, output_type=tf.int32), probabilities]
