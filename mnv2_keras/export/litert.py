"""Export: a Keras model to a .tflite file that Android takes, with a report of what it lost."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mnv2_keras.atomic import write_bytes
from mnv2_keras.export.calibration import ENOUGH, Photos, Progress, evenly, load_photos, seeded_images, varied
from mnv2_keras.export.check import compare_layers, file_logits, keras_logits, rankings, signal_to_noise
from mnv2_keras.export.conversion import check_operators, convert_litert
from mnv2_keras.export.cross_layer_equalization import equalize
from mnv2_keras.export.gptq import gptq
from mnv2_keras.export.metadata import classifier_metadata, image_input
from mnv2_keras.export.quantization import (
    FIXED,
    INPUT_TYPES,
    KERNEL_AXIS,
    SAME_SCALE,
    Kernel,
    activation_scheme,
    quantize_int8,
)
from mnv2_keras.export.report import ExportReport, inspect_litert
from mnv2_keras.export.statistics import collect
from mnv2_keras.labels import imagenet_labels
from mnv2_keras.tflite import Metadata, TfliteFile, add_metadata

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")

#: Steps that make int8 better than rounding alone; see docs/benchmarks.md for what each brings.
REFINEMENTS = ("equalize", "round", "correct")

#: Photos that files are compared with the Keras model on.
_COMPARED = 32
#: A layer's share of the photos' values outside the ranges of the other half that is worth a word.
_THIN = 0.1


def export_litert(
    model,
    path: str | os.PathLike,
    precision: str = "float32",
    *,
    input_type: str | None = None,
    output_type: str | None = None,
    calibration=None,
    photos=None,
    labels: Sequence[str] | None = None,
    metadata: bool | Metadata = True,
    batch: int | None = 1,
    resolution: int | tuple[int, int] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    refine: Sequence[str] = REFINEMENTS,
    compare: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a Keras model as a .tflite file.

    Args:
        model: a functional model of one image input, such as this package builds; or one from `quantization_aware`, which goes to
            int8 with the ranges it learned and needs no calibration.
        path: the file to write; it is complete or not there.
        precision: "float32"; "float16" (weights in half precision); "dynamic" (kernels in int8, activations in float);
            "int8" (all in int8, kernels with one scale a channel); "int16x8" (activations in int16).
        input_type: of an int8 file: "uint8" (default, what MediaPipe takes), "int8" or "float32".
        output_type: of an int8 file; None for the input's. With "float32" the softmax is computed in float.
        calibration: photos for "int8" and "int16x8", at best a hundred like those to come: a folder, files, "tfds:NAME:SPLIT",
            a float32 batch as the model takes it, or an iterable of uint8 photos. What is no image is skipped and named.
        photos: to compare on, in the same forms; None for the calibration's, or seeded noise without those.
        labels: one for each class; None for ImageNet's where there are 1000 or 1001 classes.
        metadata: whether the file tells labels, normalisation and licence; or metadata of your own.
        batch: images at once; None leaves it open (which GPU delegates refuse).
        resolution: of a model that takes any: a side or (height, width).
        ranges: for "int8": (low, high) of the image and of every layer, in network order, in place of the observed ones.
        refine: steps of int8, any of "equalize", "round", "correct"; none is the plain scheme.
        compare: whether to compare with the Keras model, and every layer with float where the precision is another.
        progress: called with (what, done, of how many or None).

    Returns:
        The report.

    Raises:
        ValueError: an argument out of its range, no photo to calibrate on, or a model that cannot be converted.
        OSError: the file cannot be written. In no case is there half a file.
    """
    from mnv2_keras.networks.endpoints import takes_pixels

    start = time.perf_counter()
    source, kernels = model, []
    if _is_simulated(model):
        from mnv2_keras.export.quantization_aware import plain_model

        if precision != "int8":
            raise ValueError(
                f"{model.name!r} was trained for int8: export it with precision='int8', not {precision!r}."
            )
        model, learned, kernels = plain_model(model)
        ranges = learned if ranges is None else ranges
    path = Path(path).expanduser()
    _check_arguments(path, precision, input_type, output_type, refine, ranges)
    say = progress or (lambda *_: None)
    scaled = takes_pixels(model)
    value_range = (0.0, 255.0) if scaled else (-1.0, 1.0)
    resolution = (resolution, resolution) if isinstance(resolution, int) else resolution
    height, width, channels = (
        a or b for a, b in zip(model.input_shape[1:], (*(resolution or (None, None)), None), strict=True)
    )

    if batch not in (1, None) and compare:
        raise ValueError(f"batch is {batch}: a file of batch 1 or an open one can be compared; pass compare=False.")
    if isinstance(metadata, bool) and metadata:
        metadata = _metadata(model, labels, scaled)

    report = ExportReport(str(path), precision)
    known = None
    needed = precision in ("int8", "int16x8") and ranges is None
    if calibration is not None:
        known = load_photos(calibration, (height, width), value_range, progress=progress, channels=channels)
        report.skipped = known.skipped
        if needed:  # otherwise they are photos to compare on, no more
            report.calibration_images, report.calibrated = len(known.images), known.source
    elif needed:
        raise ValueError(
            f"precision {precision!r} needs photos to calibrate on: pass calibration=FOLDER with at least one, at best a "
            f"hundred like those to come (or precision='dynamic', which needs none)."
        )
    say("converting", 0, None)
    if precision == "int8":
        content, reference = _int8(
            convert_litert(model, "float32", batch, resolution),
            known,
            value_range,
            input_type or "uint8",
            output_type,
            ranges,
            kernels,
            refine,
            report,
            say,
        )
        check_operators(content, model.name)
    else:
        content = convert_litert(model, precision, batch, resolution, known.images if known else ())
        reference = None
        if needed and len(known.images) < ENOUGH:
            report.warnings.append(
                f"{_thin(known.images)}): nothing tells how far others would go beyond their ranges."
            )
    if compare:
        images = _to_compare(photos, known, (height, width, channels), value_range, report, progress)
        _compare(report, source, content, images)
        if precision != "float32":
            say("comparing layers", 0, None)
            reference = reference or convert_litert(model, "float32", batch, resolution)
            report.layers = compare_layers(reference, content, images)
    if metadata:
        content = add_metadata(content, metadata)
    write_bytes(path, content)
    found = inspect_litert(content)
    report.size, report.operators, report.inputs, report.outputs = (
        found.size,
        found.operators,
        found.inputs,
        found.outputs,
    )
    report.seconds = time.perf_counter() - start
    return report


