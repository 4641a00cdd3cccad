"""Photos to masks: what every pixel shows, at the photo's own size."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnv2_keras.images import read_image
from mnv2_keras.inference.engines import End
from mnv2_keras.inference.streaming import one_by_one
from mnv2_keras.labels import voc_labels
from mnv2_keras.masks import fit_photo, pad_photo, voc_palette

#: How DeepLab's model zoo evaluates with "MF": multi-scale and flipped.
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
#: Labels are uint8.
MOST_CLASSES = 256


@dataclass(frozen=True)
class Segmentation:
    """What a photo shows, pixel by pixel.

    Attributes:
        source: the photo's path, or None for an array.
        photo: uint8 (H, W, 3).
        labels: uint8 (H, W), the class of each pixel.
        names: of the classes, by label.
    """

    source: Path | None
    photo: np.ndarray
    labels: np.ndarray
    names: Sequence[str]

    @property
    def areas(self) -> dict[str, float]:
        """Share of the photo that each class present covers, the largest first; they add up to 1."""
        return {self._name(label): share for label, share in self._shares()}

    def as_dict(self) -> dict:
        """Size and class areas, as JSON holds them."""
        height, width = self.labels.shape
        return {
            "photo": str(self.source) if self.source else None,
            "height": height,
            "width": width,
            "areas": self.areas,
        }

    def picture(self, opacity: float = 0.6) -> Image.Image:
        """The photo, the mask in Pascal VOC's colours, and the mask over the photo, side by side above a legend."""
        palette = voc_palette()
        photo, mask = Image.fromarray(self.photo), Image.fromarray(palette[self.labels])
        over = Image.composite(Image.blend(photo, mask, opacity), photo, Image.fromarray(self.labels > 0))
        height, width = self.labels.shape
        present = self._shares()
        text = max(12, min(height, width) // 24)
        font = ImageFont.load_default(text)
        per_line = max(1, 3 * width // (12 * text))
        lines = -(-len(present) // per_line)
        canvas = Image.new("RGB", (max(3 * width, 12 * text), height + lines * 2 * text), "white")
        for i, part in enumerate((photo, mask, over)):
            canvas.paste(part, (i * width, 0))
        draw = ImageDraw.Draw(canvas)
        for i, (label, share) in enumerate(present):
            left, top = (i % per_line) * 12 * text + text // 2, height + (i // per_line) * 2 * text + text // 2
            draw.rectangle([left, top, left + text, top + text], fill=tuple(palette[label].tolist()), outline="black")
            draw.text((left + 1.5 * text, top), f"{self._name(label)} {share:.1%}", fill="black", font=font)
        return canvas

    def _name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else f"class {label}"

    def _shares(self) -> list[tuple[int, float]]:
        """(label, share of the photo) of each class present, the largest first."""
        shares = np.bincount(self.labels.ravel()) / self.labels.size
        return sorted(
            ((label, share) for label, share in enumerate(shares.tolist()) if share), key=lambda item: -item[1]
        )


class Segmenter:
    """Finds what every pixel of a photo shows. Safe to use from several threads.

    A photo that fits into the network's input is padded as DeepLab's exporter does; a larger one is shrunk first (its longest
    side to the input's), and its labels are enlarged again. The labels have the photo's own size in any case.

    Args:
        weights: an archive, folder, checkpoint or registered name; a `.keras` file or a model; or a `.tflite` file, which
            LiteRT runs.
        scales: sizes to look at the photo at, 1.0 being its own; the probabilities are averaged (`MULTI_SCALE` has the
            model zoo's). Not with a `.tflite`.
        flip: whether to look at the mirrored photo too.
        names: labels of the classes; Pascal VOC's for 21 classes, those in a `.tflite`'s metadata, otherwise "class N".
        threads: of LiteRT; None for one for each core.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no segmenter of at most 256 classes that takes -1 to 1, or an argument is out of its range.
    """

    def __init__(
        self,
        weights="deeplabv3_mnv2_pascal_train_aug_2018_01_29",
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        names: Sequence[str] | None = None,
        threads: int | None = None,
    ):
        scales = tuple(scales)
        if not scales or not all(isinstance(scale, int | float) and 0.1 <= scale <= 8 for scale in scales):
            raise ValueError(f"scales is {scales!r}: expected numbers from 0.1 to 8, such as (0.75, 1.0, 1.25).")
        if isinstance(weights, str | os.PathLike) and Path(weights).suffix == ".tflite":
            if scales != (1.0,) or flip:
                raise ValueError(f"{weights} has one size and no mirror: several scales and flip need a Keras model.")
            self._network = _LiteRT(weights, threads)
        else:
            self._network = _Keras(weights, scales, flip)
        self.size, self.classes = self._network.size, self._network.classes
        self.names = tuple(names or self._network.names or _names(self.classes))
        count = self.classes or len(self.names)
        if count > MOST_CLASSES:
            raise ValueError(f"{_called(weights)} has {count} classes: labels are uint8, so {MOST_CLASSES} at most.")
        if self.classes and len(self.names) < self.classes:
            raise ValueError(f"{len(self.names)} names were given for {self.classes} classes: give one for each.")

    def __enter__(self) -> "Segmenter":
        return self

    def __exit__(self, *_) -> None:
        self._network = None

    def segment(self, photo) -> Segmentation:
        """What one photo shows.

        Args:
            photo: a path, or uint8 (H, W, 3), of any size.

        Raises:
            FileNotFoundError, ImageError: the file is not there or no picture that can be read.
            ValueError: an array of another shape or type.
        """
        source = Path(photo) if isinstance(photo, str | os.PathLike) else None
        photo = read_image(photo) if source else np.asarray(photo)
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
            raise ValueError(f"a photo is uint8 of shape (H, W, 3), not {photo.dtype} {photo.shape}.")
        if self._network is None:
            raise ValueError("this Segmenter is closed: make another one.")
        fitted = fit_photo(photo, self.size)
        labels = self._network.labels(fitted)[: fitted.shape[0], : fitted.shape[1]]
        if fitted.shape != photo.shape:
            labels = np.asarray(Image.fromarray(labels).resize(photo.shape[1::-1], Image.Resampling.NEAREST))
        return Segmentation(source, photo, labels, self.names)

    def stream(self, photos: Iterable, skip_broken: bool = False) -> Iterator[Segmentation | ValueError | OSError]:
        """What each photo shows, one after the other, in order.

        Args:
            photos: paths or arrays.
            skip_broken: give the error in place of the result for a photo that cannot be used, and go on; otherwise raise.
        """
        return one_by_one(self.segment, photos, skip_broken)


def _called(weights) -> str:
    """A file's or a model's name for messages."""
    return str(weights) if isinstance(weights, str | os.PathLike) else repr(weights.name)


def _names(classes: int) -> tuple[str, ...]:
    voc = voc_labels()
    return voc if classes == len(voc) else tuple(f"class {i}" for i in range(classes))


class _LiteRT:
    """A .tflite that takes (1, H, W, 3) and gives logits (1, h, w, C) or labels (1, H, W)."""

    def __init__(self, path, threads: int | None):
        from mnv2_keras.tflite import open_interpreter, read_tflite
        from mnv2_keras.tflite.metadata import associated_files

        name, content = read_tflite(path)
        self._interpreter = open_interpreter(content, threads)
        try:
            self._interpreter.allocate_tensors()
        except RuntimeError as error:
            raise ValueError(f"{name} is no .tflite that LiteRT can run ({str(error).splitlines()[0]}).") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        given, made = inputs[0], outputs[0]
        self._input, self._output, self._levels = End(given), End(made), given["dtype"] == np.uint8
        _, *size, channels = given["shape"].tolist() if len(given["shape"]) == 4 else (0, 0, 0, 0)
        rank = len(made["shape"])
        if len(inputs) != 1 or len(outputs) != 1 or channels != 3 or rank not in (3, 4):
            raise ValueError(f"{name} is no segmenter: expected one photo (1, H, W, 3) in, logits or labels out.")
        self.size = tuple(size)
        self.classes = int(made["shape"][-1]) if rank == 4 else 0
        files = [text for file, text in associated_files(content).items() if file.endswith(".txt")]
        self.names = tuple(files[0].decode().splitlines()) if files else None
        if not self.classes:  # Google's own files are of Pascal VOC
            self.names = self.names or voc_labels()
        self._lock = Lock()

    def labels(self, photo: np.ndarray) -> np.ndarray:
        if self._levels:
            # A quantised network counts the photo's own levels; 128 is its grey.
            batch = np.full((1, *self.size, 3), 128, np.uint8)
            batch[0, : photo.shape[0], : photo.shape[1]] = photo
        else:
            batch = self._input.stored(pad_photo(photo, self.size)[None])
        with self._lock:
            self._interpreter.set_tensor(self._input.index, batch)
            self._interpreter.invoke()
            found = self._interpreter.get_tensor(self._output.index)[0]
        if found.ndim == 2:
            return found.astype(np.uint8)
        if found.shape[:2] != self.size:
            from mnv2_keras.preprocessing import resize_bilinear_v1

            found = resize_bilinear_v1(self._output.real(found), self.size, align_corners=True)
        return found.argmax(-1).astype(np.uint8)


class _Keras:
    """A Keras model: logits at several scales, mirrored or not, to labels."""

    def __init__(self, weights, scales: tuple[float, ...], flip: bool):
        import keras
        import tensorflow as tf

        from mnv2_keras.conversion import open_model
        from mnv2_keras.networks.endpoints import check_input

        model = weights if isinstance(weights, keras.Model) else open_model(weights)[0]
        self.size = tuple(side or 513 for side in model.input_shape[1:3])
        made = _made(model, self.size)
        if made is None or made[1:3] != self.size:
            raise ValueError(
                f"{_called(weights)} holds no segmenter: its model makes {made or model.output_shape} of {model.input_shape}, not "
                "(B, H, W, classes) of (B, H, W, 3)."
            )
        check_input(model, _called(weights))
        self.classes, self.names = made[3], None
        plain = scales == (1.0,) and not flip

        @tf.function(input_signature=[tf.TensorSpec((1, *self.size, 3), tf.float32)])
        def labels(batch):
            found = model(batch, training=False) if plain else averaged(batch)
            return tf.argmax(found[0], -1, output_type=tf.int32)

        if not plain:
            averaged = MultiScale(model, scales, flip)
        self._labels = labels

    def labels(self, photo: np.ndarray) -> np.ndarray:
        return self._labels(pad_photo(photo, self.size)[None]).numpy().astype(np.uint8)


def _made(model, size: tuple[int, int]) -> tuple | None:
    """Shape of what a model makes of one photo of this size; None where it takes no photo or makes no map."""
    if not isinstance(model.output_shape, tuple) or len(model.output_shape) != 4:
        return None
    if not isinstance(model.input_shape, tuple) or len(model.input_shape) != 4 or model.input_shape[3] != 3:
        return None
    return tuple(model.compute_output_shape((1, *size, 3)))


class MultiScale:
    """Probabilities averaged over scales and mirror images.

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

        def resize(x, size):
            return tf.raw_ops.ResizeBilinear(images=x, size=size, align_corners=True)

        size = batch.shape[1:3]
        found = []
        for scale in self._scales:
            scaled = resize(batch, _scaled(size, scale)) if scale != 1 else batch
            for mirrored in (False, True) if self._flip else (False,):
                logits = self._model(scaled[:, :, ::-1] if mirrored else scaled, training=False)
                logits = logits[:, :, ::-1] if mirrored else logits
                # The genuine program goes by way of the logits' size at scale 1, or at this scale where that is more.
                logits = resize(logits, _scaled(size, max(1.0, scale) / self._stride))
                found.append(tf.nn.softmax(resize(logits, size)))
        return tf.add_n(found) / len(found)


def _scaled(size, scale: float) -> tuple[int, int]:
    """DeepLab's `scale_dimension`: the corners stay on the corners."""
    return tuple(int((float(side) - 1) * scale + 1) for side in size)
