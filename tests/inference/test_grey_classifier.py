"""Networks of one channel, such as the shipped one for digits: grey arrays, files, and colour photos seen in grey."""

import json

import numpy as np
import pytest
from command_line import mnv2
from PIL import Image

from mnv2_keras.bundled import bundled_file, sample_digits
from mnv2_keras.images import read_image
from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.preprocessing import preprocess_image


@pytest.fixture(scope="module")
def classifier():
    with Classifier("digits") as opened:
        yield opened


def test_digits_by_arrays_files_and_names(classifier):
    images, labels = sample_digits()
    assert classifier.size == (28, 28)
    assert classifier.labels == tuple("0123456789")
    predictions = classifier.predict(images)  # (20, 28, 28, 1)
    assert sum(best[0].label == str(label) for best, label in zip(predictions, labels, strict=True)) >= 19
    assert classifier.predict([image[..., 0] for image in images]) == predictions  # (28, 28)
    assert classifier.predict(np.repeat(images, 3, axis=3)) == predictions  # RGB of the same brightness
    path = bundled_file("digit_7_1.png")
    assert classifier.predict(path) == classifier.predict(path.read_bytes()) == classifier.predict(read_image(path))
    with Image.open(path) as opened:
        assert classifier.predict(opened) == classifier.predict(path)


def test_colours_are_weighed_as_pillow_does(classifier):
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    grey = np.asarray(Image.fromarray(colours).convert("L"))
    assert classifier.predict(colours) == classifier.predict(grey)


def test_floats_count_as_preprocessed(classifier):
    image = sample_digits()[0][3]
    prepared = preprocess_image(image, (28, 28))[..., :1]
    floats, photo = classifier.predict(prepared)[0][0], classifier.predict(image)[0][0]
    assert floats.index == photo.index
    assert floats.score == pytest.approx(photo.score, abs=0.02)  # uint8 takes levels, [-1, 1] lies half a level beside them
    with pytest.raises(ValueError, match=r"must have shape \(28, 28, 1\)"):
        classifier.predict(np.zeros((28, 28, 3), np.float32))
    with pytest.raises(ValueError, match=r"not \(28, 28, 2\)"):
        classifier.predict(np.zeros((28, 28, 2), np.uint8))


def test_a_grey_network_is_calibrated_on_photos(tmp_path, capsys, monkeypatch):
    """From the shell: to int8 by a folder, compared on photos, and the file says that it takes grey."""
    from mnv2_keras.networks.classifier import build_mobilenetv2
    from mnv2_keras.tflite import read_metadata
    from mnv2_keras.tflite.metadata import GRAYSCALE

    (tmp_path / "photos").mkdir()
    for i, (red, green, blue) in enumerate(np.random.default_rng(0).integers(0, 256, (3, 3)).tolist()):
        Image.new("RGB", (40, 30), (red, green, blue)).save(tmp_path / "photos" / f"{i}.png")
    options = {"table": ((1, 8, 1, 1), (6, 8, 1, 2)), "stem_channels": 8, "last_channels": 16}
    build_mobilenetv2(input_shape=(32, 32, 1), classes=3, **options).save(tmp_path / "grey.keras")
    options = ["--precision", "int8", "--calibrate", tmp_path / "photos", "--photos", tmp_path / "photos", "--json"]
    code, out, err = mnv2(capsys, monkeypatch, "export", tmp_path / "grey.keras", "-o", tmp_path / "grey.tflite", *options)
    assert code == 0, err
    assert json.loads(out)["calibration_images"] == 3
    image = read_metadata(tmp_path / "grey.tflite").about["subgraph_metadata"][0]["input_tensor_metadata"][0]
    assert image["content"]["content_properties"] == ("ImageProperties", {"color_space": GRAYSCALE})
    with Classifier(tmp_path / "grey.tflite") as opened:
        assert len(opened.predict(tmp_path / "photos")) == 3
