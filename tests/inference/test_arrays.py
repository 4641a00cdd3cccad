"""What photos and labels may be: arrays of every library, open files; floats only within the network's range."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mnv2_keras import Classifier, build_deeplabv3_mobilenetv2, build_mobilenetv2
from mnv2_keras.inference.segmenter import Segmenter

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


class ForeignArray:
    """An array of another library, such as PyTorch's: it has `__array__`, and can be iterated over."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __iter__(self):
        return iter(self.array)

    def __len__(self):
        return len(self.array)


@pytest.fixture(scope="module")
def classifier():
    with Classifier(build_mobilenetv2(0.1, (32, 32, 3), classes=4), "keras") as opened:
        yield opened


def scores(results):
    return [[(p.index, p.score) for p in result] for result in results]


@pytest.mark.parametrize("wrap", [tf.constant, ForeignArray])
def test_an_array_of_another_library_is_one_photo(wrap, classifier):
    expected = scores(classifier.predict(PHOTO))
    assert scores(classifier.predict(wrap(PHOTO))) == expected
    assert scores(classifier.predict([wrap(PHOTO), PHOTO])) == expected * 2
    assert scores(classifier.predict(wrap(PHOTO[None].repeat(2, 0)))) == expected * 2
    assert len(list(classifier.stream(wrap(PHOTO)))) == 1


def test_an_open_file_is_one_photo(classifier):
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    file.seek(0)
    assert scores(classifier.predict(file)) == scores(classifier.predict(PHOTO))


@pytest.mark.parametrize("wrap", [np.asarray, tf.constant])
def test_channels_first_is_refused_in_one_sentence(wrap, classifier):
    for image in (PHOTO.transpose(2, 0, 1), PHOTO.transpose(2, 0, 1)[None]):
        with pytest.raises(ValueError, match=r"channels first: expected \(H, W, C\), as image.transpose\(1, 2, 0\)"):
            classifier.predict(wrap(image))


def test_a_segmenter_takes_arrays_of_other_libraries_too():
    with Segmenter(build_deeplabv3_mobilenetv2(0.1, (65, 65, 3), classes=2), "keras") as segmenter:
        np.testing.assert_array_equal(segmenter.segment(ForeignArray(PHOTO)).labels, segmenter.segment(PHOTO).labels)
        with pytest.raises(ValueError, match="channels first"):
            segmenter.segment(tf.constant(PHOTO.transpose(2, 0, 1)))


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_floats_outside_of_the_networks_range_are_refused(scale, classifier):
    image = PHOTO[:32, :32].astype(np.float32)
    if scale == 1.0:
        with pytest.raises(ValueError, match=r"values from [\d.]+ to 2\d\d, this network takes -1 to 1: give a photo as uint8"):
            classifier.predict(image)
    else:
        assert classifier.predict(image * scale)  # within [-1, 1]
    assert classifier.predict(image / np.float32(127.5) - 1)


def test_what_is_no_image_is_named(classifier):
    for nothing in (None, 5):
        with pytest.raises(ValueError, match=f"images is a {type(nothing).__name__}: expected a path, an array"):
            classifier.predict(nothing)


def test_labels_in_every_form(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    model = build_mobilenetv2(0.1, (32, 32, 3), classes=4)
    for labels in (str(tmp_path / "names.txt"), ["a", "b", "c", "d"], {3: "d", 2: "c", 1: "b", 0: "a"}):
        with Classifier(model, "keras", labels=labels) as classifier:
            assert classifier.labels == ("a", "b", "c", "d")
    for labels, message in (({"a", "b", "c", "d"}, "labels is a set"), (["a"], "1 labels were given for 4 classes")):
        with pytest.raises(ValueError, match=message):
            Classifier(model, "keras", labels=labels)
