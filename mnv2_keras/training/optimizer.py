"""TensorFlow 1's RMSProp; Keras' computes something else."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mnv2_keras")
class SlimRMSprop(keras.optimizers.Optimizer):
    """RMSProp as TF-Slim's models were trained with.

    The mean square starts at 1, epsilon stands inside the root, and the momentum sums steps that already include the learning
    rate:

        mean_square = decay * mean_square + (1 - decay) * gradient ** 2
        step        = momentum * step + learning_rate * gradient / sqrt(mean_square + epsilon)
        weight      = weight - step

    Source: `tf.compat.v1.train.RMSPropOptimizer`; the defaults are those of TF-Slim `train_image_classifier`.

    Args:
        learning_rate: a number or a Keras schedule.
        decay, momentum, epsilon: as above.
        options: of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self, learning_rate=0.045, decay=0.9, momentum=0.9, epsilon=1.0, name: str = "slim_rmsprop", **options
    ):
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
