"""SSDLite and the classic SSD against the Object Detection API, variable by variable and map by map."""

import json
import zlib

import keras
import numpy as np
import pytest
from small_checkpoints import fill_by_name

from mnv2_keras import endpoints
from mnv2_keras.analysis import analyze_ssdlite
from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.convert.names import layer_name, variables
from mnv2_keras.convert.transfer import load_arrays
from mnv2_keras.networks.detector import build_ssdlite_mobilenetv2
from mnv2_keras.preprocessing import normalize_image

#: The genuine program's own float32 noise with these weights is 8e-4.
TOLERANCE = 2e-3
FEATURES = [
    "layer_15/expansion_output",
    "layer_19",
    "layer_19_2_Conv2d_2_3x3_s2_512",
    "layer_19_2_Conv2d_3_3x3_s2_256",
    "layer_19_2_Conv2d_4_3x3_s2_256",
    "layer_19_2_Conv2d_5_3x3_s2_128",
]


@pytest.fixture(scope="module")
def detectors():
    """Networks by (side, separable), filled by the name rule; built once."""
    built = {}

    def get(side=300, separable=True):
        if (side, separable) not in built:
            model = build_ssdlite_mobilenetv2(input_shape=(side, side, 3), separable=separable)
            built[side, separable] = fill_by_name(model)
        return built[side, separable]

    return get


@pytest.mark.parametrize(("name", "separable"), [("ssdlite", True), ("ssd", False)])
def test_variables_are_tf_slims(testdata, detectors, name, separable):
    listed = json.loads((testdata / "golden" / "detection" / f"{name}_variables.json").read_text())
    shapes = {name: list(variable.shape) for name, variable in variables(detectors(300, separable)).items()}
    assert [list(item) for item in shapes.items()] == listed, "names and shapes in order of creation"
    assert all(detectors(300, separable).get_layer(layer_name(name)).weights for name in shapes)


@pytest.mark.parametrize(
    ("file", "prefix", "side", "separable"),
    [("ssdlite_golden", "", 300, True), ("ssdlite_extra_golden", "320/", 320, True), ("ssd_golden", "", 300, False)],
)
def test_equals_the_object_detection_api(testdata, detectors, file, prefix, side, separable):
    golden = np.load(testdata / "golden" / "detection" / f"{file}.npz")
    model = detectors(side, separable)
    batch = 1 if prefix else 2
    images = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (batch, side, side, 3)).astype(np.float32)
    tensors = endpoints(model)
    reader = keras.Model(model.input, [*(tensors[name] for name in FEATURES), model.output])
    *features, outputs = reader(normalize_image(images), training=False)

    np.testing.assert_allclose(ssd_anchors((side, side, 3)), golden[f"{prefix}anchors"], rtol=0, atol=1e-6)
    for name, feature in zip(FEATURES, features, strict=True):
        feature, key = np.asarray(feature), f"{prefix}features/{name}"
        assert list(feature.shape) == golden[f"{key}/shape"].tolist()
        for statistic in ("mean", "std"):
            assert abs(getattr(feature, statistic)() - golden[f"{key}/{statistic}"]) < TOLERANCE, (name, statistic)
        full = f"{key}/full" in golden
        genuine = golden[f"{key}/full" if full else f"{key}/slice"]
        ours = feature if full else feature[:, ::4, ::4, ::16]
        np.testing.assert_allclose(ours, genuine, rtol=0, atol=TOLERANCE, err_msg=name)
    encodings, logits = np.asarray(outputs["box_encodings"]), np.asarray(outputs["class_predictions_with_background"])
    np.testing.assert_allclose(encodings, golden[f"{prefix}box_encodings"], rtol=0, atol=TOLERANCE)
    if prefix:
        logits, genuine = logits[:, ::8], golden[f"{prefix}class_predictions_with_background_every8"]
    else:
        genuine = golden["class_predictions_with_background"]
    np.testing.assert_allclose(logits, genuine, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "separable"), [("ssdlite", True), ("ssd", False)])
