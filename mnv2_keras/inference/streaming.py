"""Photo after photo, with what is broken told or raised."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from mnv2_keras.images import find_images

Result = TypeVar("Result")


def one_by_one(
    answer: Callable[..., Result], photos: Iterable, skip_broken: bool
) -> Iterator[Result | ValueError | OSError]:
    """What `answer` says of each photo, in order.

    Args:
        answer: from a photo to a result; raises ValueError or OSError for one that cannot be used.
        photos: paths or arrays; one path by itself is a photo or a folder of them.
        skip_broken: give the error in place of the result, and go on; otherwise raise.
    """
    if isinstance(photos, str | os.PathLike):
        photos = find_images(photos)
    elif isinstance(photos, np.ndarray) and photos.ndim == 3:
        photos = [photos]
    for photo in photos:
        try:
            yield answer(photo)
        except (ValueError, OSError) as error:
            if not skip_broken:
                raise
            yield error
