"""DeepLab's published training: momentum, a polynomial learning rate, scaled crops, cross-entropy of the labelled pixels."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf
from keras import ops

from mnv2_keras.checks import real_number, user_path
from mnv2_keras.data.segmentation import segmentation_batches
from mnv2_keras.deprecation import renamed_arguments
from mnv2_keras.masks import IGNORED
from mnv2_keras.networks.segmenter import build_deeplabv3_mobilenetv2
from mnv2_keras.training.distribution import own_part
from mnv2_keras.training.fit import Progress, fit
from mnv2_keras.training.recipes import TrainingRecipe
from mnv2_keras.training.state import RunFolder, load_state
from mnv2_keras.training.step import TrainingStep, building, network_shapes


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(TrainingRecipe):
    """How a segmenter is trained; the defaults are DeepLabv3's for Pascal VOC (arXiv:1706.05587, section 4.1).

    What they leave open is as in DeepLab's `train.py`: scales, flips, weight decay, momentum, twice the gradient for biases.

    `mnv2 train segmentation --photos JPEGImages --masks SegmentationClassRaw --classes 21` runs the published one, which takes an
    accelerator.
    """

    steps: int = 30_000
    batch: int = 16  # batch norms that are trained need more than 12
    crop: tuple[int, int] = (513, 513)  # (height, width) of the network's input
    learning_rate: float = 0.007
    schedule: str = "polynomial"  # the learning rate falls to 0 as (1 - step / steps) ** power
    power: float = 0.9
    optimizer: str = "momentum"
    weight_decay: float = 4e-5  # of all kernels but the depthwise ones; a model built with a weight decay keeps its own
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # each example is scaled by one of them
    flip: float = 0.5  # chance of a mirror image
    fine_tune_batch_norm: bool = True  # otherwise batch norms keep their statistics, scale and shift
    batch_norm_momentum: float | None = None  # None keeps the model's 0.997 and 0.9997, for tens of thousands of steps

    def __post_init__(self):
        super().__post_init__()
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop!r}: expected (height, width) in pixels.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales is {self.scales!r}: expected numbers above 0.")
        real_number("flip", self.flip, 0, 1)


#: Drawn shapes (`DrawnShapes`) at 65 x 65 with alpha 1.0 and the decoder, on a trained classifier's backbone: `mnv2 train
#: segmentation --shapes --decoder --weights imagenet`; docs/segmentation.md has its curve and time.
SHAPES = SegmentationRecipe(steps=2600, batch=8, crop=(65, 65), learning_rate=0.03, scales=(1.0,), batch_norm_momentum=0.9)


@keras.saving.register_keras_serializable(package="mnv2_keras")
class SegmentationLoss(keras.losses.Loss):
    """Softmax cross-entropy of labels int (B, H, W) and logits (B, H, W, classes): its mean over all pixels but the ignored ones.

    Without any such pixel it is 0. Source: DeepLab `train_utils.add_softmax_cross_entropy_loss_for_each_scale`.

    Args:
        ignored: the label of pixels that do not count.
    """

    def __init__(self, ignored: int = IGNORED, name: str = "cross_entropy", **options):
        super().__init__(name=name, **options)
        self.ignored = ignored
        #: Labelled pixels of one device to those of all devices that share the batch.
        self.total = lambda count: count

    def call(self, y_true, y_pred):
        labels = ops.cast(y_true, "int32")
        counts = ops.cast(ops.not_equal(labels, self.ignored), y_pred.dtype)
        labels = ops.where(ops.equal(labels, self.ignored), 0, labels)
        entropy = ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
        return ops.sum(entropy * counts) / ops.maximum(self.total(ops.sum(counts)), 1.0)

    def get_config(self):
        return super().get_config() | {"ignored": self.ignored}


def build(recipe: SegmentationRecipe, classes: int, **options) -> keras.Model:
    """The recipe's network, fresh from its seed or with weights, in its mixed precision.

    The options are those of `build_deeplabv3_mobilenetv2`, such as `alpha`, `weights`, `decoder`.
    """
    settings = {"input_shape": (*recipe.crop, 3), "weight_decay": recipe.weight_decay}
    with building(recipe):
        return build_deeplabv3_mobilenetv2(classes=classes, **settings, **options)


def set_batch_norms(model: keras.Model, recipe: SegmentationRecipe) -> None:
    """Give a segmenter's batch norms the recipe's momentum, and freeze them if the recipe does."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = recipe.fine_tune_batch_norm
            if recipe.batch_norm_momentum is not None:
                layer.momentum = recipe.batch_norm_momentum


