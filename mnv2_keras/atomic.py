"""Atomic writes: a file is written under a temporary name, synced and renamed, so that it is complete or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mnv2_keras.checks import user_path


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an OSError into a sentence that names the file, not its draft."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}): what was there before is kept.") from error


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` when the block ends without an error. Missing folders are created.

    Raises:
        OSError: no room, no permission; what was there before is kept.
    """
    path = user_path(path)
    draft = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = draft.open("xb")  # with the rights that the user's umask gives any new file
    try:
        with opened as file:
            yield file
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
        with _naming(path):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write a file atomically. Errors are those of `replacing`."""
    path = user_path(path)
    with replacing(path) as file, _naming(path):
        file.write(content)
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8) atomically. Errors are those of `replacing`."""
    return write_bytes(path, text.encode())
