"""DeepLab's published training: momentum, a polynomial learning rate, scaled crops, cross-entropy of the judged pixels."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
from keras import ops

from mnv2_keras.data.segmentation import training_batches
from mnv2_keras.masks import IGNORED
from mnv2_keras.networks.endpoints import check_input
from mnv2_keras.training.fused_batch_norm import with_fused_batch_norm
from mnv2_keras.training.state import DivergedError, restore, save_state


@dataclass(frozen=True)
class SegmentationRecipe:
    """How a segmenter is trained; the defaults are DeepLabv3's for Pascal VOC (arXiv:1706.05587, section 4.1).

    What they leave open is as in DeepLab's `train.py`: scales, flips, weight decay, momentum, twice the gradient for biases.

    `mnv2 train segmentation --photos JPEGImages --masks SegmentationClassRaw --classes 21` runs the published one: 30,000
    steps of 16 crops of 513 x 513, which takes an accelerator. `SHAPES` runs on any laptop; docs/segmentation.md has its
    curve, time and result.

    Attributes:
        steps: batches in all.
        batch: crops in a batch; batch norms that are tuned want more than 12.
        crop: (height, width) of the network's input.
        learning_rate: at the start; it falls to 0 as `(1 - step / steps) ** power`.
        power: of the schedule.
        momentum: of the optimiser.
        weight_decay: of all kernels but the depthwise ones; a model that was built with a weight decay keeps its own.
        scales: each example is scaled by one of them.
        flip: chance of a mirror image.
        fine_tune_batch_norm: whether batch norms train; otherwise they keep their statistics, scale and shift.
        batch_norm_momentum: of every moving statistic in training; None keeps the model's (0.997 and 0.9997, which need
            tens of thousands of steps).
        seed: of weights, order and augmentation.
    """

    steps: int = 30_000
    batch: int = 16
    crop: tuple[int, int] = (513, 513)
    learning_rate: float = 0.007
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 4e-5
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    flip: float = 0.5
    fine_tune_batch_norm: bool = True
    batch_norm_momentum: float | None = None
    seed: int = 0

    def __post_init__(self):
        checks = (
            (self.steps >= 1, "steps", "at least 1"),
            (self.batch >= 1, "batch", "at least 1"),
            (len(self.crop) == 2 and min(self.crop) >= 1, "crop", "(height, width) in pixels"),
            (self.learning_rate > 0, "learning_rate", "above 0"),
            (self.scales and min(self.scales) > 0, "scales", "numbers above 0"),
            (0 <= self.flip <= 1, "flip", "a chance from 0 to 1"),
        )
        for good, name, wanted in checks:
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected {wanted}.")


#: What every row has.
_BASE = {"step", "loss", "seconds"}

#: Drawn shapes (`DrawnShapes`) at 65 x 65 with alpha 1.0 and the decoder, on a trained classifier's backbone: `mnv2 train
#: segmentation --shapes --decoder --weights imagenet`; docs/segmentation.md has its curve and time.
SHAPES = SegmentationRecipe(
    steps=2600, batch=8, crop=(65, 65), learning_rate=0.03, scales=(1.0,), batch_norm_momentum=0.9
)


@keras.saving.register_keras_serializable(package="mnv2_keras")
class SegmentationLoss(keras.losses.Loss):
    """Softmax cross-entropy of logits, averaged over the pixels whose label counts.

    Source: DeepLab `train_utils.add_softmax_cross_entropy_loss_for_each_scale`.

    Args:
        ignored: the label of pixels that do not count.

    Shapes: labels (B, H, W), integers; logits (B, H, W, classes). Their mean over all judged pixels is a scalar; 0 without
    any.
    """

    def __init__(self, ignored: int = IGNORED, name: str = "cross_entropy", **options):
        super().__init__(name=name, **options)
        self.ignored = ignored

    def call(self, y_true, y_pred):
        labels = ops.cast(y_true, "int32")
        judged = ops.cast(ops.not_equal(labels, self.ignored), y_pred.dtype)
        labels = ops.where(ops.equal(labels, self.ignored), 0, labels)
        each = ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
        return ops.sum(each * judged) / ops.maximum(ops.sum(judged), 1.0)

    def get_config(self):
        return super().get_config() | {"ignored": self.ignored}


def compile_segmenter(model: keras.Model, recipe: SegmentationRecipe) -> keras.Model:
    """Give a segmenter the recipe's optimiser, schedule, loss and batch norms; returns the model."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = recipe.fine_tune_batch_norm
            if recipe.batch_norm_momentum is not None:
                layer.momentum = recipe.batch_norm_momentum
    schedule = keras.optimizers.schedules.PolynomialDecay(
        recipe.learning_rate, recipe.steps, end_learning_rate=0.0, power=recipe.power
    )
    # XLA would compile for minutes, and convolves more slowly on CPUs.
    optimizer = keras.optimizers.SGD(schedule, momentum=recipe.momentum)
    model.compile(optimizer, loss=SegmentationLoss(), jit_compile=False)
    return model


