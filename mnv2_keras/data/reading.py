"""What the readers of all tasks share: one policy for images that cannot be read, and one check of files and folders."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from mnv2_keras.checks import one_of, user_path
from mnv2_keras.images import ImageError


class Readable:
    """Data whose images may be broken. All data sets of the three tasks have these attributes.

    Attributes:
        broken: name of each image that could not be read so far, to the reason; filled as images are read.
        on_error: "skip" leaves out an image that cannot be read, and names it in `broken`; "raise" raises. (TensorFlow
            raises its own error, with the same text, where it is the pipeline of a training that reads.)
    """

    broken: dict[str, str]
    on_error: str

    def __post_init__(self):
        one_of("on_error", self.on_error, ("skip", "raise"))

    def attempt(self, name: str, read: Callable):
        """What `read()` returns; None, and an entry in `broken`, if the image cannot be read.

        Raises:
            ImageError, OSError: the image cannot be read, and `on_error` is "raise".
        """
        try:
            return read()
        except (ImageError, OSError) as error:
            self.broken[name] = str(error)
            if self.on_error == "raise":
                raise
            return None


def check_folder(path, content: str) -> Path:
    """The folder, which must exist."""
    path = user_path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder of {content} {path}: check the path.")
    return path


def read_json(path, content: str):
    """What a JSON file holds; a FileNotFoundError or ValueError says what is wrong with it."""
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {content} file {path}: check the path.")
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not a complete JSON file ({error}): make, copy or download it again.") from error


def first_few(values: Iterable) -> str:
    """At most ten of the values, and how many more there are."""
    values = [str(value) for value in values]
    return ", ".join(values[:10]) + (f" and {len(values) - 10} more" if len(values) > 10 else "")
