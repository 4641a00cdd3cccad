"""A float .tflite file to an int8 one: by given ranges, or by photos with the steps of `Quantization`."""

from collections.abc import Iterator, Sequence

import numpy as np

from mnv2_keras.export.calibration import ENOUGH, Progress, with_crops
from mnv2_keras.export.cross_layer_equalization import equalize
from mnv2_keras.export.gptq import gptq
from mnv2_keras.export.options import Quantization
from mnv2_keras.export.quantization import FIXED, KERNEL_AXIS, SAME_SCALE, Kernel, activation_scheme, quantize_int8
from mnv2_keras.export.statistics import collect
from mnv2_keras.tflite import TfliteFile

#: The share of a tensor's range by which photos may exceed it before the warning of few photos counts the tensor.
_MARGIN = 0.1


def int8_by_ranges(
    file: TfliteFile, ranges: Sequence[tuple[float, float]], kernels: Sequence[Kernel], quantization: Quantization
) -> TfliteFile:
    """A float file in int8 with ranges, and perhaps kernels, in network order.

    Raises:
        ValueError: ranges has not one pair for the image and one for each layer that computes.
    """
    # Names cannot tell: the converter counts how often a layer was called, so that `Conv` may be written `Conv_1`.
    operators = file.operators
    first, *rest = ranges
    count = sum(len(operator.outputs) for operator, kind in operators if kind not in SAME_SCALE and kind not in FIXED)
    if len(rest) != count:
        raise ValueError(f"ranges has {len(rest)} layers, the network {count}: give (low, high) for each layer.")
    spans, remaining = dict.fromkeys(file.graph.inputs, first), iter(rest)
    for operator, kind in operators:
        for t in operator.outputs:
            if kind in SAME_SCALE:
                spans[t] = spans[operator.inputs[0]]
            else:
                spans[t] = (0.0, 1.0) if kind in FIXED else next(remaining)
    sources = [operator.inputs[1] for operator, kind in operators if kind in KERNEL_AXIS]
    chosen = dict(zip(sources, kernels, strict=True)) if kernels else None
    return quantize_int8(file, spans, chosen, quantization.input_type or "uint8", quantization.output_type)


def int8_by_statistics(
    file: TfliteFile,
    photos: list[np.ndarray],
    value_range: tuple[float, float],
    quantization: Quantization,
    warnings: list[str],
    on_step: Progress,
) -> tuple[TfliteFile, TfliteFile]:
    """(the float file after equalisation, the int8 file), calibrated on photos (1, H, W, C)."""
    images, steps = with_crops(photos, value_range), quantization.steps
    if len(photos) < ENOUGH:
        warnings.append(warning_of_few(photos, file, len(images)))
    if "cross_layer_equalization" in steps:
        file = equalize(file, collect(file, _counted(images, "equalising", on_step)).channels)
    with_inputs = "gptq" in steps or "bias_correction" in steps
    statistics = collect(file, _counted(images, "calibrating", on_step), with_inputs)
    ranges = statistics.ranges() | dict.fromkeys(file.graph.inputs, value_range)
    kernels = None
    if with_inputs:
        on_step("rounding", 0, None)
        scheme = activation_scheme(file, ranges)
        kernels = gptq(file, statistics, scheme, compensate="gptq" in steps, correct_bias="bias_correction" in steps)
    return file, quantize_int8(file, ranges, kernels, quantization.input_type or "uint8", quantization.output_type)


def _counted(images: list[np.ndarray], description: str, on_step: Progress) -> Iterator[np.ndarray]:
    for i, image in enumerate(images):
        on_step(description, i, len(images))
        yield image
    on_step(description, len(images), len(images))


def warning_of_few(photos: list[np.ndarray], file: TfliteFile | None = None, used: int = 0) -> str:
    """A warning of few photos. With the float file: by how much one half of them exceeds the ranges of the other half."""
    crops = f"; {used - len(photos)} crops of them were added" if file else ""
    start = f"Only {len(photos)} photos to calibrate on (at best {ENOUGH} or more{crops})"
    if file is None or len(photos) < 2:
        return f"{start}: nothing tells how far others would exceed their ranges."
    half = len(photos) // 2
    first, second = (collect(file, part).ranges() for part in (photos[:half], photos[half:]))
    excess = [max(second[t][1] - high, low - second[t][0], 0) / max(high - low, 1e-9) for t, (low, high) in first.items()]
    beyond = sum(share > _MARGIN for share in excess)
    return (
        f"{start}: in {beyond} of {len(excess)} tensors one half of them exceeds the other half's range by more than "
        f"{_MARGIN:.0%}, by up to {max(excess):.0%}."
    )
