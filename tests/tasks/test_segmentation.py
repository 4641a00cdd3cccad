"""The official segmentation archives: converted, verified against frozen graphs and goldens, refused where they do not fit."""

import logging
import shutil

import keras
import numpy as np
import pytest
from small_checkpoints import fill_by_name

from mnv2_keras import (
    build_deeplabv3_mobilenetv2,
    convert_checkpoint,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
    verify_model,
)
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.sources import open_source
from mnv2_keras.images import read_image
from mnv2_keras.masks import pad_photo

PASCAL = "deeplabv3_mnv2_pascal_train_aug_2018_01_29.tar.gz"
HALF = "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01.tar.gz"


@pytest.fixture(scope="module")
def archive(testdata):
    return testdata / "checkpoints" / HALF


@pytest.fixture(scope="module")
def converted(archive):
    return convert_checkpoint(archive)


@pytest.mark.parametrize("name", [PASCAL, HALF])
def test_verify_passes(testdata, name):
    receipt = verify_checkpoint(testdata / "checkpoints" / name, images=testdata / "images" / "cat.bmp")
    assert receipt.passed, receipt.failure
    assert receipt.constants == 272
    assert receipt.pixels >= 0.999
    compared = [each.endpoint for each in receipt.endpoints]
    assert compared[0] == "input"
    assert {"layer_18", "image_pooling", "aspp0", "concat_projection", "logits/semantic", "net"} <= set(compared)


def test_convert_tells_alpha_size_stride(converted, archive):
    assert converted.input_shape == (None, 513, 513, 3)
    assert converted.output_shape == (None, 513, 513, 21)
    assert variables(converted)["MobilenetV2/expanded_conv_16/project/weights"].shape[-1] == 160
    with open_source(archive) as checkpoint:
        for name, variable in variables(converted).items():
            np.testing.assert_array_equal(variable.numpy(), checkpoint.array(name))
    # The options override what was found.
    other = convert_checkpoint(archive, input_shape=(65, 97, 3), output_stride=8)
    assert other.get_layer("aspp0").output.shape[1:3] == (9, 13)


def test_verify_model_finds_a_changed_weight(archive, converted):
    other = keras.models.clone_model(converted)
    other.set_weights(converted.get_weights())
    batch = np.random.default_rng(0).uniform(-1, 1, (1, 513, 513, 3)).astype(np.float32)
    assert verify_model(other, archive, images=batch).passed
    kernel = variables(other)["aspp0/weights"]
    kernel.assign(kernel * 1.01)
    receipt = verify_model(other, archive)
    assert not receipt.passed
    assert receipt.different_constants == ["aspp0/weights"]
    assert next(each.endpoint for each in receipt.endpoints if not each.passed) == "aspp0"
    with pytest.raises(ValueError, match="images is a float32 batch"):
        verify_model(other, archive, images=batch[:, :99])
    with pytest.raises(ValueError, match="images is empty"):
        verify_model(other, archive, images=[])


@pytest.mark.parametrize(("options", "tags"), [
    ({"input_shape": (65, 65, 3), "output_stride": 32, "head": False}, ["os32_bare"]),
    ({"input_shape": (65, 65, 3), "aspp_rates": (6, 12, 18), "decoder": True}, ["decoder"]),
])  # fmt: skip
def test_goldens_in_place_of_a_graph(goldens, tmp_path, options, tags):
    prefix = save_checkpoint(fill_by_name(build_deeplabv3_mobilenetv2(**options)), tmp_path / "model.ckpt")
    receipt = verify_checkpoint(prefix, goldens=goldens)
    assert receipt.passed, receipt.failure
    names = {f"{tag}.npz" for tag in tags}
    assert names == {name for name in receipt.sha256 if name.endswith(".npz")}
    assert receipt.pixels >= 0.9999
    with pytest.raises(ValueError, match="holds no golden of this network"):
        verify_checkpoint(prefix, goldens=goldens / "os16.npz")
    with pytest.raises(ValueError, match="nothing to compare with"):
        verify_checkpoint(prefix)


