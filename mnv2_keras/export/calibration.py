"""Photos to calibrate and compare on, from a folder, files, arrays or a TensorFlow dataset."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv2_keras.checks import user_path
from mnv2_keras.data.tfds import import_tfds
from mnv2_keras.images import ImageError, find_images, grey_photo
from mnv2_keras.preprocessing import preprocess_image, resize_bilinear_v1

#: Most photos that are read: more change the ranges little and take long.
LIMIT = 128
#: With fewer photos than this, crops of them are added and a warning is given.
ENOUGH = 32

#: Called with (what is done, steps done, steps in total or None).
Progress = Callable[[str, int, int | None], None]


@dataclass
class Photos:
    """Photos that were read."""

    images: list[np.ndarray]  # float32 (1, H, W, C) as the model takes them; for a segmenter not yet padded: uint8 (h, w, 3)
    source: str  # where they come from, for messages
    names: list[str] = field(default_factory=list)  # of each image: its path, or "array" and a number
    skipped: dict[str, str] = field(default_factory=dict)  # name to reason, for each file that is not an image


def load_photos(
    source,
    size: tuple[int, int],
    value_range: tuple[float, float] = (-1.0, 1.0),
    limit: int = LIMIT,
    progress: Progress | None = None,
    channels: int = 3,
) -> Photos:
    """Read and preprocess the photos of a `calibration` or `photos` argument.

    Args:
        source: as in `Quantization.calibration`; `Photos` are returned unchanged.
        size: (height, width) of the model's input, in pixels.
        value_range: of the model's input: (-1, 1), or (0, 255) when the model scales pixels itself.
        limit: most photos that are read: evenly spaced ones of files and arrays, the first ones of a stream.
        progress: called with (what, done, total or None).
        channels: of the model's input; with 1, photos are converted to grey.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: none of them is an image, or arrays have another size or type.
    """
    if isinstance(source, Photos):
        return source
    photos = read_photos(source, lambda item: _prepared(item, (*size, channels), value_range)[None], limit, progress)
    if not photos.images:
        reasons = [f" ({len(photos.skipped)} files are not images, first: {first})" for first in photos.skipped.values()]
        raise ValueError(
            f"{photos.source} gives no photo to calibrate or compare on{reasons[0] if reasons else ''}: give a folder with at "
            "least one."
        )
    return photos


def read_photos(source, prepare: Callable[[object], np.ndarray], limit: int = LIMIT, progress: Progress | None = None) -> Photos:
    """Up to `limit` photos; see `load_photos`. `prepare` makes the image that is stored from a path or an array."""
    items, name, total = _items(source)
    photos = Photos([], name)
    numbered = evenly_spaced(list(enumerate(items)), limit) if isinstance(items, list) else enumerate(items)
    for i, item in numbered:
        if len(photos.images) >= limit:
            break
        own_name = str(item) if isinstance(item, str | os.PathLike) else f"array {i}"
        try:
            photos.images.append(prepare(item))
            photos.names.append(own_name)
        except ImageError as error:
            photos.skipped[own_name] = str(error)
        if progress:
            progress("reading photos", len(photos.images), min(total, limit) if total else None)
    return photos


def evenly_spaced(items: Sequence, count: int) -> list:
    """All items: first `count` evenly spaced over the sequence, then the others, which replace broken ones.

    The first `count` of a sequence may all be of one class, where each class has a folder.
    """
    first = range(len(items)) if len(items) <= count else [i * len(items) // count for i in range(count)]
    others = sorted(set(range(len(items))) - set(first))
    return [items[i] for i in (*first, *others)]


def _items(source) -> tuple[Iterable, str, int | None]:
    """(paths or images, their name for messages, their number or None)."""
    if isinstance(source, str) and source.startswith("tfds:"):
        return tensorflow_dataset(source), source, None
    if isinstance(source, np.ndarray):
        if source.ndim != 4:
            raise ValueError(f"calibration is an array of shape {source.shape}: expected a batch (N, H, W, C).")
        return list(source), f"an array of {len(source)} images", len(source)
    if isinstance(source, str | os.PathLike | list | tuple):
        source = [source] if isinstance(source, str | os.PathLike) else source
        are_paths = [isinstance(item, str | os.PathLike) for item in source]
        parts = [_files(item) if is_path else [item] for item, is_path in zip(source, are_paths, strict=True)]
        items = list(itertools.chain.from_iterable(parts))
        return items, ", ".join(map(str, source[:3])) if source and all(are_paths) else "the given images", len(items)
    if not isinstance(source, Iterable):
        raise ValueError(
            f"calibration is {type(source).__name__}: expected a folder, files, arrays or a tf.data.Dataset of photos."
        )
    return source, "the given images", len(source) if hasattr(source, "__len__") else None


def _files(path: str | os.PathLike) -> list[Path]:
    """All files of a folder, so that those that are not images are reported."""
    path = user_path(path)
    if not path.is_dir():
        return find_images(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ValueError(f"The folder {path} is empty: give one with photos to calibrate or compare on.")
    return files


def tensorflow_dataset(name: str) -> Iterator:
    """The examples of "tfds:NAME:SPLIT", dicts of arrays, of a data set that is on this machine.

    Raises:
        ValueError: it cannot be read.
    """
    tfds = import_tfds(name)
    _, dataset, *split = name.split(":")
    try:
        return iter(tfds.as_numpy(tfds.load(dataset, split=split[0] if split else "train", download=False)))
    except Exception as error:  # a data set that is missing or not prepared fails in many ways
        raise ValueError(f"{name} cannot be read ({str(error).splitlines()[0]}): prepare it with tfds first.") from error


def image_of(item):
    """The image of an example: of a dict, of a pair (image, label), or the item itself."""
    if isinstance(item, dict):
        return item["image"]
    return item[0] if isinstance(item, tuple | list) else item


def _prepared(item, shape: tuple[int, int, int], value_range: tuple[float, float]) -> np.ndarray:
    """float32 (H, W, C) as the model takes it."""
    image, (low, high), (*size, channels) = image_of(item), value_range, shape
    if not isinstance(image, str | os.PathLike):
        image = np.asarray(image)
        if image.dtype.kind == "f":
            return _checked(image, shape, value_range)
    if channels not in (1, 3):
        raise ValueError(f"the model takes {channels} channels, a photo has 3: give a float32 batch as the model takes it.")
    image = preprocess_image(image if channels == 3 else grey_photo(image), size)[..., :channels]
    return image if (low, high) == (-1.0, 1.0) else (image + 1) * np.float32((high - low) / 2) + np.float32(low)


def _checked(image: np.ndarray, shape: tuple[int, int, int], value_range: tuple[float, float]) -> np.ndarray:
    if image.shape != shape:
        raise ValueError(
            f"a calibration image has shape {image.shape}, the model takes {' x '.join(map(str, shape))}: give uint8 photos, or "
            "float32 images of that shape as the model takes them."
        )
    low, high = value_range
    if not (np.isfinite(image).all() and image.min() >= low - 1e-3 and image.max() <= high + 1e-3):
        raise ValueError(
            f"a float calibration image reaches from {image.min():.4g} to {image.max():.4g}, the model takes {low:g} to {high:g}: "
            "preprocess it first, or give uint8 photos."
        )
    return image.astype(np.float32)


def with_crops(images: list[np.ndarray], value_range: tuple[float, float] = (-1.0, 1.0), count: int = ENOUGH) -> list[np.ndarray]:
    """At least `count` images: the given ones, then crops of them, mirrored and brightened at random (seeded)."""
    rng = np.random.default_rng(0)
    low, high = value_range
    enough = list(images)
    for i in range(count - len(images)):
        image = images[i % len(images)]
        height, width = image.shape[1:3]
        part = rng.uniform(0.6, 1.0)
        crop_height, crop_width = max(int(height * part), 1), max(int(width * part), 1)
        top, left = rng.integers(0, height - crop_height + 1), rng.integers(0, width - crop_width + 1)
        crop = resize_bilinear_v1(image[:, top : top + crop_height, left : left + crop_width], (height, width))
        crop = crop[:, :, ::-1] if rng.random() < 0.5 else crop
        crop = (crop - low) * rng.uniform(0.8, 1.1) + low + rng.uniform(-0.05, 0.05) * (high - low)
        enough.append(np.ascontiguousarray(np.clip(crop, low, high), np.float32))
    return enough


def seeded_images(shape: tuple[int, ...], value_range: tuple[float, float], count: int = 2) -> list[np.ndarray]:
    """Images for a comparison without photos: smooth coloured noise, the same on every machine."""
    rng = np.random.default_rng(0)
    low, high = value_range
    height, width, channels = shape
    small = rng.uniform(low, high, (count, max(height // 8, 1), max(width // 8, 1), channels)).astype(np.float32)
    return [resize_bilinear_v1(image[None], (height, width)) for image in small]
