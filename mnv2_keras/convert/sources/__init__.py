"""The readers of weights, one module per kind of file; `open_source` chooses between them."""

import contextlib
import os
from pathlib import Path

from mnv2_keras.checks import user_path
from mnv2_keras.convert.source import Source
from mnv2_keras.convert.tensor_bundle import TABLE_MAGIC

#: Complete models saved by Keras.
KERAS_FILES = (".keras", ".h5")


def open_source(path: str | os.PathLike) -> contextlib.AbstractContextManager[Source]:
    """Open weights: an archive, a folder, a checkpoint (prefix, `.index`, V1), a frozen graph, a .tflite or a Keras file.

    The content decides where it shows the kind, else the suffix. Unpacked files are removed when the context ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or unsafe, or holds no weights under TF-Slim's names; the message says what to do.
    """
    path = user_path(path)
    head, tail = _ends(path)
    from mnv2_keras.convert.sources import frozen_graph, google_tflite, keras_file, tf_slim

    suffix = path.suffix.lower()
    if suffix == ".tflite" or head[4:] == b"TFL3":
        return contextlib.nullcontext(google_tflite.read(path, path))
    if suffix in (*KERAS_FILES, ".hdf5") or head.startswith(b"\x89HDF"):
        return contextlib.nullcontext(keras_file.read(path))
    if suffix == ".pb":
        return contextlib.nullcontext(frozen_graph.read(path))
    if path.name == "checkpoint" and path.is_file():  # TensorFlow's note of the newest checkpoint in its folder
        return tf_slim.open_checkpoint(path.parent)
    is_part = path.name.endswith((*tf_slim.SUFFIXES, ".index", ".meta")) or ".data-" in path.name
    if head and not is_part and tail != TABLE_MAGIC:
        kind = next((kind for start, kind in _OTHERS.items() if head.startswith(start)), None)
        kind = kind or ("an ONNX model" if suffix == ".onnx" else "not a file of weights")
        raise ValueError(
            f"{path} is {kind}: expected an archive (.tgz, .tar.gz), a TF-Slim checkpoint, a frozen graph (.pb), a Keras model "
            "(.keras, .h5) or one of Google's .tflite files."
        )
    return tf_slim.open_checkpoint(path)


#: First bytes of files that users often confuse with checkpoints.
_OTHERS = {
    b"PK\x03\x04": "a PyTorch file or another zip archive, which this package does not read",
    b"\x80": "a Python pickle, such as an old PyTorch file, which this package does not read",
    b"<": "a web page or XML, not weights",
}


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first and the last 8 bytes of a file; nothing for a folder or a missing file.

    Raises:
        ValueError: it is a pipe or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is not a regular file but a pipe or a device: pass the path of a file.")
    if not path.is_file():
        return b"", b""
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(0, path.stat().st_size - 8))
        return head, file.read()
