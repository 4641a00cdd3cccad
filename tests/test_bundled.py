"""The digits network in `weights/`: what its receipt says is so."""

import json

import numpy as np
import pytest

from mnv2_keras.bundled import bundled_file, digits_network, sample_digits
from mnv2_keras.conversion import convert_checkpoint
from mnv2_keras.convert.source import sha256_of
from mnv2_keras.data.classification import Examples
from mnv2_keras.evaluation.classification import evaluate, wilson
from mnv2_keras.preprocessing import preprocess_image
from mnv2_keras.training.recipes import DIGITS


@pytest.fixture(scope="module")
def about():
    return json.loads(bundled_file("digits.json").read_text())


def test_the_receipt(about):
    assert about["accuracy"] >= 0.99
    assert about["images"] == 2000
    assert about["trained_on"] == 8000
    assert about["accuracy"] - about["int8_accuracy"] <= 0.003
    right = round(about["accuracy"] * about["images"])
    assert about["accuracy_interval_95"] == pytest.approx(wilson(right, about["images"]))
    assert about["recipe"] == json.loads(json.dumps(DIGITS.as_dict()))
    assert sum(each["images"] for each in about["per_class"].values()) == about["images"]


@pytest.mark.parametrize("name", ["digits.tgz", "digits_int8.tflite"])
def test_files_are_small_and_the_receipts(about, name):
    path = bundled_file(name)
    assert path.stat().st_size == about["bytes"][name] < 1_000_000
    assert sha256_of(path) == about["sha256"][name]


def test_the_checkpoint_says_what_litert_said(about):
    model = convert_checkpoint(bundled_file("digits.tgz"), **digits_network())
    assert model.count_params() == about["parameters"]
    photos, labels = sample_digits()
    images = np.stack([preprocess_image(photo, 28)[..., :1] for photo in photos])
    found = np.asarray(model(images, training=False))
    np.testing.assert_allclose(found, np.array(list(about["samples"].values())), atol=1e-5)
    assert (found.argmax(1) == labels).sum() >= 19


def test_the_int8_file_reads_the_samples():
    photos, labels = sample_digits()
    assert labels.tolist() == [digit for digit in range(10) for _ in range(2)]
    found = evaluate(bundled_file("digits_int8.tflite"), Examples(photos, labels.astype(np.int32), tuple("0123456789")))
    assert found.about["labels"] == list("0123456789")
    assert found.top1 >= 0.95


def test_what_is_not_shipped_is_told():
    with pytest.raises(FileNotFoundError, match=r"nothing\.tgz is not installed .* digits\.tgz"):
        bundled_file("nothing.tgz")
