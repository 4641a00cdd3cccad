"""Checkpoints in, checkpoints out: every layout, every way to name one."""

import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_checkpoints import archive_of, same_weights, small

from mnv2_keras import Row, build_mobilenetv2, convert_checkpoint, load_checkpoint, save_checkpoint
from mnv2_keras.convert.goldens import name_rule_value, seeded_input
from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.sources import open_source
from mnv2_keras.convert.sources.tf_slim import write_checkpoint
from mnv2_keras.convert.transfer import load_arrays
from mnv2_keras.weights import save_model


def test_round_trip_is_exact(network, tmp_path):
    model, arrays = network
    prefix = save_checkpoint(model, tmp_path / "new" / "mobilenet_v2_0.1_32.ckpt")
    # TensorFlow's own reader finds TF-Slim's names, shapes and the same bits.
    reader = tf.train.load_checkpoint(str(prefix))
    assert reader.get_variable_to_shape_map() == {name: list(value.shape) for name, value in arrays.items()}
    for name, value in arrays.items():
        assert reader.get_tensor(name).tobytes() == value.tobytes()
    assert sorted(file.name for file in prefix.parent.iterdir()) == [f"{prefix.name}.data-00000-of-00001", f"{prefix.name}.index"]
    converted = convert_checkpoint(prefix)
    assert same_weights(converted, model)
    assert converted.input_shape == model.input_shape
    assert converted.layers[-1].name == "Predictions"


def test_every_way_to_name_a_checkpoint(network, prefix, tmp_path):
    model, _ = network
    archive = archive_of(prefix, tmp_path / "mobilenet_v2_0.1_32.tgz")
    other = tmp_path / "other"
    other.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(other, filter="data")
    for path in (prefix, str(prefix), f"{prefix}.index", f"{prefix}.data-00000-of-00001", archive, other):
        assert same_weights(convert_checkpoint(path), model), path


def test_official_archives(testdata):
    folder = testdata / "checkpoints"
    full = convert_checkpoint(folder / "mobilenet_v2_1.0_224.tgz")
    assert (full.input_shape, full.output_shape) == ((None, 224, 224, 3), (None, 1001))
    narrow = convert_checkpoint(folder / "mobilenet_v2_0.35_96.tgz")
    assert narrow.input_shape == (None, 96, 96, 3)
    for name, variable in variables(narrow).items():
        np.testing.assert_array_equal(variable, name_rule_value(name, variable.shape))
    old = convert_checkpoint(folder / "v1_format" / "mobilenet_v2_0.1_32.ckpt")
    assert (old.input_shape, old.output_shape) == ((None, 32, 32, 3), (None, 5))
    assert old.get_layer("Conv_1").filters == 128
    for name, variable in variables(old).items():
        np.testing.assert_array_equal(variable, name_rule_value(name, variable.shape))


def test_averages_or_raw(testdata):
    path = testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz"
    model = build_mobilenetv2()
    averaged = load_checkpoint(model, path)
    with open_source(path) as checkpoint:
        for name, source in averaged.taken.items():
            average = f"{name}/ExponentialMovingAverage"
            assert source == (average if average in checkpoint.shapes else name)
            np.testing.assert_array_equal(variables(model)[name], checkpoint.array(source))
        assert averaged.averaged == 158  # moving statistics have no average
        assert set(averaged.taken.values()) | set(averaged.left_out) == set(checkpoint.shapes)
    reasons = set(averaged.left_out.values())
    assert reasons == {"optimiser slots", "counters", "raw variables that have an average"}
    assert "158 averaged, 104 as they are" in averaged.report()
    raw = load_checkpoint(model, path, ema=False)
    assert raw.averaged == 0
    assert set(raw.left_out.values()) == {"optimiser slots", "counters", "moving averages"}
    assert raw.as_dict()["taken"] == raw.taken


def test_a_base_takes_a_full_checkpoint(network, prefix):
    _, arrays = network
    base = small(include_top=False)
    report = load_checkpoint(base, prefix)
    assert set(report.left_out) == {name for name in arrays if "/Logits/" in name}
    assert set(report.left_out.values()) == {"variables after the model's end"}
    stump = small(include_top=False, final_endpoint="layer_15/expansion_output")
    report = load_checkpoint(stump, prefix)
    assert "MobilenetV2/expanded_conv_13/depthwise/depthwise_weights" in report.left_out
    assert "MobilenetV2/expanded_conv_13/expand/weights" in report.taken


def test_background_is_dropped(testdata):
    path = testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz"
    full, dropped = convert_checkpoint(path), convert_checkpoint(path, classes=1000)
    images = seeded_input((1, 96, 96, 3))
    logits = [keras.Model(model.input, model.get_layer("Logits").output)(images, training=False) for model in (full, dropped)]
    np.testing.assert_allclose(logits[1], logits[0][:, 1:], rtol=0, atol=1e-5)
    assert same_weights(build_mobilenetv2(0.35, (96, 96, 3), classes=1000, weights=path), dropped)
    model = build_mobilenetv2(0.35, (96, 96, 3), classes=1000)
    assert load_checkpoint(model, path).background_dropped


