"""The classifier as a task: inferred from variables, built, filled, compared."""

from pathlib import Path

import keras

from mnv2_keras.convert.checkpoint import Checkpoint, sha256_of
from mnv2_keras.convert.goldens import find_goldens
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.convert.transfer import Transfer, load_arrays, network_shapes
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.tasks import compare
from mnv2_keras.weights import fill_from_checkpoint


def holds(shapes) -> bool:
    """Whether these variables are a classifier's or a bare backbone's."""
    return infer_architecture(shapes) is not None


#: A classifier against the frozen graph beside its checkpoint.
compare_with_graph = compare.compare_with_graph


def compare_with_goldens(receipt: Receipt, checkpoint: Checkpoint, ema: bool, path: Path) -> None:
    """Fill a receipt from every run of TF-Slim in a folder whose network the checkpoint holds."""
    matching = find_goldens(path, network_shapes(checkpoint.shapes))
    for golden in matching:
        arrays = golden.path.with_suffix(".npz")
        receipt.sha256[arrays.name] = sha256_of(arrays)
        model, _ = convert(checkpoint, ema, None, golden.options)
        compare.compare_with_golden(receipt, model, golden, prefix=f"{golden.tag}: " if len(matching) > 1 else "")


def convert(checkpoint: Checkpoint, ema: bool, classes: int | None, options: dict) -> tuple[keras.Model, Transfer]:
    """Build the classifier (or the bare backbone) that a checkpoint holds, and fill it. See `convert_checkpoint`."""
    found = infer_architecture(network_shapes(checkpoint.shapes), checkpoint.prefix.name + checkpoint.source.name)
    if found is None:
        names = ", ".join(list(checkpoint.shapes)[:5])
        raise ValueError(
            f"{checkpoint.source} holds no MobileNetV2 of TF-Slim: {len(checkpoint.shapes)} variables ({names}, ...). Expected "
            "MobilenetV2/Conv/weights, MobilenetV2/expanded_conv/..., and so on."
        )
    if not found.strides_known and "table" not in options:
        rows = ", ".join(f"({row.t}, {row.c}, {row.n}, s)" for row in found.options["table"])
        raise ValueError(
            f"{checkpoint.source} holds blocks other than Table 2's, and a checkpoint does not tell their strides s: pass "
            f"table=[{rows}] with them to convert_checkpoint."
        )
    arguments = found.options | {
        "normalization": found.normalization,
        "final_endpoint": found.final_endpoint,
        # A backbone cut short on request comes without the head, which was not trained on it.
        "include_top": found.classes is not None and not options.get("final_endpoint"),
        "classes": found.classes if classes is None else classes,
    }
    if "input_shape" not in options:
        arguments["input_shape"] = _input_shape(checkpoint, found.channels)
    model = build_mobilenetv2(**(arguments | options))
    return model, fill_from_checkpoint(model, checkpoint, ema)


def convert_quantised(network, classes: int | None, options: dict) -> keras.Model:
    """Build the classifier that one of Google's quantised files holds, and fill it.

    Args:
        network: a `QuantisedNetwork`.
        classes: None or the file's own number; 1000 drops the background of 1001.
        options: of the builder, over what was found.
    """
    found = infer_architecture(network.shapes, network.source)
    if found is None:
        raise ValueError(f"{network.source} holds no MobileNetV2 with TF-Slim's widths.")
    arrays = network.arrays
    if (found.classes, classes) == (1001, 1000):
        arrays = {name: array[..., 1:] if "/Logits/" in name else array for name, array in arrays.items()}
    elif classes not in (None, found.classes):
        raise ValueError(
            f"{network.source} holds {found.classes} classes: another number needs a new head, which is trained from a checkpoint "
            "or a .keras file."
        )
    arguments = found.options | {"input_shape": network.input_shape, "classes": classes or found.classes}
    model = build_mobilenetv2(**(arguments | options))
    load_arrays(model, arrays)
    return model


def _input_shape(checkpoint: Checkpoint, channels: int) -> tuple[int, int, int]:
    """From the file's name, else from the frozen graph beside it."""
    if checkpoint.resolution:
        return checkpoint.resolution, checkpoint.resolution, channels
    if checkpoint.frozen_graph:
        _, height, width, _ = FrozenGraph(checkpoint.frozen_graph).input_shape
        if height and width:
            return height, width, channels
    raise ValueError(
        f"{checkpoint.source} does not tell its resolution (no 'mobilenet_v2_ALPHA_RESOLUTION' in its name, no frozen graph beside "
        f"it): pass input_shape, such as input_shape=(224, 224, {channels}) or (None, None, {channels})."
    )