def train_segmenter(
    model: keras.Model,
    pairs,
    recipe: SegmentationRecipe,
    *,
    every: int = 500,
    state: str | os.PathLike | None = None,
    resume: bool = False,
    evaluate: Callable[[], dict] | None = None,
    progress: Callable[[int, float, dict | None], None] | None = None,
) -> list[dict]:
    """Train a segmenter on photos with masks.

    Args:
        model: from `build_deeplabv3_mobilenetv2`, at the recipe's crop, or of any size.
        pairs: `photos_and_masks`, `tfds_photos_and_masks` or `DrawnShapes`.
        recipe: how.
        every: steps between rows; the last round may be shorter.
        state: a file that holds, after each round, all it takes to go on.
        resume: go on where `state` ends (on CPUs to the same bits); from the start if there is no such file.
        evaluate: called at the end of each round; what it returns is added to the round's row.
        progress: called after each step with its number (from 1), its loss, and the row where a round ends.

    Returns:
        A row for each round: `step`, `loss` (its mean, weight decay included), `seconds` of the round's steps, and what
        `evaluate` says.

    Raises:
        ValueError: photos and masks that do not fit each other, naming them (a folder is checked before the first step); a
            model of another size, class count or range of values; or `state` is another run's, or there without `resume`.
        DivergedError: the loss is NaN or infinite; the message says where.
    """
    import tensorflow as tf

    if any(side not in (None, wanted) for side, wanted in zip(model.input_shape[1:3], recipe.crop, strict=True)):
        raise ValueError(
            f"the model takes {model.input_shape[1]} x {model.input_shape[2]}, the recipe crops to {recipe.crop[0]} x "
            f"{recipe.crop[1]}: build the model with input_shape=({recipe.crop[0]}, {recipe.crop[1]}, 3)."
        )
    if pairs.classes != model.output_shape[3]:
        raise ValueError(
            f"the masks have {pairs.classes} classes, the model {model.output_shape[3]}: build it with classes={pairs.classes}."
        )
    check_input(model)
    state = None if state is None else Path(state).expanduser()
    if state is not None and state.exists() and not resume:
        raise ValueError(f"{state} is of a run that has not ended: resume it (--resume), or delete it to start anew.")
    if hasattr(pairs, "check"):
        pairs.check()
    keras.utils.set_random_seed(recipe.seed)
    compile_segmenter(model, recipe)
    decayed = [] if model.losses else [layer.kernel for layer in model.layers if type(layer) is keras.layers.Conv2D]
    twin, judged, optimizer = with_fused_batch_norm(model), SegmentationLoss(), model.optimizer
    trained = twin.trainable_variables  # the model's own
    optimizer.build(trained)

    @tf.function(reduce_retracing=True)
    def train_step(images, masks):
        with tf.GradientTape() as tape:
            loss = tf.add_n([judged(masks, twin(images, training=True)), *twin.losses])
            loss += recipe.weight_decay * tf.add_n([0.0, *map(tf.nn.l2_loss, decayed)])
        gradients = tape.gradient(loss, trained)
        # Source: DeepLab `train_utils.get_model_gradient_multipliers`.
        gradients = [2 * each if v.name == "bias" else each for each, v in zip(gradients, trained, strict=True)]
        optimizer.apply(gradients, trained)
        return loss

    variables = [*model.variables, *optimizer.variables]
    about = {"recipe": asdict(recipe), "pairs": len(pairs), "classes": pairs.classes, "network": _shapes(model)}
    identity = json.loads(json.dumps(about))
    rows = restore(state, variables, identity) if state is not None and state.exists() else []
    done = rows[-1]["step"] if rows else 0

    def keep() -> None:
        arrays = [np.asarray(each) for each in variables]
        if not all(
            np.isfinite(array).all() for array in arrays
        ):  # the loss was that of the weights before the last step
            raise DivergedError(f"A weight is no number any more after step {rows[-1]['step']}: {advice}.")
        if state is not None:
            save_state(state, arrays, {"identity": identity, "rows": rows})

    advice = f"start anew with a learning rate below {recipe.learning_rate:.3g}, or check the photos and masks"
    if not rows:
        keep()  # so that a run that is stopped at once is known as one
    if rows and evaluate and not rows[-1].keys() - _BASE:  # stopped while it was judged
        rows[-1] |= evaluate()
        keep()
    batches = iter(
        training_batches(pairs, recipe.batch, recipe.crop, recipe.scales, recipe.flip, seed=recipe.seed, start=done)
    )
    losses, start = [], time.monotonic()
    for number in range(done + 1, recipe.steps + 1):
        try:
            images, masks = next(batches)
        except tf.errors.OpError as error:
            raise ValueError(_cause(error) + _kept(rows, state)) from error
        losses.append(float(train_step(images, masks)))
        if not math.isfinite(losses[-1]):
            raise DivergedError(f"The loss is {losses[-1]} at step {number}: {advice}.")
        row = None
        if number % every == 0 or number == recipe.steps:
            row = {"step": number, "loss": sum(losses) / len(losses), "seconds": round(time.monotonic() - start, 2)}
            rows.append(row)
            keep()
            if evaluate:
                row |= evaluate()
                keep()
            start = time.monotonic()
        if progress:
            progress(number, losses[-1], row)
        losses = [] if row else losses
    return rows


def _shapes(model: keras.Model) -> list:
    """What tells networks with the same variables from each other: the output stride, above all."""
    return [[layer.name, *layer.output.shape[1:]] for layer in model.layers if layer.count_params()]


def _kept(rows: list[dict], state: Path | None) -> str:
    """In words, what a run that stops here leaves."""
    return (
        f" The first {rows[-1]['step']} steps are kept: mend it, and --resume goes on from there."
        if rows and state
        else ""
    )


def _cause(error: Exception) -> str:
    """What was raised while reading, without TensorFlow's trace around it."""
    lines = [line for line in str(error).splitlines() if "Error: " in line]
    return lines[-1].partition("Error: ")[2] if lines else str(error).splitlines()[0]
