"""Photos with masks: from a folder, from TFDS, or drawn; and what training does to them before the network sees them.

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

from mnv2_keras.data.tfds import open_tfds
from mnv2_keras.images import ImageError, find_images, read_image
from mnv2_keras.masks import IGNORED, PADDING, read_mask
from mnv2_keras.preprocessing import normalize_image

log = logging.getLogger("mnv2_keras")

#: Examples of a TFDS stream that are held to draw from.
_BUFFER = 256
#: What TFDS data sets call a mask of labels.
_MASKS = ("segmentation_mask", "segmentation_label", "annotation", "mask", "label")


@dataclass(frozen=True)
class PhotoMaskFolder:
    """Photos in one folder, a mask of the same name for each in another.

    Attributes:
        pairs: (photo, mask) paths, sorted by name.
        classes: labels run from 0 to below it; 255 is ignored.
        broken: photos left out so far because they or their masks cannot be read, with the reason.
    """

    pairs: tuple[tuple[Path, Path], ...]
    classes: int
    broken: dict[str, str] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All that can be read, in their order.

        Raises:
            ImageError: not one of them can.
            ValueError: as `read` does for what can be read and does not fit.
        """
        return (pair for index in range(len(self)) if (pair := self._readable(index)))

    def shuffled(self, seed: tuple[int, ...], start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass of `len(self)` pairs from its `start` on, in the order that the seed gives.

        For one that cannot be read the next one that can is given, so that a pass has one length whatever is broken.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        for place in range(start, len(self)):
            chain = itertools.chain(order[place:], order[:place])
            yield next(pair for index in chain if (pair := self._readable(index)))

    def check(self, progress: Callable[[int], None] | None = None) -> None:
        """Look at every pair before a long training does: what cannot be read is noted in `broken`.

        Args:
            progress: called with the number of pairs looked at.

        Raises:
            ValueError: photos and masks that do not fit each other, or masks with labels that are no class, by their names:
                the cause is likely to be one for all of them.
            ImageError: not one pair can be read.
        """

        def fault(index: int) -> str | None:
            try:
                self.read(index)
            except (ImageError, OSError):
                self._readable(index)
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = []
            for done, each in enumerate(pool.map(fault, range(len(self))), start=1):
                faults += [each] if each else []
                if progress:
                    progress(done)
        if faults:
            others = f" And {len(faults) - 1} more of {len(self)} do not fit." if len(faults) > 1 else ""
            raise ValueError(faults[0] + others)

    def _readable(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The pair, or None once its fault is noted."""
        try:
            return self.read(index)
        except (ImageError, OSError) as error:
            self.broken[str(self.pairs[index][0])] = str(error)
            if len(self.broken) == len(self):
                raise ImageError(f"None of {len(self)} photos with masks can be read: {error}") from error
            return None

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Photo uint8 (H, W, 3) and mask uint8 (H, W).

        Raises:
            ImageError: one of the files is broken.
            ValueError: their sizes differ, or the mask has a label that is no class.
        """
        photo_path, mask_path = self.pairs[index]
        photo, mask = read_image(photo_path), read_mask(mask_path)
        _check_sizes(photo, mask, photo_path.name, str(mask_path))
        check_labels(mask, self.classes, str(mask_path))
        return photo, mask


def _check_sizes(photo: np.ndarray, mask: np.ndarray, name: str, mask_name: str) -> None:
    if photo.shape[:2] != mask.shape:
        raise ValueError(
            f"{name} is {photo.shape[0]} x {photo.shape[1]}, its mask {mask_name} {mask.shape[0]} x {mask.shape[1]}: they must "
            "have the same size."
        )


def _check_classes(classes: int) -> None:
    if not 1 <= classes <= IGNORED:
        raise ValueError(f"classes is {classes}: masks are uint8 and {IGNORED} is ignored, so expected 1 to {IGNORED}.")


def check_labels(mask: np.ndarray, classes: int, name: str) -> None:
    """Refuse a mask with labels that are neither a class nor ignored.

    Raises:
        ValueError: naming them.
    """
    present = np.unique(mask)
    unknown = present[(present >= classes) & (present != IGNORED)]
    if unknown.size:
        raise ValueError(
            f"{name} has unknown labels {', '.join(map(str, unknown[:8]))}: expected 0 to {classes - 1}, or {IGNORED} for "
            "pixels to ignore. Pass the right number of classes, or map the labels first."
        )


def photos_and_masks(
    photos: str | os.PathLike, masks: str | os.PathLike, classes: int, names: Sequence[str] | None = None
) -> PhotoMaskFolder:
    """Pair the photos of a folder with the masks of another: the same path within it, but for the suffix.

    Args:
        photos, masks: the folders.
        classes: labels run from 0 to below it; 255 is ignored.
        names: which of them, such as the lines of VOC's `ImageSets/Segmentation/train.txt`. None for all that have both;
            a warning counts photos without a mask (VOC has masks for a sixth of them).

    Raises:
        FileNotFoundError: there is no such folder, no photo has a mask, or one of `names` lacks either.
        ValueError: a folder holds no images, or two of one name; or more than 255 classes.
    """
    _check_classes(classes)
    by_name = _by_name(photos), _by_name(masks)
    both = [name for name in by_name[0] if name in by_name[1]]
    if names is not None:
        for folder, found in zip((photos, masks), by_name, strict=True):
            if missing := [name for name in names if name not in found]:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(names)} listed names are not in {folder}, first {missing[0]}: expected lines such as "
                    f"{next(iter(found))}."
                )
        both = list(dict.fromkeys(names))
        if not both:
            raise ValueError("The list names no photo: expected one name a line.")
    elif len(both) < len(by_name[0]):
        alone = next(name for name in by_name[0] if name not in by_name[1])
        told = f"{len(by_name[0]) - len(both)} of {len(by_name[0])} photos have no mask in {masks}, first {alone}"
        if not both:
            raise FileNotFoundError(f"{told}: a mask has its photo's name and is an indexed or greyscale PNG.")
        log.warning("%s: they are left out.", told)
    return PhotoMaskFolder(tuple((by_name[0][name], by_name[1][name]) for name in both), classes)


