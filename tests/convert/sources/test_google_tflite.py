"""Google's quantised classifier as a Keras model: the same top-1 as the genuine program on every photo."""

import tarfile
import zipfile

import numpy as np
import pytest

from mnv2_keras import (
    Classifier,
    Quantization,
    build_mobilenetv2,
    convert_checkpoint,
    export_litert,
    imagenet_labels,
    preprocess_image,
)
from mnv2_keras.conversion import open_model
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.sources import open_source
from mnv2_keras.convert.sources.tf_slim import write_checkpoint

#: From the goldens' own description: photo to top-1.
TOP_1 = {"cat.bmp": 286, "bird.bmp": 20, "hot_dog.jpg": 935, "grace_hopper.bmp": 653, "dog_segmentation.bmp": 259}


def test_classifier(testdata):
    path = testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite"
    photos = np.stack([preprocess_image(testdata / "images" / name) for name in TOP_1])
    with_background = np.asarray(convert_checkpoint(path)(photos))
    assert with_background.shape == (5, 1001)
    assert with_background.argmax(-1).tolist() == list(TOP_1.values())
    without = np.asarray(convert_checkpoint(path, classes=1000)(photos))
    assert (without.argmax(-1) + 1).tolist() == list(TOP_1.values())
    with pytest.raises(ValueError, match="holds 1001 classes: another number needs a new head"):
        convert_checkpoint(path, classes=7)


def test_an_archive_that_has_nothing_else(testdata, tmp_path):
    path = testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite"
    archive = tmp_path / "quantized_v2_224_100.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, "v2_224_100/model.tflite")
    with open_source(archive) as checkpoint:
        assert checkpoint.resolution == 224
        assert list(checkpoint.sha256) == ["model.tflite"]
    for ours, known in zip(convert_checkpoint(archive).weights, convert_checkpoint(path).weights, strict=True):
        np.testing.assert_array_equal(ours, known)


def test_a_checkpoint_of_quantised_training(tmp_path):
    """`tf.contrib.quantize` keeps the ranges it learnt beside the network's own variables."""
    model = build_mobilenetv2(0.35, (32, 32, 3), classes=3)
    arrays = {name: np.asarray(variable) for name, variable in variables(model).items()}
    scope = "MobilenetV2/Conv/act_quant"
    ranges = [f"{scope}/min", f"{scope}/max", f"{scope}/{scope}/max/biased", f"{scope}/{scope}/max/local_step"]
    ranges += ["MobilenetV2/Conv/weights_quant/min", "MobilenetV2/expanded_conv_2/post_activation_bypass_quant/max"]
    write_checkpoint(arrays | dict.fromkeys(ranges, np.float32(6)), tmp_path / "model.ckpt")
    again, transfer = open_model(tmp_path / "model.ckpt", size=(32, 32))
    for ours, known in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, known)
    assert {name: transfer.left_out[name] for name in ranges} == dict.fromkeys(ranges, "ranges of quantised training")


def test_what_is_read(testdata, tmp_path):
    with open_source(testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite") as network:
        assert network.facts == {"input_shape": (513, 513, 3), "output_stride": 16}
    assert len(network.shapes) == 272
    assert network.shapes["aspp0/weights"] == (1, 1, 320, 256)
    assert network.shapes["MobilenetV2/expanded_conv_3/depthwise/depthwise_weights"] == (3, 3, 144, 1)
    assert network.labels is None
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "nothing.tflite")
    (tmp_path / "text.tflite").write_text("not a model")
    with pytest.raises(ValueError, match="is not a .tflite file"):
        open_source(tmp_path / "text.tflite")


def test_labels_in_the_file_are_read(testdata, tmp_path):
    path = tmp_path / "labelled.tflite"
    path.write_bytes((testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:  # MediaPipe keeps associated files in a zip behind the network
        archive.writestr("labels.txt", "\n".join(imagenet_labels()))
    with open_source(path) as source:
        assert source.labels == imagenet_labels()


@pytest.mark.slow
def test_back_to_int8(testdata, tmp_path):
    """The file made of Google's file names every photo as Google's does."""
    official = testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite"
    photos = [testdata / "images" / name for name in TOP_1]
    export_litert(convert_checkpoint(official), tmp_path / "again.tflite", "int8", quantization=Quantization(photos))
    with Classifier(official) as theirs, Classifier(tmp_path / "again.tflite") as ours:
        for photo, known in zip(photos, TOP_1.values(), strict=True):
            found = [each.predict(photo, top=1)[0][0].index for each in (theirs, ours)]
            assert found == [known, known], photo
