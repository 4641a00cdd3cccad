"""The head alone, on features computed once: the cheapest fine-tuning there is."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mnv2_keras.cache import cache_access, cache_folder
from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.batches import evaluation_batches
from mnv2_keras.data.classification import Examples, check_labels, check_readable
from mnv2_keras.networks.endpoints import check_input, endpoints
from mnv2_keras.training.recipes import LINEAR_PROBE, Recipe

#: Images at once in the one pass that computes features.
BATCH = 32


@dataclass(frozen=True)
class Features:
    """What the backbone sees in some images.

    Attributes:
        values: float32 (N, C), pooled.
        labels: int32 (N,).
        weights: float32 (N,); 0 for an image that cannot be read.
        cached: whether they were on the disk.
    """

    values: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    cached: bool


def digest_of(model: keras.Model) -> str:
    """SHA-256 of a model's layers and weights; its own name, and what is frozen, do not count."""
    layers = [[type(layer).__name__, layer.get_config() | {"trainable": None}] for layer in model.layers]
    digest = hashlib.sha256(json.dumps(layers, default=str, sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def pooled_features(
    model: keras.Model, examples, *, central_fraction: float = 0.875, progress: Callable[[int, int], None] | None = None
) -> Features:
    """The backbone's pooled features of every image, from the cache or computed now.

    The cache's key is a hash of the images, the backbone's weights and the preprocessing; whatever changes, the key does.

    Args:
        model: a classifier, or a backbone that ends in `global_pool`.
        examples: `Examples` or `TfdsExamples`.
        central_fraction: part of each photo that is used.
        progress: called with images done and images in all.

    Raises:
        ValueError: the model takes pixels from 0 to 255; the data has no labels.
    """
    return _Backbone(model).features(examples, central_fraction, progress)


class _Backbone:
    """A model up to its pooled features; traced once, at the first batch of whatever size."""

    def __init__(self, model: keras.Model):
        check_input(model)
        backbone = keras.Model(model.input, endpoints(model)["global_pool"])
        self.size, self.channels = backbone.input_shape[1:3], backbone.input_shape[3]
        self.digest = digest_of(backbone)
        batch = tf.TensorSpec((None, *self.size, self.channels), tf.float32)
        self.run = tf.function(lambda images: backbone(images, training=False), input_signature=[batch])

    def features(self, examples, central_fraction: float = 0.875, progress=None) -> Features:
        """As `pooled_features`."""
        about = [examples.fingerprint(times=True), self.digest, self.size, self.channels, central_fraction]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        path = cache_folder() / "features" / f"{key[:40]}.npz"
        if (kept := _load(path, len(examples))) and _still_broken(examples, kept.weights):
            return kept
        values, labels, weights = [], [], []
        batches = evaluation_batches(
            examples,
            BATCH,
            lambda image: evaluated(image, self.size, central_fraction=central_fraction),
            channels=self.channels,
        )
        for images, label, weight in batches:
            check_labels(label, len(examples.class_names))
            values.append(self.run(images).numpy().reshape(len(label), -1))
            labels.append(label.numpy())
            weights.append(weight.numpy())
            if progress:
                progress(sum(map(len, labels)), len(examples))
        found = Features(np.concatenate(values), np.concatenate(labels), np.concatenate(weights), cached=False)
        # The broken pictures of a stream could not be looked at again.
        if found.weights.all() or isinstance(examples, Examples):
            _keep(path, found)
        return found


def _still_broken(examples, weights: np.ndarray) -> bool:
    """Whether what could not be read then cannot be now (a disk may have been away); `read` names it again."""
    return all(examples.read(i) is None for i in np.flatnonzero(weights == 0))


def _load(path: Path, count: int) -> Features | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
            found = Features(file["values"], file["labels"], file["weights"], cached=True)
    except Exception:  # whatever is wrong with a file in the cache, it is computed again
        return None
    return found if len(found.values) == count else None


def _keep(path: Path, features: Features) -> None:
    from mnv2_keras.atomic import write_bytes

    content = io.BytesIO()
    np.savez(content, values=features.values, labels=features.labels, weights=features.weights)
    with cache_access(path):
        write_bytes(path, content.getvalue())


@dataclass(frozen=True)
class Probe:
    """A trained head.

    Attributes:
        kernel, bias: float32 (C, classes), (classes,).
        history: a row for each epoch.
        seconds: of the features, and of the training.
    """

    kernel: np.ndarray
    bias: np.ndarray
    history: list[dict]
    seconds: tuple[float, float]


def linear_probe(
    model: keras.Model,
    training,
    held_out,
    recipe: Recipe = LINEAR_PROBE,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Train a classifier's last layer on the backbone's features, and put it into the model.

    The features of each image are computed once and kept on the disk; an epoch is then a few products of matrices. There is no
    augmentation, and the backbone does not change.

    Args:
        model: of `build_mobilenetv2`, with the data's number of classes; its backbone's weights are kept.
        training, held_out: as `read_splits` returns them.
        recipe: epochs, batch, learning rate, label smoothing and seed are used; Adam, a cosine to zero.
        progress: called with images done and images in all, while features are computed.

    Returns:
        The head, which the model has now too.

    Raises:
        ValueError: the model has another number of classes, or takes pixels from 0 to 255; the data has no labels, or a class of
            broken images only.
    """
    layer = model.get_layer("Logits-Conv2d_1c_1x1")
    classes = layer.filters
    if classes not in (len(training.class_names), len(training.class_names) + 1):
        raise ValueError(
            f"The model has {classes} classes, the data {len(training.class_names)}: build it with as many."
        )
    start = time.perf_counter()
    backbone = _Backbone(model)
    features = backbone.features(training, progress=progress)
    judged = backbone.features(held_out, progress=progress)
    check_readable(training)
    middle = time.perf_counter()
    offset = classes - len(training.class_names)
    x, y = tf.constant(features.values), tf.constant(features.labels + offset)
    weights = tf.constant(features.weights)
    count, batch = len(features.values), min(recipe.batch, len(features.values))
    steps = max(1, count // batch)
    rng = np.random.default_rng(recipe.seed)
    kernel = tf.Variable(rng.normal(0, 0.01, (x.shape[1], classes)).astype(np.float32))
    bias = tf.Variable(tf.zeros(classes))
    moments = [tf.Variable(tf.zeros_like(each)) for each in (kernel, kernel, bias, bias)]

    @tf.function
    def epoch(order, rates, number):
        # Adam, written out: a loop inside the graph leaves nothing to Python between steps.
        total = 0.0
        for i in tf.range(steps):
            rows = order[i * batch : (i + 1) * batch]
            inputs, target, weight = tf.gather(x, rows), tf.gather(y, rows), tf.gather(weights, rows)
            smooth = tf.one_hot(target, classes) * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
            logits = inputs @ kernel + bias
            error = (tf.nn.softmax(logits) - smooth) * (weight / batch)[:, None]
            total += tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(smooth, logits) * weight) / batch
            t = tf.cast(number * steps + i + 1, tf.float32)
            rate = rates[i] * tf.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            gradients = (tf.matmul(inputs, error, transpose_a=True), tf.reduce_sum(error, 0))
            for j, (variable, gradient) in enumerate(zip((kernel, bias), gradients, strict=True)):
                first, second = moments[2 * j : 2 * j + 2]
                first.assign_add(0.1 * (gradient - first))
                second.assign_add(0.001 * (tf.square(gradient) - second))
                variable.assign_sub(rate * first / (tf.sqrt(second) + 1e-7))
        return total / tf.cast(steps, tf.float32)

    history = []
    for number in range(recipe.epochs):
        order = tf.constant(rng.permutation(count)[: steps * batch])
        rates = tf.constant([recipe.rate(number * steps + i, steps) for i in range(steps)], tf.float32)
        loss = float(epoch(order, rates, tf.constant(number)))
        right = np.argmax(judged.values @ kernel.numpy() + bias.numpy(), 1) == judged.labels + offset
        accuracy = float(right[judged.weights > 0].mean())
        history.append({"epoch": number + 1, "loss": loss, "val_accuracy": accuracy})
    layer.kernel.assign(kernel.numpy()[None, None])
    layer.bias.assign(bias.numpy())
    return Probe(kernel.numpy(), bias.numpy(), history, (middle - start, time.perf_counter() - middle))