def _check_arguments(path, precision, input_type, output_type, refine, ranges) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: expected one of {', '.join(PRECISIONS)}.")
    for name, value in (("input_type", input_type), ("output_type", output_type)):
        if value is not None and value not in INPUT_TYPES:
            raise ValueError(f"{name} is {value!r}: expected one of {', '.join(INPUT_TYPES)}.")
        if value not in (None, "float32") and precision != "int8":
            raise ValueError(f"{name}={value!r} goes with precision='int8': a {precision} file has float32 ends.")
    if unknown := set(refine) - set(REFINEMENTS):
        raise ValueError(f"refine has {sorted(unknown)[0]!r}: expected any of {', '.join(REFINEMENTS)}.")
    if ranges is not None and precision != "int8":
        raise ValueError(f"ranges go with precision='int8', not {precision!r}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of the file to write, such as {path / 'model.tflite'}.")


def _is_simulated(model) -> bool:
    """Whether it comes from `quantization_aware`, told without importing Keras for files that need none."""
    return any(type(layer).__name__ == "FakeQuantConvolution" for layer in model.layers)


def _metadata(model, labels, scaled: bool) -> Metadata:
    classes = model.output_shape[-1] if isinstance(model.output_shape, tuple) else None
    is_classifier = isinstance(model.output_shape, tuple) and len(model.output_shape) == 2
    if labels is None and is_classifier and classes in (1000, 1001):
        labels = imagenet_labels(classes)
    if labels is not None and (not is_classifier or len(labels) != classes):
        raise ValueError(f"{len(labels)} labels for outputs of shape {model.output_shape}: give one for each class.")
    mean, std = (0.0, 1.0) if scaled else (127.5, 127.5)
    image = image_input(mean=mean, std=std, channels=model.input_shape[-1])
    made = classifier_metadata(labels, name=model.name, image=image)
    outputs = made.about["subgraph_metadata"][0]["output_tensor_metadata"]
    for extra in range(len(model.outputs) - 1):
        outputs.append({"name": f"output_{extra + 1}"})
    return made


def _int8(
    content: bytes,
    known: Photos | None,
    value_range,
    input_type: str,
    output_type: str | None,
    ranges: Mapping[str, tuple[float, float]] | None,
    kernels: Sequence[Kernel],
    refine: Sequence[str],
    report: ExportReport,
    say: Progress,
) -> tuple[bytes, bytes]:
    """(the int8 file, the float file it was made from)."""
    if ranges is not None:
        file = TfliteFile(content)
        chosen = _ordered_kernels(file, kernels) if kernels else None
        return quantize_int8(content, _ordered_ranges(file, ranges), chosen, input_type, output_type), content
    images = varied(known.images, value_range)
    if len(known.images) < ENOUGH:
        report.warnings.append(_thin_warning(content, known.images, len(images)))
    if "equalize" in refine:
        content = equalize(content, collect(content, _counted(images, "equalising", say)).channels)
    learn = "round" in refine or "correct" in refine
    statistics = collect(content, _counted(images, "calibrating", say), with_inputs=learn)
    observed = statistics.ranges() | {int(t): value_range for t in TfliteFile(content).graph.inputs}
    chosen = None
    if learn:
        say("rounding", 0, None)
        scheme = activation_scheme(TfliteFile(content), observed)
        chosen = gptq(content, statistics, scheme, compensate="round" in refine, correct_bias="correct" in refine)
    return quantize_int8(content, observed, chosen, input_type, output_type), content


