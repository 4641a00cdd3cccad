"""From a checkpoint to a model that is proven to be it: which network it is, built, filled, compared."""

import importlib
import math
import os
from pathlib import Path

import keras

from mnv2_keras.convert.checkpoint import Checkpoint, open_checkpoint, sha256_of
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.convert.transfer import Transfer, network_shapes
from mnv2_keras.tasks import classification, detection, segmentation
from mnv2_keras.weights import KERAS_FILES, find_weights, load_keras_file

#: The modules that convert what they hold; the first that knows the variables is asked, the classifier in the end.
TASKS = (segmentation, detection, classification)


def task_of(checkpoint: Checkpoint):
    """The module of the network a checkpoint holds."""
    shapes = network_shapes(checkpoint.shapes)
    return next((task for task in TASKS if task.holds(shapes)), classification)


def convert_checkpoint(
    path: str | os.PathLike, ema: bool = True, classes: int | None = None, **builder_options
) -> keras.Model:
    """Build the network a checkpoint holds, and fill it.

    Alpha, classes, channels and widths come from the shapes; the resolution from the file's name or the graph beside it.

    Args:
        path: an archive, a folder, a checkpoint prefix, an `.index` file, a V1 file, or a registered name; or one of Google's
            quantised `.tflite` files.
        ema: take the moving average where a variable has one (as the published graphs do), not the raw variable.
        classes: None keeps the checkpoint's; 1000 drops the background of 1001; another number starts a new head.
        builder_options: of the network's builder, over what was found.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no MobileNetV2; or its resolution cannot be told (pass `input_shape`).
    """
    path = find_weights(path)
    if path.suffix == ".tflite":
        return _convert_quantised(path, classes, builder_options)
    with open_checkpoint(path) as checkpoint:
        return task_of(checkpoint).convert(checkpoint, ema, classes, builder_options)[0]


def _convert_quantised(path: Path, classes: int | None, options: dict) -> keras.Model:
    from mnv2_keras.convert.sources.google_tflite import read_quantised

    network = read_quantised(path)
    task = next((task for task in TASKS if task.holds(network.shapes)), classification)
    return task.convert_quantised(network, classes, options)


def open_model(
    weights: str | os.PathLike, *, ema: bool = True, classes: int | None = None, size: tuple[int, int] | None = None
) -> tuple[keras.Model, Transfer | None]:
    """A model from whatever holds one: a checkpoint to convert, or a Keras file to load.

    Args:
        weights: what `convert_checkpoint` takes, or a `.keras` or `.h5` file.
        ema, classes: as in `convert_checkpoint`.
        size: (height, width) of the input in place of the checkpoint's.

    Returns:
        The model, and where its weights came from (None for a Keras file).
    """
    path = find_weights(weights)
    if path.suffix in KERAS_FILES:
        if classes is not None or size is not None:
            raise ValueError(
                f"{path} is a Keras model with its own classes and input size: they cannot be chosen here."
            )
        importlib.import_module("mnv2_keras.export.fake_quant")  # Keras then knows the layers of `quantization_aware`
        return load_keras_file(path), None
    if path.suffix == ".tflite":
        return _convert_quantised(path, classes, {"input_shape": (*size, 3)} if size else {}), None
    with open_checkpoint(path) as checkpoint:
        found = infer_architecture(network_shapes(checkpoint.shapes))
        options = {"input_shape": (*size, found.channels)} if size and found else {}
        return task_of(checkpoint).convert(checkpoint, ema, classes, options)


def verify_model(model: keras.Model, path: str | os.PathLike, *, images=None, tolerance: float = 3e-4) -> Receipt:
    """Hold a model that already exists against the frozen graph beside a checkpoint. See `verify_checkpoint`."""
    with open_checkpoint(find_weights(path)) as checkpoint:
        graph = _need_graph(checkpoint)
        receipt = _receipt(checkpoint, graph.path, tolerance)
        task_of(checkpoint).compare_with_graph(receipt, model, graph, images)
    return receipt


def verify_checkpoint(
    path: str | os.PathLike,
    *,
    images=None,
    goldens: str | os.PathLike | None = None,
    tolerance: float = 3e-4,
    ema: bool = True,
) -> Receipt:
    """Convert a checkpoint and hold the model against the genuine program's own outputs, endpoint by endpoint.

    Args:
        path: as in `convert_checkpoint`.
        images: photos (paths, uint8 arrays) or a float32 batch (B, H, W, C) in [-1, 1]; None for a seeded random batch.
        goldens: a folder of outputs of TF-Slim, or one of them, in place of the frozen graph beside the checkpoint.
        tolerance: largest difference that passes, relative to the endpoint's range (max - min). TF-Slim differs from itself
            by 5e-5 when oneDNN is switched off.
        ema: as in `convert_checkpoint`.

    Returns:
        The receipt; `receipt.passed` says whether everything agreed, `receipt.failure` what went wrong first.

    Raises:
        ValueError: there is nothing to compare with, or the checkpoint cannot be converted.
    """
    with open_checkpoint(find_weights(path)) as checkpoint:
        if goldens is None:
            graph = _need_graph(checkpoint)
            receipt = _receipt(checkpoint, graph.path, tolerance)
            model, _ = task_of(checkpoint).convert(checkpoint, ema, None, {})
            task_of(checkpoint).compare_with_graph(receipt, model, graph, images)
            return receipt
        if images is not None:
            raise ValueError(
                "images and goldens exclude each other: a golden holds the outputs for its own images only."
            )
        receipt = _receipt(checkpoint, Path(goldens), tolerance)
        task_of(checkpoint).compare_with_goldens(receipt, checkpoint, ema, Path(goldens))
        return receipt


def _need_graph(checkpoint: Checkpoint) -> FrozenGraph:
    if checkpoint.frozen_graph is None:
        raise ValueError(
            f"{checkpoint.source} has no frozen graph (*_frozen.pb) beside its checkpoint, so there is nothing to compare with: "
            "pass goldens=FOLDER with outputs of TF-Slim, or an archive that holds the graph."
        )
    return FrozenGraph(checkpoint.frozen_graph)


def _receipt(checkpoint: Checkpoint, reference: Path, tolerance: float) -> Receipt:
    if not (isinstance(tolerance, int | float) and 0 < tolerance < math.inf):
        raise ValueError(f"tolerance is {tolerance!r}: expected a number above 0, such as 3e-4.")
    hashes = dict(checkpoint.sha256)
    for file in (checkpoint.source, reference):
        if file.is_file():
            hashes[file.name] = sha256_of(file)
    return Receipt(checkpoint.source.name, reference.name, tolerance, hashes)