def _by_name(folder: str | os.PathLike) -> dict[str, Path]:
    """The images of a folder by their paths within it, without suffixes."""
    folder, found = Path(folder).expanduser(), {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix() if path != folder else path.stem
        if name in found:
            raise ValueError(f"{path} and {found[name]} have the same name: a photo can have one mask only.")
        found[name] = path
    return found


def tfds_photos_and_masks(name: str, split: str, classes: int, data_dir: str | os.PathLike | None = None):
    """(photo, mask) of a TFDS data set, as `PhotoMaskFolder` gives them, to be gone through many times.

    Args:
        name: such as "oxford_iiit_pet" or "scene_parse150"; its features must hold an image and a mask of labels.
        split: such as "train[:90%]".

    Raises:
        ValueError: the data set has no mask of labels; or more than 255 classes.
    """
    _check_classes(classes)
    builder = open_tfds(name, data_dir)
    features = builder.info.features
    key = next((key for key in _MASKS if key in features and len(features[key].shape) == 3), None)
    if key is None or "image" not in features:
        raise ValueError(
            f"TFDS {name} has the features {', '.join(features)}: expected an image and a mask ({', '.join(_MASKS)})."
        )
    return _TfdsPairs(builder, split, key, classes)


@dataclass(frozen=True)
class _TfdsPairs:
    builder: object
    split: str
    key: str
    classes: int

    def __len__(self) -> int:
        return self.builder.info.splits[self.split].num_examples

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self._checked(self.builder.as_dataset(split=self.split).enumerate())

    def shuffled(self, seed: tuple[int, ...], start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass from its `start` on, mixed within a buffer by the seed."""
        number = int(np.random.default_rng(seed).integers(2**31))
        mixed = self.builder.as_dataset(split=self.split).enumerate()
        mixed = mixed.shuffle(_BUFFER, number, reshuffle_each_iteration=False)
        return self._checked(mixed.skip(start))

    def _checked(self, numbered) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i, example in numbered.as_numpy_iterator():
            name = f"{self.builder.name} {self.split}, example {i}"
            photo, mask = example["image"], example[self.key][..., 0]
            _check_sizes(photo, mask, name, self.key)
            check_labels(mask, self.classes, name)
            yield photo, mask.astype(np.uint8)


def augmented(
    image,
    mask,
    crop: tuple[int, int],
    seed,
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
    flip: float = 0.5,
):
    """One training example: scaled, padded, cropped and mirrored at random.

    Args:
        image: uint8 tensor (H, W, 3).
        mask: uint8 tensor (H, W).
        crop: (height, width) of the result.
        seed: two int64, which give every draw.
        scales: one is chosen.
        flip: chance of a mirror image.

    Returns:
        float32 (height, width, 3) in [-1, 1] and int32 (height, width), 255 where there is nothing to learn.
    """
    import tensorflow as tf

    size, draws = tf.shape(mask), tf.random.stateless_uniform((4,), seed)

    def drawn(draw: int, count):
        return tf.minimum(tf.cast(draws[draw] * tf.cast(count, tf.float32), tf.int32), count - 1)

    scale = tf.constant(scales, tf.float32)[drawn(0, len(scales))]
    scaled = tf.maximum(tf.cast(tf.cast(size, tf.float32) * scale, tf.int32), 1)
    pixels = tf.cast(image, tf.float32)
    if tuple(scales) != (1.0,):
        pixels = tf.raw_ops.ResizeBilinear(images=pixels[None], size=scaled, align_corners=True)[0]
        mask = tf.raw_ops.ResizeNearestNeighbor(images=mask[None, ..., None], size=scaled, align_corners=True)[
            0, ..., 0
        ]
    short = tf.maximum(tf.constant(crop) - tf.shape(mask), 0)
    pixels = tf.pad(pixels - PADDING, [[0, short[0]], [0, short[1]], [0, 0]]) + PADDING
    mask = tf.pad(mask, [[0, short[0]], [0, short[1]]], constant_values=IGNORED)
    room = tf.shape(mask) - tf.constant(crop) + 1
    top, left = drawn(1, room[0]), drawn(2, room[1])
    pixels = pixels[top : top + crop[0], left : left + crop[1]]
    mask = mask[top : top + crop[0], left : left + crop[1]]
    mirrored = draws[3] < flip
    pixels, mask = (tf.cond(mirrored, lambda x=x: x[:, ::-1], lambda x=x: x) for x in (pixels, mask))
    return normalize_image(tf.ensure_shape(pixels, (*crop, 3))), tf.cast(tf.ensure_shape(mask, crop), tf.int32)


def training_batches(
    pairs, batch: int, crop: tuple[int, int], scales, flip: float = 0.5, seed: int = 0, start: int = 0
):
    """An endless `tf.data.Dataset` of augmented batches: pass after pass, each in an order of its own.

    Args:
        pairs: `photos_and_masks`, `tfds_photos_and_masks` or `DrawnShapes`.
        batch: examples in a batch.
        crop, scales, flip: as in `augmented`.
        seed: gives order and augmentation.
        start: the batch to start with, as if those before had been taken.

    Returns:
        Batches of float32 (batch, height, width, 3) and int32 (batch, height, width).
    """
    import tensorflow as tf

    from mnv2_keras.data.batches import options

    def examples():
        first, place = divmod(start * batch, len(pairs))
        for number in itertools.count(first):
            yield from pairs.shuffled((seed, number), place if number == first else 0)

    def changed(number, example):
        number += start * batch
        return augmented(*example, crop, tf.stack([tf.cast(seed, tf.int64), number]), tuple(scales), flip)

    signature = (tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((None, None), tf.uint8))
    data = tf.data.Dataset.from_generator(examples, output_signature=signature)
    # Two at a time: the network needs the cores more.
    data = data.enumerate().map(changed, num_parallel_calls=2, deterministic=True)
    return data.batch(batch, drop_remainder=True).prefetch(2).with_options(options())
