"""Training runs in processes of their own, to be killed or to be several workers: `train_task.py CHAINS.json PARALLEL`.

The file holds chains. A chain is a list of stages that run one after the other, a stage is a list of jobs that run at the same
time. Each job is a fork of this process, which has imported TensorFlow once and uses it for nothing else. PARALLEL chains run at
the same time. The exit codes are written to CHAINS.codes.json.
"""

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from training_tasks import draw_nothing, train_task

from mnv2_keras.training import state
from mnv2_keras.training.distribution import start
from mnv2_keras.training.state import WorkerLostError


def die() -> None:
    """What `kill -9` and the out-of-memory killer do."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(name: str, last: int) -> None:
    """Die before the file of this name is complete for the `last`-th time."""
    writes, sync = Counter(), os.fsync

    def fsync(descriptor) -> None:
        draft = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        writes[name] += name in draft
        if name in draft and writes[name] == last:
            die()
        sync(descriptor)

    os.fsync = fsync


def train(job: dict) -> None:
    """Train as the job says; its results go to its home."""
    os.environ.update(job.get("environment", {}))
    strategy, done = start(), []  # of several workers, a strategy is made before TensorFlow does anything else
    if "kill_while_writing" in job:
        die_while_writing(*job["kill_while_writing"])

    def progress(at) -> None:
        done.append(at.done)
        if job.get("kill_at") == [at.epoch, at.step] and at.row is None:
            die()

    options = {name: job[name] for name in ("resume", "freeze", "settings") if name in job}
    try:
        result = train_task(job["task"], job["folder"], progress=progress, strategy=strategy, **options)
    except WorkerLostError as error:
        sys.exit(f"WorkerLostError: {error}")
    home = Path(job["home"])
    np.savez(home / "weights.npz", *result.model.get_weights())
    (home / "steps.json").write_text(json.dumps(done))


def run_chains(chains: list, parallel: int) -> list:
    """The exit codes of all jobs, in the shape of the chains."""
    codes = [[[None for _ in stage] for stage in chain] for chain in chains]
    stages, running, waiting = [0] * len(chains), {}, list(range(len(chains)))

    def fork_stage(chain: int) -> None:
        for number, job in enumerate(chains[chain][stages[chain]]):
            if pid := os.fork():
                running[pid] = chain, number
                continue
            signal.alarm(300)  # nothing hangs for ever
            with (Path(job["home"]) / "errors.txt").open("w") as errors:
                os.dup2(errors.fileno(), 2)
            train(job)
            sys.exit()

    while running or waiting:
        while waiting and len({chain for chain, _ in running.values()}) < parallel:
            fork_stage(waiting.pop(0))
        pid, status = os.wait()
        chain, number = running.pop(pid)
        codes[chain][stages[chain]][number] = os.waitstatus_to_exitcode(status)
        if all(chain != other for other, _ in running.values()):
            stages[chain] += 1
            if stages[chain] < len(chains[chain]):
                fork_stage(chain)
    return codes


if __name__ == "__main__":
    state.draw_training = draw_nothing
    path = Path(sys.argv[1])
    exit_codes = run_chains(json.loads(path.read_text()), int(sys.argv[2]))
    path.with_suffix(".codes.json").write_text(json.dumps(exit_codes))
