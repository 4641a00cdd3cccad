"""The builder against the genuine TF-Slim program, variable by variable and endpoint by endpoint."""

import functools
import zlib

import keras
import numpy as np
import pytest
from small_checkpoints import fill_by_name

from mnv2_keras import TABLE_2, build_mobilenetv2, endpoints, make_plan
from mnv2_keras.convert.goldens import Golden, bundled_golden, name_rule_value, seeded_input
from mnv2_keras.convert.names import classifier_shapes, layer_name, variables
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.networks.endpoints import endpoint_values
from mnv2_keras.tasks.compare import compare_with_golden

#: Largest difference, relative to the endpoint's range. TF-Slim against itself (oneDNN on and off) is at 5e-5.
TOLERANCE = 3e-4

TAGS = [
    "alpha0.35_96",
    "alpha0.35_97_odd",
    "alpha0.35_classes11_gray",
    "alpha0.35_explicit_96",
    "alpha0.35_features",
    "alpha0.35_mindepth16_base",
    "alpha0.35_relu_96",
    "alpha0.5_128",
    "alpha0.5_96_nofinegrain",
    "alpha0.5_96_split4x4",
    "alpha0.5_divisible1_base",
    "alpha0.5_os16",
    "alpha0.5_os8",
    "alpha0.75_160",
    "alpha1.0_224",
    "alpha1.0_96_split2x3",
    "alpha1.0_nonsquare_96x160",
    "alpha1.4_224",
    "groupnorm_alpha0.5_96",
]


def test_every_golden_is_tested(testdata):
    assert sorted(path.stem for path in (testdata / "golden" / "classification").glob("*.json")) == sorted(TAGS)


@pytest.mark.parametrize("tag", TAGS)
def test_equals_tf_slim(testdata, tag):
    golden = Golden(testdata / "golden" / "classification" / f"{tag}.json")
    model = fill_by_name(build_mobilenetv2(**golden.options))

    shapes = {name: tuple(variable.shape) for name, variable in variables(model).items()}
    assert shapes == golden.shapes
    assert list(shapes) == list(golden.shapes), "order of creation"
    assert (
        model.count_params() - sum(variable.shape[0] for name, variable in variables(model).items() if "/moving_" in name)
        == golden.about["params"]
    )

    # Every endpoint TF-Slim has, with its shape and statistics; those kept as arrays, value by value.
    values = endpoint_values(model, golden.input())
    genuine = golden.about["endpoints"]
    assert set(values) - {"net"} == set(genuine)
    for name, stats in genuine.items():
        ours, span = values[name], (stats["max"] - stats["min"]) * TOLERANCE
        assert list(ours.shape) == stats["shape"], name
        for statistic in ("mean", "std", "min", "max"):
            assert abs(float(getattr(ours, statistic)()) - stats[statistic]) <= span, (name, statistic)
    receipt = Receipt("model", tag, TOLERANCE, {})
    compare_with_golden(receipt, model, golden)
    assert {comparison.endpoint for comparison in receipt.endpoints} == set(golden.outputs())
    assert receipt.passed, receipt.failure


def test_endpoints_are_in_network_order():
    names = list(endpoints(build_mobilenetv2(0.35, (32, 32, 3))))
    assert names[:5] == ["layer_1", "layer_2/depthwise_output", "layer_2/output", "layer_2", "layer_3/expansion_output"]
    assert names[-5:] == ["layer_18", "layer_19", "global_pool", "Logits", "Predictions"]


def test_the_rule_of_the_goldens():
    # Restated from the goldens' own description.
    name, shape = "MobilenetV2/expanded_conv/depthwise/depthwise_weights", (3, 3, 16, 1)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    expected = rng.normal(0.0, np.sqrt(2.0 / 9), shape).astype(np.float32)
    np.testing.assert_array_equal(name_rule_value(name, shape), expected)
    assert seeded_input((1, 2, 2, 3)).dtype == np.float32


def test_bundled_golden_is_the_genuine_one(testdata):
    ours, genuine = bundled_golden(), testdata / "golden" / "classification"
    for suffix in (".json", ".npz"):
        file = ours.path.with_suffix(suffix)
        assert file.read_bytes() == (genuine / file.name).read_bytes()
        assert file.stat().st_size <= 50 * 1024


@pytest.fixture(scope="module")
def free_size():
    return fill_by_name(build_mobilenetv2(0.1, (None, None, 3), classes=11))


