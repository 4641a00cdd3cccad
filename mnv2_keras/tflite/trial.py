"""The first run of a .tflite file that this package did not make: in a subprocess, because LiteRT's C++ trusts what a file states.

The digest of a file that has passed is kept in `CACHE/checked`, so that later processes open it at once.
`python -m mnv2_keras.tflite.trial FOLDER` is the subprocess.
"""

import contextlib
import hashlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from mnv2_keras.atomic import write_text
from mnv2_keras.cache import CacheError, cache_folder
from mnv2_keras.subprocess_job import failure, follow_parent, limit_memory, run_subprocess_job

#: Bounds of the run. Google's largest file of MobileNetV2 takes 0.4 s and 0.2 GiB.
_SECONDS, _BYTES = 60, 4 * 2**30


def check_runs(content: bytes, name: str) -> None:
    """Run a file once on zeros, unless one of these bytes has run before.

    Args:
        content: the file's bytes.
        name: of the file, for the message.

    Raises:
        ValueError: the file ends the process, or takes more than 60 s or 4 GiB. (What LiteRT itself refuses is no error here.)
    """
    mark = _mark(content)
    if mark is not None and mark.exists():
        return
    with tempfile.TemporaryDirectory(prefix="mnv2-trial-") as folder:
        Path(folder, "model.tflite").write_bytes(content)
        done = run_subprocess_job(__name__, Path(folder))
    if done.returncode < 0:
        how, _ = failure(done)
        limit = f", after {_SECONDS} s" if -done.returncode in (signal.SIGALRM, signal.SIGXCPU) else ""
        raise ValueError(
            f"{name} is damaged, or made to harm: the process that ran it {how}{limit}. Copy it again, or make it from its weights."
        )
    if mark is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs a run at the next time
            write_text(mark, "")


def _mark(content: bytes) -> Path | None:
    try:
        return cache_folder() / "checked" / hashlib.sha256(content).hexdigest()
    except CacheError:
        return None


def _run(path: Path) -> None:
    """In the subprocess."""
    import numpy as np

    from mnv2_keras.tflite.file import open_interpreter

    if hasattr(signal, "alarm"):
        signal.alarm(_SECONDS)
    limit_memory(_BYTES)
    interpreter = open_interpreter(path.read_bytes(), threads=1)
    interpreter.allocate_tensors()
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], np.zeros(tensor["shape"], tensor["dtype"]))
    interpreter.invoke()


if __name__ == "__main__":
    _folder = follow_parent(sys.argv[1:])
    try:
        _run(_folder / "model.tflite")
    except (ValueError, RuntimeError, MemoryError) as _error:  # LiteRT refuses the file, as it will in the user's process
        print(_error, file=sys.stderr)
        os._exit(0)
