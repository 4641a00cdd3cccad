"""Drawn circles, squares and triangles with their boxes and masks: data for every task that need no download."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mnv2_keras.data.detection import DetectionData, DetectionExample

LABELS = ("circle", "square", "triangle")
#: The labels of masks.
SHAPE_NAMES = ("background", *LABELS)
#: Number of corners of each shape, and the angle of the first one in radians.
_CORNERS = ((48, 0.0), (4, math.pi / 4), (3, -math.pi / 2))
#: Seeds of a detector's training images and held-out images differ by this.
_HELD_OUT = 10**9


class Picture(NamedTuple):
    """A drawn picture.

    Attributes:
        image: uint8 (side, side, 3).
        boxes: float32 (N, 4): ymin, xmin, ymax, xmax of each whole shape, as parts of the side.
        classes: int32 (N,), indices of `LABELS`.
        mask: uint8 (side, side), indices of `SHAPE_NAMES`; a later shape hides an earlier one.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    mask: np.ndarray


def draw_on_gradient(seed: int, side: int) -> Picture:
    """One to four small shapes that hardly overlap, on a gradient with noise: for detection."""
    rng = np.random.default_rng(seed)
    colours, angle = rng.uniform(30, 225, (2, 3)), rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:side, :side] / side - 0.5
    share = np.clip(0.5 + y * math.sin(angle) + x * math.cos(angle), 0, 1)[..., None]
    pixels = colours[0] * share + colours[1] * (1 - share) + rng.normal(0, rng.uniform(2, 18), (side, side, 3))
    image, shapes = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), []
    for _ in range(int(rng.integers(1, 5))):
        label = int(rng.integers(len(LABELS)))
        for _ in range(20):
            size = side * rng.uniform(0.18, 0.36)  # diameters that the finest feature map's anchors detect
            y, x = rng.uniform(size / 2, side - size / 2, 2)
            bitmap = _bitmap(label, x, y, size / 2, 2 * math.pi * rng.uniform(-0.06, 0.06), side, round_circle=True)
            if all(_overlap(_box(bitmap), _box(other)) <= 0.15 for _, other in shapes):
                mean = np.asarray(image).reshape(-1, 3).mean(axis=0)
                colour = rng.uniform(0, 255, 3)
                while np.abs(colour - mean).max() <= 70:
                    colour = rng.uniform(0, 255, 3)
                image.paste(tuple(colour.astype(int).tolist()), mask=bitmap)
                shapes.append((label, bitmap))
                break
    return _picture(np.asarray(image), shapes)


def draw_on_blotches(seed: int | tuple[int, ...], side: int) -> Picture:
    """One or two large shapes on soft blotches, with a little noise over everything: for segmentation."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    image, shapes = blotches.resize((side, side), Image.Resampling.BICUBIC), []
    for _ in range(rng.integers(1, 3)):
        label = int(rng.integers(1, len(SHAPE_NAMES))) - 1
        radius = rng.uniform(0.2, 0.36) * side
        x, y = rng.uniform(0.2, 0.8, 2) * side
        bitmap = _bitmap(label, x, y, radius, rng.uniform(-0.2, 0.2), side)
        # As far from the background's colour as half of the range.
        colour = (np.asarray(image)[int(y), int(x)] + rng.integers(80, 177, 3)) % 256
        image.paste(tuple(colour.tolist()), mask=bitmap)
        shapes.append((label, bitmap))
    noisy = np.asarray(image, np.int16) + rng.integers(-12, 13, (side, side, 3))
    return _picture(noisy.clip(0, 255).astype(np.uint8), shapes)


def _bitmap(label: int, x, y, radius, turn: float, side: int, round_circle: bool = False) -> Image.Image:
    """A shape as an image of one bit; `turn` in radians."""
    bitmap = Image.new("1", (side, side))
    pen, (corners, first) = ImageDraw.Draw(bitmap), _CORNERS[label]
    if round_circle and LABELS[label] == "circle":
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1)
        return bitmap
    angles = first + turn + np.arange(corners) * 2 * math.pi / corners
    pen.polygon([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles], fill=1)
    return bitmap


def _box(bitmap: Image.Image) -> np.ndarray:
    """float32 (4,): ymin, xmin, ymax, xmax as parts of the side."""
    left, top, right, bottom = bitmap.getbbox()
    return np.array([top, left, bottom, right], np.float32) / bitmap.width


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Common area as a part of the smaller box."""
    common = np.prod(np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0))
    return float(common / min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2])))


def _picture(image: np.ndarray, shapes: list[tuple[int, Image.Image]]) -> Picture:
    mask = Image.new("L", image.shape[1::-1])
    for label, bitmap in shapes:
        mask.paste(label + 1, mask=bitmap)
    boxes = np.stack([_box(bitmap) for _, bitmap in shapes])
    return Picture(image, boxes, np.array([label for label, _ in shapes], np.int32), np.asarray(mask))


@dataclass(frozen=True)
class DrawnShapes:
    """Photos with masks of `draw_on_blotches`, the same ones at each pass.

    Attributes:
        count: pictures in a pass.
        side: pixels of the square picture.
        seed: other seeds draw other pictures.
    """

    count: int
    side: int = 65
    seed: int = 0
    classes: int = len(SHAPE_NAMES)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return map(self.draw, range(self.count))

    def shuffled(self, seed: tuple[int, ...], start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass from its `start` on, in the order that the seed gives."""
        return map(self.draw, np.random.default_rng(seed).permutation(self.count)[start:])

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One picture: uint8 (side, side, 3) and its mask, uint8 (side, side), 0 to 3."""
        picture = draw_on_blotches((self.seed, int(index)), self.side)
        return picture.image, picture.mask


@dataclass(frozen=True)
class _DrawnExamples(Sequence):
    """Detection examples of consecutive seeds, drawn when they are first read, then cached: 28 kB each at 96 pixels."""

    first: int
    length: int
    side: int
    cache: dict[int, DetectionExample] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> DetectionExample:
        if number not in range(self.length):
            raise IndexError(number)
        if number not in self.cache:
            self.cache[number] = draw_shapes(self.first + number, self.side)
        return self.cache[number]


def draw_shapes(seed: int, side: int = 128) -> DetectionExample:
    """A picture of `draw_on_gradient` as an example for a detector."""
    image, boxes, classes, _ = draw_on_gradient(seed, side)
    return DetectionExample(image, boxes, classes, np.zeros(len(boxes), bool), number=seed)


def drawn_shapes(count: int, side: int = 128, held_out: bool = False, seed: int = 0) -> DetectionData:
    """Images of `side` x `side` pixels with boxes, drawn when they are read; `held_out` are other images than those of training.

    `seed` is that of the first image.
    """
    examples = _DrawnExamples(seed + _HELD_OUT * held_out, count, side)
    return DetectionData(examples, LABELS, tuple(range(1, len(LABELS) + 1)))
