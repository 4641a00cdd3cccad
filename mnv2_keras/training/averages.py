"""Moving averages of the weights: what is evaluated and published, while training goes on with the weights themselves."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf


class MovingAverages:
    """Exponential moving averages of some variables.

    Source: `tf.train.ExponentialMovingAverage(decay, num_updates=global_step)`: after step n (from 1) the decay is
    `min(decay, (1 + n) / (10 + n))`, so that the first steps are soon forgotten.

    Args:
        variables: Keras variables; the averages start at their present values.
        decay: 0.9999 as published.
    """

    def __init__(self, variables: Sequence[keras.Variable], decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(
                f"The decay of the averages is {decay}: expected a number from 0 to below 1, such as 0.9999."
            )
        self.decay = decay
        self.variables = list(variables)
        self.averages = [
            keras.Variable(tf.convert_to_tensor(variable.value), trainable=False, name="average")
            for variable in self.variables
        ]

    def update(self, step) -> None:
        """Take in the variables' values after step number `step`, which counts from 1 (a number or a tensor)."""
        step = tf.cast(step, tf.float32)
        share = 1 - tf.minimum(self.decay, (1 + step) / (10 + step))
        for average, variable in zip(self.averages, self.variables, strict=True):
            average.assign_sub(tf.cast(share, average.dtype) * (average.value - variable.value))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The variables hold their averages for the time being, to evaluate or to save them."""
        kept = [variable.numpy() for variable in self.variables]
        for variable, average in zip(self.variables, self.averages, strict=True):
            variable.assign(average.numpy())
        try:
            yield
        finally:
            for variable, value in zip(self.variables, kept, strict=True):
                variable.assign(value)
