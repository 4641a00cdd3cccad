"""How far a .tflite is from the Keras model it was made from, and where it loses most."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mnv2_keras.export.statistics import Run
from mnv2_keras.tflite import TfliteFile

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN")

#: Photos the layers are compared on: noise shows on few.
_LAYER_PHOTOS = 4


@dataclass(frozen=True)
class Layer:
    """One layer of the file against the same in float."""

    name: str
    kind: str
    snr_db: float  # signal-to-noise ratio of its output


def signal_to_noise(reference: np.ndarray, other: np.ndarray) -> float:
    """`10 log10(sum(reference ** 2) / sum(difference ** 2))` in dB; infinite where they are equal."""
    noise = np.sum((reference.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise)) if noise else float("inf")


def logits_tensors(file: TfliteFile) -> list[int]:
    """For each output what goes into its softmax (or through its dequantisation), else the output itself."""
    found = []
    for tensor in file.graph.outputs:
        tensor = int(tensor)
        while tensor in file.producer:
            operator = file.graph.operators[file.producer[tensor]]
            if file.kind(operator) not in ("SOFTMAX", "QUANTIZE", "DEQUANTIZE"):
                break
            tensor = int(operator.inputs[0])
        found.append(tensor)
    return found


def file_logits(content: bytes, images: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of each output (before softmax), float32 (N, ...), computed layer by layer by LiteRT's own kernels."""
    file = TfliteFile(content)
    tensors = logits_tensors(file)
    run = Run(content)
    rows = [[real_value(file, run, t) for t in tensors] for image in images if run(image)]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def real_value(file: TfliteFile, run: Run, tensor: int) -> np.ndarray:
    """A tensor's real values after a run."""
    stored, quantization = run.value(tensor), file.quantization(tensor)
    if quantization is None or stored.dtype.kind == "f":
        return stored
    return ((stored.astype(np.float32) - quantization[1]) * quantization[0]).astype(np.float32)


def keras_logits(model, images: list[np.ndarray], batch: int = 8) -> list[np.ndarray]:
    """The same from the Keras model: its layer `Logits` where it is a classifier, else its outputs."""
    import keras

    logits = next((layer.output for layer in model.layers if layer.name == "Logits"), None)
    if len(model.outputs) != 1:
        logits = None
    tapped = model if logits is None else keras.Model(model.input, logits)
    rows = []
    for start in range(0, len(images), batch):
        outputs = tapped(np.concatenate(images[start : start + batch]), training=False)
        if isinstance(outputs, dict):
            outputs = [outputs[name] for name in sorted(outputs)]
        rows.append(
            [keras.ops.convert_to_numpy(each) for each in (outputs if isinstance(outputs, list) else [outputs])]
        )
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def compare_layers(reference: bytes, content: bytes, images: list[np.ndarray]) -> list[Layer]:
    """Every layer of a file against a float file of the same operators, in network order."""
    files = TfliteFile(reference), TfliteFile(content)
    layers = [[(o, k) for o, k in zip(f.graph.operators, f.kinds, strict=True) if k in _LAYERS] for f in files]
    if [k for _, k in layers[0]] != [k for _, k in layers[1]]:
        counts = [Counter(kinds for _, kinds in each) for each in layers]
        raise ValueError(f"The two files are not the same network: layers {dict(counts[0])} and {dict(counts[1])}.")
    runs = Run(reference), Run(content)
    signal, noise = np.zeros(len(layers[0])), np.zeros(len(layers[0]))
    for image in images[:_LAYER_PHOTOS]:
        for run in runs:
            run(image)
        for i, ((ours, _), (theirs, _)) in enumerate(zip(*layers, strict=True)):
            exact = real_value(files[0], runs[0], int(ours.outputs[0])).astype(np.float64)
            other = real_value(files[1], runs[1], int(theirs.outputs[0]))
            signal[i] += np.sum(exact**2)
            noise[i] += np.sum((exact - other) ** 2)
    found = []
    for i, (operator, kind) in enumerate(layers[0]):
        ratio = 10 * np.log10(signal[i] / noise[i]) if noise[i] and signal[i] else np.inf
        found.append(Layer(short_name(files[0].name(int(operator.outputs[0]))), kind, float(ratio)))
    return found


def short_name(name: str) -> str:
    """A layer's own name out of the converter's, which strings together all that was fused."""
    first = name.split(";")[0]
    parts = [
        part for part in first.split("/") if "-" in part or part.startswith(("Conv", "expanded", "global", "Logits"))
    ]
    chosen = parts[-1] if parts else first
    for ending in ("-activation", "-BatchNorm"):
        chosen = chosen.split(ending)[0]
    head, _, number = chosen.rpartition("_")
    # The converter counts calls of a layer: `-project_1`; a block's own number stands before the dash.
    return head if number.isdigit() and "-" in head else chosen


def rankings(reference: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(share of the rows with the same best class, mean share of the best five that are in the other's best five)."""
    count = min(5, reference.shape[-1])
    best = [np.argsort(-each, axis=-1, kind="stable")[..., :count].reshape(-1, count) for each in (reference, other)]
    five = [len(set(a) & set(b)) / count for a, b in zip(*best, strict=True)]
    return float(np.mean(best[0][:, 0] == best[1][:, 0])), float(np.mean(five))
