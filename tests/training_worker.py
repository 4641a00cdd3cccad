"""A training run in a process of its own, to be killed or to be one of several: `python training_worker.py JOB.json`."""

import itertools
import json
import os
import signal
import sys
from pathlib import Path

from mnv2_keras.training.distribution import start

# A strategy of several workers has to be made before TensorFlow does anything else.
STRATEGY = start() if __name__ == "__main__" else None

import keras  # noqa: E402
import numpy as np  # noqa: E402

from mnv2_keras.data.classification import Examples  # noqa: E402
from mnv2_keras.training.classification import build, train  # noqa: E402
from mnv2_keras.training.recipes import Recipe  # noqa: E402
from mnv2_keras.training.state import WorkerLostError  # noqa: E402


def examples(count: int, seed: int) -> Examples:
    """Two classes of noise, one of them brighter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    images = rng.integers(0, 156, (count, 16, 16, 1)) + 100 * labels[:, None, None, None]
    return Examples(images.astype(np.uint8), labels, ("dark", "bright"))


def recipe(**options) -> Recipe:
    """A network that is traced in a second."""
    network = {
        "input_shape": (16, 16, 1),
        "classes": 2,
        "table": ((1, 8, 1, 1), (6, 8, 1, 2)),
        "stem_channels": 8,
        "last_channels": 16,
        "weight_decay": 4e-5,
        "batch_norm_momentum": 0.9,
    }
    settings = {"epochs": 3, "batch": 8, "learning_rate": 0.01, "average": 0.9, "augmentation": "affine"}
    return Recipe(network | options.pop("network", {}), **(settings | options))


def die() -> None:
    """What `kill -9` and the out-of-memory killer do."""
    os.kill(os.getpid(), signal.SIGKILL)


def frozen_model(chosen: Recipe) -> keras.Model:
    """The recipe's network with its batch norms frozen."""
    model = build(chosen, 2)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    return model


def main(job: dict) -> None:
    """Train as the job says."""
    if last := job.get("kill_in_save"):
        calls, sync = itertools.count(1), os.fsync
        os.fsync = lambda descriptor: die() if next(calls) == last else sync(descriptor)
    model = None
    chosen = recipe(**job.get("recipe", {}))
    if job.get("frozen"):
        with STRATEGY.scope():
            model = frozen_model(chosen)

    def progress(at) -> None:
        if job.get("kill_at") == [at.epoch, at.step] and at.row is None:
            die()

    try:
        run = train(
            examples(40, 0),
            examples(16, 1),
            chosen,
            job["folder"],
            model=model,
            resume=job.get("resume", False),
            progress=progress,
            strategy=STRATEGY,
        )
    except WorkerLostError as error:
        sys.exit(f"WorkerLostError: {error}")
    np.savez(job["weights"], *run.model.get_weights())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
