"""Data that the tests of readers and batches share."""

import pytest
from PIL import Image
from tfds_sets import store


@pytest.fixture
def photos(tmp_path):
    """Three classes of five photos, each in its own colour."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            value = 60 * label + 10 * i
            colour = value, 255 - value, value // 2
            Image.new("RGB", (12, 10), colour).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def flowers(tmp_path_factory) -> str:
    """A TFDS data set with a single part: sixteen images of two classes, of three sizes."""
    return store(tmp_path_factory.mktemp("tfds"), "flowers", [0, 1] * 8)
