"""Work in a process of its own, so that TensorFlow's memory and crashes stay out of the user's: started, and never left behind."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path


def job_command(module: str, *arguments: object) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run a module of this package in a subprocess, without GPUs."""
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
    }
    package = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-m", module, *map(str, arguments)], environment


def run_child(module: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a module of this package on a folder that holds its job, without GPUs; what it says is captured as text.

    The module calls `follow_parent` first.
    """
    command, environment = job_command(module, folder)
    # The child's standard input ends when this process does, however it ends. (A parent's id would not tell: in a Windows venv
    # the child's parent is a launcher.)
    reading, writing = os.pipe()
    try:
        return subprocess.run(command, env=environment, stdin=reading, capture_output=True, text=True, check=False)
    finally:
        os.close(reading)
        os.close(writing)


def follow_parent(arguments: list[str]) -> Path:
    """In the child: the job's folder. When the parent is killed, this process ends and takes the folder along.

    Args:
        arguments: of the command line, as `run_child` gives them.
    """
    folder = Path(arguments[0])
    held, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # on Windows whoever else looks at standard input would wait for the read below
    os.close(nothing)

    def watch() -> None:
        while os.read(held, 1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return folder
