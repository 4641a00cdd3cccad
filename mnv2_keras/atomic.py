"""Files that are whole or not there: written under a temporary name, synced, renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """An OSError as a sentence that names the file which was wanted, not its draft."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): what was there before is kept."
        ) from error


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once all went well; otherwise what was there stays.

    Folders above it are made.

    Raises:
        OSError: no room, no permission.
    """
    path = Path(path).expanduser()
    draft = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = draft.open("xb")  # with the rights that the user's umask gives any new file
    try:
        with opened as file:
            yield file
            with _told(path):
                file.flush()
                os.fsync(file.fileno())
        with _told(path):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write a file, all of it or nothing.

    Raises:
        OSError: no room, no permission; what was there before is untouched.
    """
    path = Path(path).expanduser()
    with replacing(path) as file, _told(path):
        file.write(content)
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8), all of it or nothing.

    Raises:
        OSError: as in `write_bytes`.
    """
    return write_bytes(path, text.encode())
