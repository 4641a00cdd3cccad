"""One step of training: forward, backward, optimizer, averages; the same for all tasks, on one device or many."""

import contextlib
import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from mnv2_keras.networks.endpoints import check_input
from mnv2_keras.training.distribution import place
from mnv2_keras.training.fused_batch_norm import with_fused_batch_norm
from mnv2_keras.training.optimizer import MovingAverages, SlimRMSprop
from mnv2_keras.training.recipes import TrainingRecipe


@contextlib.contextmanager
def building(recipe: TrainingRecipe) -> Iterator[None]:
    """A context to build the recipe's network in, with its seed and its mixed precision."""
    keras.utils.set_random_seed(recipe.seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(f"mixed_{recipe.mixed_precision}" if recipe.mixed_precision else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def make_optimizer(recipe: TrainingRecipe) -> keras.optimizers.Optimizer:
    """A new optimizer of the recipe; for float16 its loss is scaled."""
    momentum = functools.partial(keras.optimizers.SGD, momentum=recipe.momentum)
    kinds = {"rmsprop": SlimRMSprop, "adam": keras.optimizers.Adam, "momentum": momentum}
    optimizer = kinds[recipe.optimizer](recipe.learning_rate)
    return keras.optimizers.LossScaleOptimizer(optimizer) if recipe.mixed_precision == "float16" else optimizer


class TrainingStep(ABC):
    """One step of training on a batch. A subclass gives the loss.

    Args:
        network: from images to what the loss takes; it shares the layers of `model`.
        model: what is trained, evaluated and saved; built within `strategy.scope()`.
        recipe: its batch is shared by the devices; a ValueError says that they cannot.
        strategy: of TensorFlow; None takes the one in whose scope this is called, by default a single device.
        batch: `tf.TensorSpec`s of a batch, where its shapes vary: the step is then traced only once.
    """

    #: What `loss` returns in its second value, after the loss.
    names: tuple[str, ...] = ()

    def __init__(self, network: keras.Model, model: keras.Model, recipe: TrainingRecipe, strategy=None, batch=None):
        self.model, self.network, self.recipe = model, network, recipe
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        check_input(model)
        if recipe.batch % self.replicas:
            raise ValueError(
                f"A batch of {recipe.batch} cannot be shared by {self.replicas} devices: choose a multiple of {self.replicas}."
            )
        with self.strategy.scope():
            self.fused = with_fused_batch_norm(network)
            self.trained = self.fused.trainable_variables
            self.optimizer = make_optimizer(recipe)
            self.optimizer.build(self.trained)
            #: Without averages in the recipe, of no variable.
            self.averages = MovingAverages(self.trained if recipe.average else [], recipe.average or 0.0)
        signature = batch and [batch, tf.TensorSpec((), tf.int64)]
        # Nothing in a step needs autograph, which takes as long as the tracing.
        self._run = tf.function(self._distributed, input_signature=signature, reduce_retracing=signature is None, autograph=False)

    @abstractmethod
    def loss(self, *batch) -> tuple[tf.Tensor, list]:
        """The loss of a replica's part of the batch with regularisation, and scalars as `names` names them.

        The sum over all replicas is the loss of the complete batch; the scalars are summed too.
        """

    def means(self, sums: np.ndarray, steps: int) -> dict[str, float]:
        """Figures of a round, given the sums of what its steps returned."""
        return {name: float(value / steps) for name, value in zip(("loss", *self.names), sums, strict=True)}

    def gradients_to_apply(self, gradients: list) -> list:
        """Gradients after multipliers, if there are any."""
        return gradients

    def l2(self) -> tf.Tensor:
        """This replica's part of the network's own weight decay."""
        return tf.add_n([0.0, *(tf.cast(loss, tf.float32) for loss in self.fused.losses)]) / self.replicas

    def over_replicas(self, count: tf.Tensor) -> tf.Tensor:
        """The sum of a count over all replicas: a mean over pixels or anchors is that of the complete batch."""
        return tf.distribute.get_replica_context().all_reduce("SUM", count) if self.replicas > 1 else count

    def __call__(self, batch, number: int) -> tf.Tensor:
        """Train on this worker's part of a batch, a tuple of arrays, tensors or dictionaries of them, in step `number`, from 1.

        Returns:
            float32: the loss with regularisation, then the values that `names` names; of all workers.
        """
        return self._run(batch, tf.constant(number, tf.int64))

    def _distributed(self, batch, number):
        if self.replicas == 1:
            sums = self._replica(batch)
        else:
            local = self.replicas // place(self.strategy)[1]

            def part(array):
                pieces = tf.split(array, local)
                return self.strategy.experimental_distribute_values_from_function(
                    lambda context: pieces[context.replica_id_in_sync_group % local]
                )

            parts = batch if local == 1 else tf.nest.map_structure(part, batch)
            sums = self.strategy.reduce("SUM", self.strategy.run(self._replica, (parts,)), axis=None)
        self.averages.update(number)
        return sums

    def _replica(self, batch):
        with tf.GradientTape() as tape:
            loss, scalars = self.loss(*batch)
            scaled = self.optimizer.scale_loss(loss)
        gradients = self.gradients_to_apply(tape.gradient(scaled, self.trained))
        self.optimizer.apply(gradients, self.trained)
        return tf.stack([loss, *scalars])

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """The state of a run by name: weights, statistics, dropout's seed, the optimizer's slots, averages."""
        pairs = [(f"model/{_stable(variable.path)}", variable) for variable in self.model.variables]
        pairs += [(f"optimizer/{_stable(variable.path)}", variable) for variable in self.optimizer.variables]
        averages = zip(self.averages.variables, self.averages.averages, strict=True)
        pairs += [(f"average/{variable.path}", average) for variable, average in averages]
        if len(named := dict(pairs)) < len(pairs):
            raise ValueError("Two variables of the model have the same path: give its layers different names.")
        return named


def _stable(path: str) -> str:
    """A variable's path without the number that Keras gives the second optimizer or seed of a process (`adam_1/...`)."""
    return re.sub(r"^(seed_generator|adam|sgd|slim_rmsprop|loss_scale_optimizer)_\d+/", r"\1/", path)


def network_shapes(model: keras.Model) -> list:
    """Layers and their output shapes; they differ between networks of equal variables, such as two output strides."""
    return [[layer.name, *layer.output.shape[1:]] for layer in model.layers if layer.count_params()]
