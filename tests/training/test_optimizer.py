"""The optimiser and the averages against TF 1's own, step by step; one complete step against TF-Slim's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras.convert.goldens import name_rule_value, seeded_input
from mnv2_keras.convert.names import variables
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.training.fused_batch_norm import with_fused_batch_norm
from mnv2_keras.training.optimizer import MovingAverages, SlimRMSprop


def test_twenty_steps_equal_tensorflow_1(testdata):
    golden = np.load(testdata / "golden" / "classification" / "rmsprop.npz")
    weight = keras.Variable(golden["start"])
    optimizer, averages = SlimRMSprop(), MovingAverages([weight], 0.9999)
    for i, gradient in enumerate(golden["gradients"]):
        optimizer.learning_rate = 0.045 * 0.98 ** (i // 4)
        optimizer.apply([tf.constant(gradient)], [weight])
        averages.update(i + 1)
        np.testing.assert_allclose(weight.numpy(), golden["weights"][i], rtol=0, atol=1e-5)
        np.testing.assert_allclose(averages.averages[0].numpy(), golden["averages"][i], rtol=0, atol=1e-5)
    with averages.applied():
        np.testing.assert_array_equal(weight.numpy(), averages.averages[0].numpy())
    np.testing.assert_allclose(weight.numpy(), golden["weights"][-1], rtol=0, atol=1e-5)


def test_the_recurrence_is_the_kernel_of_tensorflow():
    """The kernel behind TF 1's optimiser is still there, and says the same."""
    rng = np.random.default_rng(1)
    ours = keras.Variable(rng.normal(size=(5, 7)).astype(np.float32))
    variable, square, momentum = tf.Variable(ours.value), tf.Variable(tf.ones((5, 7))), tf.Variable(tf.zeros((5, 7)))
    optimizer = SlimRMSprop(learning_rate=0.1, decay=0.8, momentum=0.7, epsilon=0.5)
    for gradient in rng.normal(size=(9, 5, 7)).astype(np.float32):
        optimizer.apply([tf.constant(gradient)], [ours])
        tf.raw_ops.ResourceApplyRMSProp(
            var=variable.handle, ms=square.handle, mom=momentum.handle, lr=0.1, rho=0.8, momentum=0.7, epsilon=0.5, grad=gradient
        )
        np.testing.assert_allclose(ours.numpy(), variable.numpy(), rtol=1e-6, atol=1e-6)


def test_the_optimiser_compiles_and_comes_back_from_its_config():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = SlimRMSprop.from_config(SlimRMSprop(learning_rate=0.01, decay=0.8).get_config())
    assert optimizer.decay == 0.8
    model.compile(optimizer, "mse")
    x, y = np.eye(3, dtype=np.float32), np.ones((3, 2), np.float32)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=20, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before


def test_averages_refuse_a_decay_of_one():
    with pytest.raises(ValueError, match="0 to below 1"):
        MovingAverages([], decay=1.0)


def test_a_training_step_equals_tf_slims(testdata):
    golden = np.load(testdata / "golden" / "classification" / "training_step.npz")
    model = build_mobilenetv2(0.35, (64, 64, 3), classes=11, weight_decay=4e-5, dropout_rate=0.0)
    ours = variables(model)
    for name, variable in ours.items():
        variable.assign(name_rule_value(name, variable.shape))
    network = with_fused_batch_norm(keras.Model(model.input, endpoints(model)["Logits"]))
    grads = [name for name in golden.files if name.startswith("grad:")]
    with tf.GradientTape() as tape:
        logits = network(seeded_input((8, 64, 64, 3)), training=True)
        entropy = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(np.arange(8) % 11, logits))
        decay = tf.add_n(network.losses)
        loss = entropy + decay
    gradients = tape.gradient(loss, [ours[name.removeprefix("grad:")].value for name in grads])

    def close(value, genuine):
        assert np.max(np.abs(np.asarray(value) - genuine)) <= 1e-3 * np.max(np.abs(genuine))

    assert len(network.losses) == len(golden["regularized"]) == 36
    close(logits, golden["logits"])
    close(entropy, golden["cross_entropy"])
    close(decay, golden["regularization"])
    for name, gradient in zip(grads, gradients, strict=True):
        close(gradient, golden[name])
    for name in golden.files:
        if name.startswith("after:"):
            start = name_rule_value(name.removeprefix("after:"), golden[name].shape)
            # What the step changed, not what was there: only this shows the unbiased variance and not the biased one.
            close(ours[name.removeprefix("after:")].numpy() - start, golden[name] - start)


def test_a_frozen_batch_norm_keeps_its_statistics_in_the_fused_copy():
    model = build_mobilenetv2(0.35, (32, 32, 3), classes=2)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    before = [np.array(value) for value in model.get_weights()]
    x = seeded_input((4, 32, 32, 3))
    # Dropout aside, a frozen network in training computes what it computes in inference.
    pooled = keras.Model(model.input, endpoints(model)["global_pool"])
    np.testing.assert_array_equal(with_fused_batch_norm(pooled)(x, training=True), pooled(x, training=False))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
