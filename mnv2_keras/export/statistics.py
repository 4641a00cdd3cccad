"""What flows through a float .tflite on photos: ranges of its tensors, and how the inputs of its kernels vary together."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mnv2_keras.export.quantization import activation_tensors
from mnv2_keras.tflite import TfliteFile, open_interpreter

#: Places of a feature map looked at per image: neighbours say nearly the same.
_PLACES = 256


@dataclass
class Channels:
    """One tensor over all images: float32 arrays of one value a channel."""

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
    """What a kernel multiplies: its input patches as rows of a matrix X.

    Attributes:
        gram: X'X / rows: (K, K), or (C, K, K) for a depthwise kernel.
        mean: mean row, (K,) or (C, K).
    """

    gram: np.ndarray
    mean: np.ndarray
    rows: int = 0


@dataclass
class Statistics:
    """By tensor index of the file; inputs by operator index."""

    channels: dict[int, Channels] = field(default_factory=dict)
    inputs: dict[int, Inputs] = field(default_factory=dict)

    def ranges(self) -> dict[int, tuple[float, float]]:
        """(lowest, highest) value of each tensor."""
        return {t: (float(each.low.min()), float(each.high.max())) for t, each in self.channels.items()}


class Run:
    """A .tflite that shows the values between its layers.

    Args:
        content: the file.
    """

    def __init__(self, content: bytes):
        self.interpreter = open_interpreter(content, every_tensor=True)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]

    def __call__(self, image: np.ndarray) -> "Run":
        """Run on one input (1, H, W, C), in the real values that the float network takes; a larger batch is all this one."""
        stored = to_stored(image, self.input)
        self.interpreter.set_tensor(self.input["index"], np.repeat(stored, self.input["shape"][0], axis=0))
        self.interpreter.invoke()
        return self

    def value(self, tensor: int) -> np.ndarray:
        """A tensor's stored numbers after the last run."""
        return self.interpreter.get_tensor(tensor)


def to_stored(real: np.ndarray, details: dict) -> np.ndarray:
    """Real values as an interpreter's input takes them."""
    scale, zero_point = details["quantization"]
    if not scale:
        return real.astype(details["dtype"], copy=False)
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(real / np.float32(scale)) + zero_point, limits.min, limits.max).astype(details["dtype"])


def collect(content: bytes, batches: Iterable[np.ndarray], with_inputs: bool = False) -> Statistics:
    """Run a float file on images of batch 1 and gather its statistics.

    Args:
        with_inputs: also what `rounding` needs: the kernels' inputs.
    """
    file = TfliteFile(content)
    tensors = activation_tensors(file)
    kinds = file.kinds
    run = Run(content)
    found = Statistics()
    rng = np.random.default_rng(0)
    for image in batches:
        run(image)
        for t in tensors:
            _add_channels(found, t, run.value(t))
        if with_inputs:
            for i, (operator, kind) in enumerate(zip(file.graph.operators, kinds, strict=True)):
                if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                    _add_inputs(found, i, run.value(int(operator.inputs[0])), file, operator, kind, rng)
    return found


def _add_channels(found: Statistics, tensor: int, values: np.ndarray) -> None:
    flat = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    low, high, total = flat.min(axis=0), flat.max(axis=0), flat.sum(axis=0, dtype=np.float64)
    known = found.channels.get(tensor)
    if known is None:
        found.channels[tensor] = Channels(low, high, total, len(flat))
        return
    known.low, known.high = np.minimum(known.low, low), np.maximum(known.high, high)
    known.total, known.count = known.total + total, known.count + len(flat)


def _add_inputs(found: Statistics, index: int, x: np.ndarray, file: TfliteFile, operator, kind: str, rng) -> None:
    patches = input_patches(x, file.shape(int(operator.inputs[1]))[1:3], operator.builtinOptions)
    rows = patches.reshape(-1, *patches.shape[3:])  # places, kh, kw, C
    if len(rows) > _PLACES:
        rows = rows[rng.choice(len(rows), _PLACES, replace=False)]
    if kind == "CONV_2D":
        flat = rows.reshape(len(rows), -1)
        gram, mean = flat.T @ flat, flat.sum(axis=0)
    else:
        flat = np.ascontiguousarray(rows.reshape(len(rows), -1, rows.shape[-1]).transpose(2, 0, 1))  # C, places, K
        gram, mean = flat.swapaxes(1, 2) @ flat, flat.sum(axis=1)
    known = found.inputs.get(index)
    if known is None:
        known = found.inputs[index] = Inputs(np.zeros(gram.shape, np.float64), np.zeros(mean.shape, np.float64))
    known.gram += gram
    known.mean += mean
    known.rows += len(rows)


def input_patches(x: np.ndarray, kernel: tuple[int, int], options) -> np.ndarray:
    """What a convolution sees at each place, padding included: (B, h, w, kh, kw, C)."""
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
