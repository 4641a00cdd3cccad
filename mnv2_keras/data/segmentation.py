"""Photos with masks: from folders or TFDS, to augmented batches that train a segmenter.

Source of the augmentation: DeepLab's `input_preprocess.preprocess_image_and_label` and `core/preprocess_utils`.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv2_keras.checks import user_path
from mnv2_keras.data.reading import Readable
from mnv2_keras.data.tfds import open_tfds
from mnv2_keras.images import ImageError, find_images, read_image
from mnv2_keras.masks import IGNORED, PADDING, read_mask
from mnv2_keras.preprocessing import normalize_image

log = logging.getLogger("mnv2_keras")

#: Examples in the shuffle buffer of a TFDS stream.
_BUFFER = 256
#: Names of a mask of labels in TFDS data sets.
_MASKS = ("segmentation_mask", "segmentation_label", "annotation", "mask", "label")
#: A photo, uint8 (H, W, 3), and its mask, uint8 (H, W).
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PhotoMaskFolder(Readable):
    """Photos in one folder, a mask of the same name for each of them in another.

    Attributes:
        pairs: (photo, mask) paths, sorted by name.
        classes: labels run from 0 to below it; 255 is ignored.
        broken, on_error: see `Readable`; a broken photo or mask leaves out the pair.
    """

    pairs: tuple[tuple[Path, Path], ...]
    classes: int
    broken: dict[str, str] = field(default_factory=dict, compare=False)
    on_error: str = "skip"

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        """All pairs that can be read, in their order; errors as in `read`, and an ImageError if none can be read."""
        return (pair for index in range(len(self)) if (pair := self._attempt(index)))

    def shuffled(self, seed: tuple[int, ...], start: int = 0) -> Iterator[Pair]:
        """One pass of `len(self)` pairs from its `start` on, in the order that the seed gives.

        In place of a pair that cannot be read comes the next one that can, so the length of a pass never changes.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        for place in range(start, len(self)):
            candidates = itertools.chain(order[place:], order[:place])
            yield next(pair for index in candidates if (pair := self._attempt(index)))

    def check(self, progress: Callable[[int], None] | None = None) -> None:
        """Read every pair before a long training; `progress` is called with the number of pairs that were read.

        Raises:
            ValueError: as in `read`; the message names the first pair and counts the others, as they probably have one cause.
            ImageError: no pair can be read.
        """

        def fault(index: int) -> str | None:
            try:
                self._attempt(index)
            except ImageError:
                raise
            except ValueError as error:
                return str(error)
            return None

        faults = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, message in enumerate(pool.map(fault, range(len(self))), start=1):
                faults += [message] if message else []
                if progress:
                    progress(done)
        if faults:
            others = f" And {len(faults) - 1} more of {len(self)} do not fit." if len(faults) > 1 else ""
            raise ValueError(faults[0] + others)

    def _attempt(self, index: int) -> Pair | None:
        name = str(self.pairs[index][0])
        pair = self.attempt(name, lambda: self.read(index))
        if pair is None and len(self.broken) == len(self):
            raise ImageError(f"None of {len(self)} photos with masks can be read: {self.broken[name]}")
        return pair

    def read(self, index: int) -> Pair:
        """A photo and its mask.

        Raises:
            ImageError: one of the files is broken.
            ValueError: their sizes differ, or the mask has a label that is not a class.
        """
        photo_path, mask_path = self.pairs[index]
        pair = read_image(photo_path), read_mask(mask_path)
        _check_pair(*pair, self.classes, photo_path.name, str(mask_path))
        return pair


def _check_pair(photo: np.ndarray, mask: np.ndarray, classes: int, photo_name: str, mask_name: str) -> None:
    if photo.shape[:2] != mask.shape:
        raise ValueError(
            f"{photo_name} is {photo.shape[0]} x {photo.shape[1]}, its mask {mask_name} {mask.shape[0]} x {mask.shape[1]}: "
            "they must have the same size."
        )
    check_labels(mask, classes, mask_name)


