"""Detectors from checkpoints: converted, compared with the exported graph and the goldens, refused when they do not fit."""

import shutil
import tarfile

import numpy as np
import pytest

from mnv2_keras import convert_checkpoint, save_checkpoint, verify_checkpoint, verify_model
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables
from mnv2_keras.networks.detector import build_ssdlite_mobilenetv2

ARCHIVE = "ssdlite_mobilenet_v2_coco_synthetic.tar.gz"


@pytest.fixture(scope="module")
def archive(testdata):
    return testdata / "checkpoints" / ARCHIVE


@pytest.fixture(scope="module")
def folder(archive, tmp_path_factory):
    """The archive unpacked."""
    path = tmp_path_factory.mktemp("official")
    with tarfile.open(archive) as tar:
        tar.extractall(path, filter="data")
    return next(path.iterdir())


def values_by_name(model):
    return {name: variable.numpy() for name, variable in variables(model).items()}


def small(**options):
    return build_ssdlite_mobilenetv2(**({"alpha": 0.35, "input_shape": (64, 64, 3), "classes": 3} | options))


def test_archive_converts_and_equals_its_graph_and_the_goldens(archive, goldens):
    model = convert_checkpoint(archive)
    assert model.input_shape == (None, 300, 300, 3)
    assert model.output["class_predictions_with_background"].shape == (None, 1917, 91)
    for name, value in values_by_name(model).items():
        np.testing.assert_array_equal(value, name_rule_value(name, value.shape))

    receipt = verify_model(model, archive)
    assert receipt.passed, receipt.failure
    assert receipt.constants == 404
    assert not receipt.different_constants
    compared = {each.endpoint: each for each in receipt.endpoints}
    for name in ("input", "anchors", "layer_1", "layer_15/expansion_output", "layer_19_2_Conv2d_5_3x3_s2_128"):
        assert name in compared
    assert compared["BoxPredictor_5/ClassPredictor"].passed
    assert compared["input"].max_abs < 1e-6
    assert compared["detection_classes"].max_abs == 0
    assert max(compared[f"detection_{name}"].max_abs for name in ("boxes", "scores")) < 1e-5

    receipt = verify_checkpoint(archive, goldens=goldens)
    assert receipt.passed, receipt.failure
    assert receipt.images == 3
    assert {"ssdlite_300: anchors", "ssdlite_320: class_predictions_with_background"} <= {
        each.endpoint for each in receipt.endpoints
    }


def test_photos_and_batches_can_be_compared_on(folder, testdata):
    model = convert_checkpoint(folder)
    receipt = verify_model(model, folder, images=[testdata / "images" / "cat.bmp"])
    assert receipt.passed, receipt.failure
    batch = np.random.default_rng(0).uniform(-1, 1, (1, 300, 300, 3)).astype(np.float32)
    assert verify_model(model, folder, images=batch).passed
    with pytest.raises(ValueError, match=r"expected \(B, 300, 300, 3\)"):
        verify_model(model, folder, images=batch[:, :100])
    with pytest.raises(ValueError, match="images is empty"):
        verify_model(model, folder, images=[])


def test_a_bare_checkpoint_takes_the_published_size(folder, tmp_path):
    for file in folder.glob("model.ckpt*"):
        shutil.copy(file, tmp_path)
    assert convert_checkpoint(tmp_path).input_shape == (None, 300, 300, 3)
    model = convert_checkpoint(tmp_path / "model.ckpt", input_shape=(320, 200, 3))
    assert model.input_shape == (None, 320, 200, 3)
    # The graph alone tells the size too.
    shutil.copy(folder / "frozen_inference_graph.pb", tmp_path)
    assert convert_checkpoint(tmp_path).input_shape == (None, 300, 300, 3)


def test_a_wrong_weight_is_found(folder):
    model = convert_checkpoint(folder)
    kernel = variables(model)["BoxPredictor_3/ClassPredictor/weights"]
    kernel.assign(kernel * 1.01)
    receipt = verify_model(model, folder)
    assert not receipt.passed
    assert receipt.different_constants == ["BoxPredictor_3/ClassPredictor/weights"]


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.1, "classes": 1},
        {"alpha": 0.35, "separable": False, "predictor_kernel": 3, "input_shape": (64, 64, 1)},
        {"alpha": 0.4021},
        {"alpha": 0.25, "min_depth": 8},
    ],
)
def test_any_detector_comes_back_from_its_own_checkpoint(options, tmp_path):
    model = small(**options)
    save_checkpoint(model, tmp_path / "model.ckpt")
    again = convert_checkpoint(tmp_path, input_shape=model.input_shape[1:])
    ours, theirs = values_by_name(model), values_by_name(again)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value)


