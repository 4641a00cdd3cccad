"""Jobs in a subprocess, so that TensorFlow's memory and crashes do not affect the user's process; none outlives its parent."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

#: Lines of a failed job's stderr that go into an error message.
_LAST_LINES = 6


def job_command(module: str, *arguments: object) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run a module of this package in a subprocess, without GPUs."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    package = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-m", module, *map(str, arguments)], environment


def run_subprocess_job(module: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a module of this package on a folder that holds its job, without GPUs; its output is captured as text.

    The module calls `follow_parent` first.
    """
    command, environment = job_command(module, folder)
    # The job's standard input ends when this process ends, for whatever reason. (The parent's id does not show this: in a venv on
    # Windows, the job's parent is a launcher.)
    reading, writing = os.pipe()
    try:
        return subprocess.run(command, env=environment, stdin=reading, capture_output=True, text=True, check=False)
    finally:
        os.close(reading)
        os.close(writing)


def failure(done: subprocess.CompletedProcess) -> tuple[str, str]:
    """(how a job failed, such as "was ended by signal 9"; the last lines of its stderr, joined)."""
    code = done.returncode
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    return how, " | ".join([line for line in done.stderr.splitlines() if line.strip()][-_LAST_LINES:])


def follow_parent(arguments: list[str]) -> Path:
    """In the job: its folder. When the parent is killed, this process ends too and removes the folder.

    Args:
        arguments: of the command line, as `run_subprocess_job` gives them.
    """
    folder = Path(arguments[0])
    pipe, null = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # on Windows, any other reader of standard input would wait for the read below
    os.close(null)

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return folder


def limit_memory(limit: int) -> None:
    """In a job: let the process grow by `limit` bytes, where the system has such limits (not on Windows)."""
    try:
        import resource
    except ImportError:
        return
    pages = Path("/proc/self/statm")
    used = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
