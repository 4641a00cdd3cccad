"""The segmenter: Mobile DeepLabv3."""

import math
import re

import numpy as np

from mnv2_keras.architecture.segmenter import ASPP_RATES
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.infer import infer_segmenter
from mnv2_keras.convert.transfer import network_shapes
from mnv2_keras.masks import fit_photo, pad_photo
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.networks.segmenter import build_deeplabv3_mobilenetv2
from mnv2_keras.tasks.protocol import Task

#: Size of the published networks' input, for files that do not hold it.
PUBLISHED_SIZE = (513, 513)
#: The nodes of endpoints that are not called after their activation.
_HEAD_NODES = {"logits/semantic": "logits/semantic/BiasAdd"}


class Segmentation(Task):
    """DeepLab's logits on a MobileNetV2."""

    name = "segmentation"
    build = staticmethod(build_deeplabv3_mobilenetv2)

    def holds(self, shapes) -> bool:
        return "logits/semantic/weights" in shapes and "MobilenetV2/Conv/weights" in shapes

    def holds_model(self, model) -> bool:
        return any(layer.name == "logits-semantic" for layer in getattr(model, "layers", ()))

    def infer(self, source, options) -> dict:
        """Size, stride and dilations come from the file or the frozen graph next to it, else they are the published ones."""
        arguments = infer_segmenter(network_shapes(source.shapes), source.hint)
        branches, channels = arguments.pop("branches"), arguments.pop("channels")
        arguments["input_shape"] = (*PUBLISHED_SIZE, channels)
        if source.frozen_graph:
            arguments |= graph_facts(FrozenGraph(source.frozen_graph), channels)
        arguments |= source.facts | options
        if "aspp_rates" not in arguments:
            stride = arguments.get("output_stride", 16)
            arguments["aspp_rates"] = _published_rates(branches, stride, source.path)
        if len(arguments["aspp_rates"]) != branches:
            raise ValueError(
                f"aspp_rates is {arguments['aspp_rates']!r}: {source.path} has {branches} atrous branches, each needs one."
            )
        return arguments

    def input_size(self, graph, model) -> tuple[int, int, int]:
        """Of the network inside the graph, which pads every photo itself."""
        first, _ = _ends(graph)
        return graph.run({graph.placeholder: np.zeros((1, 1, 1, 3), np.uint8)}, {"input": first})["input"].shape[1:]

    def random_images(self, size) -> list[np.ndarray]:
        """A photo of noise, at most 375 x 500 pixels."""
        height, width = min(375, size[0]), min(500, size[1])
        return [np.random.Generator(np.random.PCG64(0)).integers(0, 256, (height, width, 3), np.uint8)]

    def preprocess(self, photo, size) -> np.ndarray:
        """Padded on the right and below, in [-1, 1]; shrunk first where it is larger than the input."""
        return pad_photo(fit_photo(photo, size), size)

    def nodes(self, graph: FrozenGraph, model) -> dict[str, str]:
        first, last = _ends(graph)
        nodes = {"input": first} | graph.endpoint_nodes(endpoints(model), "MobilenetV2")
        for name in endpoints(model):
            node = _HEAD_NODES.get(name, f"{name}/Relu")
            if not name.startswith("layer_") and node in graph.nodes:
                nodes[name] = node
        return nodes | {"net": last}

    def feed(self, graph, photo, batch) -> dict[str, np.ndarray]:
        """The photo, shrunk until it fits; a batch is fed where the network begins."""
        if photo is not None:
            return {graph.placeholder: fit_photo(photo, batch.shape[1:3])[None]}
        return {_ends(graph)[0]: batch, graph.placeholder: np.zeros((1, *batch.shape[1:3], 3), np.uint8)}

    def complete(self, ours, genuine, batch) -> None:
        ours |= {"input": batch, "labels": np.argmax(ours["net"], -1)}

    def judge(self, receipt, ours, genuine) -> None:
        if "labels" in ours:
            labels = genuine["labels"] if "labels" in genuine else np.argmax(genuine["net"], -1)
            receipt.compare_pixels(ours["labels"], labels)


def _ends(graph: FrozenGraph) -> tuple[str, str]:
    """The nodes that the first convolution and the arg max read."""
    first = next((node for node in graph.definition.node if node.op == "Conv2D"), None)
    last = next((node for node in graph.definition.node if node.op == "ArgMax"), None)
    if first is None or last is None:
        raise ValueError(f"{graph.path.name} is not the graph of a segmentation network: it has no Conv2D or no ArgMax.")
    return first.input[0], last.input[0]


def _published_rates(branches: int, output_stride: int, path) -> tuple[int, ...]:
    """DeepLab's dilations at this stride: variables do not hold them."""
    if branches == 0:
        return ()
    if branches == 3 and output_stride in ASPP_RATES:
        return ASPP_RATES[output_stride]
    raise ValueError(
        f"{path} has {branches} atrous branches, and their dilations are unknown: pass aspp_rates, one number for each."
    )


def graph_facts(graph: FrozenGraph, channels: int = 3) -> dict:
    """What a frozen graph holds and the variables do not: `input_shape`, `output_stride`, `aspp_rates`."""
    convolutions = [node for node in graph.definition.node if node.op in ("Conv2D", "DepthwiseConv2dNative")]
    backbone = [node for node in convolutions if node.name.startswith("MobilenetV2/")]
    if not backbone:
        return {}
    # The graph pads every photo to its input size: an image of one pixel shows it.
    image = np.zeros((1, 1, 1, channels), np.uint8)
    padded = graph.run({graph.placeholder: image}, {"padded": backbone[0].input[0]})["padded"]
    facts = {"input_shape": padded.shape[1:], "output_stride": math.prod(node.attr["strides"].list.i[1] for node in backbone)}
    rates = {}
    for node in convolutions:
        if match := re.match(r"aspp([1-9]\d*)(?:_depthwise)?/", node.name):
            rates[int(match[1])] = _dilation(graph, node)
    return facts | ({"aspp_rates": tuple(rates[i] for i in sorted(rates))} if rates else {})


def _dilation(graph: FrozenGraph, node) -> int:
    """From an attribute, or from the SpaceToBatchND with which TF1 computes dilation."""
    before = graph.nodes[node.input[0].split(":")[0]]
    if before.op == "SpaceToBatchND":
        return int(graph.run({}, {"block": before.input[1]})["block"][0])
    return int(node.attr["dilations"].list.i[1]) if node.attr["dilations"].list.i else 1
