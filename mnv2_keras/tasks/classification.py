"""The classifier, and the bare backbone."""

import numpy as np

from mnv2_keras.convert.goldens import seeded_input
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.names import root_scope
from mnv2_keras.convert.transfer import network_shapes
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.preprocessing import preprocess_image
from mnv2_keras.tasks.protocol import Task


class Classification(Task):
    """The default task; `infer` refuses what is not MobileNetV2."""

    name = "classification"
    build = staticmethod(build_mobilenetv2)

    def holds(self, shapes) -> bool:
        return True

    def holds_model(self, model) -> bool:
        return True

    def infer(self, source, options) -> dict:
        """The resolution comes from the file's name or the graph next to it, the rest from the shapes."""
        network = infer_architecture(network_shapes(source.shapes), source.hint)
        if network is None:
            names = ", ".join(list(source.shapes)[:5])
            raise ValueError(
                f"{source.path} holds no MobileNetV2 of TF-Slim: {len(source.shapes)} variables ({names}, ...). Expected "
                "MobilenetV2/Conv/weights, MobilenetV2/expanded_conv/..., and so on."
            )
        if not network.strides_known and "table" not in options:
            rows = ", ".join(f"({row.t}, {row.c}, {row.n}, s)" for row in network.options["table"])
            raise ValueError(
                f"{source.path} holds blocks other than Table 2's, and a checkpoint does not hold their strides s: pass "
                f"table=[{rows}] with them to convert_checkpoint."
            )
        arguments = network.options | {
            "normalization": network.normalization,
            "final_endpoint": network.final_endpoint,
            # A backbone cut short on request comes without the head, which was not trained on it.
            "include_top": network.classes is not None and not options.get("final_endpoint"),
            "classes": network.classes,
        }
        if "input_shape" not in options:
            arguments["input_shape"] = source.facts.get("input_shape") or _input_shape(source, network.channels)
        return arguments

    def input_size(self, graph, model) -> tuple[int, int, int]:
        shape = graph.input_shape
        if any(a and b and a != b for a, b in zip(shape[1:], model.input_shape[1:], strict=True)):
            raise ValueError(
                f"the genuine graph takes images of {shape[1:]}, the model of {model.input_shape[1:]}: build it with "
                f"input_shape={tuple(shape[1:])} or (None, None, {shape[3]})."
            )
        return tuple(a or b or 224 for a, b in zip(shape[1:], model.input_shape[1:], strict=True))

    def random_images(self, size) -> np.ndarray:
        return seeded_input((2, *size))

    def preprocess(self, photo, size) -> np.ndarray:
        """TF-Slim's evaluation: central crop, resize, [-1, 1]."""
        return preprocess_image(photo, size)

    def nodes(self, graph: FrozenGraph, model) -> dict[str, str]:
        nodes = graph.endpoint_nodes(endpoints(model), root_scope(layer.name for layer in model.layers))
        if not nodes:
            raise ValueError(f"{graph.path.name} has no node of MobileNetV2: it is another network's graph.")
        return nodes

    def feed(self, graph, photo, batch) -> dict[str, np.ndarray]:
        return {graph.placeholder: batch}

    def judge(self, receipt, ours, genuine) -> None:
        logits = genuine.get("Logits", genuine.get("net"))
        if "Logits" in ours and logits is not None and logits.shape == ours["Logits"].shape:
            receipt.compare_rankings(ours["Logits"], logits)


def _input_shape(source, channels: int) -> tuple[int, int, int]:
    if source.resolution:
        return source.resolution, source.resolution, channels
    if source.frozen_graph:
        _, height, width, _ = FrozenGraph(source.frozen_graph).input_shape
        if height and width:
            return height, width, channels
    raise ValueError(
        f"{source.path} does not hold its resolution (no 'mobilenet_v2_ALPHA_RESOLUTION' in its name, no frozen graph next to "
        f"it): pass input_shape, such as input_shape=(224, 224, {channels}) or (None, None, {channels})."
    )
