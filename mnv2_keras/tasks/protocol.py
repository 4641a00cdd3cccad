"""What differs between tasks: conversion, verification, export, inference and training ask a task through this protocol."""

from collections.abc import Callable, Mapping
from typing import Protocol

import keras
import numpy as np

from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.convert.source import Source

Arrays = dict[str, np.ndarray]


class Task(Protocol):
    """One of the paper's three tasks; a task inherits the defaults.

    Attributes:
        name: "classification", "detection" or "segmentation".
        build: the public builder of its network.
    """

    name: str
    build: Callable[..., keras.Model]

    def holds(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether variables of these names and shapes are a network of this task."""

    def holds_model(self, model: keras.Model) -> bool:
        """Whether a model has the outputs of this task."""

    def infer(self, source: Source, options: Mapping) -> dict:
        """Arguments of the builder for the network in a source.

        Args:
            source: the weights.
            options: the caller's arguments, which override the source's.

        Raises:
            ValueError: the source does not hold enough; the message says what to pass.
        """

    def input_size(self, graph: FrozenGraph, model: keras.Model) -> tuple[int, int, int]:
        """(height, width, channels) of the images that the graph's network and the model both take."""

    def random_images(self, size: tuple[int, int, int]) -> np.ndarray | list[np.ndarray]:
        """Seeded images to compare on: a float32 batch in [-1, 1], or uint8 photos."""

    def preprocess(self, photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A photo, uint8 (H, W, 3), as the genuine program gives it to the network: float32 (h, w, 3) in [-1, 1]."""

    def nodes(self, graph: FrozenGraph, model: keras.Model) -> dict[str, str]:
        """Name of each compared value to its node in the graph, in network order."""

    def feed(self, graph: FrozenGraph, photo: np.ndarray | None, batch: np.ndarray) -> Arrays:
        """The inputs of the graph by node: the photo, or the preprocessed batch (1, H, W, C) where there is no photo."""

    def complete(self, ours: Arrays, genuine: Arrays, batch: np.ndarray) -> None:
        """Add to both what is not an endpoint of the model, such as post-processed outputs; by default nothing."""

    def value_range(self, name: str) -> float | None:
        """The range to which a value's differences are compared; None (the default) for that of the genuine values."""
        return None

    def judge(self, receipt: Receipt, ours: Arrays, genuine: Arrays) -> None:
        """Record in the receipt how far the answers agree (rankings, labels of pixels); by default nothing."""
