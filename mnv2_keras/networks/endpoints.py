"""What is inside a built or loaded model: TF-Slim's endpoints, features, blocks, and how to freeze them.

All of it is read from the layers' names, so it works on a model that comes from a file just as on a fresh one.
"""

import math
import re
from collections.abc import Callable
from types import MappingProxyType

import keras
import numpy as np

from mnv2_keras.architecture import Endpoint

_BLOCK = re.compile(r"expanded_conv(?:_(\d+))?-(.+)")
#: What follows `layer_N/` for the layer with this ending in an inverted residual.
_ENDPOINTS = {
    "expand-activation": "expansion_output",
    "expand-concat": "expansion_output",
    "depthwise-activation": "depthwise_output",
}
_PART = re.compile(r"(expand_part_\d+)-activation|(project_part_\d+)-(?:BatchNorm|GroupNorm)")
_LINEAR = re.compile(r"project-(?:BatchNorm|GroupNorm|concat)")
_HEADS = ("global_pool", "Logits", "Predictions")


def _number(scope: str) -> int:
    """The N of `layer_N` for an `expanded_conv[_i]`."""
    match = _BLOCK.match(scope)
    return int(match[1] or 0) + 2


def _tensor(layer):
    """The layer's output in its own model, also when the model was called again inside another."""
    return layer._inbound_nodes[0].output_tensors[0]


def _block_layers(model) -> dict[str, list]:
    """`layer_N` to its layers, then `Logits`; layers of other heads stand under their own scope."""
    names = [layer.name for layer in model.layers]
    numbers = [_number(name) for name in names if _BLOCK.match(name)]
    if "Conv-activation" not in names:
        raise ValueError(
            f"model {model.name!r} has no MobileNetV2 layers of its own (no layer 'Conv-activation'): expected a model built by "
            "mnv2_keras or loaded from its file. If it is nested in yours, pass model.get_layer('MobilenetV2')."
        )
    last = max(numbers, default=1) + 1
    groups: dict[str, list] = {}
    for layer in model.layers:
        scope = layer.name.split("-")[0]
        if _BLOCK.match(layer.name):
            key = f"layer_{_number(layer.name)}"
        elif scope in ("Conv", "Conv_1"):
            key = "layer_1" if scope == "Conv" else f"layer_{last}"
        elif scope in _HEADS:
            key = "Logits"
        elif layer.weights or scope in groups:
            key = scope
        else:
            continue  # input, rescaling, cutting
        groups.setdefault(key, []).append(layer)
    return groups


def blocks(model: keras.Model) -> dict[str, list[str]]:
    """Names of the layers of each block, in network order.

    Returns:
        `{"layer_1": ["Conv", "Conv-BatchNorm", ...], "layer_2": [...], ..., "layer_19": [...], "Logits": [...]}`.
        `layer_N` is TF-Slim's endpoint of the block; `layer_{i + 2}` holds the scope `expanded_conv_{i}`.

    Raises:
        ValueError: the model holds no MobileNetV2.
    """
    return {key: [layer.name for layer in group] for key, group in _block_layers(model).items()}


def endpoints(model: keras.Model) -> MappingProxyType:
    """Every TF-Slim endpoint of the model, in network order.

    Source: the `end_points` of TF-Slim `mobilenet.mobilenet_base` and `mobilenet.mobilenet`.

    Returns:
        A read-only mapping of the endpoint's TF-Slim name ("layer_15/expansion_output", "layer_19", "Logits", ...) to its
        Keras tensor, (B, h, w, C) or (B, classes).

    Raises:
        ValueError: the model holds no MobileNetV2.
    """
    tensors = {}
    for key, group in _block_layers(model).items():
        for layer in group:
            for name in _endpoint_names(key, layer):
                tensors[name] = _tensor(layer)
    return MappingProxyType(tensors)


def _endpoint_names(key: str, layer) -> list[str]:
    """The endpoints that a layer of the block `key` is the output of."""
    if match := _BLOCK.match(layer.name):
        ending = match[2]
        if ending in _ENDPOINTS:
            return [f"{key}/{_ENDPOINTS[ending]}"]
        if part := _PART.fullmatch(ending):
            return [f"{key}/{part[1] or part[2]}_output"]
        return [f"{key}/output", key] if _LINEAR.fullmatch(ending) or ending == "add" else []
    if layer.name in ("Conv-activation", "Conv_1-activation"):
        return [key]
    if layer.name in _HEADS:
        return [layer.name]
    # A predictor has a bias and no activation.
    predictor = isinstance(layer, keras.layers.Conv2D) and layer.use_bias and not layer.name.startswith("Logits-")
    if predictor or layer.name.endswith("-activation"):
        return [layer.name.removesuffix("-activation").replace("-", "/")]
    return []


