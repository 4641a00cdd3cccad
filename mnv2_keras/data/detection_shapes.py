"""Circles, squares and triangles on noise, drawn as they are needed: a detection data set that needs no download."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from mnv2_keras.data.detection import DetectionData, DetectionExample

LABELS = ("circle", "square", "triangle")
#: Corners of each shape (the circle is round), and where the first one points, in turns.
_CORNERS = {"square": (4, 0.125), "triangle": (3, 0.75)}
#: Diameters as parts of the side: sizes that the finest map's anchors answer for.
_SIZES = (0.18, 0.36)
#: Shapes overlap by no more of the smaller one's box.
_MOST_OVERLAP = 0.15


def draw_shapes(seed: int, side: int = 128) -> DetectionExample:
    """One image of one to four shapes, each with its tight box; the same for the same seed.

    Args:
        seed: any whole number from 0 on.
        side: of the square image, in pixels.
    """
    rng = np.random.default_rng(seed)
    image = _background(rng, side)
    drawn, boxes, classes = ImageDraw.Draw(image), [], []
    for _ in range(int(rng.integers(1, 5))):
        kind = int(rng.integers(len(LABELS)))
        for _ in range(20):
            size = side * rng.uniform(*_SIZES)
            y, x = rng.uniform(size / 2, side - size / 2, 2)
            mask = _mask(LABELS[kind], y, x, size, rng.uniform(-0.06, 0.06), side)
            left, top, right, bottom = mask.getbbox()
            box = np.array([top, left, bottom, right], np.float32) / side
            if all(_shared(box, other) <= _MOST_OVERLAP for other in boxes):
                under = np.asarray(image).reshape(-1, 3).mean(axis=0)
                drawn.bitmap((0, 0), mask, fill=_colour(rng, under))
                boxes.append(box)
                classes.append(kind)
                break
    return DetectionExample(
        np.asarray(image), np.stack(boxes), np.array(classes, np.int32), np.zeros(len(boxes), bool), number=seed
    )


def _background(rng, side: int) -> Image.Image:
    """Two colours that run into each other, and grain."""
    first, second = rng.uniform(30, 225, (2, 3))
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:side, :side] / side - 0.5
    share = np.clip(0.5 + y * math.sin(angle) + x * math.cos(angle), 0, 1)[..., None]
    pixels = first * share + second * (1 - share) + rng.normal(0, rng.uniform(2, 18), (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _mask(label: str, y: float, x: float, size: float, turn: float, side: int) -> Image.Image:
    mask = Image.new("1", (side, side))
    drawn = ImageDraw.Draw(mask)
    if label == "circle":
        drawn.ellipse([x - size / 2, y - size / 2, x + size / 2, y + size / 2], fill=1)
        return mask
    count, first = _CORNERS[label]
    turns = [2 * math.pi * (first + turn + i / count) for i in range(count)]
    reach = size / 2
    drawn.polygon([(x + reach * math.cos(t), y + reach * math.sin(t)) for t in turns], fill=1)
    return mask


def _shared(box: np.ndarray, other: np.ndarray) -> float:
    """Common area as a part of the smaller box."""
    common = np.prod(np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0))
    return float(common / min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2])))


def _colour(rng, under: np.ndarray) -> tuple[int, int, int]:
    """Any colour that is not the background's."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - under).max() > 70:
            return tuple(int(value) for value in colour)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """Images of consecutive seeds, drawn when first iterated over, and then kept: 28 kB each at 96 pixels."""

    first: int
    count: int
    side: int
    kept: dict[int, DetectionExample] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> DetectionExample:
        if number not in range(self.count):
            raise IndexError(number)
        if number not in self.kept:
            self.kept[number] = draw_shapes(self.first + number, self.side)
        return self.kept[number]

    def __iter__(self) -> Iterator[DetectionExample]:
        return map(self.__getitem__, range(self.count))


#: Seeds of training and of held-out images never meet.
_HELD_OUT = 10**9


def drawn_shapes(count: int, side: int = 128, held_out: bool = False, seed: int = 0) -> DetectionData:
    """Drawn images, made on the fly.

    Args:
        count: how many.
        side: of the square images, in pixels.
        held_out: images no training ever sees.
        seed: of the first image.
    """
    first = (_HELD_OUT if held_out else 0) + seed
    return DetectionData(_Drawn(first, count, side), LABELS, tuple(range(1, len(LABELS) + 1)))
