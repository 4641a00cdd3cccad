"""The segmenter as a task: inferred from variables, built, filled, compared."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from mnv2_keras.architecture import ASPP_RATES
from mnv2_keras.convert.checkpoint import Checkpoint, sha256_of
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.convert.segmentation_goldens import find_segmentation_goldens
from mnv2_keras.convert.transfer import Transfer, load_arrays, network_shapes
from mnv2_keras.images import find_images, read_image
from mnv2_keras.masks import fit_photo, pad_photo
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.networks.segmenter import build_deeplabv3_mobilenetv2
from mnv2_keras.tasks.compare import endpoint_values
from mnv2_keras.weights import fill_from_checkpoint


def holds(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these variables are a DeepLab's on MobileNetV2."""
    return _LOGITS in shapes and "MobilenetV2/Conv/weights" in shapes


_LOGITS = "logits/semantic/weights"


def convert(checkpoint: Checkpoint, ema: bool, classes: int | None, options: dict) -> tuple[keras.Model, Transfer]:
    """Build the segmenter that a checkpoint holds, and fill it. See `convert_checkpoint`.

    Alpha, classes and the parts of the head come from the shapes; size, output stride and dilations from the frozen graph
    beside the checkpoint, else they are 513 x 513, 16 and the published dilations.
    """
    shapes = network_shapes(checkpoint.shapes)
    arguments = options_of(shapes, checkpoint.prefix.name + checkpoint.source.name)
    if classes is not None:
        arguments["classes"] = classes
    if checkpoint.frozen_graph:
        arguments |= graph_options(FrozenGraph(checkpoint.frozen_graph), arguments["input_shape"][2])
    arguments |= options
    branches = _branches(shapes)
    if "aspp_rates" not in arguments:
        arguments["aspp_rates"] = _published_rates(branches, arguments.get("output_stride", 16), checkpoint.source)
    if len(arguments["aspp_rates"]) != branches:
        raise ValueError(
            f"aspp_rates is {arguments['aspp_rates']!r}: {checkpoint.source} has {branches} atrous branches, each needs one."
        )
    model = build_deeplabv3_mobilenetv2(**arguments)
    return model, fill_from_checkpoint(model, checkpoint, ema)


def convert_quantised(network, classes: int | None, options: dict) -> keras.Model:
    """Build the segmenter that one of Google's quantised files holds, and fill it.

    Args:
        network: a `QuantisedNetwork`.
        classes: None or the file's own number.
        options: of the builder, over what was found.
    """
    found = options_of(network.shapes, network.source)
    if classes not in (None, found["classes"]):
        raise ValueError(
            f"{network.source} holds {found['classes']} classes: another number needs a new head, which is trained from a "
            "checkpoint or a .keras file."
        )
    found |= {"input_shape": network.input_shape, "output_stride": network.output_stride}
    model = build_deeplabv3_mobilenetv2(**(found | options))
    load_arrays(model, network.arrays)
    return model


def options_of(shapes: Mapping[str, tuple[int, ...]], hint: str = "") -> dict:
    """Arguments of the builder that a segmenter's variables tell: all but size, output stride and dilations.

    Raises:
        ValueError: the backbone's widths are those of no alpha.
    """
    found = infer_architecture(shapes, hint)
    if found is None or found.alpha is None:
        raise ValueError(
            f"{hint} holds a segmentation network on a backbone whose widths are no multiple of Table 2's: only DeepLab on "
            "MobileNetV2 with a width multiplier can be converted."
        )
    return {
        "alpha": found.alpha,
        "input_shape": (513, 513, found.channels),
        "classes": shapes[_LOGITS][3],
        "head": "concat_projection/weights" in shapes,
        "decoder": "decoder/feature_projection0/weights" in shapes,
        "aspp_separable": "aspp1/weights" not in shapes,
        "min_depth": found.options["min_depth"],
        "divisible_by": found.options["divisible_by"],
    }


def _branches(shapes: Mapping) -> int:
    return sum(bool(re.fullmatch(r"aspp[1-9]\d*(_pointwise)?/weights", name)) for name in shapes)


def _published_rates(branches: int, output_stride: int, source) -> tuple[int, ...]:
    """DeepLab's dilations at this stride: variables do not hold them."""
    if branches == 0:
        return ()
    if branches == 3 and output_stride in ASPP_RATES:
        return ASPP_RATES[output_stride]
    raise ValueError(
        f"{source} has {branches} atrous branches, and nothing tells their dilations: pass aspp_rates, one number for each."
    )


def graph_options(graph: FrozenGraph, channels: int = 3) -> dict:
    """What the frozen graph tells and the variables do not: `input_shape`, `output_stride`, `aspp_rates`."""
    convolutions = [node for node in graph.definition.node if node.op in ("Conv2D", "DepthwiseConv2dNative")]
    backbone_nodes = [node for node in convolutions if node.name.startswith("MobilenetV2/")]
    if not backbone_nodes:
        return {}
    # The graph pads every photo to its own size: an image of one pixel tells it.
    image = np.zeros((1, 1, 1, channels), np.uint8)
    padded = graph.run({graph.placeholder: image}, {"padded": backbone_nodes[0].input[0]})["padded"]
    found = {
        "input_shape": padded.shape[1:],
        "output_stride": math.prod(node.attr["strides"].list.i[1] for node in backbone_nodes),
    }
    atrous = {}
    for node in convolutions:
        if match := re.match(r"aspp([1-9]\d*)(?:_depthwise)?/", node.name):
            atrous[int(match[1])] = _dilation(graph, node)
    return found | ({"aspp_rates": tuple(atrous[i] for i in sorted(atrous))} if atrous else {})


