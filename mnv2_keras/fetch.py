"""Published checkpoints, fetched once into the cache folder and accepted only with the expected SHA-256.

Target: `CACHE/checkpoints/ARCHIVE`, with CACHE from MNV2_HOME or the user's cache folder.

Sources: the mirrors of MNV2_MIRROR in order (URLs of folders, https://... or file:///..., separated by commas), then the
publisher. A mirror that lacks the archive or cannot be reached passes to the next mirror; the publisher is asked only when each
mirror lacks the archive. A wrong hash ends the fetch.

Hashes: the registry's SHA-256. Where none is published, the first download is trusted if it is a complete gzip file, and its
hash is recorded in `CACHE/checkpoints.lock.json`; later files must have that hash. A cached file is hashed again on each fetch.
A download gets its final name after the check; after a fault its bytes stay in `ARCHIVE.part` for the next fetch.
"""

import gzip
import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mnv2_keras.cache import cache_access, cache_folder, write_json
from mnv2_keras.download import Report, discard, download
from mnv2_keras.registry import CheckpointRecord, get_checkpoint


def fetch_checkpoint(name: str, *, progress: bool = True, offline: bool | None = None) -> Path:
    """The verified archive of a registered checkpoint: from the cache, a mirror or its publisher.

    A download that stopped earlier (connection lost, process killed, disk full) is resumed. Of several processes that fetch the
    same name, one downloads and the others wait.

    Args:
        name: as in `list_checkpoints()`.
        progress: show bytes, speed and time left on standard error.
        offline: use only the cache and file:/// mirrors; None reads MNV2_OFFLINE (1 is yes).

    Returns:
        Path of the archive in the cache, its SHA-256 checked now.

    Raises:
        ValueError: no such name; a wrong hash (the cache stays as it was); a faulty MNV2_MIRROR or `checkpoints.lock.json`.
        FileNotFoundError: no source has the archive, or it is not cached and offline mode is on.
        ConnectionError: a source could not be reached.
        CacheError: the cache folder cannot be read or written, or the disk is full (an OSError).
    """
    record = get_checkpoint(name)
    if offline is None:
        offline = os.environ.get("MNV2_OFFLINE", "").lower() not in ("", "0", "false", "no")
    target = cache_folder() / "checkpoints" / record.archive
    if _is_verified(target, _expected(record)):  # before taking the lock, which a read-only cache cannot hold
        return target
    with _locked(target, progress):
        expected = _expected(record)
        if _is_verified(target, expected):  # another process was faster
            return target
        if expected is None and target.is_file():  # copied there by the user: this is the first use
            _trust(record, _checked(target, record, None, target))
            return target
        part = Path(f"{target}.part")
        with _progress_bar(record.archive, progress) as report:
            digest = _from_first_source(record, part, expected, offline, report)
        with cache_access(target):
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            if expected is None:
                _trust(record, digest)  # before the rename: nothing gets its final name unrecorded
            part.replace(target)
            discard(part)
    return target


# Hashes


def _hash_file() -> Path:
    return cache_folder() / "checkpoints.lock.json"


def _trusted() -> dict[str, dict[str, str]]:
    """The hashes recorded on first use, by checkpoint name."""
    hash_file = _hash_file()
    with cache_access(hash_file):
        text = hash_file.read_text() if hash_file.exists() else "{}"
    try:
        entries = json.loads(text)
        if all(re.fullmatch("[0-9a-f]{64}", entry["sha256"]) for entry in entries.values()):
            return entries
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(
        f"{hash_file} is not what was written there, {{name: {{'sha256': ...}}}} of the hashes trusted on first use: restore "
        "it, or delete it to trust the next downloads."
    )


def _trust(record: CheckpointRecord, digest: str) -> None:
    """Record the hash of a first use; other processes may record theirs at the same time."""
    with cache_access(_hash_file()), FileLock(f"{_hash_file()}.lock"):
        write_json(_hash_file(), _trusted() | {record.name: {"sha256": digest, "url": record.url}})


def _expected(record: CheckpointRecord) -> str | None:
    """The hash the archive must have: the registry's, else the one recorded on first use, else None."""
    return record.sha256 or _trusted().get(record.name, {}).get("sha256")


