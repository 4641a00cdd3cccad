"""Statistics of a float .tflite file on photos: ranges of its tensors, second moments of its kernels' inputs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mnv2_keras.export.quantization import activation_tensors
from mnv2_keras.export.runner import GraphRunner
from mnv2_keras.tflite import TfliteFile

#: Places of a feature map that are sampled per image: neighbours are nearly equal.
_PLACES = 256


@dataclass
class Channels:
    """One tensor over all images: arrays of one value per channel."""

    low: np.ndarray
    high: np.ndarray
    total: np.ndarray  # sum of the values
    count: int = 0

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel."""
        return self.total / max(self.count, 1)


@dataclass
class Inputs:
    """Sums over the input patches of a kernel, the rows of a matrix X."""

    gram: np.ndarray  # X'X: (K, K), or (C, K, K) for a depthwise kernel
    mean: np.ndarray  # sum of the rows: (K,), or (C, K)
    rows: int = 0


@dataclass
class Statistics:
    """Channels by tensor index of the file, inputs by operator index."""

    channels: dict[int, Channels] = field(default_factory=dict)
    inputs: dict[int, Inputs] = field(default_factory=dict)

    def ranges(self) -> dict[int, tuple[float, float]]:
        """(lowest, highest) value of each tensor."""
        return {t: (float(channels.low.min()), float(channels.high.max())) for t, channels in self.channels.items()}


def collect(file: TfliteFile, images: Iterable[np.ndarray], with_inputs: bool = False) -> Statistics:
    """Run a float file on images and collect its statistics.

    Args:
        file: the float32 file.
        images: float32 (1, H, W, C) each.
        with_inputs: whether to collect the inputs of the kernels too, which `gptq` needs.
    """
    tensors = activation_tensors(file)
    convolutions = [i for i, kind in enumerate(file.kinds) if kind in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    runner = GraphRunner(file)
    statistics = Statistics()
    rng = np.random.default_rng(0)
    for image in images:
        runner.run(image)
        for t in tensors:
            _add_channels(statistics, t, runner.stored(t))
        for i in convolutions if with_inputs else ():
            _add_inputs(statistics, i, runner, rng)
    return statistics


def _add_channels(statistics: Statistics, tensor: int, values: np.ndarray) -> None:
    flat = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    low, high, total = flat.min(axis=0), flat.max(axis=0), flat.sum(axis=0, dtype=np.float64)
    channels = statistics.channels.setdefault(tensor, Channels(low, high, np.zeros_like(total)))
    channels.low, channels.high = np.minimum(channels.low, low), np.maximum(channels.high, high)
    channels.total, channels.count = channels.total + total, channels.count + len(flat)


def _add_inputs(statistics: Statistics, index: int, runner: GraphRunner, rng: np.random.Generator) -> None:
    """Add the patches of one convolution, given by its operator's index."""
    operator = runner.file.graph.operators[index]
    x, kernel_shape = runner.stored(operator.inputs[0]), runner.file.shape(operator.inputs[1])
    patches = input_patches(x, kernel_shape[1:3], operator.builtinOptions)
    count = math.prod(patches.shape[:3])
    places = rng.choice(count, _PLACES, replace=False) if count > _PLACES else np.arange(count)
    rows = np.ascontiguousarray(patches[np.unravel_index(places, patches.shape[:3])])  # places, kh, kw, C
    if runner.file.kind(operator) == "CONV_2D":
        flat = rows.reshape(len(rows), -1)
        gram, mean = flat.T @ flat, flat.sum(axis=0)
    else:
        flat = np.ascontiguousarray(rows.reshape(len(rows), -1, rows.shape[-1]).transpose(2, 0, 1))  # C, places, K
        gram, mean = flat.swapaxes(1, 2) @ flat, flat.sum(axis=1)
    inputs = statistics.inputs.setdefault(index, Inputs(np.zeros(gram.shape), np.zeros(mean.shape)))
    inputs.gram += gram
    inputs.mean += mean
    inputs.rows += len(rows)


def input_patches(x: np.ndarray, kernel: tuple[int, int], options) -> np.ndarray:
    """The input patch of each output place of a convolution, padding included: (B, h, w, kh, kw, C)."""
    strides = options.strideH, options.strideW
    rates = options.dilationHFactor, options.dilationWFactor
    same = options.padding == 0
    pads = [(0, 0)]
    for side, k, stride, rate in zip(x.shape[1:3], kernel, strides, rates, strict=True):
        reach = (k - 1) * rate + 1
        short = max((-(-side // stride) - 1) * stride + reach - side, 0) if same else 0
        pads.append((short // 2, short - short // 2))
    if any(any(pad) for pad in pads):
        x = np.pad(x, [*pads, (0, 0)])
    reach = [(k - 1) * rate + 1 for k, rate in zip(kernel, rates, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(1, 2))
    views = views[:, :: strides[0], :: strides[1], :, :: rates[0], :: rates[1]]
    return views.transpose(0, 1, 2, 4, 5, 3)
