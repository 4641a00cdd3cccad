"""The one way from a Keras model to a .tflite file, for all tasks: convert, quantise, compare, add metadata, write, report."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from mnv2_keras.atomic import write_bytes
from mnv2_keras.checks import user_path
from mnv2_keras.export.calibration import ENOUGH, Photos, Progress, evenly_spaced, load_photos, seeded_images
from mnv2_keras.export.check import compare_layers, file_logits, keras_logits, rankings, signal_to_noise
from mnv2_keras.export.conversion import check_operators, convert_precisions
from mnv2_keras.export.int8 import int8_by_ranges, int8_by_statistics, warning_of_few
from mnv2_keras.export.options import Quantization
from mnv2_keras.export.quantization_aware import plain_model
from mnv2_keras.export.report import ExportReport, ends, operator_counts
from mnv2_keras.layers import FakeQuantConvolution
from mnv2_keras.networks.endpoints import takes_pixels
from mnv2_keras.tflite import Metadata, TfliteFile

#: Most photos on which files are compared with the Keras model.
_COMPARED = 32


@dataclass(frozen=True)
class Network:
    """What a task puts into its file; everything else is the same for all tasks. See `export_litert`."""

    model: keras.Model  # is converted
    metadata: Metadata | None = None
    batch: int | None = 1
    resolution: tuple[int, int] | None = None
    compare: bool = True
    finish: Callable[[TfliteFile], None] | None = None  # adds to the converted and compared file what the model does not contain


def write_network(
    network: Network,
    path: str | os.PathLike,
    precision: str,
    quantization: Quantization | None = None,
    photos=None,
    progress: Progress | None = None,
) -> tuple[ExportReport, TfliteFile]:
    """(report, file) of a network that is written as a .tflite file. Arguments and errors are those of `export_litert`."""
    start = time.perf_counter()
    path, quantization = user_path(path), quantization or Quantization()
    on_step = progress or (lambda *_: None)
    model, ranges, kernels = _plain(network.model, precision, quantization)
    quantization.check(precision)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of the file to write, such as {path / 'model.tflite'}.")
    value_range = (0.0, 255.0) if takes_pixels(model) else (-1.0, 1.0)
    *size, channels = (a or b for a, b in zip(model.input_shape[1:], (*(network.resolution or (None, None)), None), strict=True))
    report = ExportReport(str(path), precision)

    def load(source) -> Photos:
        loaded = load_photos(source, tuple(size), value_range, progress=progress, channels=channels)
        report.skipped += loaded.skipped.values()
        return loaded

    is_calibrated = precision in ("int8", "int16x8") and ranges is None
    calibration = None if quantization.calibration is None else load(quantization.calibration)
    if is_calibrated:
        if calibration is None:
            raise ValueError(
                f"precision {precision!r} needs photos to calibrate on: pass quantization=Quantization(FOLDER), or "
                "--calibrate FOLDER to `mnv2 export`, at best with a hundred like those to come (or choose 'dynamic')."
            )
        report.calibration_images, report.calibrated = len(calibration.images), calibration.source
    on_step("converting", 0, None)
    converted = ["float32" if precision == "int8" else precision]
    if network.compare and precision not in ("float32", "int8"):
        converted.append("float32")  # to compare the layers with
    images = calibration.images if calibration and precision == "int16x8" else ()
    file, *references = convert_precisions(model, converted, network.batch, network.resolution, images)
    if precision == "int8" and ranges is not None:
        references, file = [file], int8_by_ranges(file, ranges, kernels, quantization)
    elif precision == "int8":
        reference, file = int8_by_statistics(file, calibration.images, value_range, quantization, report.warnings, on_step)
        references = [reference]
    elif is_calibrated and len(calibration.images) < ENOUGH:
        report.warnings.append(warning_of_few(calibration.images))
    check_operators(file, model.name)
    if network.compare:
        images = _images_to_compare(photos, calibration, load, (*size, channels), value_range, report)
        _compare(report, network.model, file, images)
        if references:
            on_step("comparing layers", 0, None)
            report.layers = compare_layers(references[0], file, images)
    if network.finish:
        network.finish(file)
        check_operators(file, model.name)
    if network.metadata:
        file.set_metadata(network.metadata)
    content = file.to_bytes()
    write_bytes(path, content)
    report.size, report.operators = len(content), operator_counts(file)
    report.inputs, report.outputs = ends(file, file.graph.inputs), ends(file, file.graph.outputs)
    report.seconds = time.perf_counter() - start
    return report, file


def is_quantization_aware(model) -> bool:
    """Whether a model comes from `quantization_aware`."""
    return any(isinstance(layer, FakeQuantConvolution) for layer in model.layers)


def _plain(model, precision: str, quantization: Quantization) -> tuple:
    """(model without fake quantisation, ranges, kernels): for a model of `quantization_aware`, those that it learned."""
    if not is_quantization_aware(model):
        return model, quantization.ranges, []
    if precision != "int8":
        raise ValueError(f"{model.name!r} was trained for int8: export it with precision='int8', not {precision!r}.")
    plain, ranges, kernels = plain_model(model)
    return plain, list(ranges.values()) if quantization.ranges is None else quantization.ranges, kernels


def _images_to_compare(photos, calibration: Photos | None, load, shape, value_range, report) -> list[np.ndarray]:
    if photos is not None:
        photos = load(photos)
        report.compared = photos.source
    elif calibration is not None:
        photos = calibration
        report.compared = f"the calibration's photos ({calibration.source})"
    else:
        report.compared = "seeded noise (pass photos= to compare on real images)"
        return seeded_images(shape, value_range)
    return evenly_spaced(photos.images, _COMPARED)[:_COMPARED]


def _compare(report: ExportReport, model, file: TfliteFile, images: list[np.ndarray]) -> None:
    genuine, ours = keras_logits(model, images), file_logits(file, images)
    ours = [own.reshape(exact.shape) for exact, own in zip(genuine, ours, strict=True)]
    report.images = len(images)
    ratios, differences = [], []
    for exact, own in zip(genuine, ours, strict=True):
        ratios.append([signal_to_noise(a, b) for a, b in zip(exact, own, strict=True)])
        differences.append(float(np.max(np.abs(exact - own)) / max(np.ptp(exact), 1e-12)))
    report.snr_db_each = np.mean(ratios, axis=0).tolist()
    report.snr_db, report.largest_difference = float(np.mean(report.snr_db_each)), max(differences)
    if len(genuine) == 1 and genuine[0].ndim == 2:
        report.top1, report.top5 = rankings(genuine[0], ours[0])
