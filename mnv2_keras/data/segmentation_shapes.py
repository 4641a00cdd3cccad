"""Drawn circles, squares and triangles with their masks: a segmentation task that needs no download."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SHAPE_NAMES = ("background", "circle", "square", "triangle")


@dataclass(frozen=True)
class DrawnShapes:
    """Pictures of one or two shapes in random colours on a textured ground; the same ones at each pass.

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
        for index in range(self.count):
            yield self.draw(index)

    def shuffled(self, seed: tuple[int, ...], start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass from its `start` on, in the order that the seed gives."""
        return (self.draw(index) for index in np.random.default_rng(seed).permutation(self.count)[start:])

    def draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One picture: uint8 (side, side, 3) and its mask, uint8 (side, side), 0 to 3."""
        random = np.random.default_rng((self.seed, int(index)))
        # A ground of soft blotches, and a little noise over everything.
        blotches = random.integers(0, 256, (6, 6, 3), np.uint8)
        picture = Image.fromarray(blotches).resize((self.side, self.side), Image.Resampling.BICUBIC)
        mask = Image.new("L", picture.size)
        pens = ImageDraw.Draw(picture), ImageDraw.Draw(mask)
        for _ in range(random.integers(1, 3)):
            label = int(random.integers(1, len(SHAPE_NAMES)))
            radius = random.uniform(0.2, 0.36) * self.side
            middle = random.uniform(0.2, 0.8, 2) * self.side
            outline = _outline(label, middle, radius, random.uniform(-0.2, 0.2))
            under = np.asarray(picture)[tuple(middle.astype(int)[::-1])]
            # As far from the ground's colour as half of the range, so that a shape can be seen.
            colour = tuple(((under + random.integers(80, 177, 3)) % 256).tolist())
            for pen, fill in zip(pens, (colour, label), strict=True):
                pen.polygon(outline, fill=fill)
        noisy = np.asarray(picture, np.int16) + random.integers(-12, 13, (self.side, self.side, 3))
        return noisy.clip(0, 255).astype(np.uint8), np.asarray(mask)


def _outline(label: int, middle: np.ndarray, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape, upright but for a small turn (in radians): 48 make a circle."""
    corners, first = {1: (48, 0.0), 2: (4, np.pi / 4), 3: (3, -np.pi / 2)}[label]
    angles = first + turn + np.arange(corners) * 2 * np.pi / corners
    return [(middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle)) for angle in angles]
