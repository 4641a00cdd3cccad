"""Photos to calibrate and compare on, from a folder, files, arrays or a TensorFlow dataset."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv2_keras.data.tfds import import_tfds
from mnv2_keras.images import ImageError, find_images, grey_photo
from mnv2_keras.preprocessing import preprocess_image, resize_bilinear_v1

#: Photos looked at; more change ranges little and take long.
LIMIT = 128
#: Fewer are called thin, and are looked at several times over, cropped and mirrored.
ENOUGH = 32

Progress = Callable[[str, int, int | None], None]


@dataclass
class Photos:
    """What was found to calibrate on.

    Attributes:
        images: float32 (1, H, W, C) each, as the model takes them.
        source: where they come from, in words.
        skipped: what was no image, each with the reason.
    """

    images: list[np.ndarray]
    source: str
    skipped: list[str] = field(default_factory=list)


def load_photos(
    source,
    size: tuple[int, int],
    value_range: tuple[float, float] = (-1.0, 1.0),
    limit: int = LIMIT,
    progress: Progress | None = None,
    channels: int = 3,
) -> Photos:
    """Read and preprocess the photos that a `calibration` argument means.

    Args:
        source: a folder, a file, a list of them; a float32 batch (N, H, W, C) as the model takes it; an iterable of uint8
            photos (H, W, 3) or float32 images, of `(image, label)` pairs or of dicts with an "image", such as a
            `tf.data.Dataset`; or "tfds:NAME:SPLIT", a data set of TensorFlow Datasets that is on this machine.
        size: (height, width) of the model.
        value_range: of the model's input: (-1, 1), or (0, 255) when it scales by itself.
        limit: photos that are looked at: evenly spread over files and arrays, the first ones of a stream.
        progress: called with (what, done, of how many or None).
        channels: of the model; 1 takes photos in grey.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no image at all, or arrays of another size or type.
    """
    found, skipped = [], []
    items, name, total = _items(source)
    items = evenly(items, limit) if isinstance(items, list | tuple | np.ndarray) else items
    for item in items:
        if len(found) >= limit:
            break
        try:
            found.append(_prepared(item, (*size, channels), value_range)[None])
        except ImageError as error:
            skipped.append(str(error))
        if progress:
            progress("reading photos", len(found), min(total, limit) if total else None)
    if not found:
        why = f" ({len(skipped)} files are no images, first: {skipped[0]})" if skipped else ""
        raise ValueError(f"{name} gives no photo to calibrate or compare on{why}: give a folder with at least one.")
    return Photos(found, name, skipped)


def evenly(items: Sequence, count: int) -> list:
    """All of the items: first `count` spread over the whole sequence, then the others, which stand in for broken ones.

    The first ones by themselves would all be of one class where each class has a folder.
    """
    first = range(len(items)) if len(items) <= count else [i * len(items) // count for i in range(count)]
    others = sorted(set(range(len(items))) - set(first))
    return [items[i] for i in (*first, *others)]


def _items(source) -> tuple[Iterable, str, int | None]:
    """(what to go through, its name, how many or None)."""
    if isinstance(source, str) and source.startswith("tfds:"):
        return tensorflow_dataset(source), source, None
    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source, list | tuple) and source and all(isinstance(each, str | os.PathLike) for each in source):
        paths = [each for path in source for each in _files(Path(path).expanduser())]
        return paths, ", ".join(map(str, source[:3])), len(paths)
    if isinstance(source, np.ndarray):
        if source.ndim != 4:
            raise ValueError(f"calibration is an array of shape {source.shape}: expected a batch (N, H, W, C).")
        return source, f"an array of {len(source)} images", len(source)
    if not isinstance(source, Iterable):
        raise ValueError(
            f"calibration is {type(source).__name__}: expected a folder, files, arrays or a tf.data.Dataset of photos."
        )
    return source, "the given images", len(source) if hasattr(source, "__len__") else None


def _files(path: Path) -> list[Path]:
    """A folder's files, all of them: what is no image is to be named, not passed over."""
    if not path.is_dir():
        return find_images(path)
    names = sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))
    if not names:
        raise ValueError(f"The folder {path} is empty: give one with photos to calibrate or compare on.")
    return names


