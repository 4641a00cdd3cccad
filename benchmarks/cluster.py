"""Two Ray workers on this machine, compared with one worker and with a single process.

    python benchmarks/cluster.py WEIGHTS --images FOLDER [--photos 800] [--rounds 5]

The measure is photos per second from the first finished part to the last. It does not include the start of Ray and its
actors, which does not matter for millions of photos. The photos are JPEG files of about 500 x 375, crops of the images
in FOLDER.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from PIL import Image

from mnv2_keras import Classifier, find_images, predict_on_cluster, read_image


def write_photos(folder: Path, sources: list[Path], count: int) -> None:
    """Write crops of 80 % to 100 % of each side of the sources as JPEG files."""
    rng = np.random.default_rng(0)
    pictures = [read_image(path) for path in sources]
    for i in range(count):
        picture = pictures[i % len(pictures)]
        high, wide = (int(side * rng.uniform(0.8, 1)) for side in picture.shape[:2])
        Image.fromarray(picture[-high:, :wide]).resize((500, 375)).save(folder / f"{i:05d}.jpg", quality=90)


def on_ray(folder: Path, weights, workers: int) -> float:
    """Photos per second between the first and the last finished part."""
    reports = []
    with tempfile.TemporaryDirectory() as home:
        predict_on_cluster(
            folder,
            Path(home, "out.parquet"),
            weights,
            workers=workers,
            part=20,
            progress=lambda done, total: reports.append((time.perf_counter(), done)),
        )
    (start, before), (end, done) = reports[0], reports[-1]
    return (done - before) / (end - start)


def in_one_process(folder: Path, weights, threads: int | None) -> float:
    """Photos per second of `Classifier.stream`."""
    paths = find_images(folder)
    with Classifier(weights, threads=threads) as classifier:
        results = classifier.stream(paths)
        next(results)
        start = time.perf_counter()
        count = sum(1 for _ in results)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Measure, print medians and ratios, write each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "cluster.csv")
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write_photos(folder, find_images(options.images), options.photos)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        sides = {
            "one worker": lambda: on_ray(folder, options.weights, 1),
            "two workers": lambda: on_ray(folder, options.weights, 2),
            "one process, one thread": lambda: in_one_process(folder, options.weights, 1),
            "one process, all cores": lambda: in_one_process(folder, options.weights, None),
        }
        for number in range(options.rounds):
            for name in sides if number % 2 else reversed(sides):
                speeds.setdefault(name, []).append(sides[name]())
        ray.shutdown()
    for name in sides:
        print(f"{name}: {statistics.median(speeds[name]):.1f} photos/s", flush=True)
    for other in ("one worker", "one process, all cores"):
        ratios = [a / b for a, b in zip(speeds["two workers"], speeds[other], strict=True)]
        print(f"two workers / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["side", "round", "photos_per_second", "machine", "cores", "ray"])
        for name, values in speeds.items():
            for number, speed in enumerate(values, 1):
                writer.writerow([name, number, round(speed, 1), platform.machine(), os.cpu_count(), ray.__version__])


if __name__ == "__main__":
    main()
