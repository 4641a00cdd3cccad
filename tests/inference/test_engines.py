"""LiteRT and OpenVINO behind one protocol, and what their inputs hold."""

import sys

import numpy as np
import pytest

from mnv2_keras.bundled import bundled_file, sample_digits
from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.inference.engines import LitertEngine, OpenvinoEngine, TensorInfo


def test_openvino_agrees(imagenet_file, testdata):
    """It may compute in bfloat16, so the scores are near, not equal."""
    photos = [testdata / "images" / name for name in ("cat.bmp", "bird.bmp", "hot_dog.jpg", "grace_hopper.bmp")]
    with Classifier(imagenet_file) as one, Classifier(imagenet_file, engine="openvino") as other:
        for a, b in zip(one.predict(photos), other.predict(photos), strict=True):
            assert a[0].index == b[0].index
            assert a[0].score == pytest.approx(b[0].score, abs=0.05)
        features, others = one.embed(photos), other.embed(photos)
        assert np.linalg.norm(features - others) < 0.05 * np.linalg.norm(features)


def test_openvino_reads_int8_files_too():
    """Twenty digits through the bundled int8 network, whose ends are uint8, by both engines."""
    content = bundled_file("digits_int8.tflite").read_bytes()
    one, other = LitertEngine(content), OpenvinoEngine(content)
    for digit in sample_digits()[0]:
        prepared = digit / np.float32(127.5) - 1
        np.testing.assert_allclose(one.run(prepared)[0], other.run(prepared)[0], atol=0.05)
    one.close(), other.close()


def test_openvino_keeps_to_its_threads(tiny_file):
    engine = OpenvinoEngine(tiny_file.read_bytes(), threads=1)
    for use_all_threads in (True, False):
        with engine._borrowed(use_all_threads) as request:
            assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_a_missing_openvino_is_named_with_its_package(tiny_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"pip install 'mnv2-keras\[openvino\]'"):
        Classifier(tiny_file, engine="openvino")


def test_only_integers_without_a_scale_mean_nothing():
    assert TensorInfo((8, 8, 3), np.int32).is_plain_integer
    assert not TensorInfo((8, 8, 3), np.float32).is_plain_integer
    pixels = TensorInfo((8, 8, 3), np.uint8)
    assert pixels.levels == (0, 1)
    assert pixels.quantized(np.array([0.2, 254.6, 300], np.float32)).tolist() == [0, 255, 255]
