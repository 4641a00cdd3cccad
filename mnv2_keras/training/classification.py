"""Training of classifiers: their step, their evaluation, their run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnv2_keras.checks import user_path
from mnv2_keras.data.augmentation import AUGMENTATIONS, evaluated
from mnv2_keras.data.batches import evaluation_batches, steps_per_epoch, training_batches
from mnv2_keras.data.classification import check_labels, check_readable
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.training.distribution import place
from mnv2_keras.training.fit import Progress, fit
from mnv2_keras.training.recipes import Recipe
from mnv2_keras.training.state import RunFolder
from mnv2_keras.training.step import TrainingStep, building
from mnv2_keras.weights import save_model

#: Images in a batch of the evaluation.
EVALUATION_BATCH = 64


class Run(NamedTuple):
    """The result of a training."""

    model: keras.Model  # with the averaged weights, if the recipe has averages
    history: list[dict]  # see `fit`; val_loss and val_accuracy are of the held-out images
    broken: dict[str, str]  # images that could not be read, and why


def build(recipe: Recipe, classes: int, weights=None) -> keras.Model:
    """The recipe's network, fresh from its seed or with weights, in its mixed precision.

    The data's `classes` are used where the recipe's network has no number of classes.

    Raises:
        ValueError: the recipe's network has another number of classes than the data, with or without a background.
    """
    arguments = {"classes": classes, **recipe.network}
    if arguments["classes"] not in (classes, classes + 1):
        raise ValueError(
            f"The recipe's network has {arguments['classes']} classes, the data {classes}: choose data of "
            f"{arguments['classes']} classes, or another recipe, such as recipe.changed(network=recipe.network | "
            f"{{'classes': {classes}}})."
        )
    with building(recipe):
        return build_mobilenetv2(**arguments, weights=weights)


class ClassificationStep(TrainingStep):
    """A step on images (B, H, W, C), labels int (B,) from 0, and weights of each image's loss, float32 (B,).

    It returns the loss with regularisation, the weighted number of right answers, and the sum of the weights.
    """

    names = ("right", "weights")

    def __init__(self, model: keras.Model, recipe: Recipe, strategy: tf.distribute.Strategy | None = None):
        logits = endpoints(model)["Logits"]
        super().__init__(keras.Model(model.input, logits), model, recipe, strategy)
        self.classes = int(logits.shape[-1])

    def loss(self, images, labels, weights):
        smoothing = self.recipe.label_smoothing
        logits = tf.cast(self.fused(images, training=True), tf.float32)
        target = tf.one_hot(labels, self.classes) * (1 - smoothing) + smoothing / self.classes
        entropy = tf.nn.softmax_cross_entropy_with_logits(target, logits)
        # Gradients are summed over the replicas: each contributes its part of the complete batch.
        loss = tf.reduce_sum(entropy * weights) / (self.replicas * tf.cast(tf.shape(images)[0], tf.float32))
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
        return loss + self.l2(), [tf.reduce_sum(right * weights), tf.reduce_sum(weights)]

    def means(self, sums, steps):
        return {"loss": float(sums[0] / steps), "accuracy": float(sums[1] / max(sums[2], 1e-9))}


def judge(network: Callable, batches, offset: int = 0) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of logits on batches of images, labels and weights."""
    loss = right = total = 0.0
    for images, labels, weights in batches:
        logits = tf.cast(network(images), tf.float32)
        check_labels(labels, logits.shape[-1] - offset)
        labels = labels + offset
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        loss += float(tf.reduce_sum(entropy * weights))
        right += float(tf.reduce_sum(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32) * weights))
        total += float(tf.reduce_sum(weights))
    if not total:
        raise ValueError("None of the held-out images can be read: the network cannot be evaluated.")
    return loss / total, right / total


