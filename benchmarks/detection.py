"""Speed of post-processing: this package compared with the genuine exported graph, and a .tflite with and without it.

python benchmarks/detection.py ssdlite_mobilenet_v2_coco_synthetic.tar.gz [-o results.csv]

Encodings and logits are random numbers with a fixed seed. Rounds are interleaved, and medians are compared.
`--no-litert` leaves out the second part, which converts the network twice.
"""

import argparse
import csv
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def interleaved(runs: dict, rounds: int) -> dict[str, float]:
    """Median milliseconds of each call. Each round makes all calls, one after another."""
    times: dict[str, list] = {name: [] for name in runs}
    for _ in range(3):
        for run in runs.values():
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def postprocessing(archive: str, rounds: int) -> dict[str, float]:
    """`postprocess_detections` and the same part of the frozen graph, on 1,917 anchors and 91 classes."""
    import tensorflow as tf

    from mnv2_keras import postprocess_detections, ssd_anchors
    from mnv2_keras.convert.graph import FrozenGraph
    from mnv2_keras.convert.sources import open_source

    with open_source(archive) as checkpoint:
        definition = FrozenGraph(checkpoint.frozen_graph).definition
    encodings = np.random.Generator(np.random.PCG64(1)).normal(0, 1, (1, 1917, 4)).astype(np.float32)
    logits = np.random.Generator(np.random.PCG64(2)).normal(-4, 1.5, (1, 1917, 91)).astype(np.float32)
    anchors = tf.constant(ssd_anchors((300, 300)))
    tensors = tf.constant(encodings), tf.constant(logits)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
        session = tf.compat.v1.Session(graph=graph)
    names = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
    fetches = [f"{name}:0" for name in names]
    feed = {"Squeeze:0": encodings, "concat_1:0": logits, "image_tensor:0": np.zeros((1, 300, 300, 3), np.uint8)}
    return interleaved(
        {
            "genuine frozen graph, post-processing": lambda: session.run(fetches, feed),
            "postprocess_detections": lambda: postprocess_detections(*tensors, anchors)["boxes"].numpy(),
        },
        rounds,
    )


def litert(archive: str, rounds: int) -> dict[str, float]:
    """An int8 file with post-processing and one of the same network without."""
    from mnv2_keras import convert_checkpoint
    from mnv2_keras.export.detection import export_detector
    from mnv2_keras.export.litert import export_litert
    from mnv2_keras.export.options import Quantization
    from mnv2_keras.tflite import open_interpreter

    model = convert_checkpoint(archive)
    photos = [np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (300, 300, 3), np.uint8) for seed in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        options = {"quantization": Quantization(photos, steps=()), "compare": False}
        export_litert(model, Path(folder, "network.tflite"), "int8", **options)
        export_detector(model, Path(folder, "fused.tflite"), "int8", **options)
        runs = {}
        for name in ("network", "fused"):
            interpreter = open_interpreter(Path(folder, f"{name}.tflite").read_bytes())
            interpreter.allocate_tensors()
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], photos[0][None])
            runs[f"int8 .tflite, {name}"] = interpreter.invoke
        return interleaved(runs, rounds)


def main() -> None:
    """Measure, print the table, write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-litert", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    parts = [postprocessing(arguments.archive, arguments.rounds)]
    if not arguments.no_litert:
        parts.append(litert(arguments.archive, arguments.rounds))
    rows = []
    for part in parts:
        first = next(iter(part.values()))
        rows += [{"what": name, "median_ms": round(ms, 3), "ratio": round(ms / first, 3)} for name, ms in part.items()]
    for row in rows:
        print(f"{row['what']:40} {row['median_ms']:9.2f} ms {row['ratio']:7.2f}x")
    if arguments.output:
        import tensorflow as tf

        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "tensorflow": tf.__version__}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *about])
            writer.writeheader()
            writer.writerows(row | about for row in rows)


if __name__ == "__main__":
    main()
