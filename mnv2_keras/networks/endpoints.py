"""What is inside a built or loaded model: TF-Slim's endpoints, features, blocks, and how to freeze them.

All of it is read from the layers' names, so it works on a model that comes from a file just as on a fresh one.
"""

import re
from collections.abc import Callable
from types import MappingProxyType

import keras
import numpy as np

from mnv2_keras.architecture import Endpoint

_BLOCK = re.compile(r"expanded_conv(?:_(\d+))?-(.+)")
#: The layer of an inverted residual, after `expanded_conv_N-`, and what it is the output of, after `layer_N`.
_BLOCK_ENDPOINTS = (
    (re.compile(r"expand-(?:activation|concat)"), ("/expansion_output",)),
    (re.compile(r"depthwise-activation"), ("/depthwise_output",)),
    (re.compile(r"(expand_part_\d+)-activation"), (r"/\1_output",)),
    (re.compile(r"(project_part_\d+)-(?:BatchNorm|GroupNorm)"), (r"/\1_output",)),
    (re.compile(r"project-(?:BatchNorm|GroupNorm|concat)|add"), ("/output", "")),
)
_HEADS = ("global_pool", "Logits", "Predictions")


def _block_layers(model) -> dict[str, list]:
    """`layer_N` to its layers, then `Logits`; layers of other heads are listed under their scope."""
    names = [layer.name for layer in model.layers]
    if "Conv-activation" not in names:
        raise ValueError(
            f"model {model.name!r} has no MobileNetV2 layers (no layer 'Conv-activation'): expected a model built by mnv2_keras or "
            "loaded from its file. If it is nested in yours, pass model.get_layer('MobilenetV2')."
        )
    numbers = {name: int(match[1] or 0) + 2 for name in names if (match := _BLOCK.match(name))}
    scopes = dict.fromkeys(_HEADS, "Logits")
    scopes |= {"Conv": "layer_1", "Conv_1": f"layer_{max(numbers.values(), default=1) + 1}"}
    groups: dict[str, list] = {}
    for layer in model.layers:
        scope = layer.name.split("-")[0]
        key = f"layer_{numbers[layer.name]}" if layer.name in numbers else scopes.get(scope, scope)
        if layer.name in numbers or scope in scopes or layer.weights or scope in groups:
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
    return MappingProxyType(
        {
            # The output in the model itself, also where the model was called again inside another one.
            name: layer._inbound_nodes[0].output_tensors[0]
            for key, group in _block_layers(model).items()
            for layer in group
            for name in _endpoint_names(key, layer)
        }
    )


def _endpoint_names(key: str, layer) -> list[str]:
    """The endpoints that a layer of the block `key` is the output of."""
    if block := _BLOCK.match(layer.name):
        matches = ((pattern.fullmatch(block[2]), endings) for pattern, endings in _BLOCK_ENDPOINTS)
        return [key + match.expand(ending) for match, endings in matches if match for ending in endings]
    if layer.name in ("Conv-activation", "Conv_1-activation"):
        return [key]
    if layer.name in _HEADS:
        return [layer.name]
    # A predictor has a bias and no activation.
    predictor = isinstance(layer, keras.layers.Conv2D) and layer.use_bias and not layer.name.startswith("Logits-")
    if predictor or layer.name.endswith("-activation"):
        return [layer.name.removesuffix("-activation").replace("-", "/")]
    return []


def endpoint_function(model: keras.Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from a batch to the values of every endpoint of a model, in network order, and of its outputs.

    A single output is called `net`. As in TF-Slim, `net` is the logits where the model has any.
    """
    outputs = model.output if isinstance(model.output, dict) else {"net": model.output}
    tensors = {**endpoints(model), **outputs}
    probe = keras.Model(model.input, list(tensors.values()))

    def values(batch: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {
            name: keras.ops.convert_to_numpy(value) for name, value in zip(tensors, probe(batch, training=False), strict=True)
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
    tensors, names = endpoints(model), [names] if isinstance(names, str) else names
    for name in names:
        if name not in tensors:
            raise ValueError(f"{name!r} is not an endpoint of model {model.name!r}: expected one of {', '.join(tensors)}.")
    return keras.Model(model.input, {name: tensors[name] for name in names}, name=f"{model.name}-features")


def feature_info(model: keras.Model) -> dict[str, Endpoint]:
    """Channels and stride of every endpoint, in network order: `{"layer_1": Endpoint(channels=32, stride=2), ...}`."""
    strides = {}

    def stride(tensor) -> int:
        layer, _, _ = tensor._keras_history
        if id(tensor) not in strides:
            step = layer.strides[0] if hasattr(layer, "kernel_size") else 1
            inputs = layer._inbound_nodes[0].input_tensors if layer._inbound_nodes else ()
            # Of several inputs the last: a map that was resized like another has the other's stride.
            strides[id(tensor)] = [1, *map(stride, inputs)][-1] * step
        return strides[id(tensor)]

    pooled = (*_HEADS, "image_pooling")  # a map of one step no longer has a stride
    return {
        name: Endpoint(int(tensor.shape[-1]), 0 if name in pooled else stride(tensor)) for name, tensor in endpoints(model).items()
    }


def takes_pixels(model: keras.Model) -> bool:
    """Whether the model takes values from 0 to 255 and scales them itself (`include_preprocessing=True`), not [-1, 1]."""
    return any(layer.name == "preprocessing" for layer in model.layers)


def check_input(model: keras.Model, name: str | None = None) -> None:
    """Refuse a model that takes 0 to 255 where images are in [-1, 1]; the message calls it `name`, or by its name.

    Raises:
        ValueError: the model was built with include_preprocessing=True.
    """
    if takes_pixels(model):
        raise ValueError(
            f"{name or model.name} was built with include_preprocessing=True and takes 0 to 255, here it would get -1 to 1: build "
            "it with include_preprocessing=False and give it the same weights (set_weights)."
        )


def freeze(model: keras.Model, until: str | None = None, batch_norm: bool = True) -> keras.Model:
    """Stop training from the input up to and including a block; the layers after it are trained.

    A frozen batch norm (`trainable = False`) uses its moving statistics and does not change them, also inside `fit`, where
    calling the base with `training=False` is not enough in Keras 3. Compile after freezing.

    Args:
        model: a model of this package.
        until: the last frozen block, such as "layer_15" (see `blocks`); None freezes every block, but not the head.
        batch_norm: whether the batch norms after `until` are frozen too, so that no moving statistic of the model changes.

    Returns:
        The model itself.

    Raises:
        ValueError: no such block.
    """
    groups = _block_layers(model)
    names = [name for name in groups if name.startswith("layer_") and name[6:].isdigit()]
    until = names[-1] if until is None else until
    if until not in names:
        raise ValueError(f"until is {until!r}: expected a block of model {model.name!r}, one of {', '.join(names)}.")
    frozen = set(names[: names.index(until) + 1])
    for name, group in groups.items():
        for layer in group:
            frozen_norm = batch_norm and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = not (name in frozen or frozen_norm)
    return model