def _counted(images: list[np.ndarray], what: str, say: Progress):
    for i, image in enumerate(images):
        say(what, i, len(images))
        yield image
    say(what, len(images), len(images))


def _ordered_ranges(file: TfliteFile, ranges: Mapping[str, tuple[float, float]]) -> dict:
    """Ranges by tensor index: the image's first, then one for each operator that computes, in network order.

    Names cannot tell: the converter counts how often a layer was called, so that `Conv` may be written `Conv_1`.
    """
    first, *rest = ranges.values()
    found = {int(t): first for t in file.graph.inputs}
    computing = [
        o for o, kind in zip(file.graph.operators, file.kinds, strict=True) if kind not in {*SAME_SCALE, *FIXED}
    ]
    if len(rest) != len(computing):
        raise ValueError(
            f"ranges has {len(rest)} layers, the network {len(computing)}: give (low, high) for every layer."
        )
    given = iter(rest)
    for operator, kind in zip(file.graph.operators, file.kinds, strict=True):
        for t in (int(t) for t in operator.outputs):
            if kind in SAME_SCALE:
                found[t] = found[int(operator.inputs[0])]
            else:
                found[t] = (0.0, 1.0) if kind in FIXED else next(given)
    return found


def _ordered_kernels(file: TfliteFile, kernels: Sequence[Kernel]) -> dict[int, Kernel]:
    """Kernels by tensor index, one for each operator that has one, in network order."""
    sources = [
        int(o.inputs[1]) for o, kind in zip(file.graph.operators, file.kinds, strict=True) if kind in KERNEL_AXIS
    ]
    return dict(zip(sources, kernels, strict=True))


def _thin(images: list[np.ndarray]) -> str:
    return f"Only {len(images)} photos to calibrate on (at best {ENOUGH} or more"


def _thin_warning(content: bytes, images: list[np.ndarray], seen: int) -> str:
    """What few photos mean, in numbers: how far one half of them goes beyond the ranges of the other."""
    start = f"{_thin(images)}; {seen - len(images)} crops of them were added)"
    if len(images) < 2:
        return f"{start}: nothing tells how far others would go beyond their ranges."
    half = len(images) // 2
    first, second = (collect(content, part).ranges() for part in (images[:half], images[half:]))
    beyond = []
    for t, (low, high) in first.items():
        span = max(high - low, 1e-9)
        beyond.append(max(second[t][1] - high, low - second[t][0], 0) / span)
    outside = sum(each > _THIN for each in beyond)
    return (
        f"{start}: in {outside} of {len(beyond)} tensors one half of them goes more than {_THIN:.0%} beyond the other half's "
        f"range, by up to {max(beyond):.0%}."
    )


def _to_compare(photos, known: Photos | None, shape, value_range, report: ExportReport, progress) -> list[np.ndarray]:
    if photos is not None:
        given = load_photos(photos, shape[:2], value_range, progress=progress, channels=shape[2])
        report.compared = given.source
        report.skipped += given.skipped
        return evenly(given.images, _COMPARED)[:_COMPARED]
    if known is not None:
        report.compared = f"the calibration's photos ({known.source})"
        return evenly(known.images, _COMPARED)[:_COMPARED]
    report.compared = "seeded noise (pass photos= for a comparison that means something)"
    return seeded_images(shape, value_range)


def _compare(report: ExportReport, model, content: bytes, images: list[np.ndarray]) -> None:
    theirs, ours = keras_logits(model, images), file_logits(content, images)
    report.images = len(images)
    ratios, differences = [], []
    for exact, made in zip(theirs, ours, strict=True):
        made = made.reshape(exact.shape)
        ratios.append([signal_to_noise(a, b) for a, b in zip(exact, made, strict=True)])
        differences.append(float(np.max(np.abs(exact - made)) / max(np.ptp(exact), 1e-12)))
    report.snr_db_each = [float(each) for each in np.mean(ratios, axis=0)]
    report.snr_db = float(np.mean(report.snr_db_each))
    report.largest_difference = max(differences)
    if len(theirs) == 1 and theirs[0].ndim == 2:
        report.top1, report.top5 = rankings(theirs[0], ours[0].reshape(theirs[0].shape))
