"""One policy for images that cannot be read, in the data of all three tasks."""

import dataclasses

import numpy as np
import pytest

from mnv2_keras import read_examples
from mnv2_keras.data.detection import DetectionData, detection_batches
from mnv2_keras.data.drawn_shapes import draw_shapes
from mnv2_keras.data.segmentation import photos_and_masks
from mnv2_keras.images import ImageError


@pytest.fixture
def broken(shapes_folder):
    """One of three photos in a folder is no image."""
    path = shapes_folder / "photos" / "1.png"
    path.write_bytes(b"no picture")
    return path


def classification(folder, on_error):
    rows = [f"photos/{i}.png,{i % 2}" for i in range(3)]
    (folder / "list.csv").write_text("\n".join(["file,label", *rows]))
    examples = read_examples(folder / "list.csv", on_error=on_error)
    return examples, (examples.read(i) for i in range(3))


def detection(folder, on_error):
    shapes = draw_shapes(0, 40)
    rows = [dataclasses.replace(shapes, image=folder / "photos" / f"{i}.png") for i in range(3)]
    data = DetectionData(rows, ("a", "b", "c"), (1, 2, 3), on_error=on_error)
    return data, map(data.pixels, rows)


def segmentation(folder, on_error):
    pairs = photos_and_masks(folder / "photos", folder / "masks", 4, on_error=on_error)
    return pairs, iter(pairs)


@pytest.mark.parametrize("reader", [classification, detection, segmentation])
def test_an_image_that_cannot_be_read_is_skipped_and_named_or_raises(reader, shapes_folder, broken):
    data, images = reader(shapes_folder, "skip")
    assert len([image for image in images if image is not None]) == 2
    ((name, reason),) = data.broken.items()
    assert name.endswith("1.png")
    assert "not an image" in reason
    _, images = reader(shapes_folder, "raise")
    with pytest.raises(ImageError, match=r"1\.png is not an image"):
        list(images)


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="on_error is 'ignore': expected one of skip, raise"):
        DetectionData([], (), (), on_error="ignore")


def test_batches_of_a_detector_note_broken_images_in_the_data(shapes_folder, broken):
    data, _ = detection(shapes_folder, "skip")
    ((images, _),) = detection_batches(data, (32, 32), 2, repeat=False)
    assert len(images) == 2
    assert list(data.broken) == [str(broken)]
    assert np.isfinite(images).all()
