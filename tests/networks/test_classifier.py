"""The builder's options, errors, files and precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras import TABLE_2, Row, blocks, build_mobilenetv2, endpoints, feature_extractor, feature_info, freeze
from mnv2_keras.convert.goldens import name_rule_value, seeded_input
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.transfer import load_arrays

#: Blocks without and with an expansion, a stride and a residual: what a network of four blocks can show.
SHORT = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2))


def small(**options):
    """A network that builds fast."""
    options = {"alpha": 0.1, "input_shape": (32, 32, 3), "classes": 4} | options
    return build_mobilenetv2(**options)


def short(**options):
    """A network of four blocks, layer_2 to layer_5."""
    return small(table=SHORT, **options)


def test_one_call():
    model = build_mobilenetv2(alpha=0.75)
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 1001)
    assert model.name == "MobilenetV2"
    np.testing.assert_allclose(np.sum(model(np.zeros((1, 224, 224, 3), "float32"))), 1, rtol=1e-5)


def test_digits_network():
    table = [(1, 16, 1, 1), (6, 24, 2, 2), Row(6, 32, 3, 2), (6, 64, 4, 2)]
    model = build_mobilenetv2(table=table, last_channels=64, classes=10, input_shape=(28, 28, 1))
    assert model.output_shape == (None, 10)
    assert list(blocks(model))[-2:] == ["layer_12", "Logits"]
    assert feature_info(model)["layer_12"] == (64, 16)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"include_top": False}, (None, 1, 1, 1280)),
        ({"include_top": False, "pooling": "avg"}, (None, 1280)),
        ({"include_top": False, "pooling": "max"}, (None, 1280)),
        ({"classes": 0}, (None, 1, 1, 1280)),
        ({"classes": None}, (None, 1, 1, 1280)),
        ({"include_top": False, "final_endpoint": "layer_15/expansion_output"}, (None, 2, 2, 96)),
        ({"include_top": False, "final_endpoint": "layer_15/depthwise_output"}, (None, 1, 1, 96)),
        ({"include_top": False, "final_endpoint": "layer_2"}, (None, 16, 16, 8)),
        ({"final_endpoint": "layer_18"}, (None, 4)),
        ({"input_shape": (None, None, 4)}, (None, 4)),
    ],
)
def test_endings(options, shape):
    assert small(**options).output_shape == shape


def test_logits_and_softmax():
    probabilities, logits = small(), small(classifier_activation=None)
    logits.set_weights(probabilities.get_weights())
    images = seeded_input((2, 32, 32, 3))
    np.testing.assert_allclose(probabilities(images), tf.nn.softmax(logits(images)), atol=1e-6)
    assert "Predictions" not in endpoints(logits)


def test_preprocessing_inside():
    outside, inside = small(), small(include_preprocessing=True)
    inside.set_weights(outside.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(inside(pixels), outside(pixels * (2 / 255) - 1), atol=1e-6)


def test_input_tensor():
    image = keras.Input((40, 40, 3))
    model = small(input_tensor=keras.layers.Rescaling(2.0)(image))
    assert model.input_shape == (None, 40, 40, 3)
    plain = small(input_shape=(40, 40, 3))
    plain.set_weights(model.get_weights())
    images = seeded_input((1, 40, 40, 3))
    np.testing.assert_allclose(model(images), plain(2 * images), atol=1e-6)


def test_training_scope():
    """TF-Slim's initialisers, regularisers and batch norm, read off the layers."""
    model = build_mobilenetv2(0.35, (32, 32, 3), weight_decay=4e-5)
    regularized = [layer for layer in model.layers if getattr(layer, "kernel_regularizer", None)]
    assert len(regularized) == 36
    kernels = [layer.kernel for layer in regularized]
    expected = sum(4e-5 * float(tf.nn.l2_loss(kernel.value)) for kernel in kernels)
    np.testing.assert_allclose(float(sum(model.losses)), expected, rtol=1e-5)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.epsilon, layer.momentum, layer.center, layer.scale) == (1e-3, 0.997, True, True)
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            assert layer.depthwise_regularizer is None
            assert layer.depthwise_initializer.stddev == 0.09
    big = variables(model)["MobilenetV2/Logits/Conv2d_1c_1x1/weights"].numpy()
    # A normal of 0.09 cut off at two of its standard deviations has 0.88 of its spread.
    assert abs(big.std() - 0.09 * 0.8796) < 1e-3
    assert np.abs(big).max() <= 0.18
    assert not variables(model)["MobilenetV2/Logits/Conv2d_1c_1x1/biases"].numpy().any()
    assert not build_mobilenetv2(0.1, (32, 32, 3)).losses


def test_momentum_and_dropout():
    model = small(batch_norm_momentum=0.9, dropout_rate=0.5)
    assert model.get_layer("Conv-BatchNorm").momentum == 0.9
    assert model.get_layer("Logits-Dropout").rate == 0.5


