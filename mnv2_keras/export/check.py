"""How far a .tflite file is from the Keras model it was made from, and which layers lose most."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mnv2_keras.export.runner import GraphRunner
from mnv2_keras.tflite import TfliteFile

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN")

#: Photos on which layers are compared: on few, noise is visible.
_LAYER_PHOTOS = 4


@dataclass(frozen=True)
class Layer:
    """One layer of the file compared with the same layer in float."""

    name: str
    kind: str
    snr_db: float  # signal-to-noise ratio of its output


def signal_to_noise(reference: np.ndarray, other: np.ndarray) -> float:
    """`10 log10(sum(reference ** 2) / sum(difference ** 2))` in dB; infinite where they are equal."""
    noise = np.sum((reference.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise)) if noise else float("inf")


def logits_tensors(file: TfliteFile) -> list[int]:
    """For each output, the tensor before its softmax (and before its dequantisation); the output itself without one."""
    tensors = []
    for tensor in file.graph.outputs:
        while tensor in file.producer:
            operator = file.graph.operators[file.producer[tensor]]
            if file.kind(operator) not in ("SOFTMAX", "QUANTIZE", "DEQUANTIZE"):
                break
            tensor = operator.inputs[0]
        tensors.append(tensor)
    return tensors


def file_logits(file: TfliteFile, images: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of each output (before softmax), float32 (N, ...), by LiteRT's own kernels."""
    tensors = logits_tensors(file)
    runner = GraphRunner(file)
    rows = [[runner.real(t) for t in tensors] for image in images if runner.run(image)]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def keras_logits(model, images: list[np.ndarray], batch: int = 8) -> list[np.ndarray]:
    """The same of the Keras model: of its layer `Logits` where it is a classifier, else its outputs."""
    import keras

    logits = next((layer.output for layer in model.layers if layer.name == "Logits"), None)
    network = model if logits is None or len(model.outputs) != 1 else keras.Model(model.input, logits)
    rows = []
    for start in range(0, len(images), batch):
        outputs = network(np.concatenate(images[start : start + batch]), training=False)
        rows.append([keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)])  # dicts by name
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def compare_layers(reference: TfliteFile, file: TfliteFile, images: list[np.ndarray]) -> list[Layer]:
    """Each layer of a file compared with a float file of the same operators, in network order."""
    files = reference, file
    compared = [[(o.outputs[0], kind) for o, kind in either.operators if kind in _LAYERS] for either in files]
    counts = [Counter(kind for _, kind in layers) for layers in compared]
    if [kind for _, kind in compared[0]] != [kind for _, kind in compared[1]]:
        raise ValueError(f"The two files are not the same network: layers {dict(counts[0])} and {dict(counts[1])}.")
    exact_runner, runner = (GraphRunner(either) for either in files)
    signal, noise = np.zeros((2, len(compared[0])))
    for image in images[:_LAYER_PHOTOS]:
        exact_runner.run(image)
        runner.run(image)
        for i, ((exact_tensor, _), (tensor, _)) in enumerate(zip(*compared, strict=True)):
            exact = exact_runner.real(exact_tensor).astype(np.float64)
            signal[i] += np.sum(exact**2)
            noise[i] += np.sum((exact - runner.real(tensor)) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where((noise > 0) & (signal > 0), 10 * np.log10(signal / noise), np.inf)
    return [
        Layer(short_name(reference.name(tensor)), kind, float(ratio))
        for (tensor, kind), ratio in zip(compared[0], ratios, strict=True)
    ]


def short_name(name: str) -> str:
    """A layer's own name from the converter's, which joins the names of all layers that it fused."""
    first = name.split(";")[0]
    parts = [part for part in first.split("/") if "-" in part or part.startswith(("Conv", "expanded", "global", "Logits"))]
    own = parts[-1] if parts else first
    for ending in ("-activation", "-BatchNorm"):
        own = own.split(ending)[0]
    head, _, number = own.rpartition("_")
    # The converter numbers the calls of a layer: `-project_1`. A block's own number stands before the dash.
    return head if number.isdigit() and "-" in head else own


def rankings(reference: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(share of the rows with the same best class, mean share of the best five that are in the other's best five)."""
    count = min(5, reference.shape[-1])
    best = [np.argsort(-scores, axis=-1, kind="stable")[..., :count].reshape(-1, count) for scores in (reference, other)]
    five = [len(set(a) & set(b)) / count for a, b in zip(*best, strict=True)]
    return float(np.mean(best[0][:, 0] == best[1][:, 0])), float(np.mean(five))