def _dilation(graph: FrozenGraph, node) -> int:
    """Of an attribute, or of the SpaceToBatchND that TF1 spells dilation by."""
    before = graph.nodes[node.input[0].split(":")[0]]
    if before.op == "SpaceToBatchND":
        return int(graph.run({}, {"block": before.input[1]})["block"][0])
    return int(node.attr["dilations"].list.i[1]) if node.attr["dilations"].list.i else 1


def compare_with_goldens(receipt: Receipt, checkpoint: Checkpoint, ema: bool, path: Path) -> None:
    """Fill a receipt from every run of DeepLab in a folder whose network the checkpoint holds."""
    matching = find_segmentation_goldens(path, network_shapes(checkpoint.shapes))
    agreement = []
    for golden in matching:
        receipt.sha256[golden.arrays.name] = sha256_of(golden.arrays)
        model, _ = convert(checkpoint, ema, None, golden.options)
        values = endpoint_values(model, golden.input())
        for name, (genuine, cut, value_range) in golden.outputs().items():
            receipt.compare(f"{golden.tag}: {name}", cut(values[name]), genuine, value_range)
        genuine, cut = golden.labels()
        agreement.append(np.mean(cut(np.argmax(values["net"], -1)) == genuine))
        receipt.images += 1
    receipt.pixels = float(np.mean(agreement))


#: The node of each part of the head, by endpoint.
_HEAD_NODES = {"logits/semantic": "logits/semantic/BiasAdd"}


def compare_with_graph(receipt: Receipt, model: keras.Model, graph: FrozenGraph, images=None) -> None:
    """Fill a segmenter's receipt: weights against the graph's constants, then endpoints and labels on each photo.

    Args:
        images: photos (paths, uint8 arrays), shrunk where they are larger than the network's input, padded as the graph
            does; or a float32 batch in [-1, 1] at its size; None for a seeded photo of random pixels.
    """
    ours = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(model).items()}
    receipt.compare_constants(ours, graph.constants())
    first = next((node for node in graph.definition.node if node.op == "Conv2D"), None)
    last = next((node for node in graph.definition.node if node.op == "ArgMax"), None)
    if first is None or last is None:
        raise ValueError(f"{graph.path.name} is no graph of a segmentation network: it has no Conv2D or no ArgMax.")
    nodes = {"input": first.input[0]} | graph.endpoint_nodes(endpoints(model), "MobilenetV2")
    for name in endpoints(model):
        node = _HEAD_NODES.get(name, f"{name}/Relu")
        if not name.startswith("layer_") and node in graph.nodes:
            nodes[name] = node
    nodes["net"] = last.input[0]
    size = graph.run({graph.placeholder: np.zeros((1, 1, 1, 3), np.uint8)}, {"input": first.input[0]})["input"].shape[
        1:3
    ]
    differences: dict[str, list] = {name: [] for name in nodes}
    agreement = []
    for feed, batch in _feeds(images, size, graph.placeholder, first.input[0]):
        genuine = graph.run(feed, nodes)
        values = endpoint_values(model, batch) | {"input": batch}
        for name in nodes:
            differences[name].append((values[name], genuine[name]))
        agreement.append(np.mean(np.argmax(values["net"], -1) == np.argmax(genuine["net"], -1)))
        receipt.images += len(batch)
    for name, pairs in differences.items():
        receipt.compare(name, *(np.concatenate(side) for side in zip(*pairs, strict=True)))
    receipt.pixels = float(np.mean(agreement))


def _feeds(images, size: tuple[int, int], photo: str, network: str):
    """For each photo what to feed the graph, and the batch (1, H, W, 3) in [-1, 1] for the model."""
    if isinstance(images, np.ndarray) and images.dtype == np.float32:
        if images.ndim != 4 or images.shape[1:3] != size:
            raise ValueError(
                f"images is a float32 batch of shape {images.shape}: expected (B, {size[0]}, {size[1]}, 3)."
            )
        for image in images:
            yield {network: image[None], photo: np.zeros((1, *size, 3), np.uint8)}, image[None]
        return
    if images is None:
        random = np.random.Generator(np.random.PCG64(0))
        images = [random.integers(0, 256, (min(375, size[0]), min(500, size[1]), 3), np.uint8)]
    if isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    photos = []
    for image in images:
        photos += map(read_image, find_images([image])) if isinstance(image, str | os.PathLike) else [image]
    if not photos:
        raise ValueError("images is empty: pass at least one photo, or None for a seeded random one.")
    for image in photos:
        image = fit_photo(image, size)
        yield {photo: image[None]}, pad_photo(image, size)[None]
