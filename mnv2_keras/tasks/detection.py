"""The detectors: SSDLite and the classic SSD."""

import re

import numpy as np

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.infer import infer_detector
from mnv2_keras.convert.names import DETECTOR
from mnv2_keras.convert.transfer import network_shapes
from mnv2_keras.detection import postprocess_detections, preprocess_detection_image
from mnv2_keras.networks.detector import build_ssdlite_mobilenetv2
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.tasks.protocol import Task

#: Size of the published detectors' input, for files that do not hold it.
PUBLISHED_SIZE = (300, 300)
OUTPUTS = ("box_encodings", "class_predictions_with_background")
#: Names of the outputs in an exported SSD graph, and of the inputs of its post-processing.
_GRAPH_NODES = {
    "anchors": "Concatenate/concat",
    "box_encodings": "Squeeze",
    "class_predictions_with_background": "concat_1",
    "detection_boxes": "detection_boxes",
    "detection_scores": "detection_scores",
    "detection_classes": "detection_classes",
    "num_detections": "num_detections",
}


class Detection(Task):
    """Its outputs are box encodings and class predictions."""

    name = "detection"
    build = staticmethod(build_ssdlite_mobilenetv2)

    def holds(self, shapes) -> bool:
        return any(name.startswith("BoxPredictor_0/") for name in shapes)

    def holds_model(self, model) -> bool:
        output = getattr(model, "output", None)  # a Sequential model that was never called has none
        return isinstance(output, dict) and set(output) == set(OUTPUTS)

    def infer(self, source, options) -> dict:
        """The size comes from `pipeline.config`, else from the frozen graph, else it is the published one."""
        arguments = infer_detector(network_shapes(source.shapes), source.path)
        channels = arguments.pop("channels")
        if "input_shape" not in options:
            arguments["input_shape"] = source.facts.get("input_shape") or (*_resolution(source), channels)
        return arguments

    def input_size(self, graph, model) -> tuple[int, int, int]:
        """Of the network inside the graph, which resizes every photo itself."""
        first = _first_input(graph)
        return graph.run({graph.placeholder: np.zeros((1, 1, 1, 3), np.uint8)}, {"input": first})["input"].shape[1:]

    def random_images(self, size) -> list[np.ndarray]:
        """A photo of noise, 240 x 320 pixels."""
        return [np.random.Generator(np.random.PCG64(0)).integers(0, 256, (240, 320, 3), np.uint8)]

    def preprocess(self, photo, size) -> np.ndarray:
        """The whole photo in [-1, 1], resized; the aspect ratio is not kept."""
        return preprocess_detection_image(photo, size)

    def nodes(self, graph: FrozenGraph, model) -> dict[str, str]:
        nodes = {"input": _first_input(graph)} | graph.endpoint_nodes(endpoints(model), DETECTOR)
        for name in endpoints(model):
            for node in (f"{DETECTOR}/{name}/Relu6", f"{name}/Relu6", f"{name}/BiasAdd"):
                if node in graph.nodes:
                    nodes.setdefault(name, node)
        return nodes | _GRAPH_NODES

    def feed(self, graph, photo, batch) -> dict[str, np.ndarray]:
        """The photo; a batch is fed where the network begins."""
        if photo is not None:
            return {graph.placeholder: photo[None]}
        return {_first_input(graph): batch, graph.placeholder: np.zeros((1, *batch.shape[1:3], 3), np.uint8)}

    def complete(self, ours, genuine, batch) -> None:
        """The anchors, and the detections that our post-processing makes of the genuine outputs.

        In exact arithmetic they equal the genuine detections, except in the order of equal scores.
        """
        ours |= {"input": batch, "anchors": ssd_anchors(batch.shape[1:3])}
        if "num_detections" not in genuine:
            return
        detections = postprocess_detections(*(genuine[name] for name in (*OUTPUTS, "anchors")))
        ours |= {f"detection_{name}": np.asarray(detections[name]) for name in ("boxes", "scores", "classes")}
        ours["num_detections"] = np.asarray(detections["num"])
        # The genuine classes count from 1.
        is_box = np.arange(genuine["detection_classes"].shape[1]) < genuine["num_detections"][:, None]
        genuine["detection_classes"] = genuine["detection_classes"] - is_box

    def value_range(self, name) -> float | None:
        """Boxes and scores lie in [0, 1]; classes and counts must be equal."""
        return 1.0 if name.startswith(("detection", "num")) else None


def _first_input(graph: FrozenGraph) -> str:
    """The node that the first convolution reads."""
    node = next((node.input[0] for node in graph.definition.node if node.op == "Conv2D"), None)
    if node is None or any(name not in graph.nodes for name in _GRAPH_NODES.values()):
        raise ValueError(
            f"{graph.path.name} is not a frozen graph of an SSD: expected the nodes {', '.join(_GRAPH_NODES.values())}."
        )
    return node


def _resolution(source) -> tuple[int, int]:
    """(height, width) of the network's input: from pipeline.config, else the frozen graph, else as published."""
    config = source.file.parent / "pipeline.config"
    if config.is_file():
        resizer = re.search(r"fixed_shape_resizer\s*\{([^}]*)\}", config.read_text("utf-8", errors="replace"))
        sides = dict(re.findall(r"(height|width)\s*:\s*(\d+)", resizer[1])) if resizer else {}
        if len(sides) == 2:
            return int(sides["height"]), int(sides["width"])
    if source.frozen_graph:
        graph = FrozenGraph(source.frozen_graph)
        sizes = [graph.nodes[node.input[1]] for node in graph.definition.node if node.op == "ResizeBilinear"]
        if len(sizes) == 1 and sizes[0].op == "Const":
            return tuple(np.frombuffer(sizes[0].attr["value"].tensor.tensor_content, np.int32).tolist())
    return PUBLISHED_SIZE
