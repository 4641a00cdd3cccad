"""Photo after photo, with what is broken told or raised."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def one_by_one(
    answer: Callable[..., Result], photos: Iterable, skip_broken: bool
) -> Iterator[Result | ValueError | OSError]:
    """What `answer` says of each photo, in order.

    Args:
        answer: from a photo to a result; raises ValueError or OSError for one that cannot be used.
        photos: paths or arrays.
        skip_broken: give the error in place of the result, and go on; otherwise raise.
    """
    for photo in photos:
        try:
            yield answer(photo)
        except (ValueError, OSError) as error:
            if not skip_broken:
                raise
            yield error
