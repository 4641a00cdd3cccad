"""Moving averages of the weights, which are evaluated and published, while the optimizer continues with the weights."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from mnv2_keras.checks import real_number


class MovingAverages:
    """Exponential moving averages of some variables.

    Source: `tf.train.ExponentialMovingAverage(decay, num_updates=global_step)`: after step n (from 1) the decay is
    `min(decay, (1 + n) / (10 + n))`, so that the weights of the first steps lose their influence quickly.

    Args:
        variables: Keras variables; the averages start at their present values.
        decay: 0.9999 as published.
    """

    def __init__(self, variables: Sequence[keras.Variable], decay: float = 0.9999):
        self.decay = real_number("decay", decay, 0, 1, below=True, note=", such as 0.9999")
        self.variables = list(variables)
        self.averages = [
            keras.Variable(tf.convert_to_tensor(variable.value), trainable=False, name="average")
            for variable in self.variables
        ]

    def update(self, step) -> None:
        """Include the variables' values after step number `step`, a number or a tensor; the first step is 1."""
        step = tf.cast(step, tf.float32)
        share = 1 - tf.minimum(self.decay, (1 + step) / (10 + step))
        for average, variable in zip(self.averages, self.variables, strict=True):
            average.assign_sub(tf.cast(share, average.dtype) * (average.value - variable.value))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the variables hold their averages."""
        weights = [variable.numpy() for variable in self.variables]
        self.assign()
        try:
            yield
        finally:
            for variable, value in zip(self.variables, weights, strict=True):
                variable.assign(value)

    def assign(self) -> None:
        """Assign to each variable its average."""
        for variable, average in zip(self.variables, self.averages, strict=True):
            variable.assign(average.numpy())
