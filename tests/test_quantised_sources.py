"""Google's quantised classifier as a Keras model: the same top-1 as the genuine program on every photo."""

import numpy as np
import pytest

from mnv2_keras import convert_checkpoint, preprocess_image
from mnv2_keras.convert.sources.quantised import read_quantised

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


def test_what_is_read(testdata, tmp_path):
    network = read_quantised(testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite")
    assert network.input_shape == (513, 513, 3)
    assert network.output_stride == 16
    assert len(network.arrays) == 272
    assert network.shapes["aspp0/weights"] == (1, 1, 320, 256)
    assert network.shapes["MobilenetV2/expanded_conv_3/depthwise/depthwise_weights"] == (3, 3, 144, 1)
    with pytest.raises(FileNotFoundError):
        read_quantised(tmp_path / "nothing.tflite")
    (tmp_path / "text.tflite").write_text("not a model")
    with pytest.raises(ValueError, match="is not a .tflite file"):
        read_quantised(tmp_path / "text.tflite")