def test_damaged_golden(goldens, tmp_path):
    shutil.copy(goldens / "os32_bare.json", tmp_path)
    (tmp_path / "os32_bare.npz").write_bytes(b"PK\x03\x04")
    model = build_deeplabv3_mobilenetv2(input_shape=(65, 65, 3), output_stride=32, head=False)
    prefix = save_checkpoint(model, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="cannot be read as a golden's arrays"):
        verify_checkpoint(prefix, goldens=tmp_path)


@pytest.mark.parametrize("options", [
    {"alpha": 0.75, "classes": 19},
    {"alpha": 1.4, "classes": 151, "aspp_rates": (6, 12, 18), "decoder": True},
    {"alpha": 0.25, "aspp_rates": (12, 24, 36), "aspp_separable": False, "output_stride": 8},
])  # fmt: skip
def test_round_trip_of_other_networks(tmp_path, options):
    """Alpha, classes and the parts of the head come from the shapes; without a graph, size and stride are the published."""
    model = fill_by_name(build_deeplabv3_mobilenetv2(input_shape=(65, 65, 3), **options))
    prefix = save_checkpoint(model, tmp_path / "model.ckpt")
    given = {"output_stride": 8} if "output_stride" in options else {}
    again = convert_checkpoint(prefix, **given)
    assert again.output_shape == (None, 513, 513, options.get("classes", 21))
    small = convert_checkpoint(prefix, input_shape=(65, 65, 3), **given)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 65, 65, 3)).astype(np.float32)
    np.testing.assert_allclose(small(image), model(image), atol=1e-4)


def test_dilations_must_be_known(tmp_path):
    model = build_deeplabv3_mobilenetv2(0.35, (65, 65, 3), aspp_rates=(2, 4))
    prefix = save_checkpoint(model, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="2 atrous branches, and their dilations are unknown"):
        convert_checkpoint(prefix)
    with pytest.raises(ValueError, match="has 2 atrous branches, each needs one"):
        convert_checkpoint(prefix, aspp_rates=(2,))
    assert convert_checkpoint(prefix, aspp_rates=(2, 4), input_shape=(33, 33, 3))


def test_new_classes_keep_all_but_the_logits(archive, converted, caplog):
    with caplog.at_level(logging.WARNING):
        model = convert_checkpoint(archive, classes=5, input_shape=(65, 65, 3))
    assert "has 21 classes" in caplog.text
    ours, theirs = variables(model), variables(converted)
    assert ours["logits/semantic/weights"].shape == (1, 1, 256, 5)
    for name, variable in ours.items():
        if not name.startswith("logits/"):
            np.testing.assert_array_equal(variable.numpy(), theirs[name].numpy())


def test_a_classifiers_backbone(testdata, caplog):
    with caplog.at_level(logging.WARNING):
        archive = testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz"
        model = build_deeplabv3_mobilenetv2(input_shape=(65, 65, 3), weights=archive)
    assert "its backbone is kept" in caplog.text
    with open_source(archive) as checkpoint:
        name = "MobilenetV2/expanded_conv_16/project/weights"
        average = checkpoint.array(f"{name}/ExponentialMovingAverage")
    np.testing.assert_array_equal(variables(model)[name].numpy(), average)
    # DeepLab's widths for other alphas are no classifier's.
    with pytest.raises(ValueError, match="alpha"):
        build_deeplabv3_mobilenetv2(0.35, (65, 65, 3), weights=testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz")


def test_wrong_alpha(archive):
    model = build_deeplabv3_mobilenetv2(1.0, (65, 65, 3))
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"holds alpha 0\.5 .*, the model was built with alpha 1\.0"):
        load_checkpoint(model, archive)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_googles_quantised_file(testdata):
    model = convert_checkpoint(testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite")
    assert model.input_shape == (None, 513, 513, 3)
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_real.npz")
    for photo, share in (("bird_segmentation.bmp", 0.998), ("cat.bmp", 0.985)):
        pixels = read_image(testdata / "images" / photo)
        height, width = pixels.shape[:2]
        labels = np.argmax(model(pad_photo(pixels, (513, 513))[None]), -1)[0, :height, :width]
        assert np.mean(labels == golden[f"os16/{photo}|labels"]) >= share
    with pytest.raises(ValueError, match="holds 21 classes: another number needs a new head"):
        convert_checkpoint(testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite", classes=3)
