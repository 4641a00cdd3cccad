"""Quantisation-aware training: what it simulates is what int8 computes, and it learns on a real small task."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.options import Quantization
from mnv2_keras.layers import RangedLayer
from mnv2_keras.tflite import read_metadata

pytestmark = pytest.mark.usefixtures("conversion_in_process")
#: The first rows of Table 2, so that training takes seconds; every kind of layer is there.
TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits of 8 x 8 pixels (scikit-learn's own), drawn at 32 x 32, in [-1, 1]: train and test."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    images = np.kron(data.images.astype(np.float32) / 8 - 1, np.ones((4, 4), np.float32))
    images = np.repeat(images[..., None], 3, axis=-1)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], data.target[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def network(activation="softmax", table=TABLE):
    import keras

    from mnv2_keras.networks.classifier import build_mobilenetv2

    keras.utils.set_random_seed(0)
    return build_mobilenetv2(
        0.5,
        (32, 32, 3),
        classes=10,
        classifier_activation=activation,
        table=table,
        last_channels=128,
        batch_norm_momentum=0.9,
        weight_decay=4e-5,
    )


@pytest.fixture(scope="module")
def aware(digits):
    """Trained a few steps, so that its ranges and statistics have moved."""
    import keras

    from mnv2_keras.export.quantization_aware import quantization_aware

    model = network(activation=None, table=TABLE[:2])
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights(
                [rng.uniform(0.5, 1.5, size), rng.normal(0, 0.3, size), rng.normal(0, 0.1, size), rng.uniform(0.05, 0.2, size)]
            )
    aware = quantization_aware(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    aware.compile(keras.optimizers.Adam(1e-3), loss)
    (images, labels), _ = digits
    aware.fit(images[:128], labels[:128], batch_size=32, epochs=2, verbose=0)
    return model, aware


def test_plain_model_computes_the_original_network(digits):
    from mnv2_keras.export.quantization_aware import plain_model, quantization_aware

    model = network()
    plain, ranges, kernels = plain_model(quantization_aware(model))
    images = digits[1][0][:8]
    np.testing.assert_allclose(plain(images), model(images, training=False), atol=1e-5)
    assert ranges["input"] == pytest.approx((-128 / 127.5, 127 / 127.5))  # zero is a step
    assert ranges["Conv"] == pytest.approx((0.0, 6.0))
    names = {layer.name for layer in model.layers if type(layer).__name__ in ("Conv2D", "DepthwiseConv2D", "Add")}
    assert names <= set(ranges)
    assert len(kernels) == sum("Conv2D" in type(layer).__name__ for layer in model.layers)


def test_fit_moves_weights_statistics_and_ranges(aware):
    model, aware = aware
    layer, before = aware.get_layer("expanded_conv_2-project"), model.get_layer("expanded_conv_2-project")
    assert np.abs(np.asarray(layer.kernel) - np.asarray(before.kernel)).max() > 1e-4
    assert np.abs(np.asarray(layer.moving_mean)).max() > 0
    low, high = layer.value
    assert low < 0 < high
    assert (low, high) != (-6.0, 6.0)
    assert aware.count_params() - model.count_params() == 3 * sum(isinstance(layer, RangedLayer) for layer in aware.layers)


def test_activations_take_at_most_256_values(aware, digits):
    import keras

    _, aware = aware
    for name in ("Conv", "expanded_conv_1-project", "expanded_conv_2-add"):
        values, step = keras.Model(aware.input, aware.get_layer(name).output)(digits[1][0][:16], training=False)
        assert len(np.unique(values)) <= 256
        np.testing.assert_allclose(np.rint(values / step), values / step, atol=1e-4)


def test_saved_and_loaded(aware, digits, tmp_path):
    """Loaded in a new process, which learns from the file alone that it is quantisation-aware."""
    _, aware = aware
    aware.save(tmp_path / "aware.keras")
    images = digits[1][0][:16]
    np.save(tmp_path / "images.npy", images)
    program = Path(__file__).parents[1] / "programs" / "run_quantization_aware.py"
    subprocess.run([sys.executable, program, tmp_path], check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), aware(images, training=False))


def test_the_int8_file_computes_the_same(aware, digits, tmp_path):
    """At least 99 % of the logits are within one step of the output's scale, at least 99.9 % are equal."""
    _, aware = aware
    images = digits[1][0][:100]
    report = export_litert(aware, tmp_path / "m.tflite", "int8", photos=images)
    assert report.top1 > 0.95
    assert read_metadata(tmp_path / "m.tflite").about["name"] == "MobilenetV2"
    np.testing.assert_array_equal(aware.predict(images, verbose=0), aware(images, training=False))  # graph and eager
    assert set(report.operators) == {"QUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "RESHAPE"}
    assert_same(aware, tmp_path / "m.tflite", images, report.outputs[0].scale)


def assert_same(aware, path, images, step) -> None:
    simulated = np.asarray(aware(images, training=False))
    off = np.abs(classify(path, images).reshape(simulated.shape) - simulated) / step
    assert np.mean(off <= 1.001) >= 0.99
    assert np.mean(off < 0.5) >= 0.999


def test_odd_sizes_and_layers_that_mobilenet_does_not_have(tmp_path):
    """No batch norm, ReLU without a limit, valid padding, dilation, a dead channel, a sum of very different steps."""
    import keras
    from keras import layers

    from mnv2_keras.export.quantization_aware import quantization_aware

    keras.utils.set_random_seed(1)
    image = keras.Input((27, 19, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6)(layers.BatchNormalization(name="norm")(x))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same", dilation_rate=2, name="dilated")(x))
    y = layers.Conv2D(8, 1, name="biased", bias_initializer="normal")(x)
    x = layers.Add()([layers.Dropout(0.5)(x), y])
    x = layers.DepthwiseConv2D((3, 5), padding="valid", name="valid")(layers.ZeroPadding2D(1)(x))
    x = layers.Flatten()(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, x)
    rng = np.random.default_rng(1)
    stem, norm = model.get_layer("stem"), model.get_layer("norm")
    stem.kernel.assign(np.asarray(stem.kernel) * np.where(np.arange(8) == 3, 1e-21, 1))  # as some published stems have
    norm.gamma.assign(rng.uniform(0.5, 1.5, 8))
    norm.beta.assign(rng.normal(0.5, 1, 8))
    aware = quantization_aware(model)
    images = rng.integers(0, 256, (60, 27, 19, 3)).astype(np.float32) / 127.5 - 1
    aware(images, training=True)
    report = export_litert(aware, tmp_path / "odd.tflite", "int8", compare=False)
    assert_same(aware, tmp_path / "odd.tflite", images, report.outputs[0].scale)


def test_training_and_inference_round_alike(digits):
    """Where batch norm does not use the batch, both are equal except for ties and the rounding of biases."""
    import keras

    from mnv2_keras.layers import FakeQuantAdd, FakeQuantConvolution, FakeQuantImage, FakeQuantMean

    keras.utils.set_random_seed(2)
    x, step = FakeQuantImage()(digits[1][0][:8])
    shape = {"kernel_size": (3, 3), "strides": (2, 2), "dilation_rate": (1, 1), "padding": "same"}
    options = {"range_momentum": 1.0, "trainable": False}
    for kind, filters in (("full", 8), ("depthwise", None)):
        layer = FakeQuantConvolution(kind, filters, **shape, batch_norm=(0.9, 1e-3), activation="relu6", **options)
        x, step = assert_alike(layer, [x, step])
    y, other = assert_alike(FakeQuantAdd(**options), [x, step, x * 3, step * 3])
    assert_alike(FakeQuantMean(**options), [y, other])


def assert_alike(layer, inputs):
    layer(inputs, training=True)  # looks at the range
    trained, step = layer(inputs, training=True)
    computed, same = layer(inputs, training=False)
    assert np.mean(np.abs(trained - computed) < 0.5 * step) > 0.99
    assert np.max(np.abs(trained - computed)) < 1.01 * step
    assert same == step
    return computed, step


def classify(path, images) -> np.ndarray:
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for image in images:
        interpreter.set_tensor(source["index"], np.rint((image[None] + 1) * 127.5).astype(np.uint8))  # pixels
        interpreter.invoke()
        scale_out, zero_out = target["quantization"]
        outputs.append((interpreter.get_tensor(target["index"])[0].astype(np.float32) - zero_out) * scale_out)
    return np.stack(outputs)


def test_it_exports_to_int8_only(aware, tmp_path):
    with pytest.raises(ValueError, match="precision='int8'"):
        export_litert(aware[1], tmp_path / "m.tflite")


def test_unsupported_layers_are_named():
    import keras

    from mnv2_keras.export.quantization_aware import quantization_aware
    from mnv2_keras.networks.classifier import build_mobilenetv2

    with pytest.raises(ValueError, match="GroupNormalization"):
        quantization_aware(build_mobilenetv2(0.35, (32, 32, 3), classes=3, normalization="group_norm"))
    image = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="sums of two"):
        quantization_aware(keras.Model(image, keras.layers.Add()([keras.layers.Conv2D(3, 1)(image)] * 3)))
    odd = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 1)(image))
    with pytest.raises(ValueError, match="use_bias=False"):
        quantization_aware(keras.Model(image, odd))


@pytest.mark.slow
def test_on_a_real_task_it_is_as_good_as_quantising_afterwards(digits, tmp_path):
    import keras

    from mnv2_keras.export.quantization_aware import quantization_aware

    (images, labels), (test_images, test_labels) = digits
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = network(activation=None)
    model.compile(keras.optimizers.Adam(2e-3), loss, jit_compile=False)  # XLA takes its time to compile
    model.fit(images, labels, batch_size=64, epochs=12, verbose=0)
    aware = quantization_aware(model)
    aware.compile(keras.optimizers.Adam(2e-4), loss)
    aware.fit(images, labels, batch_size=64, epochs=4, verbose=0)
    export_litert(model, tmp_path / "after.tflite", "int8", quantization=Quantization(images[:64]), compare=False)
    report = export_litert(aware, tmp_path / "aware.tflite", "int8", compare=False)
    assert_same(aware, tmp_path / "aware.tflite", test_images, report.outputs[0].scale)
    right = [np.mean(classify(tmp_path / f"{name}.tflite", test_images).argmax(1) == test_labels) for name in ("after", "aware")]
    assert right[1] >= right[0]
    assert right[1] > 0.9
