"""A TF-Slim checkpoint on disk: found, opened safely, read; and written back."""

import contextlib
import glob
import gzip
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

#: No member of an official archive comes near this; a larger one is a bomb or not ours.
MAX_MEMBER_BYTES = 512 * 2**20
MAX_ARCHIVE_BYTES = 2 * 2**30

_ARCHIVES = (".tgz", ".tar.gz", ".tar")
_V2_PART = re.compile(r"\.(?:index|meta|data-\d{5}-of-\d{5})$")
_RESOLUTION = re.compile(r"mobilenet_v2_[\d.]+_(\d{2,4})(?!\d)|quantized_v2_(\d{2,4})_")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its shapes at once, its arrays when asked.

    Attributes:
        source: the path the user gave.
        prefix: the checkpoint's prefix (V2) or file (V1), perhaps in a temporary folder.
        shapes: shape of every variable in the file, slots and counters included.
        frozen_graph: the frozen graph beside it, or None.
        sha256: of the files that hold the variables, by file name.
    """

    source: Path
    prefix: Path
    shapes: dict[str, tuple[int, ...]]
    frozen_graph: Path | None
    sha256: dict[str, str]
    _reader: object

    def array(self, name: str) -> np.ndarray:
        """One variable.

        Raises:
            ValueError: the file does not hold it in one piece.
        """
        try:
            return self._reader.get_tensor(name)
        except Exception as error:  # TensorFlow raises whatever its C++ side names: all of them mean an unreadable file
            raise ValueError(
                f"{self.source}: variable {name} cannot be read ({_first_line(error)}). {_AGAIN}"
            ) from error

    @classmethod
    def of_arrays(cls, source: Path, arrays: dict[str, np.ndarray]) -> "Checkpoint":
        """Arrays that are in memory already, as a checkpoint."""
        shapes = {name: array.shape for name, array in arrays.items()}
        return cls(source, source, shapes, None, {}, SimpleNamespace(get_tensor=arrays.__getitem__))

    @property
    def resolution(self) -> int | None:
        """Side of the square input in pixels, from the name of the file; None when the name does not tell."""
        for path in (self.prefix, self.source):
            if match := _RESOLUTION.search(path.name):
                return int(match[1] or match[2])
        return None


_AGAIN = "The file is damaged or incomplete: fetch it again (`mnv2 fetch`) or copy all of its files."


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wanted(name: str) -> bool:
    """Members worth the disk: variables, graphs, and what names the resolution; never the training graph."""
    return not name.endswith((".meta", ".pbtxt")) or name.endswith("_eval.pbtxt")


def extract(archive: Path, folder: Path) -> None:
    """Unpack the plain files of a .tgz, .tar.gz or .tar into a folder, flat.

    Nothing in an archive is trusted: a member that is a link or a device, that has an absolute name or `..` in it, or that
    is larger than any official one, makes the whole archive refused.

    Raises:
        ValueError: the archive is damaged or unsafe; the message says which.
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
                        f"{MAX_MEMBER_BYTES // 2**20} MiB a member and {MAX_ARCHIVE_BYTES // 2**20} MiB in all, as in the "
                        "official archives. If you trust it, unpack it yourself and pass the folder."
                    )
                target = folder / path.name
                if not _wanted(path.name) or path.name.startswith("."):
                    continue
                if target.exists():
                    raise ValueError(
                        f"{archive}: two members are named {path.name!r}: expected one checkpoint in one folder."
                    )
                with tar.extractfile(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{archive} is not a whole .tgz or .tar.gz archive ({_first_line(error)}). {_AGAIN}"
        ) from error


def _prefixes(folder: Path) -> list[Path]:
    return sorted(path.with_name(path.name.removesuffix(".index")) for path in folder.glob("*.index"))


def _prefix_in(folder: Path, source: Path) -> Path:
    """The one checkpoint in a folder."""
    found = _prefixes(folder)
    if not found:  # archives may hold one folder
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        found = [prefix for path in inner for prefix in _prefixes(path)]
    for suffix in (".ckpt", ".tflite"):  # V1; and what archives of quantised networks may have alone
        found = found or [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix == suffix]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(
            f"{source} holds no checkpoint: expected a `.index` file with its `.data-00000-of-00001`, a V1 `.ckpt` file, or one of "
            "Google's quantised `.tflite` files."
        )
    names = ", ".join(prefix.name for prefix in found)
    raise ValueError(f"{source} holds {len(found)} checkpoints ({names}): pass the path of the one you mean.")


