"""Masks as files, and photos fitted into a segmenter's input."""

import numpy as np
import pytest
from PIL import Image

from mnv2_keras.images import ImageError, read_image
from mnv2_keras.masks import fit_photo, pad_photo, read_mask, save_mask, voc_palette


def test_palette_is_pascals():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    # From the labels of the VOC development kit.
    for label, colour in {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0)}.items():
        assert tuple(palette[label]) == colour
    assert tuple(palette[20]) == (0, 64, 128)
    assert tuple(palette[255]) == (224, 224, 192)


def test_masks_round_trip(tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, (31, 17), np.uint8)
    path = save_mask(labels, tmp_path / "deep" / "mask.png")
    np.testing.assert_array_equal(read_mask(path), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[labels])
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]
    Image.fromarray(labels).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), labels)
    Image.fromarray(labels > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png"), labels > 128)


def test_files_that_are_not_masks_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no mask"):
        read_mask(tmp_path / "nothing.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "colour.png")
    with pytest.raises(ImageError, match="mode RGB"):
        read_mask(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageError, match="is not a mask"):
        read_mask(tmp_path / "text.png")
    with pytest.raises(OSError):  # noqa: PT011 - the system's own words
        save_mask(np.zeros((2, 2)), tmp_path / "text.png" / "mask.png")
    with pytest.raises(ValueError, match="does not fit"):
        pad_photo(np.zeros((66, 10, 3), np.uint8), (65, 65))


def test_fit_photo_is_pillows_lanczos(testdata):
    photo = read_image(testdata / "images" / "cat.bmp")
    assert fit_photo(photo, (513, 513)) is photo
    smaller = fit_photo(photo, (100, 100))
    assert smaller.shape == (67, 100, 3)
    expected = Image.fromarray(photo).resize((100, 67), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(smaller, np.asarray(expected))
    assert fit_photo(np.zeros((1, 4000, 3), np.uint8), (65, 65)).shape == (1, 65, 3)
