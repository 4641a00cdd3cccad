"""Mobile DeepLabv3 against the genuine DeepLab program: variables, endpoints, labels, at every setting it was run with."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from deeplab_variants import OPTIONS
from genuine_goldens import every, segmentation_runs
from small_checkpoints import fill_by_name

from mnv2_keras import build_deeplabv3_mobilenetv2, endpoints, feature_info
from mnv2_keras.convert.names import variables
from mnv2_keras.layers import ArgMax, ResizeLike
from mnv2_keras.networks.endpoints import endpoint_values

#: Trainable parameters, as the genuine program counted them (`analysis` has its own tests).
TRAINABLE = {"aspp": 2_568_021, "decoder": 2_725_573, "os32_bare": 1_818_453, "dm05_os16": 697_013, "dm05_os8": 697_013}
L2_AT_1E4 = {"aspp": 1.0191617, "decoder": 1.0755911, "os32": 0.9422313, "os32_bare": 0.8651386}


@pytest.fixture(scope="module")
def runs(testdata):
    return segmentation_runs(testdata / "golden")


def test_every_golden_is_tested(runs):
    assert list(runs) == list(OPTIONS)


@pytest.mark.parametrize("tag", OPTIONS)
def test_equals_deeplab(runs, tag):
    golden = runs[tag]
    model = fill_by_name(build_deeplabv3_mobilenetv2(**OPTIONS[tag]))
    shapes = {name: tuple(variable.shape) for name, variable in variables(model).items()}
    assert shapes == golden.shapes
    assert list(shapes) == list(golden.shapes), "order of creation"
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == TRAINABLE.get(tag, 2_113_557)

    arrays, image = golden.arrays, golden.input()
    np.testing.assert_array_equal(
        np.random.Generator(np.random.PCG64(0)).uniform(0, 255, image.shape).astype("f")[:, ::171, ::171],
        arrays["input_probe"] if "input_probe" in arrays else np.load(golden.file)["input_probe"],
    )
    values = endpoint_values(model, image)
    outputs = golden.outputs()
    assert {"net", "logits/semantic", "layer_18"} <= set(outputs)
    assert len(outputs) >= (4 if tag == "os32_bare" else 7)
    for name, (genuine, steps, _) in outputs.items():
        assert every(values[name], steps).shape == genuine.shape, name
        np.testing.assert_allclose(every(values[name], steps), genuine, rtol=0, atol=2e-3, err_msg=name)
    listed = {name.split("/")[1] for name in arrays if name.startswith("features/")} & set(values)
    assert {"layer_18", "concat_projection"} - {"concat_projection" if tag == "os32_bare" else ""} <= listed
    for name in listed:
        value, of = values[name], {key: arrays[f"features/{name}/{key}"] for key in ("shape", "mean", "std", "absmax")}
        assert list(value.shape) == list(of["shape"])
        figures = [value.mean(), value.std(), np.abs(value).max()]
        np.testing.assert_allclose(figures, [of["mean"], of["std"], of["absmax"]], rtol=0, atol=2e-3, err_msg=name)
    if "image_pooling_avgpool" in arrays:
        pooled = values["layer_18"].mean((1, 2), keepdims=True)
        np.testing.assert_allclose(pooled, arrays["image_pooling_avgpool"], rtol=0, atol=2e-3)
    if "logits_stats_mean_std_absmax" in arrays:
        logits = values["logits/semantic"]
        figures = [logits.mean(), logits.std(), np.abs(logits).max()]
        np.testing.assert_allclose(figures, arrays["logits_stats_mean_std_absmax"], rtol=0, atol=2e-3)
    genuine, steps = golden.labels()
    assert np.mean(every(np.argmax(values["net"], -1), steps) == genuine) >= 0.9999
    probabilities = keras.ops.softmax(values["net"][:, ::64, ::64]).numpy()
    np.testing.assert_allclose(probabilities, arrays["prob_every64"], rtol=0, atol=1e-3)
    if "preprocessed_probe" in arrays:
        np.testing.assert_allclose(image[:, ::171, ::171], arrays["preprocessed_probe"], atol=1e-6)


@pytest.mark.parametrize("tag", L2_AT_1E4)
def test_weight_decay(tag):
    model = fill_by_name(build_deeplabv3_mobilenetv2(**OPTIONS[tag], input_shape=(65, 65, 3), weight_decay=1e-4))
    assert len(model.losses) == {"aspp": 41, "decoder": 44, "os32": 38, "os32_bare": 35}[tag]
    assert float(sum(model.losses)) == pytest.approx(L2_AT_1E4[tag], rel=1e-4)


def test_129_pixels(testdata):
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_extra_golden.npz")
    image = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (1, 129, 129, 3)).astype(np.float32)
    for stride in (16, 8):
        model = build_deeplabv3_mobilenetv2(input_shape=(129, 129, 3), output_stride=stride, include_preprocessing=True)
        values = endpoint_values(fill_by_name(model), image)
        np.testing.assert_allclose(values["logits/semantic"], golden[f"129_os{stride}/logits"], rtol=0, atol=2e-3)
        assert np.mean(values["net"].argmax(-1) == golden[f"129_os{stride}/argmax"]) >= 0.9999
        probabilities = keras.ops.softmax(values["net"][:, ::8, ::8]).numpy()
        np.testing.assert_allclose(probabilities, golden[f"129_os{stride}/prob_every8"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"output_stride": 8, "aspp_rates": (2,), "decoder": True, "aspp_separable": False}])
def test_unknown_size_equals_fixed_size(options):
    free = fill_by_name(build_deeplabv3_mobilenetv2(0.1, (None, None, 3), classes=5, **options))
    run = tf.function(free, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for size in [(65, 65), (100, 131), (64, 49), (33, 200)]:
        fixed = build_deeplabv3_mobilenetv2(0.1, (*size, 3), classes=5, **options)
        fixed.set_weights(free.get_weights())
        assert fixed.output_shape == (None, *size, 5)
        images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
        np.testing.assert_allclose(run(images), fixed(images), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("options", "names"), [
    ({}, ["image_pooling", "aspp0", "concat_projection", "logits/semantic"]),
    ({"aspp_rates": (6,), "decoder": True, "output_stride": 8}, ["aspp1_pointwise", "decoder/decoder_conv1_pointwise"]),
])  # fmt: skip
def test_endpoints(options, names):
    model = build_deeplabv3_mobilenetv2(0.35, (129, 97, 3), **options)
    tensors = endpoints(model)
    assert {"layer_1", "layer_4/depthwise_output", "layer_18", *names} <= set(tensors)
    assert "layer_19" not in tensors
    assert list(tensors)[-1] == "logits/semantic"
    info = feature_info(model)
    assert info["logits/semantic"].stride == (4 if options else 16)
    assert info["layer_18"].stride == options.get("output_stride", 16)
    assert info["image_pooling"] == (256, 0)


@pytest.mark.parametrize("small", [(1, 1), (3, 5), (9, 4)])
@pytest.mark.parametrize("large", [(1, 1), (7, 1), (33, 65)])
def test_resize_is_tf1s(small, large, monkeypatch):
    x = np.random.default_rng(1).normal(size=(2, *small, 3)).astype(np.float32)
    like = np.zeros((2, *large, 1), np.float32)
    expected = tf.compat.v1.image.resize_bilinear(x, large, align_corners=True)
    np.testing.assert_array_equal(ResizeLike()([x, like]), expected)
    monkeypatch.setattr(keras.config, "backend", lambda: "another")  # as JAX and PyTorch compute it
    np.testing.assert_allclose(ResizeLike()([x, like]), expected, rtol=0, atol=1e-5)


def test_labels_are_the_largest_class(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    for backend in ("tensorflow", "another"):
        monkeypatch.setattr(keras.config, "backend", lambda backend=backend: backend)
        labels = ArgMax()(logits)
        assert labels.dtype == "int32"
        np.testing.assert_array_equal(labels, logits.argmax(-1))


@pytest.mark.parametrize("options", [{}, {"aspp_rates": (2, 4), "decoder": True}])
def test_files(tmp_path, options):
    model = fill_by_name(build_deeplabv3_mobilenetv2(0.1, (33, 25, 3), **options))
    image = np.random.default_rng(2).uniform(-1, 1, (1, 33, 25, 3)).astype(np.float32)
    expected = model(image)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(image), expected, atol=1e-5)
    assert list(endpoints(loaded)) == list(endpoints(model))
    model.save_weights(tmp_path / "model.weights.h5")
    again = build_deeplabv3_mobilenetv2(0.1, (33, 25, 3), weights=tmp_path / "model.weights.h5", **options)
    np.testing.assert_allclose(again(image), expected, atol=1e-5)


def test_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_deeplabv3_mobilenetv2(0.35, (65, 65, 3), decoder=True)
        logits = model(np.zeros((1, 65, 65, 3), np.float32))
    finally:
        keras.config.set_dtype_policy(before)
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()


def test_initial_weights():
    initial = variables(build_deeplabv3_mobilenetv2(0.5, (65, 65, 3), aspp_rates=(6,), classes=400))
    deviations = {
        "logits/semantic/weights": 0.01,
        "aspp1_depthwise/depthwise_weights": 0.33,
        "aspp1_pointwise/weights": 0.06,
        "MobilenetV2/expanded_conv_16/project/weights": 0.09,
    }
    for name, stddev in deviations.items():
        # Cut at two deviations, a normal keeps 0.88 of its own.
        assert initial[name].numpy().std() == pytest.approx(0.8796 * stddev, rel=0.1), name
    glorot = np.sqrt(6 / (160 + 256))
    assert np.abs(initial["aspp0/weights"].numpy()).max() == pytest.approx(glorot, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "output_stride is 4: expected 8, 16 or 32"),
        ({"classes": 0}, "classes is 0"),
        ({"classes": True}, "classes is True"),
        ({"input_shape": (513, 513)}, "input_shape is"),
        ({"input_shape": (513, 0, 3)}, "input_shape is"),
        ({"input_shape": (513, 513, None)}, "input_shape is"),
        ({"input_shape": 513}, "input_shape is 513"),
        ({"aspp_rates": (6, 0)}, "aspp_rates is"),
        ({"aspp_rates": 6}, "aspp_rates is 6"),
        ({"aspp_rates": "6"}, "aspp_rates is '6'"),
        ({"head": False, "decoder": True}, "head is False"),
        ({"alpha": -1}, "alpha is -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        build_deeplabv3_mobilenetv2(**options)


def test_channels_first():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="channels_last"):
            build_deeplabv3_mobilenetv2()
    finally:
        keras.config.set_image_data_format("channels_last")
