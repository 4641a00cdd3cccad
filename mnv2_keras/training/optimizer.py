"""How TF-Slim updates weights, where Keras computes something else: TensorFlow 1's RMSProp and moving averages."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
from keras import ops

from mnv2_keras.checks import real_number


@keras.saving.register_keras_serializable(package="mnv2_keras")
class SlimRMSprop(keras.optimizers.Optimizer):
    """RMSProp as TF-Slim's models were trained with.

    The mean square starts at 1, epsilon stands inside the root, and the momentum sums steps that already include the learning
    rate:

        mean_square = decay * mean_square + (1 - decay) * gradient ** 2
        step        = momentum * step + learning_rate * gradient / sqrt(mean_square + epsilon)
        weight      = weight - step

    Source: `tf.compat.v1.train.RMSPropOptimizer`; the defaults are those of TF-Slim `train_image_classifier`.

    The learning rate is a number or a Keras schedule; the options are those of `keras.optimizers.Optimizer`.
    """

    def __init__(self, learning_rate=0.045, decay=0.9, momentum=0.9, epsilon=1.0, name: str = "slim_rmsprop", **options):
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.decay, self.momentum, self.epsilon = decay, momentum, epsilon

    def build(self, variables) -> None:
        """Create a mean square of ones and a step of zeros for each variable."""
        if self.built:
            return
        super().build(variables)
        self._mean_squares = [
            self.add_variable_from_reference(variable, name="mean_square", initializer="ones") for variable in variables
        ]
        self._steps = [self.add_variable_from_reference(variable, name="step") for variable in variables]

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Update one variable."""
        index = self._get_variable_index(variable)
        mean_square, step = self._mean_squares[index], self._steps[index]
        gradient, rate = ops.cast(gradient, variable.dtype), ops.cast(learning_rate, variable.dtype)
        self.assign(mean_square, self.decay * mean_square + (1 - self.decay) * ops.square(gradient))
        self.assign(step, self.momentum * step + rate * gradient * ops.rsqrt(mean_square + self.epsilon))
        self.assign_sub(variable, step)

    def get_config(self) -> dict:
        """The configuration that Keras stores with a compiled model."""
        return super().get_config() | {"decay": self.decay, "momentum": self.momentum, "epsilon": self.epsilon}


class MovingAverages:
    """Exponential moving averages of some Keras variables; they start at the variables' present values.

    Source: `tf.train.ExponentialMovingAverage(decay, num_updates=global_step)`: after step n (from 1) the decay is
    `min(decay, (1 + n) / (10 + n))`, so that the weights of the first steps lose their influence quickly.
    """

    def __init__(self, variables: Sequence[keras.Variable], decay: float = 0.9999):
        self.decay = real_number("decay", decay, 0, 1, below=True, note=", such as 0.9999")
        self.variables = list(variables)
        self.averages = [
            keras.Variable(tf.convert_to_tensor(variable.value), trainable=False, name="average") for variable in self.variables
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
