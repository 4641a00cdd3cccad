"""The process in which frozen graphs run, so that a graph's memory, loops and crashes stay out of the user's process.

One process serves all graphs of a Python process, one run at a time. A request is a folder with `job.json` and `feed.npz`, named by
a line on standard input; the answer is a line on standard output, and `values.npz`. The process ends with its standard input.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from mnv2_keras.convert.graph_operators import check_operators
from mnv2_keras.subprocess_job import job_command, limit_memory

#: Bounds of one run. The largest genuine graph takes a few seconds and 1 GiB.
RUN_SECONDS, RUN_BYTES = 300, 6 * 2**30
_DONE = "done"
_MODULE = "mnv2_keras.convert.graph_job"


class _Worker:
    """The process, started with the first run and again after a run that ended it."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        """Start anew; a forked process leaves the process of its parent alone."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def _start(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            command, environment = job_command(_MODULE, RUN_BYTES)
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, env=environment, text=True, **pipes)
        return self._process

    def run(self, folder: Path) -> str:
        """The process's answer to a request: "done", an error message, or "" when the process ended."""
        with self._lock:
            process = self._start()
            timer = threading.Timer(RUN_SECONDS, process.kill)
            timer.start()
            try:
                process.stdin.write(f"{folder}\n")
                process.stdin.flush()
                return process.stdout.readline().rstrip("\n")
            except OSError:  # it ended before it could read
                return ""
            finally:
                timer.cancel()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_WORKER = _Worker()
atexit.register(_WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORKER.forget)


def run_graph(path: Path, feed: dict[str, np.ndarray], nodes: dict[str, str]) -> dict[str, np.ndarray]:
    """Values of a frozen graph's nodes, computed in another process within bounds of time and memory.

    Args:
        path: the file; its operators have been checked.
        feed: node to array.
        nodes: key to node.

    Returns:
        Key to array.

    Raises:
        ValueError: the graph cannot be run on this, or took more time or memory than any genuine one.
    """
    with tempfile.TemporaryDirectory(prefix="mnv2-graph-") as name:
        folder = Path(name)
        np.savez(folder / "feed.npz", *feed.values())
        job = {"path": str(path.resolve()), "feed": list(feed), "nodes": list(nodes.values())}
        (folder / "job.json").write_text(json.dumps(job))
        answer = _WORKER.run(folder)
        if not answer:
            raise ValueError(
                f"{path.name} was stopped: a run may take {RUN_SECONDS} s and {RUN_BYTES / 2**30:.0f} GiB, more than any genuine "
                "graph needs. The file is damaged, or made to harm: do not use it."
            )
        if answer != _DONE:
            raise ValueError(f"{path.name} cannot be run ({answer}): it is damaged, or takes other images than these.")
        with np.load(folder / "values.npz", allow_pickle=False) as values:
            return {key: values[f"arr_{i}"] for i, key in enumerate(nodes)}


# In the process


def _serve(limit: int) -> None:
    import tensorflow as tf

    tf.zeros(1).numpy()  # TensorFlow's own memory does not count
    limit_memory(limit)
    # The user's process stops a run that takes too long; this one does so too, because the other may have ended.
    options = tf.compat.v1.RunOptions(timeout_in_ms=1000 * RUN_SECONDS)
    session, loaded = None, None
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        job = json.loads((folder / "job.json").read_text())
        version = job["path"], Path(job["path"]).stat().st_mtime_ns
        try:
            if version != loaded:
                if session:
                    session.close()
                session, loaded = _session(tf, Path(job["path"])), version
            with np.load(folder / "feed.npz", allow_pickle=False) as arrays:
                feed = {_tensor(node): arrays[f"arr_{i}"] for i, node in enumerate(job["feed"])}
            np.savez(folder / "values.npz", *session.run([_tensor(node) for node in job["nodes"]], feed, options))
            answer = _DONE
        except (tf.errors.OpError, ValueError, TypeError, KeyError) as error:
            answer = getattr(error, "message", str(error)).split("\n")[0][:200]
        print(answer, flush=True)


def _session(tf, path: Path):
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(path.read_bytes())
    check_operators(definition, path.name)
    definition.ClearField("library")
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
    return tf.compat.v1.Session(graph=graph)


def _tensor(node: str) -> str:
    return node if ":" in node else f"{node}:0"


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
