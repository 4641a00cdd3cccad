"""The training loop: a step of our own on one machine or many, and a run that any kill can interrupt."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnv2_keras.atomic import write_text
from mnv2_keras.data.augmentation import AUGMENTATIONS, evaluated
from mnv2_keras.data.batches import evaluation_batches, steps_per_epoch, training_batches
from mnv2_keras.data.classification import check_labels, check_readable
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.networks.endpoints import check_input, endpoints
from mnv2_keras.training.averages import MovingAverages
from mnv2_keras.training.fused_batch_norm import with_fused_batch_norm
from mnv2_keras.training.history import write_csv, write_curves, write_tensorboard
from mnv2_keras.training.optimizer import SlimRMSprop
from mnv2_keras.training.recipes import Recipe
from mnv2_keras.training.state import DivergedError, WorkerLostError, restore, save_state
from mnv2_keras.weights import save_model

#: Images that are judged at once.
EVALUATION_BATCH = 64
#: What TensorFlow raises in a worker when another one is gone.
_SILENCE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class Progress(NamedTuple):
    """Where a run is."""

    epoch: int  # from 1
    epochs: int
    step: int  # of the epoch, from 1
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float
    row: dict | None  # the epoch's row of the history, once it is over


class Run(NamedTuple):
    """What a training gave."""

    model: keras.Model  # with the averaged weights, if the recipe has averages
    history: list[dict]
    broken: dict[str, str]  # images that could not be read, and why


def build(recipe: Recipe, classes: int, weights=None) -> keras.Model:
    """The recipe's network, fresh from its seed or filled, in its mixed precision.

    Args:
        recipe: whose `network` is built; its own number of classes goes before `classes`.
        classes: of the data.
        weights: as in `build_mobilenetv2`.

    Raises:
        ValueError: the recipe's network has fewer classes than the data.
    """
    arguments = {"classes": classes, **recipe.network}
    if arguments["classes"] not in (classes, classes + 1):
        raise ValueError(
            f"The recipe's network has {arguments['classes']} classes, the data {classes}: choose data of "
            f"{arguments['classes']} classes, or another recipe, such as recipe.changed(network=recipe.network | "
            f"{{'classes': {classes}}})."
        )
    keras.utils.set_random_seed(recipe.seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(f"mixed_{recipe.mixed_precision}" if recipe.mixed_precision else "float32")
    try:
        return build_mobilenetv2(**arguments, weights=weights)
    finally:
        keras.config.set_dtype_policy(policy)


class Step:
    """One step of training: forward, backward, optimiser, averages; the same on one replica or many.

    Args:
        model: a classifier, built within `strategy.scope()`.
        recipe: how.
        strategy: of TensorFlow; the default one is the plain machine.
    """

    def __init__(self, model: keras.Model, recipe: Recipe, strategy: tf.distribute.Strategy | None = None):
        self.model, self.recipe = model, recipe
        self.strategy = strategy or tf.distribute.get_strategy()
        with self.strategy.scope():
            taps = endpoints(model)
            self.network = keras.Model(model.input, taps["Logits"])
            self.twin = with_fused_batch_norm(self.network)
            self.trained = self.twin.trainable_variables
            self.optimizer = _optimizer(recipe)
            self.optimizer.build(self.trained)
            self.averages = MovingAverages(self.trained, recipe.average) if recipe.average else None
            # Labels count from 0; an output more than there are classes is the background, at 0.
            self.classes = int(taps["Logits"].shape[-1])
        self._run = tf.function(self._distributed, reduce_retracing=True)

    def __call__(self, images, labels, weights, number: int) -> tf.Tensor:
        """Train on a batch of this worker.

        Args:
            images: float32 (B, H, W, C).
            labels: int (B,), from 0.
            weights: float32 (B,), of each image's loss.
            number: of the step, from 1.

        Returns:
            A tensor (3,): loss with regularisation, weighted number of right answers, sum of the weights; of all workers.
        """
        return self._run(images, labels, weights, tf.constant(number, tf.int64))

    def _distributed(self, images, labels, weights, number):
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            sums = self._replica(images, labels, weights)
        else:
            local = replicas // _workers(self.strategy)

            def part(array):
                pieces = tf.split(array, local)
                return self.strategy.experimental_distribute_values_from_function(
                    lambda context: pieces[context.replica_id_in_sync_group % local]
                )

            data = (images, labels, weights) if local == 1 else tuple(map(part, (images, labels, weights)))
            sums = self.strategy.reduce("SUM", self.strategy.run(self._replica, data), axis=None)
        if self.averages:
            self.averages.update(number)
        return sums

    def _replica(self, images, labels, weights):
        replicas = self.strategy.num_replicas_in_sync
        smoothing = self.recipe.label_smoothing
        with tf.GradientTape() as tape:
            logits = tf.cast(self.twin(images, training=True), tf.float32)
            target = tf.one_hot(labels, self.classes) * (1 - smoothing) + smoothing / self.classes
            entropy = tf.nn.softmax_cross_entropy_with_logits(target, logits)
            # Gradients are summed over the replicas, so each counts its part of the whole batch.
            loss = tf.reduce_sum(entropy * weights) / (replicas * tf.cast(tf.shape(images)[0], tf.float32))
            if self.twin.losses:
                loss += tf.cast(tf.add_n(self.twin.losses), tf.float32) / replicas
            scaled = self.optimizer.scale_loss(loss)
        self.optimizer.apply(tape.gradient(scaled, self.trained), self.trained)
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
        return tf.stack([loss, tf.reduce_sum(right * weights), tf.reduce_sum(weights)])

    @property
    def variables(self) -> list:
        """Everything a run continues from: weights, statistics, dropout's seeds, the optimiser's slots, averages."""
        averages = self.averages.averages if self.averages else []
        return [*self.model.variables, *self.optimizer.variables, *averages]

    def applied(self):
        """A context in which the model holds the weights to judge and to save."""
        return self.averages.applied() if self.averages else contextlib.nullcontext()


def _workers(strategy) -> int:
    return getattr(strategy.extended, "_num_workers", 1)


def _optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    kind = SlimRMSprop if recipe.optimizer == "rmsprop" else keras.optimizers.Adam
    optimizer = kind(recipe.learning_rate)
    if recipe.mixed_precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


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
        raise ValueError("None of the held-out images can be read: there is nothing to judge by.")
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
    """Train a classifier by a recipe; after each epoch everything needed to go on is on the disk.

    The folder receives `state.npz` (to go on from), `history.csv`, `curves.png`, `tensorboard/`, `recipe.json`, `labels.txt`,
    `last.keras` and `best.keras` (best on the held-out images). Stopped at any moment and resumed on the same machine, a run
    ends with the same bits as one that was not. (On GPUs that takes `tf.config.experimental.enable_op_determinism()` before
    anything else; `mnv2 train` calls it.)

    Args:
        training, held_out: as `data.classification.read_splits` returns them.
        recipe: how.
        folder: of the run.
        model: to go on training, built within the strategy's scope; the recipe's network by default.
        resume: go on where the run in this folder stopped; from the start if it had not finished an epoch.
        class_weights: of the loss, by label.
        progress: called after each step and each epoch.
        strategy: for several devices or machines (see `distribution`).

    Returns:
        The model with its last weights (their averages, if the recipe has them), the history, and the images left out.

    Raises:
        ValueError: the recipe does not fit the data, or the model takes pixels from 0 to 255; the devices cannot share the
            batch; the data has no labels, or a class of broken images only; class weights of what is no label; the folder holds
            another run.
        DivergedError: the loss or a weight is NaN or infinite; the message says where. The epochs before are kept.
        WorkerLostError: another worker of this run does not answer.
        OSError: no room; what was saved before is still there.
    """
    folder = Path(folder).expanduser()
    strategy = strategy or tf.distribute.get_strategy()
    worker, workers = _place(strategy)
    class_weights = _checked_weights(class_weights or {}, training.class_names)
    identity = _identity(recipe, training, held_out, class_weights)
    state = folder / "state.npz"
    check_folder(folder, resume)
    if model is None:
        with strategy.scope():
            model = build(recipe, len(training.class_names))
    check_input(model)
    batch, devices = min(recipe.batch, len(training)), strategy.num_replicas_in_sync
    if batch % devices:
        raise ValueError(f"A batch of {batch} cannot be shared by {devices} devices: choose a multiple of {devices}.")
    step = Step(model, recipe, strategy)
    offset = step.classes - len(training.class_names)
    rows = restore(state, step.variables, identity) if resume and state.exists() else []
    best = max((row["val_accuracy"] for row in rows), default=-1.0)
    if worker == 0:
        write_text(folder / "recipe.json", json.dumps(recipe.as_dict(), indent=1) + "\n")
        names = (["background"] if offset else []) + list(training.class_names)
        write_text(folder / "labels.txt", "\n".join(names) + "\n")
        if rows:  # a kill right after the state was saved left them an epoch behind
            _write_history(folder, rows)

    if workers > 1:
        _check_start(strategy, len(rows), folder)
    steps = steps_per_epoch(len(training), batch)
    batches = iter(
        training_batches(
            training,
            batch,
            AUGMENTATIONS[recipe.augmentation],
            recipe.size,
            channels=recipe.channels,
            seed=recipe.seed,
            epochs=range(len(rows), recipe.epochs),
            worker=worker,
            workers=workers,
            class_weights=class_weights,
        )
    )
    judged = evaluation_batches(
        held_out, EVALUATION_BATCH, lambda image: evaluated(image, recipe.size), channels=recipe.channels
    )
    network = tf.function(lambda images: step.network(images, training=False), reduce_retracing=True)
    for epoch in range(len(rows), recipe.epochs):
        start, sums = time.monotonic(), np.zeros(3)
        for i in range(steps):
            number = epoch * steps + i
            rate = recipe.rate(number, steps)
            step.optimizer.learning_rate = rate
            images, labels, weights = next(batches)
            check_labels(labels, len(training.class_names))
            try:
                result = step(images, labels + offset, weights, number + 1).numpy()
            except _SILENCE as error:
                kept = f"{len(rows)} epoch{' is' if len(rows) == 1 else 's are'} kept in {folder}"
                raise WorkerLostError(
                    f"Another worker does not answer any more (epoch {epoch + 1}, step {i + 1}): this one stops too. Start the "
                    f"same command with --resume on all of them; {kept}."
                ) from error
            if not math.isfinite(result[0]):
                raise DivergedError(_where(step, images, epoch, i, rate, folder if rows else None))
            sums += result
            if progress:
                speed = (i + 1) * batch / (time.monotonic() - start)
                left = ((recipe.epochs - epoch) * steps - i - 1) * batch / speed
                progress(Progress(epoch + 1, recipe.epochs, i + 1, steps, float(result[0]), speed, left, None))
        seconds = time.monotonic() - start
        check_readable(training)
        arrays = [np.asarray(each) for each in step.variables]
        with step.applied():
            val_loss, val_accuracy = judge(network, judged, offset)
            # The loss was that of the weights before the last step: nothing is saved that cannot be gone on from.
            if not math.isfinite(val_loss) or not all(np.isfinite(array).all() for array in arrays):
                raise DivergedError(_where(step, images, epoch, i, rate, folder if rows else None))
            rows.append(
                {
                    "epoch": epoch + 1,
                    "loss": float(sums[0] / steps),
                    "accuracy": float(sums[1] / max(sums[2], 1e-9)),
                    "val_loss": val_loss,
                    "val_accuracy": val_accuracy,
                    "learning_rate": rate,
                    "images_per_second": round(steps * batch / seconds, 1),
                    "seconds": round(seconds, 2),
                }
            )
            if worker == 0:
                save_model(model, folder / "last.keras")
                if val_accuracy > best:
                    save_model(model, folder / "best.keras")
        best = max(best, val_accuracy)
        if worker == 0:
            save_state(state, arrays, {"identity": identity, "rows": rows})
            _write_history(folder, rows)
        if progress:
            progress(Progress(epoch + 1, recipe.epochs, steps, steps, rows[-1]["loss"], speed, left, rows[-1]))
    if step.averages:
        for variable, average in zip(step.averages.variables, step.averages.averages, strict=True):
            variable.assign(average.numpy())
    return Run(model, rows, {**training.broken, **held_out.broken})


def check_folder(folder: Path, resume: bool) -> None:
    """Whether a run may begin in this folder.

    Raises:
        ValueError: it holds one already, which is not to be resumed.
    """
    if (folder / "state.npz").exists() and not resume:
        raise ValueError(f"{folder} holds a run already: resume it (--resume), or choose another folder.")


def _write_history(folder: Path, rows: list[dict]) -> None:
    """Table and curves of all epochs, TensorBoard's scalars of the last one."""
    write_csv(folder / "history.csv", rows)
    write_curves(folder / "curves.png", rows)
    write_tensorboard(folder / "tensorboard", rows[-1])


