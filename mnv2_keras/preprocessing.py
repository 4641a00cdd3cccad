"""From a photo to a network's input, as TF-Slim evaluates: central crop, TF1's bilinear resize, [0, 255] -> [-1, 1].

TF1's `resize_bilinear` puts output i at source coordinate `i * in / out` (no half-pixel centres) and blends its two
neighbours. Everything here samples so; other resizers move the photo by up to half a pixel, which costs accuracy.

Arrays are NumPy's work, TensorFlow is used for its own tensors only and never imported here.
"""

import operator
import sys
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mnv2_keras.images import ImageSource, read_image

#: Output rows or columns of one matrix product: long enough for BLAS, short enough to hold few zeros, and for BLAS not to call
#: other threads in, which stand in each other's way where photos are prepared side by side (half the speed at 16).
_BAND = 8


def preprocess_image(image, size: int | tuple[int, int] = (224, 224), *, central_fraction: float = 0.875):
    """A photo as MobileNetV2's input.

    Source: TF-Slim `inception_preprocessing.preprocess_for_eval`. A tensor is processed by TensorFlow with the very
    operations named there, bit for bit; everything else by NumPy, within 1e-6 of that.

    Args:
        image: a path, the bytes of a file or a PIL image (see `read_image`); or a uint8 array of shape (H, W, 3), or
            greyscale as (H, W, 1) or (H, W); or a TensorFlow tensor of those, whose H and W may be unknown (`tf.data`).
        size: (height, width) of the result, or one int for a square. The aspect ratio is not kept.
        central_fraction: the part of the height and of the width that is used, over 0 and up to 1; 1 takes the whole
            photo (SSD's preprocessing).

    Returns:
        float32 (height, width, 3) from -1 (black) to 1 (white): a tensor for a tensor, otherwise an array.

    Raises:
        ValueError: pixels of another type, rank or number of channels (also an alpha channel), an image or a `size`
            without pixels, a fraction outside (0, 1]; `ImageError` for a file that cannot be read.
        FileNotFoundError: no such file.
    """
    height, width = _height_width(size)
    if not 0 < central_fraction <= 1:
        raise ValueError(f"central_fraction is {central_fraction}: give a number over 0 and up to 1 (TF-Slim: 0.875).")
    if _is_tensor(image):
        return _preprocess_tensor(image, height, width, central_fraction)
    if isinstance(image, ImageSource):
        image = read_image(image)
    image = np.asarray(image)
    _check_photo(image.shape, image.dtype)
    return _preprocess_array(np.atleast_3d(image), height, width, central_fraction)


def normalize_image(image):
    """[0, 255] -> [-1, 1]: `x * (2/255) - 1` in float32, as detection and segmentation models begin.

    Args:
        image: an array or a TensorFlow tensor of any shape and numeric type.
    """
    tensor = _is_tensor(image)
    image = sys.modules["tensorflow"].cast(image, "float32") if tensor else np.asarray(image, np.float32)
    return image * np.float32(2 / 255) - np.float32(1)


def resize_bilinear_v1(image, size: int | tuple[int, int], align_corners: bool = False) -> np.ndarray:
    """TF1's `resize_bilinear` (`half_pixel_centers=False`) in NumPy: the same float32 operations, so the same bits.

    Args:
        image: an array (..., H, W, C) of any numeric type; the values keep their range.
        size: (height, width), or one int for a square.
        align_corners: spread the outputs from the centre of the first pixel to that of the last, as DeepLab does.

    Returns:
        float32 (..., height, width, C).

    Raises:
        ValueError: an array of under 3 axes or without pixels, or a `size` without pixels.
    """
    image = np.asarray(image)
    height, width = _height_width(size)
    if image.ndim < 3 or 0 in image.shape:
        raise ValueError(f"resize_bilinear_v1 takes an image of shape (..., H, W, C) with pixels, not {image.shape}.")
    upper, lower, down = _neighbours(image.shape[-3], height, align_corners)
    left, right, across = _neighbours(image.shape[-2], width, align_corners)
    rows, places = np.unique([upper, lower], return_inverse=True)
    image = image.take(rows, axis=-3)

    start = image.take(left, axis=-2).astype(np.float32, copy=False)
    wide = image.take(right, axis=-2).astype(np.float32, copy=False)
    wide -= start
    wide *= np.tile(across[:, None], image.shape[-1])  # written out: broadcasting three channels is slow
    wide += start

    result = np.empty((*image.shape[:-3], height, width, image.shape[-1]), np.float32)
    for row, (above, below, share) in enumerate(zip(*places.reshape(2, -1), down, strict=True)):
        line = result[..., row, :, :]
        np.subtract(wide[..., below, :, :], wide[..., above, :, :], out=line)
        line *= share
        line += wide[..., above, :, :]
    return result