def _chosen(model, names) -> dict:
    tensors = endpoints(model)
    if isinstance(names, str):
        names = [names]
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is no endpoint of model {model.name!r}: expected one of {', '.join(tensors)}."
        )
    return {name: tensors[name] for name in names}


def endpoint_function(model: keras.Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from a batch to every endpoint of a model, in network order, and its outputs; it can be called repeatedly.

    The outputs have their own names, a single one is `net`. TF-Slim's `net` is the logits, whatever is made of them afterwards.
    """
    outputs = model.output if isinstance(model.output, dict) else {"net": model.output}
    tensors = {**endpoints(model), **outputs}
    probe = keras.Model(model.input, list(tensors.values()))

    def values(batch: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {
            name: keras.ops.convert_to_numpy(value)
            for name, value in zip(tensors, probe(batch, training=False), strict=True)
        }
        return arrays | ({"net": arrays["Logits"]} if "Logits" in arrays else {})

    return values


def endpoint_values(model: keras.Model, batch: np.ndarray) -> dict[str, np.ndarray]:
    """The values of `endpoint_function` on one batch."""
    return endpoint_function(model)(batch)


def feature_extractor(model: keras.Model, names) -> keras.Model:
    """A model that shares this one's layers and returns a dict of the named endpoints.

    Args:
        model: a model of this package.
        names: endpoint names, such as `["layer_15/expansion_output", "layer_19"]`.

    Returns:
        A model of the same input; output `{name: (B, h, w, C)}`.

    Raises:
        ValueError: an endpoint the model does not have; the message lists those it has.
    """
    return keras.Model(model.input, _chosen(model, names), name=f"{model.name}-features")


def feature_info(model: keras.Model) -> dict[str, Endpoint]:
    """Channels and stride of every endpoint, in network order: `{"layer_1": Endpoint(channels=32, stride=2), ...}`."""
    stride_of = {}

    def stride(tensor) -> int:
        layer, _, _ = tensor._keras_history
        if id(tensor) not in stride_of:
            step = layer.strides[0] if hasattr(layer, "kernel_size") else 1
            before = [stride(t) for node in layer._inbound_nodes[:1] for t in node.input_tensors]
            # Of several inputs the last: a map that was resized like another has the other's stride.
            stride_of[id(tensor)] = before[-1] * step if before else 1
        return stride_of[id(tensor)]

    # A map of one step (pooled, or flattened) no longer has a stride.
    pooled = {"global_pool", "Logits", "Predictions", "image_pooling"}
    return {
        name: Endpoint(int(tensor.shape[-1]), 0 if name in pooled else math.trunc(stride(tensor)))
        for name, tensor in endpoints(model).items()
    }


def takes_pixels(model: keras.Model) -> bool:
    """Whether the model takes values from 0 to 255 and scales them itself (`include_preprocessing=True`), not [-1, 1]."""
    return any(layer.name == "preprocessing" for layer in model.layers)


def check_input(model: keras.Model, name: str | None = None) -> None:
    """Refuse a model that takes 0 to 255 where images come in [-1, 1].

    Args:
        model: any.
        name: what to call it; its own name otherwise.

    Raises:
        ValueError: it scales them itself.
    """
    if takes_pixels(model):
        raise ValueError(
            f"{name or model.name} was built with include_preprocessing=True and takes 0 to 255, here it would get -1 to 1: build "
            "it with include_preprocessing=False and give it the same weights (set_weights)."
        )


def freeze(model: keras.Model, until: str | None = None, batch_norm: bool = True) -> keras.Model:
    """Stop training from the input up to and including a block; what comes after it trains.

    A frozen batch norm (`trainable = False`) uses its moving statistics and leaves them alone, also inside `fit`, where
    calling the base with `training=False` is not enough in Keras 3. Compile after freezing.

    Args:
        model: a model of this package.
        until: the last frozen block, such as "layer_15" (see `blocks`); None freezes every block, the head apart.
        batch_norm: whether the batch norms after `until` are frozen too, so that no moving statistic of the model moves.

    Returns:
        The model itself.

    Raises:
        ValueError: no such block.
    """
    groups = _block_layers(model)
    names = [name for name in groups if name.startswith("layer_") and name[6:].isdigit()]
    if until is None:
        until = names[-1]
    if until not in names:
        raise ValueError(f"until is {until!r}: expected a block of model {model.name!r}, one of {', '.join(names)}.")
    frozen = set(names[: names.index(until) + 1])
    for name, group in groups.items():
        for layer in group:
            still = batch_norm and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = not (name in frozen or still)
    return model
