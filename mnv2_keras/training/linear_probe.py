"""The head alone, trained on features that are computed once: the cheapest fine-tuning there is."""

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnv2_keras.cache import cache_access, cache_folder
from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.batches import evaluation_batches
from mnv2_keras.data.classification import Examples, check_labels, check_readable
from mnv2_keras.networks.endpoints import check_input, endpoints
from mnv2_keras.training.recipes import LINEAR_PROBE, Recipe
from mnv2_keras.training.state import load_state, save_state

#: Images in a batch while features are computed.
BATCH = 32


class Features(NamedTuple):
    """A backbone's pooled features of some images."""

    values: np.ndarray  # float32 (N, C)
    labels: np.ndarray  # int32 (N,)
    weights: np.ndarray  # float32 (N,); 0 for an image that cannot be read
    cached: bool  # whether they were on the disk


def digest_of(model: keras.Model) -> str:
    """SHA-256 of a model's layers and weights, without the model's name and without what is frozen."""
    layers = [[type(layer).__name__, layer.get_config() | {"trainable": None}] for layer in model.layers]
    digest = hashlib.sha256(json.dumps(layers, default=str, sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def pooled_features(
    model: keras.Model, examples, *, central_fraction: float = 0.875, progress: Callable[[int, int], None] | None = None
) -> Features:
    """The backbone's pooled features of every image, from the cache or computed now.

    The cache's key is a hash of the images, the backbone's weights and the preprocessing.

    Args:
        model: a classifier, or a backbone that ends in `global_pool`.
        examples: `Examples` or `TfdsExamples`.
        central_fraction: part of each photo that is used.
        progress: called with the number of finished images, and of all images.

    Raises:
        ValueError: the model takes pixels from 0 to 255; the data has no labels.
    """
    return _features(model, [examples], central_fraction, progress)[0]


def _features(model: keras.Model, parts: list, central_fraction: float = 0.875, progress=None) -> list[Features]:
    """As `pooled_features`, of several parts of the data with one backbone; it is traced once for batches of all sizes."""
    check_input(model)
    backbone = keras.Model(model.input, endpoints(model)["global_pool"])
    size, channels, digest = backbone.input_shape[1:3], backbone.input_shape[3], digest_of(backbone)
    signature = [tf.TensorSpec((None, *size, channels), tf.float32)]
    run = tf.function(functools.partial(backbone, training=False), input_signature=signature)

    def prepare(image):
        return evaluated(image, size, central_fraction=central_fraction)

    def features(examples) -> Features:
        about = [examples.fingerprint(times=True), digest, size, channels, central_fraction]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        path = cache_folder() / "features" / f"{key[:40]}.npz"
        if stored := _load(path, examples):
            return stored
        batches, done = [], 0
        for images, labels, weights in evaluation_batches(examples, BATCH, prepare, channels=channels):
            check_labels(labels, len(examples.class_names))
            batches.append((run(images).numpy().reshape(len(labels), -1), labels, weights))
            done += len(labels)
            if progress:
                progress(done, len(examples))
        computed = Features(*map(np.concatenate, zip(*batches, strict=True)), cached=False)
        # Of a stream, broken images could not be read again: see `_load`.
        if computed.weights.all() or isinstance(examples, Examples):
            with cache_access(path):
                save_state(path, dict(zip(Features._fields[:3], computed, strict=False)), {})
        return computed

    return [features(examples) for examples in parts]


def _load(path: Path, examples) -> Features | None:
    """The stored features, unless an image that could not be read can be read now; `read` names the others again."""
    try:
        stored = Features(**load_state(path)[0], cached=True)
    except Exception:  # whatever is wrong with a file in the cache, the features are computed again
        return None
    return stored if all(examples.read(i) is None for i in np.flatnonzero(stored.weights == 0)) else None


@dataclass(frozen=True)
class Probe:
    """A trained head."""

    kernel: np.ndarray  # float32 (C, classes)
    bias: np.ndarray  # float32 (classes,)
    history: list[dict]  # a row for each epoch
    seconds: tuple[float, float]  # of the features, and of the training


def linear_probe(
    model: keras.Model, training, held_out, recipe: Recipe = LINEAR_PROBE, *, progress: Callable[[int, int], None] | None = None
) -> Probe:
    """Train a classifier's last layer on the backbone's features, and assign it to the model.

    The features of each image are computed once and stored in the cache; an epoch is then a few matrix products. There is no
    augmentation, and the backbone does not change.

    Args:
        model: of `build_mobilenetv2`, with the data's number of classes; its backbone keeps its weights.
        training, held_out: as `read_splits` returns them.
        recipe: its epochs, batch, learning rates, label smoothing and seed are used; the optimizer is Adam.
        progress: as in `pooled_features`.

    Raises:
        ValueError: the model has another number of classes, or takes pixels from 0 to 255; images have no labels, or no image of
            a class can be read.
    """
    layer, count = model.get_layer("Logits-Conv2d_1c_1x1"), len(training.class_names)
    classes, offset = layer.filters, layer.filters - count  # an additional class is the background, at 0
    if offset not in (0, 1):
        raise ValueError(f"The model has {classes} classes, the data {count}: build it with classes={count}.")
    start = time.perf_counter()
    features, judged = _features(model, [training, held_out], progress=progress)
    check_readable(training)
    middle = time.perf_counter()
    x, y, weights = (tf.constant(array) for array in (features.values, features.labels + offset, features.weights))
    count, batch = len(features.values), min(recipe.batch, len(features.values))
    steps = max(1, count // batch)
    rng = np.random.default_rng(recipe.seed)
    kernel = keras.Variable(rng.normal(0, 0.01, (x.shape[1], classes)).astype(np.float32))
    bias = keras.Variable(np.zeros(classes, np.float32))
    optimizer = keras.optimizers.Adam()
    optimizer.build([kernel, bias])

    @tf.function
    def epoch(order, rates):
        total = 0.0
        for i in tf.range(steps):  # a loop in the graph: nothing is left to Python between steps
            rows = order[i * batch : (i + 1) * batch]
            inputs, target, weight = tf.gather(x, rows), tf.gather(y, rows), tf.gather(weights, rows)
            smooth = tf.one_hot(target, classes) * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
            logits = inputs @ kernel.value + bias.value
            total += tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(smooth, logits) * weight) / batch
            error = (tf.nn.softmax(logits) - smooth) * (weight / batch)[:, None]
            optimizer.learning_rate.assign(rates[i])
            optimizer.apply([tf.matmul(inputs, error, transpose_a=True), tf.reduce_sum(error, 0)], [kernel, bias])
        return total / tf.cast(steps, tf.float32)

    history = []
    for number in range(recipe.epochs):
        order = tf.constant(rng.permutation(count)[: steps * batch])
        rates = tf.constant([recipe.rate(number * steps + i, steps) for i in range(steps)], tf.float32)
        loss = float(epoch(order, rates))
        right = np.argmax(judged.values @ kernel.numpy() + bias.numpy(), 1) == judged.labels + offset
        accuracy = float(right[judged.weights > 0].mean())
        history.append({"epoch": number + 1, "loss": loss, "val_accuracy": accuracy})
    layer.kernel.assign(kernel.numpy()[None, None])
    layer.bias.assign(bias.numpy())
    return Probe(kernel.numpy(), bias.numpy(), history, (middle - start, time.perf_counter() - middle))
