"""`checkpoint_info`: the preprocessing, labels and figures of every published checkpoint."""

import subprocess
import sys

import numpy as np
import pytest

from mnv2_keras import checkpoint_info, list_checkpoints, register_checkpoint
from mnv2_keras.detection import preprocess_detection_image
from mnv2_keras.masks import pad_photo
from mnv2_keras.preprocessing import preprocess_image
from mnv2_keras.registry import CheckpointRecord

PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.mark.parametrize("record", list_checkpoints(), ids=lambda record: record.name)
def test_every_published_checkpoint_has_preprocessing_labels_and_figures(record):
    info = checkpoint_info(record.name)
    image = info.preprocess(PHOTO)
    assert image.dtype == np.float32
    assert image.shape == info.input_shape
    assert np.abs(image).max() <= 1
    assert info.labels is None or len(info.labels) == record.classes
    assert (info.labels is None) == ("cityscapes" in record.name or "ade20k" in record.name)
    figures = {"top_1": record.top_1, "top_5": record.top_5, "coco_ap": record.coco_ap, "miou": record.miou}
    assert info.metrics == {name: value for name, value in figures.items() if value is not None}


def test_preprocessing_is_that_of_the_task():
    classifier = checkpoint_info("mobilenet_v2_0.35_96")
    np.testing.assert_array_equal(classifier.preprocess(PHOTO), preprocess_image(PHOTO, 96))
    detector = checkpoint_info("ssdlite_mobilenet_v2_coco_2018_05_09")
    np.testing.assert_array_equal(detector.preprocess(PHOTO), preprocess_detection_image(PHOTO, 300))
    segmenter = checkpoint_info("deeplabv3_mnv2_pascal_train_aug_2018_01_29")
    np.testing.assert_array_equal(segmenter.preprocess(PHOTO), pad_photo(PHOTO, (513, 513)))


def test_labels_are_those_that_the_genuine_programs_count_by():
    assert checkpoint_info("mobilenet_v2_1.0_224").labels[286] == "Egyptian cat"
    coco = checkpoint_info("ssdlite_mobilenet_v2_coco_2018_05_09").labels
    assert (coco[0], coco[11], coco[89]) == ("person", "class 12", "toothbrush")
    assert checkpoint_info("deeplabv3_mnv2_pascal_train_aug_2018_01_29").labels[15] == "person"


def test_a_photo_file_and_a_wrong_array(tmp_path):
    from PIL import Image

    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    for name in ("mobilenet_v2_0.35_96", "ssd_mobilenet_v2_coco_2018_03_29", "deeplabv3_mnv2_ade20k_train_2018_12_03"):
        info = checkpoint_info(name)
        np.testing.assert_array_equal(info.preprocess(tmp_path / "photo.png"), info.preprocess(PHOTO))
        with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
            info.preprocess(PHOTO[..., :2])


def test_the_network_names_the_photo(testdata, archive, imagenet_model):
    """The genuine checkpoint says Egyptian cat (`golden/README.md`)."""
    info = checkpoint_info("mobilenet_v2_1.0_224")
    scores = imagenet_model(info.preprocess(testdata / "images" / "cat.bmp")[None], training=False)
    assert info.labels[int(np.argmax(scores))] == "Egyptian cat"


def test_a_checkpoint_of_the_users_own_has_no_labels_of_another_data_set(monkeypatch):
    monkeypatch.setattr("mnv2_keras.registry._REGISTERED", {})
    register_checkpoint(CheckpointRecord(name="mine", task="segmentation", url="file:///mine.tgz", classes=21, labels="my own"))
    assert checkpoint_info("mine").labels is None


def test_an_unknown_name_gets_the_closest_ones():
    with pytest.raises(ValueError, match=r"did you mean mobilenet_v2_1\.0_224"):
        checkpoint_info("mobilenet_v2_1.0_225")


def test_tensorflow_is_not_imported():
    program = "from mnv2_keras import checkpoint_info as c; c('mobilenet_v2_1.0_224').labels; "
    program += "import sys; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
