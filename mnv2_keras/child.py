"""Work in a process of its own, so that TensorFlow's memory and crashes stay out of the user's: started, and never left behind."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

#: Seconds between two looks at whether the parent is still there.
_LOOK = 0.5


def run_child(module: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a module of this package on a folder that holds its job, without GPUs; what it says is captured as text.

    The module calls `follow_parent` first.
    """
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
    }
    package = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", module, str(folder), str(os.getpid())]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def follow_parent(arguments: list[str]) -> Path:
    """In the child: the job's folder. When the parent is killed, this process ends and takes the folder along.

    Args:
        arguments: of the command line, as `run_child` gives them.
    """
    folder, parent = Path(arguments[0]), int(arguments[1])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return folder
