"""The learning rate of each step, as data."""

import functools
import math
from dataclasses import dataclass

#: Kinds of schedules; "exponential" is another name of "staircase".
KINDS = ("constant", "staircase", "exponential", "cosine", "polynomial")


@dataclass(frozen=True)
class Schedule:
    """A learning rate for each step of a run. Times are in epochs if `epoch` is given, otherwise in steps.

    Attributes:
        kind: "constant"; "staircase" (or "exponential"), times `decay` after every `decay_steps`; "cosine", to zero at the end;
            "polynomial", `(1 - time / length) ** power` (Keras' `PolynomialDecay`, in float32).
        learning_rate: at the start, or after the warm-up.
        length: of the complete run.
        warmup: time in which the learning rate rises from zero.
        decay, decay_steps: factor of the staircase, and the time of one stair.
        power: of the polynomial.
        epoch: steps of an epoch; None for a run that is counted in steps.
    """

    kind: str
    learning_rate: float
    length: int
    warmup: float = 0.0
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
