"""Files that are whole or not there: written under a temporary name, synced, renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once all went well; otherwise what was there stays.

    Folders above it are made.

    Raises:
        OSError: no room, no permission.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        Path(draft).chmod(0o644)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write a file, all of it or nothing.

    Raises:
        OSError: no room, no permission; what was there before is untouched.
    """
    path = Path(path).expanduser()
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): what was there before is kept."
        ) from error
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8), all of it or nothing.

    Raises:
        OSError: as in `write_bytes`.
    """
    return write_bytes(path, text.encode())