class SegmentationStep(TrainingStep):
    """A segmenter's step on images (B, H, W, 3) and masks int32 (B, H, W); it returns the loss with regularisation."""

    def __init__(self, model: keras.Model, recipe: SegmentationRecipe):
        set_batch_norms(model, recipe)
        super().__init__(model, model, recipe)
        plain = [layer.kernel for layer in model.layers if type(layer) is keras.layers.Conv2D]
        self.decayed = [] if model.losses else plain
        self.cross_entropy = SegmentationLoss()
        self.cross_entropy.total = self.over_replicas

    def loss(self, images, masks):
        logits = tf.cast(self.fused(images, training=True), tf.float32)
        decay = self.recipe.weight_decay * tf.add_n([0.0, *map(tf.nn.l2_loss, self.decayed)]) / self.replicas
        return self.cross_entropy(masks, logits) + self.l2() + decay, []

    def gradients_to_apply(self, gradients):
        """Twice the gradient for biases. Source: DeepLab `train_utils.get_model_gradient_multipliers`."""
        pairs = zip(gradients, self.trained, strict=True)
        return [2 * gradient if variable.name == "bias" else gradient for gradient, variable in pairs]


def _folder_of(state: str | os.PathLike | None) -> Path | None:
    """The folder for the state file that `train_segmenter` took before."""
    if state is None:
        return None
    path = user_path(state)
    if path.name == "state.npz":
        return path.parent
    if path.exists():
        load_state(path)  # says that it is of an earlier release
    return path.with_name(path.name.split(".")[0])


@renamed_arguments(state=("folder", _folder_of))
def train_segmenter(
    model: keras.Model,
    pairs,
    recipe: SegmentationRecipe,
    *,
    every: int = 500,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    evaluate: Callable[[], dict] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[dict]:
    """Train a segmenter on photos with masks. Call it within `strategy.scope()` to use several devices or machines.

    Args:
        model: from `build_deeplabv3_mobilenetv2`, at the recipe's crop, or of any size.
        pairs: `photos_and_masks`, `tfds_photos_and_masks` or `DrawnShapes`.
        recipe: how it is trained.
        every, evaluate, progress: as in `fit`, which documents the rows and errors too.
        folder, resume: as in `train_detector`.

    Raises:
        ValueError: photos and masks that do not fit each other, naming them (a folder is checked before the first step); a
            model of another size or class count.
    """
    height, width = recipe.crop
    if any(side not in (None, crop) for side, crop in zip(model.input_shape[1:3], recipe.crop, strict=True)):
        raise ValueError(
            f"the model takes {model.input_shape[1]} x {model.input_shape[2]}, the recipe crops to {height} x {width}: build the "
            f"model with input_shape=({height}, {width}, 3)."
        )
    if pairs.classes != model.output_shape[3]:
        raise ValueError(
            f"the masks have {pairs.classes} classes, the model {model.output_shape[3]}: build it with classes={pairs.classes}."
        )
    identity = recipe.identity() | {"pairs": len(pairs), "classes": pairs.classes, "network": network_shapes(model)}
    run = RunFolder(folder, identity, resume, {"recipe.json": recipe.as_json()})
    keras.utils.set_random_seed(recipe.seed)
    step = SegmentationStep(model, recipe)
    if hasattr(pairs, "check"):
        pairs.check()

    def batches(done: int):
        data = pairs, recipe.batch, recipe.crop, recipe.scales, recipe.flip
        return own_part(segmentation_batches(*data, seed=recipe.seed, start=done), step.strategy)

    return fit(step, batches, recipe.learning_rates(), run, evaluate, every=every, progress=progress)