def check_labels(mask: np.ndarray, classes: int, name: str) -> None:
    """Raise a ValueError if a mask has labels other than classes and ignored pixels."""
    labels = np.unique(mask)
    unknown = labels[(labels >= classes) & (labels != IGNORED)]
    if unknown.size:
        raise ValueError(
            f"{name} has unknown labels {', '.join(map(str, unknown[:8]))}: expected 0 to {classes - 1}, or {IGNORED} for "
            "pixels to ignore. Pass the right number of classes, or map the labels first."
        )


def _check_classes(classes: int) -> None:
    if not 1 <= classes <= IGNORED:
        raise ValueError(f"classes is {classes}: masks are uint8 and {IGNORED} is ignored, so expected 1 to {IGNORED}.")


def photos_and_masks(
    photos: str | os.PathLike, masks: str | os.PathLike, classes: int, names: Sequence[str] | None = None, *, on_error: str = "skip"
) -> PhotoMaskFolder:
    """Pair the photos of a folder with the masks of another: the same path within it, except for the suffix.

    Args:
        photos, masks: the folders.
        classes: labels run from 0 to below it; 255 is ignored.
        names: of these photos, such as the lines of VOC's `ImageSets/Segmentation/train.txt`. None for all that have a mask; a
            warning counts the others (VOC has masks for a sixth of its photos).
        on_error: see `Readable`.

    Raises:
        FileNotFoundError: there is no such folder, no photo has a mask, or one of `names` lacks its photo or mask.
        ValueError: a folder holds no images, or two of one name; or more than 255 classes.
    """
    _check_classes(classes)
    photo_of, mask_of = _by_name(photos), _by_name(masks)
    if names is not None:
        for folder, paths in ((photos, photo_of), (masks, mask_of)):
            if missing := [name for name in names if name not in paths]:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(names)} listed names are not in {folder}, first {missing[0]}: expected lines such as "
                    f"{next(iter(paths))}."
                )
        names = list(dict.fromkeys(names))
        if not names:
            raise ValueError("The list names no photo: expected one name a line.")
    else:
        names = [name for name in photo_of if name in mask_of]
        if missing := [name for name in photo_of if name not in mask_of]:
            message = f"{len(missing)} of {len(photo_of)} photos have no mask in {masks}, first {missing[0]}"
            if not names:
                raise FileNotFoundError(f"{message}: a mask has its photo's name and is an indexed or greyscale PNG.")
            log.warning("%s: they are left out.", message)
    return PhotoMaskFolder(tuple((photo_of[name], mask_of[name]) for name in names), classes, on_error=on_error)


