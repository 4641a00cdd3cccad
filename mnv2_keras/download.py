"""Download of one URL into one file, resumed over several connections and processes.

`FILE.json` says which URL, size and version the bytes of `FILE` belong to, so that a later connection asks only for the rest of
the same version (HTTP `Range` with `If-Range`). file:/// URLs are copied.
"""

import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from mnv2_keras.cache import CacheError, cache_access, write_json

TIMEOUT = 30.0  # seconds without a byte after which a connection counts as dropped
ATTEMPTS = 5  # connections to one source, each resumes the last one
FIRST_WAIT = 0.5  # seconds before the second attempt, doubled before each further one
CHUNK = 1 << 16  # bytes

Report = Callable[[int, int | None], None]  # takes the bytes so far, and all the bytes if known


def download(url: str, part: Path, hash_known: bool, report: Report) -> None:
    """Fill the part file from one source, continuing what is in it.

    Args:
        url: https://, http:// or file:///.
        part: the file; complete when this returns, its content not yet checked.
        hash_known: whether the caller detects wrong content; then a server without ETag and Last-Modified may be resumed too.
        report: called after each chunk.

    Raises:
        FileNotFoundError: the source does not have the file.
        ConnectionError: it could not be reached, or the connection broke each time.
        CacheError: the part file could not be written.
    """
    attempts = 1 if url.startswith("file:") else ATTEMPTS
    for attempt in range(attempts):
        if attempt:
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        try:
            return _transfer(url, part, hash_known, report)
        except (CacheError, FileNotFoundError):
            raise
        except (OSError, http.client.HTTPException) as error:
            fault = error.reason if type(error) is URLError else error  # without "<urlopen error ...>" around it
    raise ConnectionError(f"{url} ({attempts} attempt{'s' * (attempts > 1)}, the last: {fault})")


def discard(part: Path) -> None:
    """Delete the part file and its notes."""
    with cache_access(part):
        part.unlink(missing_ok=True)  # first, so that notes never describe other bytes
        _notes(part).unlink(missing_ok=True)


def _transfer(url: str, part: Path, hash_known: bool, report: Report) -> None:
    """One connection: ask for the missing bytes, or for all if the earlier ones may be of another file."""
    have, notes = _resumable(url, part, hash_known)
    size, validator = notes.get("size"), notes.get("validator")
    if have and have == size:
        return  # stopped between the last byte and the final name
    headers = {"User-Agent": "mnv2_keras"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    with _open(url, headers, part) as response:
        if have and response.status == http.client.PARTIAL_CONTENT:
            start, total = re.match(r"bytes (\d+)-\d+/(\d+)|", response.headers.get("Content-Range", "")).groups()
            if start != str(have) or size not in (None, int(total)):
                discard(part)
                raise OSError("the file changed at its source")
            size = int(total)
        else:  # all bytes: all were asked for, or the server has no ranges, or the file changed
            length = response.headers.get("Content-Length", "")
            have, size = 0, int(length) if length.isdecimal() else None
            discard(part)
            with cache_access(part, size):
                write_json(_notes(part), {"url": url, "size": size, "validator": _validator(response.headers)})
        with cache_access(part, size):
            file = part.open("ab", buffering=0)
        with file:
            while chunk := response.read1(CHUNK):
                with cache_access(part, size):
                    _append(file, chunk)
                have += len(chunk)
                report(have, size)
    if size not in (None, have):
        raise OSError(f"broke off after {have:,} of {size:,} bytes")


def _open(url: str, headers: Mapping[str, str], part: Path) -> http.client.HTTPResponse:
    """The response; FileNotFoundError if another attempt would not help."""
    try:
        return urlopen(Request(url, headers=dict(headers)), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            discard(part)  # longer than the file is now: the next attempt starts afresh
        elif 400 <= error.code < 500 and error.code not in (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS):
            raise FileNotFoundError(f"{url} (HTTP {error.code} {error.reason})") from error
        raise
    except URLError as error:
        if isinstance(error.reason, FileNotFoundError):
            raise FileNotFoundError(f"{url} (no such file)") from error
        raise


def _notes(part: Path) -> Path:
    """The file with url, total size and validator of a part file."""
    return part.with_name(f"{part.name}.json")


def _validator(headers: Mapping[str, str]) -> str | None:
    """The value for If-Range: a strong ETag, else the date. A weak ETag does not promise equal bytes."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _resumable(url: str, part: Path, hash_known: bool) -> tuple[int, dict]:
    """Number of bytes of the part file that a request to `url` can continue, and their notes."""
    with cache_access(part):
        if not (part.is_file() and _notes(part).is_file()):
            return 0, {}
        have = part.stat().st_size
        try:
            notes = json.loads(_notes(part).read_text())
            same = notes["url"] == url and have <= (notes["size"] or have)
            # Without a validator only a known hash shows that the file changed.
            return (have, notes) if same and (notes["validator"] or hash_known) else (0, {})
        except (ValueError, TypeError, KeyError):
            return 0, {}


def _append(file: BinaryIO, chunk: bytes) -> None:
    """Write all of a chunk to an unbuffered file, which may take less than all at a time."""
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]
