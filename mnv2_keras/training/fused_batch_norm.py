"""A model's twin for training: the same variables, TF-Slim's batch norm kernel.

TF-Slim trains with the fused kernel (`tf.nn.fused_batch_norm`), Keras 3 with separate moments. The fused one takes about
half the time of a whole step on CPUs, keeps the unbiased variance (divided by N - 1) in the moving statistics, and
gives TF-Slim's gradients to the bit. A saved model needs none of that, so models keep Keras' own layers and only the
training step runs on the twin.
"""

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.Layer):
    """A batch norm's computation in training, on that layer's own variables.

    Source: TF-Slim `layers.batch_norm(fused=True)`.

    Args:
        norm: a built Keras batch norm over the last of four axes. Where it is frozen (`trainable = False`), or outside
            training, it computes by itself.
    """

    def __init__(self, norm: keras.layers.BatchNormalization):
        super().__init__(name=f"{norm.name}-fused", dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x, mask=None, training=None):
        """(B, H, W, C) to the same."""
        norm = self.norm
        if not (training and norm.trainable):
            return norm(x, training=False)
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=norm.gamma.value,
            offset=norm.beta.value,
            mean=[],
            variance=[],
            epsilon=norm.epsilon,
            is_training=True,
        )
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:  # the same statistics on all workers
            mean, variance = context.all_reduce("MEAN", [mean, variance])
        for moving, fresh in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
            moving.assign(moving.value - (moving.value - fresh) * (1 - norm.momentum))
        return y

    def compute_output_shape(self, input_shape):
        """The input's."""
        return input_shape


def with_fused_batch_norm(model: keras.Model) -> keras.Model:
    """The model to call in a training step: shares all layers and variables, but for the batch norms' computation.

    Args:
        model: a functional model over (B, H, W, C).

    Returns:
        A model of the same input and output.
    """

    def twin(layer):
        fused = isinstance(layer, keras.layers.BatchNormalization) and layer.scale and layer.center
        return FusedBatchNormalization(layer) if fused else layer

    return keras.models.clone_model(model, clone_function=twin)
