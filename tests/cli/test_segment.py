"""`mnv2 segment`: its files, its exit codes, and folders that it refuses."""

import json

import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from PIL import Image

from mnv2_keras import build_deeplabv3_mobilenetv2
from mnv2_keras.labels import voc_labels
from mnv2_keras.masks import read_mask


@pytest.fixture(scope="module")
def weights(converted_here, tmp_path_factory):
    path = tmp_path_factory.mktemp("segmenter") / "small.keras"
    build_deeplabv3_mobilenetv2(0.1, (65, 65, 3)).save(path)
    return path


def test_masks_pictures_and_areas_of_a_folder(weights, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "more/a.png"]):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 90 + i, 3), np.uint8)).save(photos / name)
    (photos / "b2.jpg").write_bytes(b"broken")
    output = tmp_path / "out"
    result = run(monkeypatch, "segment", photos, "-o", output, "--weights", weights, "--json")
    assert result.exit_code == 1
    assert "b2.jpg" in result.stderr
    rows = json.loads(result.stdout)
    assert rows == json.loads((output / "areas.json").read_text())
    assert [row["width"] for row in rows] == [90, 91, 92]
    for row in rows:
        mask = read_mask(row["mask"])
        assert mask.shape == (row["height"], row["width"])
        shares = {voc_labels()[label]: np.mean(mask == label) for label in np.unique(mask)}
        assert row["areas"] == pytest.approx(shares)
        with Image.open(row["picture"]) as picture:
            assert picture.width == 3 * row["width"]
    (photos / "b2.jpg").unlink()
    # The masks of the first run lie below this folder and are not photos.
    options = ["-o", output, "--weights", weights, "--scales", "0.75,1", "--flip"]
    tf.config.run_functions_eagerly(True)  # tracing pays only for many photos
    try:
        result = run(monkeypatch, "segment", tmp_path, *options)
    finally:
        tf.config.run_functions_eagerly(False)
    assert result.exit_code == 0
    assert "b.png" in result.stdout
    assert len(json.loads((output / "areas.json").read_text())) == 3


def test_folders_without_photos_are_refused(weights, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    result = run(monkeypatch, "segment", tmp_path / "empty", "-o", tmp_path / "out", "--weights", weights)
    assert isinstance(result.exception, ValueError)
    assert "holds no images" in str(result.exception)
    assert not (tmp_path / "out").exists()
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    Image.new("RGB", (9, 9)).save(photo)
    output = f"{tmp_path}/out/../photos"
    result = run(monkeypatch, "segment", photo.parent, "-o", output, "--weights", weights)
    assert isinstance(result.exception, ValueError)
    assert "choose another one" in str(result.exception)
    assert list(photo.parent.iterdir()) == [photo]
