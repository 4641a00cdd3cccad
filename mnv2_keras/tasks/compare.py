"""Proof that a model computes what the genuine program computed, value by value, in network order; for every task."""

import os
from collections.abc import Iterator

import keras
import numpy as np

from mnv2_keras.convert.goldens import Golden
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.images import find_images, read_image
from mnv2_keras.networks.endpoints import endpoint_function
from mnv2_keras.tasks import task_of_model
from mnv2_keras.tasks.protocol import Task


def compare_with_graph(receipt: Receipt, model: keras.Model, graph: FrozenGraph, images=None) -> None:
    """Fill a receipt: weights against the graph's constants, then endpoints and outputs on each image.

    Args:
        images: photos (paths, folders, uint8 arrays); or a float32 batch (B, H, W, C) in [-1, 1] at the network's size; None for
            seeded noise.

    Raises:
        ValueError: the graph is another network's, or images that do not fit.
    """
    task = task_of_model(model)
    weights = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(model).items()}
    receipt.compare_constants(weights, graph.constants())
    size = task.input_size(graph, model)
    nodes, function = task.nodes(graph, model), endpoint_function(model)
    runs = []
    for photo, image in _images(task, images, size):
        genuine = graph.run(task.feed(graph, photo, image[None]), nodes)
        ours = function(image[None])
        task.complete(ours, genuine, image[None])
        runs.append((ours, genuine))
        receipt.images += 1
    ours, genuine = ({name: np.concatenate([run[side][name] for run in runs]) for name in runs[0][side]} for side in (0, 1))
    for name in nodes:
        receipt.compare(name, ours[name], genuine[name], task.value_range(name))
    task.judge(receipt, ours, genuine)


def _images(task: Task, images, size: tuple[int, int, int]) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """Each photo (None for a preprocessed image) with the image that the network takes, float32 (H, W, C)."""
    if images is None:
        images = task.random_images(size)
    if isinstance(images, np.ndarray) and images.dtype == np.float32:
        if images.ndim != 4 or images.shape[1:] != size or not len(images):
            raise ValueError(f"images is a float32 batch of shape {images.shape}: expected (B, {', '.join(map(str, size))}).")
        yield from ((None, image) for image in images)
        return
    if isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    photos = []
    for image in images:
        photos += find_images([image]) if isinstance(image, str | os.PathLike) else [image]
    if not photos:
        raise ValueError("images is empty: pass at least one photo, or None for seeded noise.")
    for photo in photos:
        pixels = read_image(photo) if isinstance(photo, str | os.PathLike) else photo
        yield pixels, task.preprocess(pixels, size[:2])


def compare_with_golden(receipt: Receipt, model: keras.Model, golden: Golden, prefix: str = "") -> None:
    """Fill a receipt from one run of the genuine program.

    Raises:
        ValueError: the golden holds none of the model's endpoints, or cannot be read.
    """
    task, batch, genuine = task_of_model(model), golden.input(), golden.outputs()
    ours = endpoint_function(model)(batch)
    task.complete(ours, genuine, batch)
    names = [name for name in ours if name in genuine and name != "labels"]
    if not names:
        raise ValueError(f"{golden.path} holds none of the model's endpoints.")
    ours = {name: golden.subsample(name, ours[name]) for name in ours if name in genuine or name == "Logits"}
    for name in names:
        receipt.compare(f"{prefix}{name}", ours[name], genuine[name], golden.value_range(name, genuine[name]))
    receipt.images += len(batch)
    task.judge(receipt, ours, genuine)
