"""Photos to calibrate and compare on: every form that is accepted, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from mnv2_keras.export.calibration import load_photos
from mnv2_keras.preprocessing import preprocess_image


def test_calibration_reports_files_that_are_not_images(tmp_path, testdata):
    for name in ("cat.bmp", "bird.bmp"):
        (tmp_path / name).write_bytes((testdata / "images" / name).read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    loaded = load_photos(tmp_path, (64, 64))
    assert len(loaded.images) == 2
    assert loaded.images[0].shape == (1, 64, 64, 3)
    assert len(loaded.skipped) == 1
    assert str(tmp_path / "notes.txt") in loaded.skipped


def test_calibration_takes_arrays_pairs_and_dicts():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    expected = load_photos(photos, (16, 16)).images
    seen = []
    for form in (list(photos), [(photo, 1) for photo in photos], [{"image": photo, "label": 2} for photo in photos]):
        loaded = load_photos(iter(form), (16, 16), progress=lambda *step: seen.append(step)).images
        np.testing.assert_array_equal(loaded, expected)
    assert seen[-1][1] == 3
    floats = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(load_photos(floats, (16, 16)).images), floats)
    scaled = load_photos(photos, (16, 16), (0.0, 255.0)).images[0]
    np.testing.assert_allclose(scaled, (expected[0] + 1) * 127.5, atol=1e-4)
    assert len(load_photos(photos, (16, 16), limit=2).images) == 2


def test_calibration_in_grey():
    """Colours are weighted as in the Classifier; arrays of other channels are refused."""
    photos = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    loaded = load_photos(photos, (16, 16), channels=1).images
    grey = [np.asarray(Image.fromarray(photo).convert("L")) for photo in photos]
    for image, photo in zip(loaded, grey, strict=True):
        assert image.shape == (1, 16, 16, 1)
        np.testing.assert_array_equal(image[0, ..., 0], preprocess_image(photo, 16)[..., 0])
    with pytest.raises(ValueError, match="the model takes 16 x 16 x 1: give"):
        load_photos(np.zeros((1, 16, 16, 3), np.float32), (16, 16), channels=1)
    with pytest.raises(ValueError, match="takes 5 channels, a photo has 3"):
        load_photos(photos, (16, 16), channels=5)


def test_calibration_is_spread_over_the_folders(tmp_path):
    """Eight photos from eight folders of four: one from each folder; a broken one is replaced by another."""
    for kind in range(8):
        (tmp_path / str(kind)).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (kind * 30, 0, 0)).save(tmp_path / str(kind) / f"{i}.png")
    loaded = load_photos(tmp_path, (8, 8), (0.0, 255.0), limit=8)
    assert [round(float(image[0, 0, 0, 0])) for image in loaded.images] == [kind * 30 for kind in range(8)]
    (tmp_path / "3" / "0.png").write_bytes(b"broken")
    loaded = load_photos(tmp_path, (8, 8), limit=8)
    assert len(loaded.images) == 8
    assert len(loaded.skipped) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((16, 16, 3), np.float32), "expected a batch"),
        (np.zeros((1, 8, 8, 3), np.float32), "the model takes 16 x 16"),
        (np.full((1, 16, 16, 3), 9, np.float32), "reaches from 9"),
        (np.full((1, 16, 16, 3), np.nan, np.float32), "reaches from nan"),
        ([], "gives no photo"),
        (3, "expected a folder"),
        ("tfds:no_such_set:train", "cannot be read"),
    ],
)
def test_wrong_calibration(source, message):
    with pytest.raises(ValueError, match=message):
        load_photos(source, (16, 16))


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        load_photos(tmp_path, (16, 16))
    with pytest.raises(FileNotFoundError):
        load_photos(tmp_path / "none", (16, 16))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"gives no photo.*notes\.txt"):
        load_photos(tmp_path, (16, 16))
