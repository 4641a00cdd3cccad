"""The readers of weights, one module for each kind of file, and the one place that chooses between them.

To add a source, write a module here whose reader returns a `Source`, and give it a line in `open_source`.
"""

import contextlib
import os
from pathlib import Path

from mnv2_keras.convert.source import Source

#: Complete models saved by Keras.
KERAS_FILES = (".keras", ".h5")


def open_source(path: str | os.PathLike) -> contextlib.AbstractContextManager[Source]:
    """Open weights: an archive, a folder, a checkpoint (prefix, `.index`, V1), a frozen graph, a .tflite or a Keras file.

    The content decides where it tells the kind, the suffix otherwise. What is unpacked is removed when the context ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or unsafe, or holds no weights under TF-Slim's names; the message says what to do.
    """
    path = Path(path).expanduser()
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(8)
    if path.suffix == ".tflite" or head[4:] == b"TFL3":
        from mnv2_keras.convert.sources import google_tflite

        return contextlib.nullcontext(google_tflite.read(path, path))
    if path.suffix in KERAS_FILES or head.startswith(b"\x89HDF"):
        from mnv2_keras.convert.sources import keras_file

        return contextlib.nullcontext(keras_file.read(path))
    if path.suffix == ".pb":
        from mnv2_keras.convert.sources import frozen_graph

        return contextlib.nullcontext(frozen_graph.read(path))
    from mnv2_keras.convert.sources import tf_slim

    return tf_slim.open_checkpoint(path)
