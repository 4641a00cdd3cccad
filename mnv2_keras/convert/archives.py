"""Archives, unpacked without trust in their content."""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: Larger than any member of an official archive, and than any official archive.
MAX_MEMBER_BYTES = 512 * 2**20
MAX_ARCHIVE_BYTES = 2 * 2**30
#: Larger than any header with a long name; and how many of them may precede one member.
_MAX_HEADER_BYTES, _MAX_HEADERS = 2**16, 4
_CHUNK = 2**20

SUFFIXES = (".tgz", ".tar.gz", ".tar")
#: What to do about a damaged file.
FETCH_AGAIN = "The file is damaged or incomplete: fetch it again (`mnv2 fetch`) or copy all of its files."

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, ValueError)


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters."""
    return str(error).strip().split("\n")[0][:200]


class UnsafeArchiveError(ValueError):
    """An archive with a member that no official archive has."""


def extract(archive: Path, folder: Path) -> None:
    """Unpack the plain files of a .tgz, .tar.gz or .tar into a folder, flat.

    Headers are read here, each once and with bounds, because `tarfile` trusts the headers.

    Raises:
        ValueError: the archive is damaged; or unsafe: a member is a link or a device, has an absolute name or `..` in it, a
            negative size, or is larger than any official one.
    """
    try:
        with archive.open("rb") as file:
            opener = _OPENERS.get(file.read(2), lambda raw: raw)
            file.seek(0)
            with opener(file) as stream:
                for member in _members(stream, archive):
                    _write(member, stream, folder, archive)
    except UnsafeArchiveError:
        raise
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the content
            raise
        raise ValueError(f"{archive} is not a complete .tgz or .tar.gz archive ({first_line(error)}). {FETCH_AGAIN}") from error


def _members(stream: BinaryIO, archive: Path) -> Iterator[tarfile.TarInfo]:
    """The members in order, with their long names; the caller reads the content of each one from the stream."""
    total, records, headers, any_member = 0, {}, 0, False
    while (block := stream.read(tarfile.BLOCKSIZE)).strip(b"\0"):
        member, any_member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"), True
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            headers += 1
            if not 0 <= member.size <= _MAX_HEADER_BYTES or headers > _MAX_HEADERS:
                raise _unsafe(archive, member, f"has a header of {member.size:,} bytes, or more than {_MAX_HEADERS} headers")
            content = b"".join(_chunks(stream, member.size))
            if member.type == tarfile.GNUTYPE_LONGNAME:
                records[b"path"] = content.rstrip(b"\0")
            elif member.type == tarfile.XHDTYPE:
                records |= dict(re.findall(rb"\d+ ([\w.]+)=([^\n]*)\n", content))
            continue
        member.name = os.fsdecode(records.get(b"path", member.name))
        member.size = int(records.get(b"size", member.size))
        if member.size < 0 or any(key.startswith(b"GNU.sparse") for key in records):
            raise _unsafe(archive, member, "has a negative size, or holes")
        total += member.size
        if member.size > MAX_MEMBER_BYTES or total > MAX_ARCHIVE_BYTES:
            raise _unsafe(
                archive,
                member,
                f"brings {member.size / 2**20:.0f} MiB, expected at most {MAX_MEMBER_BYTES // 2**20} MiB a member and "
                f"{MAX_ARCHIVE_BYTES // 2**20} MiB in total, as in the official archives. If you trust it, unpack it yourself and "
                "pass the folder",
            )
        yield member
        records, headers = {}, 0
    if not any_member:
        raise tarfile.ReadError("it has no member")


def _write(member: tarfile.TarInfo, stream: BinaryIO, folder: Path, archive: Path) -> None:
    """Write a member's content into the folder, or skip it."""
    path = Path(member.name)
    if path.is_absolute() or ".." in path.parts or member.name.startswith("\\") or ":" in member.name:
        raise _unsafe(archive, member, "points outside the archive")
    if not member.isdir() and (not member.isreg() or member.type == tarfile.GNUTYPE_SPARSE):
        raise _unsafe(archive, member, "is a link or a device")
    training_graph = path.name.endswith((".meta", ".pbtxt")) and not path.name.endswith("_eval.pbtxt")
    if member.isdir() or training_graph or path.name.startswith("."):
        for _ in _chunks(stream, member.size):
            pass
        return
    if (folder / path.name).exists():
        raise UnsafeArchiveError(f"{archive}: two members are named {path.name!r}: expected one checkpoint in one folder.")
    with (folder / path.name).open("wb") as sink:
        sink.writelines(_chunks(stream, member.size))


def _chunks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The content of a member piece by piece; the stream then stands at the next header."""
    for start in range(0, size, _CHUNK):
        chunk = stream.read(min(_CHUNK, size - start))
        if len(chunk) < min(_CHUNK, size - start):
            raise EOFError("the archive ends within a member")
        yield chunk
    stream.read(-size % tarfile.BLOCKSIZE)


def _unsafe(archive: Path, member: tarfile.TarInfo, reason: str) -> UnsafeArchiveError:
    return UnsafeArchiveError(f"{archive}: unsafe: member {member.name[:200]!r} {reason}. Do not use this file.")