def _sha256(path: Path) -> str:
    with cache_access(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_verified(path: Path, expected: str | None) -> bool:
    with cache_access(path):
        return expected is not None and path.is_file() and _sha256(path) == expected


def _checked(path: Path, record: CheckpointRecord, expected: str | None, origin: object) -> str:
    """The hash of `path`.

    Raises:
        ValueError: it is not the expected one; or none is expected yet and the file is not a complete gzip archive.
    """
    digest = _sha256(path)
    if expected is None and record.archive.endswith("gz"):
        try:
            with gzip.open(path) as file:
                while file.read(1 << 20):  # to the end, where gzip keeps its checksum
                    pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{record.name}: what came from {origin} is not a complete gzip archive ({error}) and is not trusted on first "
                "use. Nothing was installed: try again, or set MNV2_MIRROR to another source."
            ) from error
    if expected not in (None, digest):
        origin_of_hash = "the registry's" if record.sha256 else f"recorded on first use in {_hash_file()}"
        raise ValueError(
            f"{record.name}: what came from {origin} has SHA-256 {digest}, expected {expected} ({origin_of_hash}). "
            "Nothing was installed and nothing in the cache was changed: try again, or set MNV2_MIRROR to another source."
        )
    return digest


# Sources


def _mirrors(record: CheckpointRecord) -> list[str]:
    mirrors = [mirror.strip().rstrip("/") for mirror in os.environ.get("MNV2_MIRROR", "").split(",") if mirror.strip()]
    for mirror in mirrors:
        if not re.match(r"https?://.|file:///.", mirror):
            raise ValueError(
                f"MNV2_MIRROR has {mirror!r}: give the URL of a folder, https://... or file:///... (separate several by commas)."
            )
    return [f"{mirror}/{record.file_name}" for mirror in mirrors]


def _from_first_source(record: CheckpointRecord, part: Path, expected: str | None, offline: bool, report: Report) -> str:
    """Fill the part file from the first source that has the archive; returns its checked hash."""
    mirrors, failures = _mirrors(record), []
    for url in dict.fromkeys([*mirrors, record.url]):
        if offline and not url.startswith("file:"):
            continue
        if url not in mirrors and any(isinstance(failure, ConnectionError) for failure in failures):
            break  # a mirror that is down may have the archive
        try:
            return _pull(url, record, part, expected, report)
        except (FileNotFoundError, ConnectionError) as failure:
            failures.append(failure)
    reasons = "; ".join(str(failure) for failure in failures)
    remedy = f"URL of a folder that has {record.file_name}, or pass the path of a local archive."
    if any(isinstance(failure, ConnectionError) for failure in failures):
        raise ConnectionError(
            f"{record.name} could not be fetched: {reasons}. What came so far is kept: try again to continue, set "
            f"MNV2_MIRROR to the {remedy}"
        )
    if offline:
        state = "has a wrong SHA-256" if part.with_suffix("").is_file() else "is not in the cache"
        raise FileNotFoundError(
            f"{part.with_suffix('')} {state} and offline mode is on{reasons and f' ({reasons})'}: fetch it once while "
            f"online, set MNV2_MIRROR to the file:/// {remedy}"
        )
    raise FileNotFoundError(f"{record.name} was not found: {reasons}. Set MNV2_MIRROR to the {remedy}")


def _pull(url: str, record: CheckpointRecord, part: Path, expected: str | None, report: Report) -> str:
    """Fill the part file from one source; returns its checked hash."""
    resumes = part.is_file()
    download(url, part, expected is not None, report)
    try:
        return _checked(part, record, expected, url)
    except ValueError:
        discard(part)
        if not resumes:
            raise
    return _pull(url, record, part, expected, report)  # the earlier bytes may be wrong: once more without them


@contextmanager
def _locked(target: Path, progress: bool) -> Iterator[None]:
    """Hold the archive's lock, which the system releases when the process ends."""
    lock = FileLock(f"{target}.lock")
    with cache_access(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress:
                print(f"Another process is fetching {target.name}: waiting for it.", file=sys.stderr, flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress_bar(label: str, shown: bool) -> Iterator[Report]:
    if not shown:
        yield lambda have, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, visible=False)
        yield lambda have, size: bar.update(task, completed=have, total=size, visible=True)