@pytest.mark.parametrize("groups", [4, 8])
def test_group_norm(groups):
    model = build_mobilenetv2(0.5, (32, 32, 3), normalization="group_norm", groups=groups, include_top=False)
    assert len(variables(model)) == 156
    assert model.get_layer("Conv-GroupNorm").groups == groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha is 0: expected a finite number above 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"alpha": "1.0"}, "alpha is '1.0'"),
        ({"alpha": True}, "alpha is True"),
        ({"input_shape": (31, 32, 3)}, "31 x 32 is too small: this network has a stride of 32"),
        ({"input_shape": (32, 7, 3), "output_stride": 8}, "stride of 8"),
        ({"input_shape": (224, 224)}, "expected \\(height, width, channels\\)"),
        ({"input_shape": (224, 224, None)}, "expected \\(height, width, channels\\)"),
        ({"input_shape": (0, 224, 3)}, "expected \\(height, width, channels\\)"),
        ({"input_shape": (224.0, 224, 3)}, "expected \\(height, width, channels\\)"),
        ({"input_shape": "224"}, "expected \\(height, width, channels\\)"),
        ({"classes": -1}, "classes is -1"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"pooling": "avg"}, "pooling goes with include_top=False"),
        ({"pooling": "mean", "include_top": False}, "expected None, 'avg' or 'max'"),
        ({"output_stride": 3}, "output_stride is 3: expected None, 1 or an even number"),
        ({"output_stride": 0}, "output_stride is 0"),
        ({"normalization": "layer_norm"}, "expected one of batch_norm, group_norm"),
        ({"normalization": "group_norm", "groups": 7}, "Conv has 8 channels, which 7 groups do not divide"),
        ({"normalization": "group_norm", "groups": 0}, "groups is 0: expected a whole number"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0: expected a finite number from 0"),
        ({"batch_norm_momentum": float("nan")}, "batch_norm_momentum is nan: expected a finite number from 0 to 1"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "input_tensor is a ndarray: expected a Keras tensor"),
        ({"final_endpoint": 3}, "final_endpoint is 3: expected one of"),
        ({"final_endpoint": "layer_20"}, "expected one of layer_1, layer_2/depthwise_output"),
        ({"table": []}, "table has no rows"),
        ({"table": [(1, 2, 3)]}, "rows of four whole numbers"),
        ({"table": 5}, "rows of four whole numbers"),
        ({"table": [(1, 16, 0, 1)]}, "n of row 0 of the table is 0"),
        ({"divisible_by": 0}, "divisible_by is 0"),
        ({"min_depth": 1.5}, "min_depth is 1.5"),
        ({"split_expansion": 0}, "split_expansion is 0"),
        ({"alpha": 1.0, "divisible_by": 1, "split_projection": 2, "table": [(1, 20, 1, 1)]}, "20 channels cannot be split 2 ways"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="channels_first.*set_image_data_format"):
            small()
    finally:
        keras.config.set_image_data_format("channels_last")


def test_features(tmp_path):
    model = small()
    extractor = feature_extractor(model, ["layer_15/expansion_output", "layer_19"])
    images = seeded_input((1, 32, 32, 3))
    maps = extractor(images)
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "layer_15/expansion_output": (1, 2, 2, 96),
        "layer_19": (1, 1, 1, 1280),
    }
    info = feature_info(model)
    assert info["layer_15/expansion_output"] == (96, 16)
    assert info["layer_19"] == (1280, 32)
    assert list(info) == list(endpoints(model))
    assert feature_info(small(input_shape=(None, None, 3), output_stride=8))["layer_19"].stride == 8
    with pytest.raises(ValueError, match="'layer_99' is not an endpoint of model 'MobilenetV2': expected one of layer_1,"):
        feature_extractor(model, ["layer_99"])
    assert list(feature_extractor(model, "layer_1").output) == ["layer_1"]

    # The same on a model from a file, and on one that was called inside another.
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    image = keras.Input((32, 32, 3))
    outer = keras.Model(image, loaded(image))
    assert list(endpoints(loaded)) == list(endpoints(model))
    again = feature_extractor(loaded, ["layer_15/expansion_output", "layer_19"])(images)
    for name, value in maps.items():
        np.testing.assert_array_equal(again[name], value)
    with pytest.raises(ValueError, match="If it is nested in yours"):
        endpoints(outer)


def test_blocks_hold_every_layer_with_weights_once():
    model = small()
    groups = blocks(model)
    assert list(groups) == [f"layer_{i}" for i in range(1, 20)] + ["Logits"]
    named = [name for group in groups.values() for name in group]
    assert len(named) == len(set(named))
    assert {layer.name for layer in model.layers if layer.weights} <= set(named)
    assert groups["layer_2"][0] == "expanded_conv-depthwise"


