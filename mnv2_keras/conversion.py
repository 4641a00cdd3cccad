"""From a file of weights to a model that is proven to compute the same: which network it is, built, filled, compared."""

import os
from collections.abc import Mapping
from pathlib import Path

import keras

from mnv2_keras.checks import real_number
from mnv2_keras.convert.goldens import find_goldens
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.convert.source import Source, sha256_of
from mnv2_keras.convert.sources import KERAS_FILES, open_source
from mnv2_keras.convert.transfer import Transfer, network_shapes
from mnv2_keras.tasks import task_of
from mnv2_keras.tasks.compare import compare_with_golden, compare_with_graph
from mnv2_keras.weights import fill_from_source, find_weights


def convert(source: Source, ema: bool, classes: int | None, options: Mapping) -> tuple[keras.Model, Transfer]:
    """Build the network that a source holds, and fill it. See `convert_checkpoint`."""
    task = task_of(network_shapes(source.shapes))
    arguments = task.infer(source, options)
    held = arguments.get("classes")
    if source.folded and classes not in (None, held) and (held, classes) != (1001, 1000):
        raise ValueError(
            f"{source.path} holds {held} classes: another number needs a new head, which is trained from a checkpoint or a "
            ".keras file."
        )
    if classes is not None:
        arguments["classes"] = classes
    model = task.build(**(arguments | options))
    return model, fill_from_source(model, source, ema)


def convert_checkpoint(path: str | os.PathLike, ema: bool = True, classes: int | None = None, **builder_options) -> keras.Model:
    """Build the network a checkpoint holds, and fill it.

    Alpha, classes, channels and widths come from the shapes; the resolution from the file's name or the graph next to it.

    Args:
        path: an archive, a folder, a checkpoint prefix, an `.index` file, a V1 file, a frozen graph (`.pb`), a registered name, or
            one of Google's quantised `.tflite` files.
        ema: take the moving average where a variable has one (as the published graphs do), not the raw variable.
        classes: None keeps the checkpoint's; 1000 drops the background of 1001; another number starts a new head.
        builder_options: of the network's builder; they override what the file tells.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no MobileNetV2; or its resolution cannot be told (pass `input_shape`).
    """
    with open_source(find_weights(path)) as source:
        return convert(source, ema, classes, builder_options)[0]


def open_model(
    weights: str | os.PathLike, *, ema: bool = True, classes: int | None = None, size: tuple[int, int] | None = None
) -> tuple[keras.Model, Transfer | None]:
    """A model from any file that holds one: a checkpoint to convert, or a Keras file to load.

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
            raise ValueError(f"{path} is a Keras model with its own classes and input size: they cannot be chosen here.")
        from mnv2_keras.convert.sources.keras_file import load_keras_file

        return load_keras_file(path), None
    with open_source(path) as source:
        backbone = infer_architecture(network_shapes(source.shapes), source.hint) if size else None
        return convert(source, ema, classes, {"input_shape": (*size, backbone.channels)} if backbone else {})


def verify_model(model: keras.Model, path: str | os.PathLike, *, images=None, tolerance: float = 3e-4) -> Receipt:
    """Compare a model that already exists with the frozen graph next to a checkpoint. See `verify_checkpoint`."""
    with open_source(find_weights(path)) as source:
        graph = _frozen_graph(source)
        receipt = _new_receipt(source, graph.path, tolerance)
        compare_with_graph(receipt, model, graph, images)
    return receipt


def verify_checkpoint(
    path: str | os.PathLike, *, images=None, goldens: str | os.PathLike | None = None, tolerance: float = 3e-4, ema: bool = True
) -> Receipt:
    """Convert a checkpoint and compare the model with the genuine program's own outputs, endpoint by endpoint.

    Args:
        path: as in `convert_checkpoint`.
        images: photos (paths, uint8 arrays) or a float32 batch (B, H, W, C) in [-1, 1]; None for seeded noise.
        goldens: a folder of goldens (`TAG.json` with `TAG.npz`), or one of them, in place of the frozen graph.
        tolerance: largest difference that passes, relative to the endpoint's range (max - min). TF-Slim differs from itself
            by 5e-5 when oneDNN is switched off.
        ema: as in `convert_checkpoint`.

    Returns:
        The receipt; `receipt.passed` says whether everything agreed, `receipt.failure` what went wrong first.

    Raises:
        ValueError: there is nothing to compare with, or the checkpoint cannot be converted.
    """
    with open_source(find_weights(path)) as source:
        if goldens is None:
            graph = _frozen_graph(source)
            receipt = _new_receipt(source, graph.path, tolerance)
            compare_with_graph(receipt, convert(source, ema, None, {})[0], graph, images)
            return receipt
        if images is not None:
            raise ValueError("images and goldens exclude each other: a golden holds the outputs for its own images only.")
        receipt = _new_receipt(source, Path(goldens), tolerance)
        matching = find_goldens(Path(goldens), network_shapes(source.shapes))
        for golden in matching:
            arrays = golden.path.with_suffix(".npz")
            receipt.sha256[arrays.name] = sha256_of(arrays)
            model, _ = convert(source, ema, None, golden.options)
            compare_with_golden(receipt, model, golden, prefix=f"{golden.tag}: " if len(matching) > 1 else "")
        return receipt


def _frozen_graph(source: Source) -> FrozenGraph:
    if source.frozen_graph is None:
        raise ValueError(
            f"{source.path} has no frozen graph (*_frozen.pb) with its checkpoint, so there is nothing to compare with: "
            "pass goldens=FOLDER with outputs of TF-Slim, or an archive that holds the graph."
        )
    return FrozenGraph(source.frozen_graph)


def _new_receipt(source: Source, reference: Path, tolerance: float) -> Receipt:
    tolerance = real_number("tolerance", tolerance, 0, above=True, note=", such as 3e-4")
    hashes = dict(source.sha256)
    for file in (source.path, reference):
        if file.is_file():
            hashes[file.name] = sha256_of(file)
    return Receipt(source.path.name, reference.name, tolerance, hashes)