def test_another_number_of_classes_starts_new_class_predictors(tmp_path, caplog):
    model = small()
    save_checkpoint(model, tmp_path / "model.ckpt")
    for other in (
        convert_checkpoint(tmp_path, classes=7, input_shape=(64, 64, 3)),
        small(classes=7, weights=tmp_path / "model.ckpt"),
    ):
        assert other.output["class_predictions_with_background"].shape[-1] == 8
        ours, theirs = values_by_name(model), values_by_name(other)
        for name in ours:
            same = "/ClassPredictor/" not in name
            assert (ours[name].shape == theirs[name].shape and np.array_equal(ours[name], theirs[name])) == same, name
    assert "12 weights of the model are new" in caplog.text


def test_a_classifier_fills_the_backbone(testdata, caplog):
    path = testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz"
    model = build_ssdlite_mobilenetv2(0.35, (96, 96, 3), classes=3, min_depth=8, weights=path)
    for name, value in values_by_name(model).items():
        if name.startswith("FeatureExtractor/") and "/layer_19_" not in name and "/Conv_1/" not in name:
            genuine = name_rule_value(name.removeprefix("FeatureExtractor/"), value.shape)
            np.testing.assert_array_equal(value, genuine, err_msg=name)
    # The classifier keeps 1280 channels there, the detector has 448.
    last = values_by_name(model)["FeatureExtractor/MobilenetV2/Conv_1/BatchNorm/gamma"]
    np.testing.assert_array_equal(last, np.ones(448))
    assert "new and untrained" in caplog.text
    full = build_ssdlite_mobilenetv2(1.0, (64, 64, 3), classes=3, weights=testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz")
    assert not np.array_equal(values_by_name(full)["FeatureExtractor/MobilenetV2/Conv_1/BatchNorm/gamma"], np.ones(1280))
    # Its narrowest layers have 8 channels, a detector's 16.
    with pytest.raises(ValueError, match="'min_depth': 8"):
        build_ssdlite_mobilenetv2(0.35, (96, 96, 3), classes=3, weights=path)
    with pytest.raises(ValueError, match=r"alpha 0.35 .*alpha 0.5"):
        build_ssdlite_mobilenetv2(0.5, (96, 96, 3), classes=3, weights=path)


def test_keras_files_fill_it_too(tmp_path):
    model = small()
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for file in ("model.keras", "model.weights.h5"):
        again = values_by_name(small(weights=tmp_path / file))
        for name, value in values_by_name(model).items():
            np.testing.assert_array_equal(again[name], value)


def test_what_does_not_fit_is_refused(folder, tmp_path, testdata, goldens):
    with pytest.raises(ValueError, match="alpha 1.0"):
        build_ssdlite_mobilenetv2(0.5, weights=folder)
    with pytest.raises(ValueError, match="same variables"):
        build_ssdlite_mobilenetv2(separable=False, weights=folder)
    with pytest.raises(ValueError, match="no golden of this network"):
        save_checkpoint(small(), tmp_path / "model.ckpt")
        verify_checkpoint(tmp_path, goldens=goldens)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        small(weights=tmp_path / "nowhere.ckpt")
    shutil.copy(next(testdata.glob("checkpoints/mobilenet_v2_0.35_96.tgz")), tmp_path / "x.tgz")
    graph = tmp_path / "graph"
    graph.mkdir()
    with tarfile.open(testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz") as tar:
        member = next(each for each in tar if each.name.endswith("_frozen.pb"))
        (graph / "frozen_inference_graph.pb").write_bytes(tar.extractfile(member).read())
    for file in folder.glob("model.ckpt*"):
        shutil.copy(file, graph)
    with pytest.raises(ValueError, match="not a frozen graph of an SSD"):
        verify_checkpoint(graph)


def test_shapes_of_another_detector_are_named(tmp_path):
    from mnv2_keras.convert.sources.tf_slim import write_checkpoint

    arrays = {"BoxPredictor_0/ClassPredictor/weights": np.zeros((1, 1, 8, 6), np.float32)}
    write_checkpoint(arrays, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="not SSD or SSDLite on MobileNetV2"):
        convert_checkpoint(tmp_path)
