"""Training with TF-Slim's batch norm kernel, on the variables of Keras' own layers.

TF-Slim trains with the fused kernel (`tf.nn.fused_batch_norm`), Keras 3 with separate moments. On CPUs a step with the fused
kernel takes about half the time; it keeps the unbiased variance (divided by N - 1) in the moving statistics, and its gradients
equal TF-Slim's to the bit. Inference needs none of that: the model that is saved keeps Keras' layers, only the step uses these.
"""

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.Layer):
    """The computation in training of a built Keras batch norm over the last of four axes, on that layer's own variables.

    The layer is called unchanged where it is frozen (`trainable = False`), and outside training.

    Source: TF-Slim `layers.batch_norm(fused=True)`.
    """

    def __init__(self, norm: keras.layers.BatchNormalization):
        super().__init__(name=f"{norm.name}-fused", dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x, mask=None, training=None):
        """(B, H, W, C) to the same."""
        norm = self.norm
        if not (training and norm.trainable):
            return norm(x, training=False)
        scale, offset, epsilon = norm.gamma.value, norm.beta.value, norm.epsilon
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=[], variance=[], epsilon=epsilon, is_training=True
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
    """A copy of a functional model, of the same layers and variables, with `FusedBatchNormalization` in place of batch norms."""

    def fused(layer):
        batch_norm = isinstance(layer, keras.layers.BatchNormalization) and layer.scale and layer.center
        return FusedBatchNormalization(layer) if batch_norm else layer

    return keras.models.clone_model(model, clone_function=fused)
