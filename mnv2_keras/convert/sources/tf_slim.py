"""TF-Slim's checkpoints: V2 and V1, single, in folders and in archives; and written as V2."""

import contextlib
import glob
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mnv2_keras.checks import user_path
from mnv2_keras.convert.archives import FETCH_AGAIN, SUFFIXES, extract, first_line
from mnv2_keras.convert.source import Source, sha256_of
from mnv2_keras.convert.sources import google_tflite
from mnv2_keras.convert.tensor_bundle import check_index

_NEWEST = re.compile(r'^model_checkpoint_path: "(.*)"', re.MULTILINE)
_V2_PART = re.compile(r"\.(?:index|meta|data-\d{5}-of-\d{5})$")


def _prefixes(folder: Path) -> list[Path]:
    return sorted(path.with_name(path.name.removesuffix(".index")) for path in folder.glob("*.index"))


def _prefix_in(folder: Path, source: Path) -> Path:
    """The one checkpoint in a folder."""
    prefixes = _prefixes(folder)
    if not prefixes:  # an archive may hold one folder
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        prefixes = [prefix for path in inner for prefix in _prefixes(path)]
    for suffix in (".ckpt", ".tflite"):  # V1; and the only file in some archives of quantised networks
        prefixes = prefixes or [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix == suffix]
    state = folder / "checkpoint"  # of a training: it names the newest one
    newest = _NEWEST.search(state.read_text("utf-8", "replace")) if len(prefixes) > 1 and state.is_file() else None
    if newest:
        prefixes = [prefix for prefix in prefixes if prefix.name == Path(newest[1]).name] or prefixes
    if len(prefixes) == 1:
        return prefixes[0]
    if not prefixes:
        raise ValueError(
            f"{source} holds no checkpoint: expected a `.index` file with its `.data-00000-of-00001`, a V1 `.ckpt` file, or one of "
            "Google's quantised `.tflite` files."
        )
    names = ", ".join(prefix.name for prefix in prefixes)
    raise ValueError(f"{source} holds {len(prefixes)} checkpoints ({names}): pass the path of the one you mean.")


def _frozen_graph(folder: Path, prefix: Path) -> Path | None:
    """The graph next to a checkpoint; of several, the one with the checkpoint's name."""
    graphs = sorted(folder.glob("*frozen*.pb"))
    stem = prefix.name.partition(".ckpt")[0]
    return next((path for path in graphs if path.name.startswith(f"{stem}_frozen")), graphs[0] if graphs else None)


def _read(prefix: Path, path: Path, folder: Path) -> Source:
    if prefix.suffix == ".tflite":
        return google_tflite.read(prefix, path)
    import tensorflow as tf

    index = Path(f"{prefix}.index")
    parts = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))
    if index.exists():
        shards = {part.name[-5:] for part in parts}
        if len(shards) != 1 or len(parts) != int(shards.pop()):
            raise FileNotFoundError(
                f"{path}: {index.name} has no complete data file next to it (expected {prefix.name}.data-00000-of-00001): "
                "copy all files of the checkpoint into one folder."
            )
    try:
        if index.exists():
            check_index(index)
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except Exception as error:  # see Source.array
        raise ValueError(f"{path} is not a TensorFlow checkpoint ({first_line(error)}). {FETCH_AGAIN}") from error
    files = [index, *parts] if index.exists() else [prefix]
    hashes = {file.name: sha256_of(file) for file in files}
    return Source(path, prefix, dict(sorted(shapes.items())), reader.get_tensor, _frozen_graph(folder, prefix), hashes)


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[Source]:
    """Open an archive, a folder, a prefix, an `.index` file or a V1 file; unpacked files are removed afterwards.

    Raises:
        FileNotFoundError: there is no such checkpoint, or one of its files is missing.
        ValueError: the file is damaged, unsafe or not a checkpoint.
    """
    if path.is_file() and path.name.endswith(SUFFIXES):
        with tempfile.TemporaryDirectory(prefix="mnv2-") as name:
            folder = Path(name)
            extract(path, folder)
            yield _read(_prefix_in(folder, path), path, folder)
    elif path.is_dir():
        prefix = _prefix_in(path, path)
        yield _read(prefix, path, prefix.parent)
    else:
        prefix = path.with_name(_V2_PART.sub("", path.name))
        if not path.is_file() and not Path(f"{prefix}.index").is_file():
            raise FileNotFoundError(
                f"{path} does not exist: expected an archive (.tgz, .tar.gz), a folder, a checkpoint prefix, an .index file "
                "or a V1 checkpoint file."
            )
        yield _read(prefix, path, prefix.parent)


def write_checkpoint(arrays: dict[str, np.ndarray], prefix: str | os.PathLike) -> Path:
    """Write variables as a V2 checkpoint, `PREFIX.index` and `PREFIX.data-00000-of-00001`, both or neither; returns the prefix."""
    import tensorflow as tf

    prefix = user_path(prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{prefix.name}-", dir=prefix.parent) as folder:
        draft = Path(folder) / prefix.name
        try:
            tf.raw_ops.SaveV2(
                prefix=str(draft), tensor_names=list(arrays), shape_and_slices=[""] * len(arrays), tensors=list(arrays.values())
            )
        except tf.errors.OpError as error:
            raise OSError(f"{prefix} could not be written ({first_line(error)}): nothing was changed.") from error
        # The index comes last: without it there is no checkpoint.
        suffixes = (".data-00000-of-00001", ".index")
        for suffix in suffixes:
            with Path(f"{draft}{suffix}").open("rb+") as file:
                os.fsync(file.fileno())
        for suffix in suffixes:
            Path(f"{draft}{suffix}").replace(f"{prefix}{suffix}")
    return prefix
