"""Archives, unpacked without trust in their content."""

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path

#: Larger than any member of an official archive, and than any official archive.
MAX_MEMBER_BYTES = 512 * 2**20
MAX_ARCHIVE_BYTES = 2 * 2**30

SUFFIXES = (".tgz", ".tar.gz", ".tar")
#: What to do about a damaged file.
FETCH_AGAIN = "The file is damaged or incomplete: fetch it again (`mnv2 fetch`) or copy all of its files."


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters."""
    return str(error).strip().split("\n")[0][:200]


def extract(archive: Path, folder: Path) -> None:
    """Unpack the plain files of a .tgz, .tar.gz or .tar into a folder, flat.

    Raises:
        ValueError: the archive is damaged; or unsafe: a member is a link or a device, has an absolute name or `..` in it, or is
            larger than any official one.
    """
    total = 0
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                path = Path(member.name)
                if path.is_absolute() or ".." in path.parts or member.name.startswith("\\") or ":" in member.name:
                    raise ValueError(
                        f"{archive}: unsafe: member {member.name!r} points outside the archive. Do not use this file."
                    )
                if member.isdir():
                    continue
                if not member.isreg():
                    raise ValueError(
                        f"{archive}: unsafe: member {member.name!r} is a link or a device. Do not use this file."
                    )
                total += member.size
                if member.size > MAX_MEMBER_BYTES or total > MAX_ARCHIVE_BYTES:
                    raise ValueError(
                        f"{archive}: unsafe: member {member.name!r} brings {member.size / 2**20:.0f} MiB, expected at most "
                        f"{MAX_MEMBER_BYTES // 2**20} MiB a member and {MAX_ARCHIVE_BYTES // 2**20} MiB in total, as in the "
                        "official archives. If you trust it, unpack it yourself and pass the folder."
                    )
                target = folder / path.name
                training_graph = path.name.endswith((".meta", ".pbtxt")) and not path.name.endswith("_eval.pbtxt")
                if training_graph or path.name.startswith("."):
                    continue
                if target.exists():
                    raise ValueError(
                        f"{archive}: two members are named {path.name!r}: expected one checkpoint in one folder."
                    )
                with tar.extractfile(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{archive} is not a complete .tgz or .tar.gz archive ({first_line(error)}). {FETCH_AGAIN}"
        ) from error