def _neighbours(samples: int, outputs: int, align_corners: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output its two source indices and the share of the second, by TensorFlow's float32 arithmetic."""
    if align_corners and outputs > 1:
        scale = np.float32(samples - 1) / np.float32(outputs - 1)
    else:
        scale = np.float32(samples) / np.float32(outputs)
    place = np.arange(outputs, dtype=np.float32) * scale
    floor = np.floor(place)
    second = np.minimum(np.ceil(place).astype(np.intp), samples - 1)
    return np.minimum(floor.astype(np.intp), second), second, place - floor


class _Sampling(NamedTuple):
    """How one axis is cropped and resized: pick the samples that count, then multiply band by band.

    Each output is a blend of two neighbours, so a run of outputs needs a short run of samples: the resize matrix is a
    diagonal band, cut here into small dense products. That is faster than gathering neighbours pixel by pixel.
    """

    used: slice | np.ndarray  # the source samples that count, in order
    count: int  # how many they are
    sources: list[slice | np.ndarray]  # for each band its source samples
    first: list[int]  # for each band its first sample, within `used`
    start: list[int]  # for each band its first output
    weights: np.ndarray  # float32 (bands, outputs of a band, samples of a band)


@lru_cache(maxsize=64)
def _sampling(samples: int, outputs: int, central_fraction: float) -> _Sampling:
    # The offset is that of `tf.image.central_crop`, in float64 and cut to int; a pixel always remains.
    offset = min(int((samples - samples * central_fraction) / 2), (samples - 1) // 2)
    upper, lower, share = _neighbours(samples - 2 * offset, outputs)
    used, places = np.unique([upper, lower], return_inverse=True)
    upper, lower = places.reshape(2, -1)
    used += offset

    length = min(_BAND, outputs)
    start = np.minimum(np.arange(0, outputs, length), outputs - length)  # the last band steps back to be a full one
    output = start[:, None] + np.arange(length)
    count = int((lower[output[:, -1]] - upper[start]).max()) + 1
    first = np.minimum(upper[start], len(used) - count)
    weights = np.zeros((len(start), length, count), np.float32)
    band, line = np.ogrid[: len(start), :length]
    weights[band, line, upper[output] - first[:, None]] = 1 - share[output]
    weights[band, line, lower[output] - first[:, None]] += share[output]

    sources = [_run(used[begin : begin + count]) for begin in first]
    return _Sampling(_run(used), len(used), sources, first.tolist(), start.tolist(), weights)


def _run(indices: np.ndarray) -> slice | np.ndarray:
    """A slice where the indices are neighbours: it gives a view, an array would copy."""
    begin, end = int(indices[0]), int(indices[-1]) + 1
    return slice(begin, end) if end - begin == len(indices) else indices


@lru_cache(maxsize=64)
def _column_weights(samples: int, outputs: int, central_fraction: float, channels: int) -> np.ndarray:
    """A row's bands for interleaved channels, which also turn [0, 255] into [0, 2].

    Returns:
        float32 (bands, samples of a band * channels, outputs of a band * channels).
    """
    weights = _sampling(samples, outputs, central_fraction).weights.swapaxes(1, 2)
    bands, count, length = weights.shape
    spread = np.zeros((bands, count, channels, length, channels), np.float32)
    for channel in range(channels):
        spread[:, :, channel, :, channel] = weights * np.float32(2 / 255)
    return spread.reshape(bands, count * channels, length * channels)


def _preprocess_array(image: np.ndarray, height: int, width: int, central_fraction: float) -> np.ndarray:
    channels = image.shape[2]
    rows = _sampling(image.shape[0], height, central_fraction)
    columns = _sampling(image.shape[1], width, central_fraction)

    tall = np.empty((height, columns.count * channels), np.float32)
    length = rows.weights.shape[1]
    for source, start, weights in zip(rows.sources, rows.start, rows.weights, strict=True):
        pixels = image[source]
        pixels = pixels[:, columns.used] if isinstance(columns.used, slice) else pixels.take(columns.used, axis=1)
        pixels = np.ascontiguousarray(pixels, np.float32).reshape(len(pixels), -1)
        np.matmul(weights, pixels, out=tall[start : start + length])

    result = np.empty((height, width * channels), np.float32)
    spread = _column_weights(image.shape[1], width, central_fraction, channels)
    for first, start, weights in zip(columns.first, columns.start, spread, strict=True):
        first, start = first * channels, start * channels
        count, length = weights.shape
        np.matmul(tall[:, first : first + count], weights, out=result[:, start : start + length])

    result -= np.float32(1)
    result = result.reshape(height, width, channels)
    return result if channels == 3 else np.repeat(result, 3, axis=2)


def _preprocess_tensor(image, height: int, width: int, central_fraction: float):
    tf = sys.modules["tensorflow"]
    if image.shape.rank is None or (image.shape.rank == 3 and image.shape[2] is None):
        raise ValueError(
            f"The image tensor has shape {image.shape}: decode with channels=3 (and expand_animations=False), "
            "or call set_shape((None, None, 3))."
        )
    _check_photo(image.shape.as_list(), image.dtype.as_numpy_dtype)
    if image.shape.rank == 2:
        image = image[..., None]
    if image.shape[2] == 1:
        image = tf.image.grayscale_to_rgb(image)
    if central_fraction < 1:
        image = tf.image.central_crop(image, central_fraction)
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.raw_ops.ResizeBilinear(images=image[None], size=[height, width], align_corners=False, half_pixel_centers=False)
    return (image[0] - 0.5) * 2.0


def _is_tensor(image) -> bool:
    """A tensor can only come from a TensorFlow that is already imported, so its type's home is enough to know it."""
    return type(image).__module__.partition(".")[0] == "tensorflow"


def _check_photo(shape, dtype) -> None:
    shape = tuple(shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        alpha = "; drop an alpha channel by image[..., :3]" if len(shape) == 3 and shape[2] == 4 else ""
        raise ValueError(f"One image has shape (H, W, 3), (H, W, 1) or (H, W), channels last, not {shape}{alpha}.")
    if dtype != np.uint8:
        raise ValueError(
            f"The image's pixels are {np.dtype(dtype).name}, they should be uint8 from 0 to 255: for floats in 0..1 give "
            "np.round(image * 255).astype('uint8')."
        )
    if 0 in shape:
        raise ValueError(f"The image of shape {shape} has no pixels.")


def _height_width(size) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in (size if isinstance(size, tuple | list) else (size, size)))
    except (TypeError, ValueError):
        raise ValueError(f"size is {size!r}: give an int or (height, width), two ints.") from None
    if min(height, width) < 1:
        raise ValueError(f"size is {size!r}: height and width must be at least 1 pixel.")
    return height, width