def tensorflow_dataset(name: str) -> Iterator:
    """The examples of "tfds:NAME:SPLIT", dicts of arrays, of a data set that is on this machine.

    Raises:
        ValueError: it cannot be read.
    """
    tfds = import_tfds(name)
    _, dataset, *split = name.split(":")
    try:
        return iter(tfds.as_numpy(tfds.load(dataset, split=split[0] if split else "train", download=False)))
    except Exception as error:  # a data set that is not there, or not prepared, fails in many ways
        raise ValueError(
            f"{name} cannot be read ({str(error).splitlines()[0]}): prepare it with tfds first."
        ) from error


def _prepared(item, shape: tuple[int, int, int], value_range: tuple[float, float]) -> np.ndarray:
    if isinstance(item, dict):
        item = item["image"]
    elif isinstance(item, tuple | list):
        item = item[0]
    if not isinstance(item, str | os.PathLike):
        item = np.asarray(item)
        if item.dtype.kind == "f":
            return _checked(item, shape, value_range)
    *size, channels = shape
    if channels not in (1, 3):
        raise ValueError(
            f"the model takes {channels} channels, a photo has 3: give a float32 batch as the model takes it."
        )
    image = preprocess_image(item if channels == 3 else grey_photo(item), size)[..., :channels]
    low, high = value_range
    return image if (low, high) == (-1.0, 1.0) else (image + 1) * np.float32((high - low) / 2) + np.float32(low)


def _checked(image: np.ndarray, shape: tuple[int, int, int], value_range: tuple[float, float]) -> np.ndarray:
    if image.shape != shape:
        height, width, channels = shape
        raise ValueError(
            f"a calibration image has shape {image.shape}, the model takes {height} x {width} x {channels}: give uint8 photos, "
            "or float32 images of that shape as the model takes them."
        )
    low, high = value_range
    if not (np.isfinite(image).all() and image.min() >= low - 1e-3 and image.max() <= high + 1e-3):
        raise ValueError(
            f"a float calibration image reaches from {image.min():.4g} to {image.max():.4g}, the model takes {low:g} to {high:g}: "
            "preprocess it first, or give uint8 photos."
        )
    return image.astype(np.float32)


def varied(
    images: list[np.ndarray], value_range: tuple[float, float] = (-1.0, 1.0), count: int = ENOUGH
) -> list[np.ndarray]:
    """At least `count` images: those given, then crops of them, mirrored and of other brightness. Seeded."""
    rng = np.random.default_rng(0)
    low, high = value_range
    out = list(images)
    for i in range(count - len(images)):
        image = images[i % len(images)]
        height, width = image.shape[1:3]
        part = rng.uniform(0.6, 1.0)
        tall, wide = max(int(height * part), 1), max(int(width * part), 1)
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        piece = resize_bilinear_v1(image[:, top : top + tall, left : left + wide], (height, width))
        piece = piece[:, :, ::-1] if rng.random() < 0.5 else piece
        piece = (piece - low) * rng.uniform(0.8, 1.1) + low + rng.uniform(-0.05, 0.05) * (high - low)
        out.append(np.ascontiguousarray(np.clip(piece, low, high), np.float32))
    return out


def seeded_images(shape: tuple[int, ...], value_range: tuple[float, float], count: int = 2) -> list[np.ndarray]:
    """Images for a comparison without photos: smooth coloured noise, the same on every machine."""
    rng = np.random.default_rng(0)
    low, high = value_range
    height, width, channels = shape
    small = rng.uniform(low, high, (count, max(height // 8, 1), max(width // 8, 1), channels)).astype(np.float32)
    return [resize_bilinear_v1(image[None], (height, width)) for image in small]
