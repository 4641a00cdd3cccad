"""The main job on what comes with the package: every step a fact that is checked, not claimed."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnv2_keras.analysis import analyze
from mnv2_keras.bundled import bundled_file, digits_network, sample_digits
from mnv2_keras.conversion import convert_checkpoint, verify_checkpoint
from mnv2_keras.convert.goldens import bundled_golden, name_rule_value
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.source import sha256_of
from mnv2_keras.convert.transfer import load_arrays
from mnv2_keras.labels import decode_predictions
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.preprocessing import preprocess_image
from mnv2_keras.weights import save_checkpoint


class Fact(NamedTuple):
    """One line of the demonstration."""

    proven: bool
    text: str


def demonstrate() -> Iterator[Fact]:
    """Build, save as TF-Slim would, convert, verify, classify; a fact after each step.

    The weights come from the name rule of the goldens: they are not trained, so the classes mean nothing; that the
    genuine program names the same ones is the point.
    """
    golden = bundled_golden()
    options = golden.options
    side = options["input_shape"][0]
    start = time.perf_counter()
    model = build_mobilenetv2(**options)
    took = time.perf_counter() - start
    counted = analyze(options["alpha"], options["input_shape"])
    yield Fact(
        counted.trainable == golden.about["params"],
        f"built alpha {options['alpha']}, {side} x {side} pixels in {took:.1f} s: {counted.trainable:,} trainable parameters, "
        f"{counted.multiply_adds:,} multiply-adds; TF-Slim counts {golden.about['params']:,} parameters",
    )
    load_arrays(model, {name: name_rule_value(name, variable.shape) for name, variable in variables(model).items()})
    with tempfile.TemporaryDirectory(prefix="mnv2-demo-") as folder:
        prefix = save_checkpoint(model, Path(folder) / f"mobilenet_v2_{options['alpha']}_{side}.ckpt")
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        yield Fact(size > 0, f"wrote it as a TF-Slim checkpoint: {len(golden.shapes)} variables, {size / 1e6:.1f} MB")
        converted = convert_checkpoint(prefix)
        same = [np.array_equal(a, b) for a, b in zip(model.get_weights(), converted.get_weights(), strict=True)]
        yield Fact(
            all(same) and converted.input_shape == model.input_shape,
            f"converted it back, alpha, classes and size read from the file: {sum(same)} of {len(same)} weights equal to the bit",
        )
        receipt = verify_checkpoint(prefix, goldens=golden.path)
    yield Fact(
        receipt.passed,
        receipt.failure
        or f"verified against the genuine TF-Slim program: {len(receipt.endpoints)} tensors, worst "
        f"{receipt.worst.range_relative:.1e} of its range ({receipt.tolerance:g} passes; TF-Slim differs from itself by 5e-5)",
    )
    images, genuine = golden.input(), golden.outputs()["net"]
    ours = decode_predictions(converted(images), top=3)
    genuine_best = np.argsort(-genuine, axis=-1, kind="stable")[:, :3].tolist()
    for i, best in enumerate(ours):
        yield Fact(
            [prediction.index for prediction in best] == genuine_best[i],
            f"noise {i} is {', '.join(f'{label!r} {score:.2f}' for _, label, score in best)}: TF-Slim says the same",
        )
    yield from _digits()


def _digits() -> Iterator[Fact]:
    """The trained network that comes with the package: convert, verify, classify real digits, export to int8, compare, time."""
    from mnv2_keras.export.litert import export_litert
    from mnv2_keras.export.options import Quantization
    from mnv2_keras.inference.engines import LitertEngine

    archive, about = bundled_file("digits.tgz"), json.loads(bundled_file("digits.json").read_text())
    model = convert_checkpoint(archive, **digits_network())
    yield Fact(
        sha256_of(archive) == about["sha256"][archive.name] and model.count_params() == about["parameters"],
        f"converted {archive.name}, trained here: {model.count_params():,} weights, {archive.stat().st_size / 1e6:.2f} MB; "
        f"its receipt says {about['accuracy']:.2%} of {about['images']:,} held-out digits",
    )
    photos, labels = sample_digits()
    images = np.stack([preprocess_image(photo, 28)[..., :1] for photo in photos])
    scores = np.asarray(model(images, training=False))
    off = np.abs(scores - np.array(list(about["samples"].values()))).max()
    yield Fact(off < 1e-4, f"verified against LiteRT's answers from when it was trained: at most {off:.1e} apart (1e-4 passes)")
    right = int((scores.argmax(1) == labels).sum())
    yield Fact(right >= len(labels) - 1, f"classified {len(labels)} handwritten digits it never saw: {right} right")
    with tempfile.TemporaryDirectory(prefix="mnv2-demo-") as folder:
        path = Path(folder) / "digits_int8.tflite"
        labels_of_classes = list("0123456789")
        report = export_litert(model, path, "int8", quantization=Quantization(images), labels=labels_of_classes)
        engine = LitertEngine(path.read_bytes(), threads=1)
    int8_scores = engine.run_batch(images)
    same = int((int8_scores.argmax(1) == scores.argmax(1)).sum())
    yield Fact(
        same >= len(labels) - 1,
        f"exported to int8, {report.size / 1e6:.2f} MB: {same} of {len(labels)} digits named as before, {report.snr_db:.0f} dB",
    )
    keras_ms = _milliseconds(lambda: np.asarray(model(images[:1], training=False)))
    int8_ms = _milliseconds(lambda: engine.run(images[0]))
    yield Fact(int8_ms < keras_ms, f"a digit takes {int8_ms:.2f} ms in LiteRT, {keras_ms:.1f} ms in Keras (medians of 20)")


def _milliseconds(run) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