def test_a_new_head_is_announced(network, prefix, caplog):
    model, arrays = network
    fresh = convert_checkpoint(prefix, classes=7)
    assert "has 4 classes: its backbone is kept, the head of 7 classes is new" in caplog.text
    assert fresh.output_shape == (None, 7)
    for name, variable in variables(fresh).items():
        if "/Logits/" not in name:
            np.testing.assert_array_equal(variable, arrays[name])
    assert small(classes=9, weights=prefix).output_shape == (None, 9)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.35},
        {"alpha": 0.56},
        {"alpha": 0.28},
        {"alpha": 1.37, "classes": 3},
        {"alpha": 0.5, "finegrain_classification_mode": False},
        {"alpha": 0.5, "divisible_by": 1, "min_depth": 1},
        {"alpha": 0.35, "min_depth": 16},
        {"alpha": 0.5, "split_expansion": 4, "split_projection": 4},
        {"alpha": 0.5, "normalization": "group_norm", "include_top": False},
        {"alpha": 0.35, "include_top": False},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_18"},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_8"},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_15/expansion_output"},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_4/depthwise_output"},
        {"alpha": 1.0, "divisible_by": 4, "min_depth": 3},
        {"alpha": 0.73, "divisible_by": 4, "min_depth": 3},
    ],
)
def test_options_are_read_from_the_shapes(options, tmp_path):
    model = build_mobilenetv2(input_shape=(32, 32, 4), **options)
    prefix = save_checkpoint(model, tmp_path / "network")
    converted = convert_checkpoint(prefix, input_shape=(32, 32, 4))
    assert same_weights(converted, model)
    images = seeded_input((1, 32, 32, 4))
    np.testing.assert_array_equal(converted(images), model(images))


def test_a_table_of_ones_own(tmp_path):
    table = [Row(1, 16, 1, 1), Row(6, 24, 2, 2), Row(6, 32, 3, 2), Row(6, 64, 4, 2)]
    options = {"table": table, "last_channels": 64, "input_shape": (28, 28, 1)}
    model = build_mobilenetv2(classes=10, **options)
    prefix = save_checkpoint(model, tmp_path / "digits")
    assert same_weights(convert_checkpoint(prefix, **options), model)
    # Strides are not in the shapes, so the table must be given; its widths are checked against the file's.
    with pytest.raises(ValueError, match="unknown to the model|another shape"):
        convert_checkpoint(prefix, **options | {"table": table[:3]})
    with pytest.raises(ValueError, match=r"does not hold their strides s: pass table=\[\(1, 16, 1, s\), \(6, 24, 1, s\)"):
        convert_checkpoint(prefix, input_shape=(28, 28, 1))
    wider = build_mobilenetv2(classes=10, **options | {"table": [*table[:3], Row(6, 72, 4, 2)]})
    with pytest.raises(ValueError, match=r"of another shape than the model:\n .*expanded_conv_6/project"):
        load_checkpoint(wider, prefix)


def test_published_alphas_are_recognised():
    from mnv2_keras import make_plan
    from mnv2_keras.convert.names import classifier_shapes

    for alpha in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
        found = infer_architecture(classifier_shapes(make_plan(alpha), 1001))
        assert (found.alpha, found.classes, found.channels, found.has_last) == (alpha, 1001, 3, True)
    assert infer_architecture({"conv/kernel": (3, 3, 3, 32)}) is None


def test_resolution_from_the_name_the_graph_or_the_caller(network, tmp_path):
    _, arrays = network
    prefix = write_checkpoint(arrays, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"does not hold its resolution.*pass input_shape, such as input_shape=\(224, 224, 3\)"):
        convert_checkpoint(prefix)
    assert convert_checkpoint(prefix, input_shape=(48, 40, 3)).input_shape == (None, 48, 40, 3)
    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder(tf.float32, (1, 64, 96, 3), name="input")
        (tmp_path / "model_frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    assert convert_checkpoint(prefix).input_shape == (None, 64, 96, 3)


def test_weights_argument(network, prefix, tmp_path):
    model, _ = network
    assert same_weights(small(weights=prefix), model)
    assert same_weights(small(weights=archive_of(prefix, tmp_path / "any.tgz")), model)
    with pytest.raises(ValueError, match="imagnet"):
        small(weights="imagnet")
    with pytest.raises(FileNotFoundError, match=r"nowhere/model\.ckpt does not exist"):
        small(weights="nowhere/model.ckpt")


def test_save_model_formats(network, tmp_path):
    model, _ = network
    for name in ("a.keras", "a.h5", "a.weights.h5", "a.ckpt", "plain"):
        path = save_model(model, tmp_path / "deep" / name)
        assert same_weights(small(weights=path), model), name
    with pytest.raises(ValueError, match=r"a\.txt: expected \.keras, \.h5, \.weights\.h5 or \.ckpt"):
        save_model(model, tmp_path / "a.txt")


def test_load_arrays_refuses_a_misfit(network):
    model, arrays = network
    with pytest.raises(ValueError, match=r"1 missing from the file \(MobilenetV2/Conv/weights\)"):
        load_arrays(model, {name: value for name, value in arrays.items() if name != "MobilenetV2/Conv/weights"})


def test_names_that_are_none(network, prefix):
    model, _ = network
    for weights in ("", 5, None):
        with pytest.raises(ValueError, match=r"expected a path, or a name from list_checkpoints\(\)"):
            load_checkpoint(model, weights)
    with pytest.raises(ValueError, match="goes with build_mobilenetv2"):
        load_checkpoint(model, "imagenet")


def test_a_backbone_cut_on_request(network, prefix):
    model, arrays = network
    base = convert_checkpoint(prefix, final_endpoint="layer_7")
    assert base.output_shape == (None, 4, 4, 8)
    for name, variable in variables(base).items():
        np.testing.assert_array_equal(variable, arrays[name])