@pytest.mark.parametrize("size", [32, 33, 49, 97, 100, 225, 299])
def test_unknown_size_equals_fixed_size(free_size, size):
    fixed = build_mobilenetv2(0.1, (size, size + 7, 3), classes=11)
    fixed.set_weights(free_size.get_weights())
    images = seeded_input((1, size, size + 7, 3))
    np.testing.assert_allclose(free_size(images), fixed(images), rtol=0, atol=1e-6)


@functools.cache
def base_at_stride(stride, explicit):
    """Every row of Table 2 with its stride, most of them with one repeat.

    No two rows have the same width here: a block that loses its stride would gain a residual, as in TF-Slim.
    """
    table = [(t, c, 2 if c in (32, 160) else 1, s) for t, c, _, s in TABLE_2]
    options = {"include_top": False, "explicit_padding": explicit, "divisible_by": 1, "min_depth": 1}
    return fill_by_name(build_mobilenetv2(0.25, (65, 65, 3), output_stride=stride, table=table, **options))


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("explicit", [False, True])
def test_output_stride_is_dilation(stride, explicit):
    """Dilated features, read at every stride-th place, are the strided network's features."""
    size, images = 65, seeded_input((1, 65, 65, 3))
    ours, strided = (np.asarray(base_at_stride(s, explicit)(images)) for s in (stride, None))
    assert ours.shape[1] == -(-size // stride)
    step = 32 // stride
    # 65 is odd at every level (65, 33, 17, 9, 5, 3), so that SAME pads alike on both sides and the grids coincide.
    np.testing.assert_allclose(ours[:, ::step, ::step], strided, rtol=0, atol=2e-4 * np.ptp(strided))


def test_a_lost_stride_may_gain_a_residual():
    """TF-Slim asks for the stride a block runs with, not for the table's; at alpha 0.1 its ends may be equally wide."""
    plain, dense = make_plan(0.1), make_plan(0.1, output_stride=8)
    gained = {b.name for a, b in zip(plain.blocks, dense.blocks, strict=True) if b.residual and not a.residual}
    assert gained == {"expanded_conv_6", "expanded_conv_13"}
    model = build_mobilenetv2(0.1, (64, 64, 3), output_stride=8)
    assert {layer.name for layer in model.layers if layer.name.endswith("-add")} == {
        f"{block.name}-add" for block in dense.blocks if block.residual
    }


def test_explicit_padding_is_pytorchs():
    """Symmetric padding: what SAME does where the size is odd, and not where it is even."""
    odd, even = seeded_input((1, 65, 65, 3)), seeded_input((1, 64, 64, 3))
    outputs = {}
    for explicit in (False, True):
        model = fill_by_name(build_mobilenetv2(0.1, (None, None, 3), include_top=False, explicit_padding=explicit))
        outputs[explicit] = np.asarray(model(odd)), np.asarray(model(even))
    np.testing.assert_allclose(outputs[True][0], outputs[False][0], rtol=0, atol=1e-4)
    assert np.max(np.abs(outputs[True][1] - outputs[False][1])) > 0.1


@pytest.mark.parametrize(
    ("options", "classes"), [({}, 1001), ({"alpha": 0.35}, 5), ({"alpha": 1.4, "divisible_by": 4, "min_depth": 3}, 7)]
)
def test_manifest_without_building(options, classes):
    """Names and shapes from the plan alone are the built model's."""
    model = build_mobilenetv2(input_shape=(32, 32, 3), classes=classes, **options)
    built = {name: tuple(variable.shape) for name, variable in variables(model).items()}
    assert list(classifier_shapes(make_plan(**options), classes).items()) == list(built.items())


def test_names_go_both_ways():
    table = TABLE_2[:3]
    model = build_mobilenetv2(1.0, (32, 32, 3), table=table, split_expansion=2, split_projection=2)
    assert any("_part_1" in name for name in variables(model))
    layers = {layer_name(name) for name in variables(model)}
    assert layers == {layer.name for layer in model.layers if layer.weights}
    assert all("/" not in name and "." not in name for name in layers)


def test_a_layer_tf_slim_has_no_name_for():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="mine")(inputs))
    with pytest.raises(ValueError, match="layer 'mine' \\(Dense\\) has weights without a TF-Slim name: bias, kernel"):
        variables(model)
