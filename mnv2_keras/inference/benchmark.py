"""How fast a classifier is on this machine: latency, throughput, memory and cold start of each engine and precision."""

import contextlib
import csv
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from mnv2_keras.checks import whole_number
from mnv2_keras.deprecation import renamed_arguments
from mnv2_keras.figures import check_figure, draw_latencies
from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.inference.model_cache import litert_content, path_of

#: What is measured by default.
VARIANTS = ("litert float32", "litert float16", "litert int8", "keras float32")
ALL_VARIANTS = (*VARIANTS, "litert dynamic", "openvino float32", "openvino int8")

#: Calls before the measurement, to fill caches and choose kernels.
_WARM_UP = 3


@dataclass(frozen=True)
class Measurement:
    """Figures of one engine, precision and number of threads.

    Times are milliseconds of `Classifier.predict` on a uint8 photo of the network's size, preprocessing and top 5 included.
    """

    engine: str
    precision: str
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float  # of `stream`, which keeps all threads busy
    cold_start_s: float | None  # of a new process, from its start to its first answer
    memory_mb: float | None  # the most that process held, in 10 ** 6 bytes


@renamed_arguments(say="on_message")
def measure(
    weights: str | os.PathLike,
    variants: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    rounds: int = 50,
    cold: bool = True,
    on_message: Callable[[str], None] | None = None,
) -> list[Measurement]:
    """Measure in interleaved rounds: each variant once, then again, so that a busy moment slows all of them.

    Args:
        weights: as in `Classifier`.
        variants: "ENGINE PRECISION", any of `ALL_VARIANTS`; None for `VARIANTS`. An int8 file for this purpose is calibrated on
            noise: as fast as another, but of no other use. A `.tflite` runs in its one precision, in LiteRT and OpenVINO.
        threads: numbers of threads; None for 1 and all cores.
        rounds: calls of each variant.
        cold: whether to measure cold starts and memory too, each in a new process.
        on_message: called with a sentence before work that takes long.

    Raises:
        ValueError: an unknown variant, or one that a `.tflite` does not have; fewer than 1 round or thread.
    """
    possible, default = ALL_VARIANTS, VARIANTS
    if path_of(weights).suffix == ".tflite":
        precision = precision_of(litert_content(weights))
        possible, default = (f"litert {precision}", f"openvino {precision}"), (f"litert {precision}",)
    variants = variants or default
    if unknown := [variant for variant in variants if variant not in possible]:
        raise ValueError(f"variant {unknown[0]!r}: of {weights} expected any of {', '.join(possible)}.")
    whole_number("rounds", rounds)
    threads = [whole_number("threads", count) for count in threads or sorted({1, os.cpu_count() or 1})]
    on_message = on_message or (lambda _: None)
    with tempfile.TemporaryDirectory(prefix="mnv2-bench-") as folder, contextlib.ExitStack() as stack:
        cases = []  # (engine, precision, threads, file); the threads of Keras are its backend's
        for engine, precision in (variant.split() for variant in variants):
            file = prepared_file(weights, engine, precision, Path(folder), on_message)
            cases += [(engine, precision, count, file) for count in ([None] if engine == "keras" else threads)]
        classifiers = [stack.enter_context(Classifier(file, engine, count)) for engine, _, count, file in cases]
        photo = np.random.default_rng(0).integers(0, 256, (*classifiers[0].size, 3), dtype=np.uint8)
        on_message(f"Measuring {rounds} rounds.")
        seconds = _interleaved([partial(classifier.predict, photo) for classifier in classifiers], rounds)
        measurements = []
        for (engine, precision, count, file), classifier, row in zip(cases, classifiers, seconds, strict=True):
            speed = _throughput(classifier, photo, rounds)
            start, memory = _cold_start(file, engine, count, Path(folder)) if cold else (None, None)
            percentiles = (np.percentile(row, (50, 90, 99)) * 1e3).tolist()
            count = count or os.cpu_count() or 1
            measurements.append(Measurement(engine, precision, count, *percentiles, speed, start, memory))
        return measurements


