"""Every reader of TFDS data sets opens them in one way, and says what to install."""

import sys

import pytest

from mnv2_keras import read_examples, read_splits
from mnv2_keras.data.detection import read_tfds
from mnv2_keras.data.segmentation import tfds_photos_and_masks
from mnv2_keras.export.calibration import tensorflow_dataset

READERS = {
    "classification": read_examples,
    "classification, in parts": read_splits,
    "detection": lambda name: read_tfds(name, "train"),
    "segmentation": lambda name: tfds_photos_and_masks(name, "train", 4),
    "calibration": lambda name: tensorflow_dataset(f"tfds:{name}"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_without_tfds_the_message_says_what_to_install(monkeypatch, reader):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"no_such_set cannot be read.*pip install 'mnv2-keras\[data\]'"):
        reader("no_such_set")


@pytest.mark.parametrize("reader", list(READERS.values())[:4], ids=list(READERS)[:4])
def test_an_unknown_name_is_named(reader):
    with pytest.raises(FileNotFoundError, match="no data in no_such_set: no such folder, file or TFDS data set"):
        reader("no_such_set")
