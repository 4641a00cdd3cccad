"""The folder where this package keeps what it fetched, and the error when it cannot be read or written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnv2_keras.atomic import write_text
from mnv2_keras.checks import user_path


class CacheError(OSError):
    """The cache folder could not be read or written: no permission, read-only, disk full, ..."""


def cache_folder() -> Path:
    """The folder of all that this package keeps: MNV2_HOME, or `mnv2_keras` in XDG_CACHE_HOME or ~/.cache.

    Raises:
        CacheError: none of the variables is set and the user has no home folder.
    """
    if home := os.environ.get("MNV2_HOME"):
        try:
            return user_path(home).absolute()
        except FileNotFoundError as error:
            raise CacheError(f"MNV2_HOME is {home!r}: {error}") from error
    if Path(xdg := os.environ.get("XDG_CACHE_HOME", "")).is_absolute():  # the XDG standard ignores relative ones
        return Path(xdg) / "mnv2_keras"
    try:
        return Path.home() / ".cache" / "mnv2_keras"
    except RuntimeError as error:
        raise CacheError("This user has no home folder to keep a cache in: set MNV2_HOME to a folder.") from error


@contextmanager
def cache_access(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError about the cache, and no other, into one sentence that says what to do."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        size = f"; the file needs {needed:,} bytes" if needed else ""
        raise CacheError(
            f"The cache folder {cache_folder()} cannot hold or give {path.name} ({error.strerror or error}{size}): make "
            "room there or get access to it, or set MNV2_HOME to another folder."
        ) from error


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1))
