"""Training of detectors: recipes as data, and the loop that follows them."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.networks.endpoints import check_input
from mnv2_keras.training.detection_loss import detection_loss
from mnv2_keras.training.fused_batch_norm import with_fused_batch_norm
from mnv2_keras.training.history import write_csv
from mnv2_keras.training.optimizer import SlimRMSprop
from mnv2_keras.training.state import DivergedError


@dataclasses.dataclass(frozen=True)
class DetectionRecipe:
    """How a detector is trained.

    Attributes:
        alpha, side: of the network, and of its square input in pixels.
        batch, steps: images in a step, and steps.
        optimizer: "rmsprop" (TensorFlow 1's: momentum 0.9, decay 0.9, epsilon 1 inside the root) or "adam".
        learning_rate: at the start, or after the warm-up.
        decay: "staircase", 0.95 every `decay_steps`, or "cosine", to zero at the end.
        decay_steps: of the staircase.
        warmup: steps of a learning rate that rises from zero.
        weight_decay, batch_norm_momentum, min_depth: of the network.
        flip, crop: whether images are mirrored, and cropped as SSD does.
    """

    alpha: float
    side: int
    batch: int
    steps: int
    optimizer: str
    learning_rate: float
    decay: str
    decay_steps: int = 0
    warmup: int = 0
    weight_decay: float = 4e-5
    batch_norm_momentum: float = 0.9997
    min_depth: int = 16
    flip: bool = True
    crop: bool = True

    def schedule(self) -> Callable[[int], float]:
        """The learning rate of each step."""

        def rate(step: int) -> float:
            if step < self.warmup:
                return self.learning_rate * (step + 1) / self.warmup
            if self.decay == "staircase":
                return self.learning_rate * 0.95 ** (step // self.decay_steps)
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

        return rate

    def make_optimizer(self, variables) -> keras.optimizers.Optimizer:
        """A fresh optimiser for these variables."""
        if self.optimizer == "adam":
            optimizer = keras.optimizers.Adam(self.learning_rate)
            optimizer.build(variables)
            return optimizer
        optimizer = SlimRMSprop(self.learning_rate)
        optimizer.build(variables)
        return optimizer


#: The published training of `ssdlite_mobilenet_v2_coco` and `ssd_mobilenet_v2_coco`. `mnv2 train detection --recipe paper
#: --tfds coco/2017 --weights imagenet -o runs/coco`; days on one GPU, not run here.
PAPER = DetectionRecipe(
    alpha=1.0,
    side=300,
    batch=24,
    steps=200_000,
    optimizer="rmsprop",
    learning_rate=0.004,
    decay="staircase",
    decay_steps=800_720,
)
#: Drawn shapes on a trained classifier's backbone: `mnv2 train detection --shapes --weights imagenet`, eleven minutes on two
#: cores; docs/detection.md has its curve. From scratch the same takes many times as long.
SHAPES = DetectionRecipe(
    alpha=1.0,
    side=96,
    batch=16,
    steps=2_000,
    optimizer="adam",
    learning_rate=1e-3,
    decay="cosine",
    warmup=50,
    batch_norm_momentum=0.97,
    crop=False,
)
RECIPES = {"paper": PAPER, "shapes": SHAPES}


def train_detector(
    model: keras.Model,
    batches,
    recipe: DetectionRecipe,
    *,
    anchors=None,
    evaluate: Callable[[], dict] | None = None,
    every: int = 500,
    log: str | Path | None = None,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train a detector by a recipe.

    Args:
        model: of `build_ssdlite_mobilenetv2`, with the recipe's weight decay and momentum.
        batches: endless, of images and objects (see `detection_batches`).
        recipe: how.
        anchors: (A, 4); None for those of the model's input.
        evaluate: called every so many steps and in the end; what it returns is added to that row.
        every: steps between rows.
        log: a CSV file to write the rows to, as they come.
        progress: called with each row.

    Returns:
        Rows of `step`, `localization`, `classification` and `l2` (means since the row before), `learning_rate`, `seconds`
        (wall time since the start, evaluation included) and what `evaluate` says.

    Raises:
        DivergedError: a loss is NaN or infinite; the message says at which step.
        ValueError: the batches end before the recipe does; the model takes pixels from 0 to 255.
    """
    check_input(model)
    anchors = tf.constant(ssd_anchors(model.input_shape[1:3]) if anchors is None else anchors)
    twin, variables = with_fused_batch_norm(model), model.trainable_variables
    optimizer, rate = recipe.make_optimizer(variables), recipe.schedule()

    @tf.function(reduce_retracing=True)
    def step(images, truth):
        with tf.GradientTape() as tape:
            losses = detection_loss(twin(images, training=True), truth, anchors)
            parts = tf.stack([losses["localization"], losses["classification"], tf.add_n([0.0, *twin.losses])])
            total = tf.reduce_sum(parts)
        # Mining passes over anchors whose loss is NaN: the sum over all of them tells.
        parts += 0.0 * tf.reduce_sum(losses["anchorwise_classification"])
        optimizer.apply(tape.gradient(total, variables), variables)
        return parts

    rows, sums, since, start = [], tf.zeros(3), 0, time.monotonic()
    iterator = iter(batches)
    for number in range(recipe.steps):
        optimizer.learning_rate.assign(rate(number))
        try:
            images, truth = next(iterator)
        except StopIteration:
            raise ValueError(
                f"The batches end after {number} steps, the recipe has {recipe.steps}: repeat them, of photos that can be read."
            ) from None
        sums, since = sums + step(images, truth), since + 1
        if (number + 1) % every and number + 1 < recipe.steps:
            continue
        means = (sums / since).numpy().tolist()
        if not all(map(math.isfinite, means)):
            raise DivergedError(
                f"The loss is {sum(means)} within the {since} steps up to {number + 1}: lower the learning rate "
                f"({rate(number):.3g}), or check the images and boxes for NaN."
            )
        row = {"step": number + 1, **dict(zip(("localization", "classification", "l2"), means, strict=True))}
        row |= {"learning_rate": rate(number), **(evaluate() if evaluate else {})}
        row["seconds"] = round(time.monotonic() - start, 1)
        rows.append(row)
        sums, since = tf.zeros(3), 0
        if log is not None:
            write_csv(Path(log), rows)
        if progress is not None:
            progress(row)
    return rows
