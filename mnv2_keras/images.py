"""Photos on disk: finding them, and reading each as upright 8-bit RGB pixels."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from mnv2_keras.checks import user_path

ImageSource = str | os.PathLike | bytes | Image.Image | io.IOBase
#: What is taken for an image in a folder. Pillow needs a plugin for .heic; without it these are reported as unreadable.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".jpx", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif"}
    | {".tif", ".tiff", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"}
)

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A file exists but cannot be used as a picture; the message names it and says what to do."""


def read_image(source: ImageSource) -> np.ndarray:
    """Read one picture as RGB.

    JPEG, PNG, BMP, WebP, GIF (the first frame) and Pillow's other formats. The pixels equal those of Pillow's
    `Image.open(source).convert("RGB")`; besides, the EXIF orientation is applied, transparent pictures are put on white, and
    16-bit ones keep their high byte (Pillow clips a greyscale one to 255).

    Args:
        source: a path, the bytes of a file, a binary file that is open, or an opened PIL image.

    Returns:
        uint8 (H, W, 3), read-only.

    Raises:
        FileNotFoundError: no such file.
        ImageError: a folder, an empty, truncated or unreadable file, more pixels than `PIL.Image.MAX_IMAGE_PIXELS` (89 million
            by default), or pixels of an unknown range.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"an image of {len(source)} bytes")
    if isinstance(source, io.IOBase):
        return _decode(source, str(getattr(source, "name", "the open file")))
    path = user_path(source)
    if path.is_dir():
        raise ImageError(f"{path} is a folder, not an image: find_images lists the images inside.")
    if path.exists() and not path.is_file() and str(path) != "/dev/stdin":  # a pipe would be waited for
        raise ImageError(f"{path} is a pipe or a device, not a file: pass a file, or /dev/stdin.")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image {path}: check the path.") from None
    with file:
        return _decode(file, str(path))


def grey_photo(image) -> np.ndarray:
    """The brightness of a photo with Pillow's weights (ITU-R 601): uint8 (H, W); an array in grey is returned unchanged.

    Args:
        image: as in `read_image`, with its errors; or an array.
    """
    if isinstance(image, ImageSource):
        image = read_image(image)
    image = np.asarray(image)
    colour = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    return np.asarray(Image.fromarray(image).convert("L")) if colour else image


def _decode(source: BinaryIO | Image.Image, name: str) -> np.ndarray:
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        _check_pixels(image.size, name)
        image.load()
        return np.asarray(_rgb(_upright(image), name))
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _giant(name, str(error)) from error
    except Image.UnidentifiedImageError as error:
        source.seek(0)
        empty = not source.read(1)
        fault = "is empty: copy it again" if empty else "is not an image Pillow can read: convert it to JPEG or PNG"
        raise ImageError(f"{name} {fault}.") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
        raise ImageError(f"{name} is truncated or damaged ({error}): copy or download it again.") from error


def _check_pixels(size: tuple[int, int], name: str) -> None:
    """Refuse more pixels than Pillow's limit, where Pillow only warns up to twice of it."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise _giant(name, f"{size[0]} x {size[1]} pixels, over the limit of {limit}")


def _giant(name: str, reason: str) -> ImageError:
    return ImageError(
        f"{name} is too large to be a photo ({reason}): scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if it can be trusted."
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        orientation = None
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bit(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """The high byte of 16-bit greyscale, as Pillow keeps of 16-bit colour; 8-bit values in 32 bits unchanged."""
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
        raise ImageError(
            f"{name} holds {pixels.dtype} pixels from {pixels.min()} to {pixels.max()}, expected 0 to 255 or 0 to 65535: save it "
            "with 8 or 16 bits per channel."
        )
    is_8_bit = image.mode == "I" and pixels.max() <= 255  # 32 bits in memory, of which a writer used 8
    return Image.fromarray((pixels if is_8_bit else pixels >> 8).astype(np.uint8))


def find_images(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """The image files in some files and folders, in the order of the arguments.

    Args:
        paths: one path or several. A file is returned whatever its name. A folder gives the files below it with a suffix of
            `IMAGE_SUFFIXES` (in any case), sorted by path, without hidden files and folders; links to folders are not followed.

    Raises:
        FileNotFoundError: a path that does not exist.
        ImageError: a folder without images.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    return [file for path in paths for file in _files(user_path(path))]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"There is no image or folder {path}: check the path.")
    if not path.is_dir():
        return [path]
    files = []
    for parent, folders, names in os.walk(path, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES]
        files += [file for name in names if not (file := Path(parent, name)).is_fifo()]
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ImageError(f"The folder {path} holds no images: expected files ending in {suffixes}.")
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error