def test_l2_is_on_the_genuine_kernels(testdata, name, separable):
    model = fill_by_name(build_ssdlite_mobilenetv2(separable=separable, weight_decay=4e-5))
    file = {"ssdlite": "ssdlite_postprocess_loss_golden", "ssd": "ssd_golden"}[name]
    genuine = np.load(testdata / "golden" / "detection" / f"{file}.npz")["l2_regularization_total"]
    assert len(model.losses) == {"ssdlite": 71, "ssd": 55}[name]
    np.testing.assert_allclose(float(sum(model.losses)), genuine, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        ({}, 4_500_543),
        ({"classes": 80}, 4_337_013),
        ({"separable": False}, 6_066_431),
        ({"separable": False, "predictor_kernel": 3}, 18_469_631),
        ({"alpha": 0.35, "classes": 5, "input_shape": (96, 160, 3)}, None),
        ({"alpha": 1.4, "classes": 1}, None),
    ],
)
def test_built_as_analysed(options, counted):
    model, analysis = build_ssdlite_mobilenetv2(**options), analyze_ssdlite(**options)
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert trainable == analysis.trainable
    assert counted in (None, trainable)
    boxes, classes = (model.output[k].shape for k in ("box_encodings", "class_predictions_with_background"))
    assert boxes == (None, analysis.anchors, 4)
    assert classes == (None, analysis.anchors, options.get("classes", 90) + 1)
    shape = options.get("input_shape", (300, 300, 3))
    assert ssd_anchors(shape).shape == (analysis.anchors, 4)


def test_narrow_networks_carry_scaled_names():
    model = build_ssdlite_mobilenetv2(0.75, (96, 96, 3), classes=3)
    names = set(variables(model))
    assert "FeatureExtractor/MobilenetV2/layer_19_1_Conv2d_2_1x1_192/weights" in names
    assert "FeatureExtractor/MobilenetV2/layer_19_2_Conv2d_2_3x3_s2_384_depthwise/depthwise_weights" in names
    assert variables(model)["FeatureExtractor/MobilenetV2/Conv_1/weights"].shape[-1] == 960
    tiny = build_ssdlite_mobilenetv2(0.1, (64, 64, 3), classes=3)
    assert "FeatureExtractor/MobilenetV2/layer_19_1_Conv2d_5_1x1_16/weights" in variables(tiny)
    assert min(v.shape[-1] for n, v in variables(tiny).items() if n.endswith("/project/weights")) == 16


def test_any_size_is_one_network():
    open_size = build_ssdlite_mobilenetv2(0.1, (None, None, 3), classes=2)
    fixed = build_ssdlite_mobilenetv2(0.1, (65, 97, 3), classes=2)
    load_arrays(fixed, {name: v.numpy() for name, v in variables(open_size).items()})
    image = np.random.default_rng(zlib.crc32(b"image")).uniform(-1, 1, (1, 65, 97, 3)).astype(np.float32)
    for name, values in fixed(image).items():
        np.testing.assert_allclose(open_size(image)[name], values, atol=1e-5)
        assert values.shape[1] == len(ssd_anchors((65, 97)))


def test_saved_and_loaded(tmp_path):
    model = fill_by_name(build_ssdlite_mobilenetv2(0.1, (64, 64, 3), classes=2, include_preprocessing=True))
    model.save(tmp_path / "model.keras")
    image = np.full((1, 64, 64, 3), 200, np.float32)
    again = keras.models.load_model(tmp_path / "model.keras")
    plain = fill_by_name(build_ssdlite_mobilenetv2(0.1, (64, 64, 3), classes=2))
    for name, values in model(image).items():
        np.testing.assert_array_equal(again(image)[name], values)
        np.testing.assert_allclose(plain(normalize_image(image))[name], values, atol=1e-4)


def test_outputs_stay_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_ssdlite_mobilenetv2(0.1, (64, 64, 3), classes=2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {output.dtype for output in model.output.values()} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"classes": True}, "classes is True"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"input_shape": (300, 300)}, "input_shape is"),
        ({"input_shape": (300, 300, None)}, "input_shape is"),
        ({"input_shape": (32, 300, 3)}, "at least 33 pixels"),
        ({"input_shape": (True, 300, 3)}, "input_shape is"),
        ({"predictor_kernel": 1}, "predictor_kernel is 1"),
        ({"separable": False, "predictor_kernel": 5}, "predictor_kernel is 5"),
        ({"alpha": 0}, "alpha is 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build_ssdlite_mobilenetv2(**options)