def _by_name(folder: str | os.PathLike) -> dict[str, Path]:
    """The images of a folder by their paths within it, without suffixes."""
    folder, paths = user_path(folder), {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix() if path != folder else path.stem
        if name in paths:
            raise ValueError(f"{path} and {paths[name]} have the same name: a photo can have one mask only.")
        paths[name] = path
    return paths


def tfds_photos_and_masks(name: str, split: str, classes: int, data_dir: str | os.PathLike | None = None):
    """(photo, mask) pairs of a TFDS data set, as `PhotoMaskFolder` gives them, for many passes.

    Args:
        name: such as "oxford_iiit_pet" or "scene_parse150"; its features must include an image and a mask of labels.
        split: such as "train[:90%]".
        classes, data_dir: as in `photos_and_masks` and `open_tfds`, also their errors.
    """
    _check_classes(classes)
    builder = open_tfds(name, data_dir)
    features = builder.info.features
    key = next((key for key in _MASKS if key in features and len(features[key].shape) == 3), None)
    if key is None or "image" not in features:
        raise ValueError(f"TFDS {name} has the features {', '.join(features)}: expected an image and a mask ({', '.join(_MASKS)}).")
    return _TfdsPairs(builder, split, key, classes)


@dataclass(frozen=True)
class _TfdsPairs:
    builder: object
    split: str
    key: str
    classes: int

    def __len__(self) -> int:
        return self.builder.info.splits[self.split].num_examples

    def __iter__(self) -> Iterator[Pair]:
        return self._checked(self.builder.as_dataset(split=self.split).enumerate())

    def shuffled(self, seed: tuple[int, ...], start: int = 0) -> Iterator[Pair]:
        """One pass from its `start` on, shuffled through a buffer by the seed."""
        number = int(np.random.default_rng(seed).integers(2**31))
        dataset = self.builder.as_dataset(split=self.split).enumerate()
        return self._checked(dataset.shuffle(_BUFFER, number, reshuffle_each_iteration=False).skip(start))

    def _checked(self, numbered) -> Iterator[Pair]:
        for i, example in numbered.as_numpy_iterator():
            name = f"{self.builder.name} {self.split}, example {i}"
            photo, mask = example["image"], example[self.key][..., 0]
            _check_pair(photo, mask, self.classes, name, f"{self.key} of {name}")
            yield photo, mask.astype(np.uint8)


def augmented(
    image, mask, crop: tuple[int, int], seed, scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), flip: float = 0.5
):
    """One training example: scaled, padded, cropped and mirrored at random.

    Args:
        image, mask: uint8 tensors (H, W, 3) and (H, W).
        crop: (height, width) of the result.
        seed: two int64, which decide every draw.
        scales: one of them is chosen.
        flip: probability of a mirror image.

    Returns:
        float32 (height, width, 3) in [-1, 1] and int32 (height, width), 255 where there is nothing to learn.
    """
    import tensorflow as tf

    size, draws = tf.shape(mask), tf.random.stateless_uniform((4,), seed)

    def drawn(draw: int, count):
        return tf.minimum(tf.cast(draws[draw] * tf.cast(count, tf.float32), tf.int32), count - 1)

    scale = tf.constant(scales, tf.float32)[drawn(0, len(scales))]
    scaled = tf.maximum(tf.cast(tf.cast(size, tf.float32) * scale, tf.int32), 1)
    pixels, labels = tf.cast(image, tf.float32), mask[..., None]
    if tuple(scales) != (1.0,):
        pixels = tf.raw_ops.ResizeBilinear(images=pixels[None], size=scaled, align_corners=True)[0]
        labels = tf.raw_ops.ResizeNearestNeighbor(images=labels[None], size=scaled, align_corners=True)[0]
    short = tf.maximum(tf.constant(crop) - tf.shape(labels)[:2], 0)
    margin = [[0, short[0]], [0, short[1]], [0, 0]]
    pixels = tf.pad(pixels - PADDING, margin) + PADDING
    labels = tf.pad(labels, margin, constant_values=IGNORED)
    room = tf.shape(labels)[:2] - tf.constant(crop) + 1
    top, left, mirrored = drawn(1, room[0]), drawn(2, room[1]), draws[3] < flip
    pixels, labels = (part[top : top + crop[0], left : left + crop[1]] for part in (pixels, labels))
    pixels, labels = (tf.cond(mirrored, lambda x=x: x[:, ::-1], lambda x=x: x) for x in (pixels, labels))
    return normalize_image(tf.ensure_shape(pixels, (*crop, 3))), tf.cast(tf.ensure_shape(labels[..., 0], crop), tf.int32)


def segmentation_batches(pairs, batch: int, crop: tuple[int, int], scales, flip: float = 0.5, seed: int = 0, start: int = 0):
    """An endless `tf.data.Dataset` of augmented batches: pass after pass, each in its own order.

    Args:
        pairs: `photos_and_masks`, `tfds_photos_and_masks` or `DrawnShapes`.
        batch, crop, scales, flip: as in `augmented`, for this many examples in a batch.
        seed: of order and augmentation.
        start: the number of the first batch, as if those before had been taken.

    Returns:
        Batches of float32 (batch, height, width, 3) and int32 (batch, height, width).
    """
    import tensorflow as tf

    from mnv2_keras.data.batches import stream_batches

    def examples():
        first, place = divmod(start * batch, len(pairs))
        for number in itertools.count(first):
            yield from pairs.shuffled((seed, number), place if number == first else 0)

    def prepare(image, mask, place):
        return augmented(image, mask, crop, place, tuple(scales), flip)

    signature = (tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((None, None), tf.uint8))
    stream = tf.data.Dataset.from_generator(examples, output_signature=signature)
    return stream_batches(stream, prepare, batch, seed=seed, start=start)
