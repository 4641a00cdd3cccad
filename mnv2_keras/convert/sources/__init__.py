"""The readers of weights, one module per kind of file; `open_source` chooses between them."""

import contextlib
import os
from pathlib import Path

from mnv2_keras.convert.source import Source

#: Complete models saved by Keras.
KERAS_FILES = (".keras", ".h5")


def open_source(path: str | os.PathLike) -> contextlib.AbstractContextManager[Source]:
    """Open weights: an archive, a folder, a checkpoint (prefix, `.index`, V1), a frozen graph, a .tflite or a Keras file.

    The content decides where it shows the kind, else the suffix. Unpacked files are removed when the context ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or unsafe, or holds no weights under TF-Slim's names; the message says what to do.
    """
    path = Path(path).expanduser()
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(8)
    from mnv2_keras.convert.sources import frozen_graph, google_tflite, keras_file, tf_slim

    if path.suffix == ".tflite" or head[4:] == b"TFL3":
        return contextlib.nullcontext(google_tflite.read(path, path))
    if path.suffix in KERAS_FILES or head.startswith(b"\x89HDF"):
        return contextlib.nullcontext(keras_file.read(path))
    if path.suffix == ".pb":
        return contextlib.nullcontext(frozen_graph.read(path))
    return tf_slim.open_checkpoint(path)