def prepared_file(weights, engine: str, precision: str, folder: Path, on_message) -> str:
    """A file to measure; the weights themselves for Keras, and if they are a `.tflite`."""
    if engine == "keras":
        return str(weights)
    if (path := path_of(weights)).suffix == ".tflite":
        return str(path)
    file = folder / f"{precision}.tflite"
    if not file.exists():
        content = litert_content(weights, "float32" if precision == "int8" else precision, None, on_message)
        if precision == "int8":
            from mnv2_keras.export.calibration import seeded_images
            from mnv2_keras.export.quantization import quantize_int8
            from mnv2_keras.export.statistics import collect
            from mnv2_keras.tflite import TfliteFile

            float_file = TfliteFile(content)
            images = seeded_images(float_file.shape(int(float_file.graph.inputs[0]))[1:], (-1.0, 1.0))
            content = quantize_int8(float_file, collect(float_file, images).ranges()).to_bytes()
        file.write_bytes(content)
    return str(file)


def precision_of(content: bytes) -> str:
    """The precision of a `.tflite` file, as `export_litert` names it."""
    from mnv2_keras.tflite import TfliteFile

    file = TfliteFile(content)
    computed = {file.dtype(int(operator.outputs[0])).name for operator in file.graph.operators}
    if computed & {"int8", "uint8"}:
        return "int8"
    if "int16" in computed:
        return "int16x8"
    stored = {file.dtype(i).name for i in range(len(file.graph.tensors))}
    return "dynamic" if "int8" in stored else "float16" if "float16" in stored else "float32"


def _interleaved(calls: Sequence[Callable], rounds: int) -> np.ndarray:
    """Seconds (calls, rounds) of each call of each function; the functions take turns."""
    for call in calls:
        for _ in range(_WARM_UP):
            call()
    seconds = np.zeros((len(calls), rounds))
    for place in np.ndindex(rounds, len(calls)):
        start = time.perf_counter()
        calls[place[1]]()
        seconds[place[::-1]] = time.perf_counter() - start
    return seconds


def _throughput(classifier: Classifier, photo: np.ndarray, rounds: int) -> float:
    list(classifier.stream([photo] * 4))
    count = max(rounds, 8)
    start = time.perf_counter()
    for _ in classifier.stream([photo] * count):
        pass
    return count / (time.perf_counter() - start)


_COLD = """
import pathlib, resource, sys
from mnv2_keras.figures import check_figure, draw_latencies
from mnv2_keras.inference.classifier import Classifier
file, engine, threads, photo = sys.argv[1:]
Classifier(file, engine, int(threads) or None).predict(photo)
status = pathlib.Path("/proc/self/status")
if status.exists():  # Linux counts the parent's memory into ru_maxrss
    print("peak", [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")][0])
else:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


def _cold_start(file: str, engine: str, threads: int | None, folder: Path) -> tuple[float, float]:
    """(seconds, 10 ** 6 bytes): the median of three processes, the largest memory."""
    from PIL import Image

    photo = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(photo)
    command = [sys.executable, "-c", _COLD, file, engine, str(threads or 0), str(photo)]
    seconds, peaks = [], []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        peaks.append(int(done.stdout.split("peak")[-1]) * 1024)
    return statistics.median(seconds), max(peaks) / 1e6


def to_csv(measurements: Sequence[Measurement]) -> str:
    """A row for each measurement, under the names of its fields."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Measurement)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, measurements))
    return out.getvalue()


def plot(measurements: Sequence[Measurement], path: str | os.PathLike) -> Path:
    """Draw the median latencies, with p90, as bars into a .png or .svg file, atomically."""
    check_figure(path)
    names = [f"{row.engine} {row.precision}, {row.threads} threads" for row in measurements]
    latencies = [(row.p50_ms, row.p90_ms) for row in measurements]
    return draw_latencies(dict(zip(names, latencies, strict=True)), path)
