"""Proof that a model computes what the genuine program computed, endpoint by endpoint, in network order."""

import os

import keras
import numpy as np

from mnv2_keras.convert.goldens import Golden, seeded_input
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.names import root_scope, variables
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.images import find_images
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.preprocessing import preprocess_image


def endpoint_values(model: keras.Model, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Every endpoint of the model on a batch, in network order, and the model's own output as `net`."""
    taps = endpoints(model)
    *values, net = keras.Model(model.input, [*taps.values(), model.output])(batch, training=False)
    found = {name: keras.ops.convert_to_numpy(value) for name, value in zip(taps, values, strict=True)}
    # TF-Slim returns the logits, whatever is made of them afterwards.
    return found | {"net": found.get("Logits", keras.ops.convert_to_numpy(net))}


def compare_with_graph(receipt: Receipt, model: keras.Model, graph: FrozenGraph, images=None) -> None:
    """Fill a classifier's receipt: weights against the graph's constants, then endpoints on each image."""
    ours = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(model).items()}
    receipt.compare_constants(ours, graph.constants())
    batch = _batch(images, graph.input_shape, model)
    values = endpoint_values(model, batch)
    nodes = graph.endpoint_nodes(values, root_scope(layer.name for layer in model.layers))
    if not nodes:
        raise ValueError(f"{graph.path.name} has no node of MobileNetV2: it is another network's graph.")
    runs = [graph.run({graph.placeholder: image[None]}, nodes) for image in batch]
    receipt.images = len(batch)
    for name in nodes:
        genuine = np.concatenate([run[name] for run in runs])
        receipt.compare(name, values[name], genuine)
        if name == "Logits" and genuine.shape == values[name].shape:
            receipt.compare_rankings(values[name], genuine)


def _batch(images, graph_shape, model: keras.Model) -> np.ndarray:
    """The images to compare on, float32 (B, H, W, C) in [-1, 1], of the size that graph and model share."""
    if any(a and b and a != b for a, b in zip(graph_shape[1:], model.input_shape[1:], strict=True)):
        raise ValueError(
            f"the genuine graph takes images of {graph_shape[1:]}, the model of {model.input_shape[1:]}: build it with "
            f"input_shape={tuple(graph_shape[1:])} or (None, None, {graph_shape[3]})."
        )
    sides = [a or b or 224 for a, b in zip(graph_shape[1:], model.input_shape[1:], strict=True)]
    if images is None:
        return seeded_input((2, *sides))
    if isinstance(images, np.ndarray) and images.dtype == np.float32:
        if images.ndim != 4 or list(images.shape[1:]) != sides or not len(images):
            raise ValueError(
                f"images is a float32 batch of shape {images.shape}: expected (B, {', '.join(map(str, sides))})."
            )
        return images
    single = isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim == 3)
    photos = []
    for image in [images] if single else images:
        photos += find_images([image]) if isinstance(image, str | os.PathLike) else [image]
    if not photos:
        raise ValueError("images is empty: pass at least one photo, or None for a seeded random batch.")
    return np.stack([preprocess_image(photo, tuple(sides[:2])) for photo in photos])


def compare_with_golden(receipt: Receipt, model: keras.Model, golden: Golden, prefix: str = "") -> None:
    """Fill a receipt from one run of TF-Slim."""
    batch, genuine = golden.input(), golden.outputs()
    values = endpoint_values(model, batch)
    known = [name for name in values if name in genuine]
    if not known:
        raise ValueError(f"{golden.path} holds none of the model's endpoints.")
    for name in known:
        value_range = golden.value_range(name, genuine[name])
        receipt.compare(f"{prefix}{name}", golden.cut(name, values[name]), genuine[name], value_range)
    receipt.images += len(batch)
    if "Logits" in values:
        receipt.compare_rankings(values["Logits"], genuine["net"])
