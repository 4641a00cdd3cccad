"""`Classifier.stream` on 200 JPEG files of 500 x 375, compared with its stages: `python benchmarks/folder.py WEIGHTS`.

The measure is images per second divided by `1 / (t_invoke + (t_decode + t_preprocess) / cores)`. Each stage is measured
alone in the same run. One call of the network uses all cores; decoding and preprocessing of one image use one core.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mnv2_keras.images import read_image
from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.inference.engines import LitertEngine
from mnv2_keras.inference.model_cache import litert_content
from mnv2_keras.preprocessing import preprocess_image


def draw_photos(folder: Path, count: int) -> list[Path]:
    """Write JPEG files that compress like photos: smooth colours with some noise."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 6, pixels.shape)
        paths.append(folder / f"{i:03}.jpg")
        Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def seconds(call, items) -> float:
    """Median time of a call over some items."""
    taken = []
    for item in items:
        start = time.perf_counter()
        call(item)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def main() -> None:
    """Measure and print each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, Classifier(arguments.weights) as classifier:
        paths = draw_photos(Path(folder), arguments.count)
        engine = LitertEngine(litert_content(arguments.weights))
        photos = [read_image(path) for path in paths[:40]]
        images = [preprocess_image(photo, classifier.size) for photo in photos]
        list(classifier.stream(paths[:8]))
        for _ in range(arguments.rounds):
            decode = seconds(read_image, paths[:40])
            preprocess = seconds(lambda photo: preprocess_image(photo, classifier.size), photos)
            invoke = seconds(engine.run, images)
            start = time.perf_counter()
            count = sum(1 for _ in classifier.stream(paths))
            speed = count / (time.perf_counter() - start)
            limit = 1 / (invoke + (decode + preprocess) / cores)
            print(
                f"decode {decode * 1e3:.2f} ms, preprocess {preprocess * 1e3:.2f} ms, invoke {invoke * 1e3:.2f} ms: "
                f"{speed:.0f} images/s, {speed / limit:.0%} of {limit:.0f}"
            )


if __name__ == "__main__":
    main()
