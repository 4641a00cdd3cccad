"""A training run in a process of its own, to be killed or to be one of several: `train_task.py JOB.json`."""

import itertools
import json
import os
import signal
import sys
from pathlib import Path

from mnv2_keras.training.distribution import start

# A strategy of several workers has to be made before TensorFlow does anything else.
STRATEGY = start()

import numpy as np  # noqa: E402
from training_tasks import train_task  # noqa: E402

from mnv2_keras.training.state import WorkerLostError  # noqa: E402


def die() -> None:
    """What `kill -9` and the out-of-memory killer do."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(job: dict) -> None:
    """Train as the job says."""
    if last := job.get("kill_in_save"):
        calls, sync = itertools.count(1), os.fsync
        os.fsync = lambda descriptor: die() if next(calls) == last else sync(descriptor)

    def progress(at) -> None:
        if job.get("kill_at") == [at.epoch, at.step] and at.row is None:
            die()

    options = {name: job[name] for name in ("resume", "freeze", "settings") if name in job}
    try:
        result = train_task(job["task"], job["folder"], progress=progress, strategy=STRATEGY, **options)
    except WorkerLostError as error:
        sys.exit(f"WorkerLostError: {error}")
    np.savez(job["weights"], *result.model.get_weights())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
