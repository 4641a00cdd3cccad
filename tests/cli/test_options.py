"""How the values of options are read, or refused."""

from pathlib import Path

import pytest

from mnv2_keras.cli.options import image_size, numbers, unique_stems


def test_image_size_is_height_and_width():
    assert image_size("96x160") == (96, 160)
    assert image_size("224") == (224, 224)
    assert image_size(None) is None
    with pytest.raises(ValueError, match="--resolution is 'big': expected a number of pixels"):
        image_size("big")


def test_numbers_are_read_or_refused():
    assert numbers("0.75,1,1.25") == (0.75, 1, 1.25)
    with pytest.raises(ValueError, match="not a list of numbers"):
        numbers("a")


def test_equal_file_names_get_different_stems():
    assert unique_stems([Path("x/a.png"), Path("y/a.jpg"), Path("b.png")]) == ["a", "a-2", "b"]
    stems = unique_stems([Path("a.png"), Path("a.jpg"), Path("a-2.png"), Path("a.bmp")])
    assert len(set(stems)) == 4