def _frozen_graph(folder: Path, prefix: Path) -> Path | None:
    """The graph beside a checkpoint; of several, the one that bears its name."""
    found = sorted(folder.glob("*frozen*.pb"))
    stem = prefix.name.partition(".ckpt")[0]
    return next((path for path in found if path.name.startswith(f"{stem}_frozen")), found[0] if found else None)


def _open(prefix: Path, source: Path, folder: Path | None = None) -> Checkpoint:
    if prefix.suffix == ".tflite":
        from mnv2_keras.convert.sources.google_tflite import read_quantised

        arrays = read_quantised(prefix).arrays
        return replace(Checkpoint.of_arrays(source, arrays), sha256={prefix.name: sha256_of(prefix)})
    import tensorflow as tf

    index = Path(f"{prefix}.index")
    parts = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))
    if index.exists():
        shards = {path.name[-5:] for path in parts}
        if len(shards) != 1 or len(parts) != int(shards.pop()):
            raise FileNotFoundError(
                f"{source}: {index.name} has no complete data file beside it (expected {prefix.name}.data-00000-of-00001): "
                "copy all files of the checkpoint into one folder."
            )
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except Exception as error:  # see Checkpoint.array
        raise ValueError(f"{source} is not a TensorFlow checkpoint ({_first_line(error)}). {_AGAIN}") from error
    files = [index, *parts] if index.exists() else [prefix]
    return Checkpoint(
        source=source,
        prefix=prefix,
        shapes=dict(sorted(shapes.items())),
        frozen_graph=_frozen_graph(folder or prefix.parent, prefix),
        sha256={path.name: sha256_of(path) for path in files},
        _reader=reader,
    )


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike) -> Iterator[Checkpoint]:
    """Open an archive, a folder, a prefix, an `.index` file or a V1 file; what was unpacked is gone afterwards.

    Raises:
        FileNotFoundError: there is no such checkpoint, or one of its files is missing.
        ValueError: the file is damaged, unsafe or no checkpoint.
    """
    path = Path(path).expanduser()
    with contextlib.ExitStack() as stack:
        if path.is_file() and path.name.endswith(_ARCHIVES):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnv2-")))
            extract(path, folder)
            yield _open(_prefix_in(folder, path), path, folder)
        elif path.is_dir():
            yield _open(_prefix_in(path, path), path)
        else:
            prefix = path.with_name(_V2_PART.sub("", path.name))
            if not path.is_file() and not Path(f"{prefix}.index").is_file():
                raise FileNotFoundError(
                    f"{path} does not exist: expected an archive (.tgz, .tar.gz), a folder, a checkpoint prefix, an .index file "
                    "or a V1 checkpoint file."
                )
            yield _open(prefix, path)


def write_checkpoint(arrays: dict[str, np.ndarray], prefix: str | os.PathLike) -> Path:
    """Write variables as a V2 checkpoint `PREFIX.index` and `PREFIX.data-00000-of-00001`; both or neither.

    Returns:
        The prefix.
    """
    import tensorflow as tf

    prefix = Path(prefix).expanduser()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{prefix.name}-", dir=prefix.parent) as folder:
        draft = Path(folder) / prefix.name
        try:
            tf.raw_ops.SaveV2(
                prefix=str(draft),
                tensor_names=list(arrays),
                shape_and_slices=[""] * len(arrays),
                tensors=list(arrays.values()),
            )
        except tf.errors.OpError as error:
            raise OSError(f"{prefix} could not be written ({_first_line(error)}): nothing was changed.") from error
        # The index comes last: a checkpoint without one does not exist yet.
        for suffix in (".data-00000-of-00001", ".index"):
            with Path(f"{draft}{suffix}").open("rb+") as file:
                os.fsync(file.fileno())
        for suffix in (".data-00000-of-00001", ".index"):
            Path(f"{draft}{suffix}").replace(f"{prefix}{suffix}")
    return prefix
