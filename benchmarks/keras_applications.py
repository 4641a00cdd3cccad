"""This package's classifier compared with Keras Applications' MobileNetV2, interleaved within one process.

    python benchmarks/keras_applications.py [--rounds 30] [--csv benchmarks/results/keras_applications.csv]

Each round times both, in alternating order, so that a change in the load of the machine affects both. Times are medians
over the rounds. The ratio is the median of the ratios of the rounds, with its quartiles.
"""

import argparse
import csv
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from mnv2_keras import build_mobilenetv2, convert_checkpoint


def seconds(call) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(name: str, ours, reference, rounds: int, before=lambda: None) -> dict:
    """A row of the table: both calls in each of `rounds` rounds after a warm-up; `before` runs untimed before each call."""
    pairs = {"ours": ours, "theirs": reference}
    for call in pairs.values():
        call()
    times = {key: [] for key in pairs}
    for i in range(rounds):
        order = list(pairs) if i % 2 else list(reversed(pairs))
        for key in order:
            before()
            times[key].append(seconds(pairs[key]))
    ratios = [a / b for a, b in zip(times["ours"], times["theirs"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "what": name,
        "ours_ms": statistics.median(times["ours"]) * 1e3,
        "theirs_ms": statistics.median(times["theirs"]) * 1e3,
        "ratio": middle,
        "ratio_q1": low,
        "ratio_q3": high,
        "rounds": rounds,
    }


def forward(model, batch: int):
    """A compiled forward pass on one fixed batch."""
    images = tf.constant(np.random.default_rng(0).uniform(-1, 1, (batch, 224, 224, 3)).astype("f4"))
    function = tf.function(lambda x: model(x, training=False), jit_compile=False)
    return lambda: function(images).numpy()


def build_reference(**options):
    """Keras Applications' model with 1001 classes."""
    return keras.applications.MobileNetV2(weights=None, classes=1001, **options)


def clean_session() -> None:
    """No names and no garbage of an earlier build."""
    keras.backend.clear_session()
    gc.collect()


def whole_process(code: str, rounds: int = 5) -> float:
    """Median wall time of a new process, in milliseconds."""
    command = [sys.executable, *code.split()] if code.startswith("-m") else [sys.executable, "-c", code]
    run = lambda: subprocess.run(command, check=True, capture_output=True)  # noqa: E731
    run()
    return statistics.median(seconds(run) for _ in range(rounds)) * 1e3


def main() -> None:
    """Measure and print; write a CSV on request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--archive", type=Path, help="an official archive, to time its conversion")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()

    ours_model, reference_model = build_mobilenetv2(), build_reference()
    rows = [
        interleaved("tf.function forward, batch 1", forward(ours_model, 1), forward(reference_model, 1), arguments.rounds * 4),
        interleaved("tf.function forward, batch 32", forward(ours_model, 32), forward(reference_model, 32), arguments.rounds),
        interleaved("build", build_mobilenetv2, build_reference, arguments.rounds, before=clean_session),
    ]
    alone = {
        "mnv2 --help, whole process": whole_process(
            "from mnv2_keras.cli.main import command_line; command_line()(['--help'], standalone_mode=False)"
        )
    }
    if arguments.archive:
        convert_checkpoint(arguments.archive)
        alone[f"convert {arguments.archive.name}, after imports"] = (
            statistics.median(seconds(lambda: convert_checkpoint(arguments.archive)) for _ in range(5)) * 1e3
        )

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
    print(f"{'':34}{'ours, ms':>10}{'theirs, ms':>12}{'ratio':>8}   quartiles")
    for row in rows:
        print(
            f"{row['what']:34}{row['ours_ms']:10.1f}{row['theirs_ms']:12.1f}{row['ratio']:8.3f}   "
            f"{row['ratio_q1']:.3f} to {row['ratio_q3']:.3f}"
        )
    for name, value in alone.items():
        print(f"{name}: {value:.0f} ms")
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "tensorflow", "keras", "machine", "cores"])
            writer.writeheader()
            extra = {
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "machine": platform.machine(),
                "cores": os.cpu_count(),
            }
            writer.writerows(row | extra for row in rows)


if __name__ == "__main__":
    main()