def train(
    training,
    held_out,
    recipe: Recipe,
    folder: str | Path,
    *,
    model: keras.Model | None = None,
    resume: bool = False,
    class_weights: Mapping[int, float] | None = None,
    progress: Callable[[Progress], None] | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> Run:
    """Train a classifier by a recipe; after each epoch everything needed to resume is on the disk.

    Stopped at any moment and resumed on the same machine, a run ends with the same bits as one that was not. (On GPUs that takes
    `tf.config.experimental.enable_op_determinism()` before anything else; `mnv2 train` calls it.)

    Args:
        training, held_out: as `data.classification.read_splits` returns them.
        recipe: how it is trained.
        folder: of the run (see `RunFolder`), with `recipe.json`, `labels.txt`, `last.keras` and `best.keras` (best on the
            held-out images).
        model: to train further, built within the strategy's scope; the recipe's network by default.
        resume: resume the run in this folder; it starts from the beginning if no epoch was finished.
        class_weights: of the loss, by label.
        progress: as in `fit`, which documents the history and the errors too.
        strategy: for several devices or machines (see `distribution`).

    Raises:
        ValueError: the recipe does not fit the data; images have no labels, or no image of a class can be read; a key of the
            class weights is not a label.
    """
    strategy = strategy or tf.distribute.get_strategy()
    class_names, folder = training.class_names, user_path(folder)
    class_weights = {label: float(weight) for label, weight in (class_weights or {}).items()}
    if wrong := [label for label in class_weights if label not in range(len(class_names))]:
        raise ValueError(
            f"class_weights has the key {wrong[0]!r}: expected labels, from 0 ({class_names[0]}) to {len(class_names) - 1} "
            f"({class_names[-1]})."
        )
    identity = recipe.identity() | {
        "class_weights": {str(label): weight for label, weight in sorted(class_weights.items())},
        "training": training.fingerprint(),
        "held_out": held_out.fingerprint(),
    }
    run = RunFolder(folder, identity, resume)
    if model is None:
        with strategy.scope():
            model = build(recipe, len(class_names))
    batch = min(recipe.batch, len(training))
    step = ClassificationStep(model, recipe.changed(batch=batch), strategy)
    # The first label is 0; an output more than there are classes is the background, at 0.
    offset = step.classes - len(class_names)
    steps = steps_per_epoch(len(training), batch)
    labels = ["background", *class_names] if offset else class_names
    run.texts = {"recipe.json": recipe.as_json(), "labels.txt": "".join(f"{name}\n" for name in labels)}
    worker = place(strategy)

    def batches(done: int):
        options = {"channels": recipe.channels, "seed": recipe.seed, "worker": worker}
        options |= {"epochs": range(done // steps, recipe.epochs), "class_weights": class_weights}
        augment = AUGMENTATIONS[recipe.augmentation]
        for images, labels, weights in training_batches(training, batch, augment, recipe.size, **options):
            check_labels(labels, len(class_names))
            yield images, labels + offset, weights

    network = tf.function(lambda images: step.network(images, training=False), reduce_retracing=True)
    judged = evaluation_batches(held_out, EVALUATION_BATCH, lambda image: evaluated(image, recipe.size), channels=recipe.channels)

    def evaluate() -> dict:
        check_readable(training)
        return dict(zip(("val_loss", "val_accuracy"), judge(network, judged, offset), strict=True))

    def save(rows: list[dict]) -> None:
        save_model(model, folder / "last.keras")
        if rows[-1]["val_accuracy"] > max((row["val_accuracy"] for row in rows[:-1]), default=-1.0):
            save_model(model, folder / "best.keras")

    rows = fit(step, batches, recipe.learning_rates(steps), run, evaluate, save=save, progress=progress)
    return Run(model, rows, {**training.broken, **held_out.broken})


def balanced_weights(examples) -> dict[int, float]:
    """Class weights that balance the classes: number of images / (number of classes * images of the class)."""
    counts = np.bincount(examples.labels, minlength=len(examples.class_names))
    return {label: len(examples) / (len(counts) * int(count)) for label, count in enumerate(counts) if count}