def _place(strategy) -> tuple[int, int]:
    """Number of this worker, and of all of them."""
    resolver = strategy.cluster_resolver
    return (resolver.task_id or 0, _workers(strategy)) if resolver and _workers(strategy) > 1 else (0, 1)


def _check_start(strategy, epochs: int, folder: Path) -> None:
    """All workers begin with the same epoch: gradients of different weights would be added up without a word."""
    own = tf.function(lambda: tf.constant([epochs]))
    starts = strategy.gather(strategy.run(own), axis=0).numpy()
    if len(set(starts.tolist())) > 1:
        raise ValueError(
            f"The workers have {', '.join(map(str, starts))} finished epochs: all of them have to see the same {folder}. Choose a "
            "folder that they share."
        )


def _identity(recipe: Recipe, training, held_out, class_weights) -> dict:
    """What must be the same for a run to go on; a longer one may have more epochs."""
    about = {name: value for name, value in recipe.as_dict().items() if name != "epochs"}
    if recipe.schedule == "cosine":
        about["epochs"] = recipe.epochs
    about |= {
        "class_weights": {str(label): weight for label, weight in sorted(class_weights.items())},
        "training": training.fingerprint(),
        "held_out": held_out.fingerprint(),
    }
    return json.loads(json.dumps(about))


