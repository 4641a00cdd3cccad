"""A small classifier for tests of .tflite files, and the interpreter as anyone uses it."""

import subprocess
from pathlib import Path

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from mnv2_keras.export import conversion, pipeline
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.tflite import TfliteFile

SHAPE = (64, 64, 3)


def trained_like(alpha: float, shape, classes: int = 11, **options) -> keras.Model:
    """A network with batch norms that are not trivial."""
    keras.utils.set_random_seed(5)
    model = build_mobilenetv2(alpha, shape, classes=classes, **options)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            ranges = ((rng.uniform, 0.5, 1.5), (rng.normal, 0, 0.3), (rng.normal, 0, 0.1), (rng.uniform, 0.05, 0.2))
            layer.set_weights([draw(*limits, size) for draw, *limits in ranges])
    return model


def run(file: TfliteFile, image: np.ndarray) -> np.ndarray:
    """The first output of a file in real values, float32; `image` is in real values too."""
    interpreter = Interpreter(model_content=file.to_bytes())
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = source["quantization"]
    if scale:
        info = np.iinfo(source["dtype"])
        image = np.clip(np.round(image / scale) + zero_point, info.min, info.max)
    interpreter.set_tensor(source["index"], image.astype(source["dtype"]))
    interpreter.invoke()
    output = interpreter.get_tensor(target["index"])
    scale, zero_point = target["quantization"]
    return (output.astype(np.float32) - zero_point) * scale if scale else output


def convert_in_this_process(monkeypatch) -> None:
    """The converter's job runs in this process, which is faster than a new one."""

    def run(module: str, folder: Path) -> subprocess.CompletedProcess:
        conversion._convert_job(folder)
        return subprocess.CompletedProcess([module, str(folder)], 0, "", "")

    monkeypatch.setattr(conversion, "run_subprocess_job", run)


def share_conversions(monkeypatch) -> None:
    """Models of one name and shape, and so of the same weights, are converted once, in this process."""
    convert_in_this_process(monkeypatch)
    convert, files = pipeline.convert_precisions, {}

    def cached(model, precisions, batch, resolution, calibration) -> list[TfliteFile]:
        own = files.setdefault((model.name, model.input_shape, str(model.output_shape), batch, resolution), {})
        if missing := [precision for precision in precisions if precision not in own]:
            own |= zip(missing, convert(model, missing, batch, resolution, calibration), strict=True)
        return [own[precision].copy() for precision in precisions]

    monkeypatch.setattr(pipeline, "convert_precisions", cached)
