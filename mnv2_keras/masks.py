"""A photo into a segmenter, and a mask of labels out of it: fitting, padding, colours, indexed PNG files."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from mnv2_keras.atomic import replacing
from mnv2_keras.checks import user_path
from mnv2_keras.images import ImageError
from mnv2_keras.preprocessing import normalize_image

#: The label of pixels that are not judged: borders, padding.
IGNORED = 255
#: What photos are padded with; 0 once it is normalised.
PADDING = 127.5


def voc_palette(colours: int = 256) -> np.ndarray:
    """Pascal VOC's colours: uint8 (colours, 3), black for label 0; label 255 is a pale cream.

    Source: the VOC development kit's `VOClabelcolormap`: the label's bits, dealt to red, green and blue in turn, become the
    colours' bits from the highest down.
    """
    bits = np.arange(colours)[:, None, None] >> np.arange(24).reshape(8, 3) & 1  # (colours, 8, 3)
    return (bits << np.arange(7, -1, -1)[:, None]).sum(axis=1).astype(np.uint8)


def fit_photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The photo itself where it fits into (height, width), else shrunk until it does, its aspect ratio kept (Lanczos).

    uint8 (H, W, 3) to uint8 (h, w, 3).
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    if scale >= 1:
        return image
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(smaller, Image.Resampling.LANCZOS))


def pad_photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A photo at the top left of an input of (height, width), grey (127.5) right of it and below, from -1 to 1.

    Source: DeepLab's exporter, `input_preprocess.preprocess_image_and_label`.

    Args:
        image: (h, w, 3), 0 to 255, at most as large as `size`.
        size: (height, width) of the network's input.

    Returns:
        float32 (height, width, 3).

    Raises:
        ValueError: the photo is larger.
    """
    height, width = image.shape[:2]
    if height > size[0] or width > size[1]:
        raise ValueError(f"a photo of {height} x {width} does not fit into {size[0]} x {size[1]}: use fit_photo first.")
    padded = np.zeros((*size, 3), np.float32)
    padded[:height, :width] = normalize_image(image)
    return padded


def pad_levels(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As `pad_photo`, for a network that takes the pixels themselves: uint8 (height, width, 3), padded with 128."""
    padded = np.full((*size, 3), 128, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """A mask of labels: uint8 (H, W), from an indexed or greyscale picture of at most 8 bits.

    Raises:
        FileNotFoundError: no such file.
        ImageError: it cannot be read as a picture, or is in colour, so that its labels are unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no mask {path}: check the path.")
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise ImageError(
                    f"{path} has pixels of mode {image.mode}: a mask of labels is an indexed or greyscale 8-bit picture, "
                    "each pixel its label."
                )
            # Pillow spreads greys of 1, 2 and 4 bits over 0 to 255 (and gives 1 bit as bool): the label is the number stored.
            stored = image.tile[0][3] if image.mode == "L" and image.tile else None
            return np.asarray(image).astype(np.uint8) // np.uint8({"L;2": 85, "L;4": 17}.get(stored, 1))
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever they stumble upon
        raise ImageError(f"{path} is not a mask that Pillow can read ({error}): copy or make it again.") from error


def save_mask(labels: np.ndarray, path: str | os.PathLike, palette: np.ndarray | None = None) -> Path:
    """Write labels (H, W), 0 to 255, as an indexed PNG, atomically.

    Args:
        palette: uint8 (256, 3) colours; Pascal VOC's by default.
    """
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette((voc_palette() if palette is None else palette).tobytes())
    return save_picture(image, path)


def save_picture(image: Image.Image, path: str | os.PathLike) -> Path:
    """Write a PNG atomically."""
    with replacing(path) as file:
        image.save(file, "PNG")
    return user_path(path)
