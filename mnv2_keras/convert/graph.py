"""A frozen TensorFlow graph: its input, its constants, and the values of its nodes."""

from pathlib import Path

import numpy as np

from mnv2_keras.convert.graph_job import run_graph
from mnv2_keras.convert.graph_operators import check_operators

#: Bytes of a frozen graph; the largest official one has 25 MB.
MAX_GRAPH = 512 * 2**20

#: Nodes that hold an endpoint of a block, tried in this order (graph transforms drop the identities).
_BLOCK_NODES = {
    "expansion_output": ("expansion_output", "expand/Relu6"),
    "depthwise_output": ("depthwise_output", "depthwise/Relu6"),
    "output": ("output", "add", "project/Identity", "project/BatchNorm/FusedBatchNorm", "project/Conv2D"),
}
_HEAD_NODES = {
    "global_pool": ("Logits/AvgPool",),
    "Logits": ("Logits/output", "Logits/Squeeze", "Logits/Conv2d_1c_1x1/Squeeze"),
    "Predictions": ("Predictions/Reshape_1", "Predictions/Softmax"),
}


class FrozenGraph:
    """A `.pb` file of a network, parsed and checked; it runs in a separate process (`graph_job`).

    Args:
        path: the file.

    Raises:
        ValueError: it is not a graph, or holds something else than a network (`graph_operators.check_operators`).
    """

    def __init__(self, path: Path):
        import tensorflow as tf
        from google.protobuf.message import DecodeError

        self.path = path
        self.definition = tf.compat.v1.GraphDef()
        try:
            if path.stat().st_size > MAX_GRAPH:
                raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes: expected at most {MAX_GRAPH:,}.")
            self.definition.ParseFromString(path.read_bytes())
        except DecodeError as error:
            raise ValueError(f"{path.name} is not a frozen TensorFlow graph: expected a serialised GraphDef.") from error
        check_operators(self.definition, path.name)
        self.nodes = {node.name: node for node in self.definition.node}

    @property
    def placeholder(self) -> str:
        """Name of the graph's one input."""
        names = [node.name for node in self.definition.node if node.op == "Placeholder"]
        if len(names) != 1:
            raise ValueError(f"{self.path.name} has {len(names)} inputs ({', '.join(names) or 'none'}): expected one image.")
        return names[0]

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """(B, H, W, C) of the input, None where the graph leaves it open."""
        shape = self.nodes[self.placeholder].attr["shape"].shape
        return tuple(dim.size if dim.size > 0 else None for dim in shape.dim) or (None,) * 4

    def constants(self) -> dict[str, np.ndarray]:
        """The float constants by node name; in an unfolded graph these are the variables."""
        import tensorflow as tf

        arrays = {}
        for node in self.definition.node:
            if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum:
                try:
                    arrays[node.name] = tf.make_ndarray(node.attr["value"].tensor)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{self.path.name}: the constant {node.name!r} cannot be read ({error}).") from error
        return arrays

    def run(self, feed: dict[str, np.ndarray], nodes: dict[str, str]) -> dict[str, np.ndarray]:
        """Values of nodes: `{key: node}` to `{key: array}`. Errors are those of `graph_job.run_graph`."""
        return run_graph(self.path, feed, nodes)

    def endpoint_nodes(self, endpoints, root: str) -> dict[str, str]:
        """The node of each endpoint that this graph has, in the order of the endpoints."""
        last = f"layer_{max((int(name[6:]) for name in endpoints if name[6:].isdigit()), default=0)}"
        has_last = f"{root}/Conv_1/Relu6" in self.nodes
        nodes = {}
        for name in endpoints:
            layer, _, part = name.partition("/")
            if name in _HEAD_NODES:
                candidates = _HEAD_NODES[name]
            elif name == "layer_1":
                candidates = ("Conv/Relu6",)
            elif name == last and has_last:
                candidates = ("Conv_1/Relu6",)
            elif layer.startswith("layer_") and layer[6:].isdigit():
                index = int(layer[6:]) - 2
                scope = f"expanded_conv_{index}" if index else "expanded_conv"
                candidates = tuple(f"{scope}/{node}" for node in _BLOCK_NODES.get(part or "output", (part,)))
            else:
                continue
            for node in candidates:
                if f"{root}/{node}" in self.nodes:
                    nodes[name] = f"{root}/{node}"
                    break
        return nodes