def _checked_weights(class_weights: Mapping, class_names) -> dict[int, float]:
    if wrong := [label for label in class_weights if label not in range(len(class_names))]:
        raise ValueError(
            f"class_weights has the key {wrong[0]!r}: expected labels, from 0 ({class_names[0]}) to {len(class_names) - 1} "
            f"({class_names[-1]})."
        )
    return {int(label): float(weight) for label, weight in class_weights.items()}


def _where(step: Step, images, epoch: int, i: int, rate: float, saved: Path | None) -> str:
    """In words, where the numbers stopped being numbers."""
    weight = next((v.path for v in step.model.variables if not np.isfinite(v.numpy()).all()), None)
    if not np.isfinite(images.numpy()).all():
        cause = "the images hold NaN"
    else:
        cause = f"the first weight that is no number is {weight}" if weight else "the weights are still numbers"
    kept = f" The epoch before is kept in {saved}." if saved else ""
    return (
        f"The loss, or a weight, is NaN or infinite at epoch {epoch + 1}, step {i + 1}, learning rate {rate:.3g}; {cause}. "
        f"Lower the learning rate (--learning-rate) or check the data.{kept}"
    )


def balanced_weights(examples) -> dict[int, float]:
    """Weights that let every class count the same: number of images / (number of classes * images of the class)."""
    counts = np.bincount(examples.labels, minlength=len(examples.class_names))
    return {label: len(examples) / (len(counts) * int(count)) for label, count in enumerate(counts) if count}
