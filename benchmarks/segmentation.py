"""Speed of Mobile DeepLabv3 at 513 x 513 including arg max: Keras, LiteRT in float32 and int8, Google's 8-bit file.

    python benchmarks/segmentation.py --weights ARCHIVE --float32 ours.tflite --int8 ours_int8.tflite
        --google deeplabv3_mnv2_pascal_quant.tflite

Each round calls all candidates in one process, so that other programs on the machine affect all of them. Each is called
twice in a round, and the second call counts. A ratio is the median of the ratios of the rounds.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RESULTS = Path(__file__).parent / "results" / "segmentation.csv"


def litert(path: str, threads: int):
    """A call that runs a .tflite file once, with arg max in the file or after it."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert len(target["shape"]) == 3, f"{path} does not end in arg max: export it with output='labels'"
    image = np.random.default_rng(0).integers(0, 256, source["shape"]).astype(source["dtype"])
    if source["dtype"] == np.float32:
        image = image / np.float32(127.5) - 1
    interpreter.set_tensor(source["index"], image)
    return interpreter.invoke


def keras_function(weights: str):
    """A call of the Keras model's `tf.function`, arg max included."""
    import numpy as np
    import tensorflow as tf

    from mnv2_keras import convert_checkpoint

    model = convert_checkpoint(weights)
    labels = tf.function(lambda x: tf.argmax(model(x, training=False), -1, output_type=tf.int32))
    image = tf.constant(np.random.default_rng(0).uniform(-1, 1, (1, 513, 513, 3)).astype(np.float32))
    return lambda: labels(image).numpy()


def main() -> None:
    """Measure, print, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="archive of a segmenter")
    parser.add_argument("--float32", required=True, help="our float .tflite, output='labels'")
    parser.add_argument("--int8", required=True, help="our int8 .tflite, output='labels'")
    parser.add_argument("--google", help="Google's quantised .tflite")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    candidates = {
        "Keras tf.function": keras_function(options.weights),
        "LiteRT float32": litert(options.float32, options.threads),
        "LiteRT int8": litert(options.int8, options.threads),
    }
    if options.google:
        candidates["LiteRT, Google's 8-bit"] = litert(options.google, options.threads)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(options.rounds):
        for name, call in candidates.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    base, rows = "Keras tf.function", []
    for name, taken in times.items():
        ratio = statistics.median(t / b for t, b in zip(taken, times[base], strict=True))
        rows.append([name, 1e3 * statistics.median(taken), 1e3 * min(taken), 1e3 * max(taken), ratio])
        print("{:<24} median {:7.1f} ms, minimum {:7.1f}, maximum {:7.1f}, ratio to Keras {:.2f}".format(*rows[-1]))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        packages = " ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "ai-edge-litert"))
        load = os.getloadavg()[0]
        writer.writerow([f"# {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, {options.rounds} rounds, {packages}"])
        writer.writerow(["variant", "median_ms", "least_ms", "most_ms", "ratio_to_keras"])
        writer.writerows([name, *(f"{value:.3f}" for value in values)] for name, *values in rows)
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