@pytest.mark.parametrize("batch_norm", [True, False])
def test_freeze_under_fit(batch_norm):
    model = short(dropout_rate=0.0)
    load_arrays(model, {name: name_rule_value(name, value.shape) for name, value in variables(model).items()})
    assert freeze(model, until="layer_3", batch_norm=batch_norm) is model
    before = {name: value.numpy() for name, value in variables(model).items()}
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    images = seeded_input((8, 32, 32, 3)) + 1
    model.fit(images, np.arange(8) % 4, epochs=2, batch_size=4, verbose=0)
    changed = {name for name, value in variables(model).items() if not np.array_equal(before[name], value.numpy())}
    assert not {name for name in changed if name.split("/")[1] in ("Conv", "expanded_conv", "expanded_conv_1")}
    assert "MobilenetV2/Logits/Conv2d_1c_1x1/weights" in changed
    assert "MobilenetV2/expanded_conv_2/project/weights" in changed
    moving = {name.split("/")[1] for name in changed if "/moving_" in name}
    assert moving == (set() if batch_norm else {"expanded_conv_2", "expanded_conv_3", "Conv_1"})


def test_freeze_all_and_none():
    model = freeze(small())
    assert {layer.name for layer in model.layers if layer.trainable_weights} == {"Logits-Conv2d_1c_1x1"}
    freeze(model, until="layer_1", batch_norm=False)
    assert model.get_layer("expanded_conv-depthwise-BatchNorm").trainable
    with pytest.raises(ValueError, match="until is 'layer_99': expected a block"):
        freeze(model, until="layer_99")


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5", ""])
@pytest.mark.parametrize(
    "options", [{}, {"split_expansion": 2, "alpha": 0.5, "include_preprocessing": True, "explicit_padding": True}]
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_files_round_trip(tmp_path, suffix, options):
    model = short(**options)
    images = seeded_input((2, 32, 32, 3))
    expected = model(images)
    path = tmp_path / f"model{suffix}"
    if suffix == ".weights.h5":
        model.save_weights(path)
        loaded = short(weights=path, **options)
    elif suffix:
        model.save(path)
        loaded = keras.models.load_model(path, safe_mode=True)
        assert list(endpoints(loaded)) == list(endpoints(model))
        np.testing.assert_array_equal(short(weights=path, **options)(images), expected)
    else:
        model.export(path, verbose=False)
        served = tf.saved_model.load(path)
        np.testing.assert_allclose(served.serve(images), expected, atol=1e-6)
        return
    np.testing.assert_array_equal(loaded(images), expected)


def test_keras_files_that_do_not_fit(tmp_path):
    short(classes=5).save(tmp_path / "five.keras")
    small(alpha=0.5).save(tmp_path / "half.keras")
    short(classes=5).save_weights(tmp_path / "five.weights.h5")
    (tmp_path / "text.keras").write_text("not a model")
    damaged = bytearray((tmp_path / "five.keras").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "damaged.keras").write_bytes(damaged)
    with pytest.raises(ValueError, match="alpha 0.5"):
        small(weights=tmp_path / "half.keras")
    for file, message in (
        ("five.weights.h5", "does not fit the model"),
        ("text.keras", "is not a Keras model file: it is damaged"),
        ("damaged.keras", r"is not a Keras model file that can be read \(Bad CRC"),
        ("missing.keras", "does not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            short(weights=tmp_path / file)


def test_a_saved_model_fills_what_a_checkpoint_would(tmp_path, caplog):
    saved = short(classes=1001)
    saved.save(tmp_path / "saved.keras")
    images = seeded_input((2, 32, 32, 3))
    base = short(include_top=False, weights=tmp_path / "saved.keras")
    np.testing.assert_array_equal(base(images), feature_extractor(saved, ["layer_6"])(images)["layer_6"])
    logits = variables(saved)["MobilenetV2/Logits/Conv2d_1c_1x1/biases"]
    without = short(classes=1000, weights=tmp_path / "saved.keras")
    ours = variables(without)["MobilenetV2/Logits/Conv2d_1c_1x1/biases"]
    np.testing.assert_array_equal(ours, logits[1:])
    other = short(classes=5, weights=tmp_path / "saved.keras")
    assert "its backbone is kept, the head of 5 classes is new" in caplog.text
    np.testing.assert_array_equal(variables(other)["MobilenetV2/Conv/weights"], variables(saved)["MobilenetV2/Conv/weights"])


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = small()
    finally:
        keras.config.set_dtype_policy("float32")
    assert endpoints(model)["layer_19"].dtype == "float16"
    probabilities = model(seeded_input((2, 32, 32, 3)))
    assert probabilities.dtype == "float32"
    np.testing.assert_allclose(np.sum(probabilities, axis=-1), 1, rtol=1e-5)
    assert all(variable.dtype == "float32" for variable in variables(model).values())


def test_table_is_the_papers():
    # arXiv:1801.04381, Table 2, read off the page.
    assert [tuple(row) for row in TABLE_2] == [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
