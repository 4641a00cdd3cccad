"""Labelled images: COCO JSON, Pascal VOC XML, drawn shapes, batches and augmentation."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mnv2_keras.data.detection import (
    DetectionExample,
    coco_categories,
    coco_document,
    detection_batches,
    read_coco,
    read_tfds,
    read_voc,
)
from mnv2_keras.data.drawn_shapes import draw_shapes, drawn_shapes
from mnv2_keras.training import detection_augmentation as augmentation


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (40, 20)), ("b.png", (10, 10))):
        Image.new("RGB", size, "red").save(folder / name)
    return folder


def coco(**parts):
    document = {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 20, "width": 40},
            {"id": 3, "file_name": "b.png", "height": 10, "width": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [4, 5, 20, 10], "iscrowd": 0, "area": 77.5},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [30, -5, 20, 10], "iscrowd": 1},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    }
    return document | parts


def written(tmp_path, document):
    path = tmp_path / "instances.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_coco_json(tmp_path, photos):
    data = read_coco(written(tmp_path, coco()), photos)
    assert data.labels == ("person", "dog")
    assert data.categories == (1, 18)
    first, second = data.examples
    np.testing.assert_allclose(first.boxes, [[0.25, 0.1, 0.75, 0.6], [0, 0.75, 0.25, 1]])  # the second cut at the border
    assert first.classes.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert first.areas.tolist() == [77.5, 200], "the mask's, where the file has it"
    assert first.pixels().shape == (20, 40, 3)
    assert (second.boxes.shape, second.number) == ((0, 4), 3)
    published = read_coco(written(tmp_path, coco()), photos, coco_categories()[1])
    assert published.examples[0].classes.tolist() == [17, 0]
    assert published.labels[:2] == ("person", None)


def test_boxes_without_area_are_listed(tmp_path, photos):
    rows = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": box}
        for i, box in enumerate([[1, 1, 0, 5], [1, 1, float("nan"), 5], [50, 1, 5, 5]])
    ]
    data = read_coco(written(tmp_path, coco(annotations=rows)), photos)
    assert len(data.skipped) == 3
    assert "annotation 2 has the box [50, 1, 5, 5]" in data.skipped[2]
    assert len(data.examples[0].boxes) == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"images": [', "not a complete JSON"),
        ("[]", "no list 'images'"),
        (coco(annotations=None), "no list 'annotations'"),
        (coco(annotations=[{"image_id": 7}]), r"annotations\[0\] has no 'category_id'"),
        (coco(annotations=[{"id": 5, "image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1]}]), "image 99"),
        (coco(categories=[{"id": 1, "name": "person"}]), "category 18"),
        (coco(images=[{"id": 7, "file_name": "a.png", "height": 0, "width": 40}]), r"images\[0\] \(a.png\) has the height 0"),
        (coco(images=[{"id": 7, "file_name": "a.png", "height": 9, "width": "40"}]), "the width '40': expected pixels"),
        (coco(annotations=[{"image_id": 7, "category_id": 1, "bbox": [1, 1]}]), r"annotations\[0\] has the bbox \[1, 1\]"),
        (coco(annotations=[{"image_id": 7, "category_id": 1, "bbox": "abcd"}]), "the bbox 'abcd': expected x, y, width"),
        (
            coco(annotations=[{"image_id": 7, "category_id": 1, "bbox": [1, 1, 2, 2], "area": "4"}]),
            r"instances.json: annotations\[0\] has the area '4'",
        ),
    ],
)
def test_bad_coco_files(tmp_path, photos, document, message):
    with pytest.raises(ValueError, match=message):
        read_coco(written(tmp_path, document), photos)


def test_what_is_not_there(tmp_path, photos):
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        coco_document(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        read_coco(written(tmp_path, coco()), tmp_path / "none")


VOC = """<annotation><filename>a.png</filename><size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"""


def test_pascal_voc(tmp_path, photos):
    folder = tmp_path / "Annotations"
    folder.mkdir()
    (folder / "a.xml").write_text(VOC)
    data = read_voc(folder, photos)
    (example,) = data.examples
    np.testing.assert_allclose(example.boxes[0], [0.25, 0, 0.75, 0.5])
    assert [data.labels[label] for label in example.classes] == ["dog", "cat"]
    assert example.crowd.tolist() == [False, True]
    assert data.skipped == ("a.xml: cat has a box without area inside its image",)
    with pytest.raises(ValueError, match="an object 'dog'"):
        read_voc(folder, photos, labels=["cat"])
    with pytest.raises(FileNotFoundError, match=r"about a\.png"):
        read_voc(folder)
    (folder / "b.xml").write_text(VOC.replace("<width>40", "<width>0"))
    with pytest.raises(ValueError, match=r"b\.xml is not a complete Pascal VOC annotation \(its size is 0 x 20\)"):
        read_voc(folder, photos)
    (folder / "b.xml").write_text(VOC[:100])
    with pytest.raises(ValueError, match=r"b\.xml is not a complete Pascal VOC"):
        read_voc(folder, photos)
    with pytest.raises(ValueError, match=r"holds no \.xml"):
        read_voc(photos)
    with pytest.raises(FileNotFoundError, match="no folder of annotations"):
        read_voc(tmp_path / "none")


def examples():
    empty = DetectionExample(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
    crowded = draw_shapes(1, 48)
    crowded = DetectionExample(crowded.image, crowded.boxes, crowded.classes, np.ones(len(crowded.boxes), bool))
    return [draw_shapes(0, 48), empty, crowded]


def test_batches_pad_objects_and_leave_crowds_out():
    ((images, truth),) = list(detection_batches(examples(), (32, 40), 3, repeat=False))
    assert images.shape == (3, 32, 40, 3)
    assert -1 <= float(tf.reduce_min(images)) < float(tf.reduce_max(images)) <= 1
    assert truth["num"].numpy().tolist() == [len(examples()[0].boxes), 0, 0]
    np.testing.assert_array_equal(truth["boxes"][0], examples()[0].boxes)
    with pytest.raises(ValueError, match="no images to train on"):
        detection_batches([], (32, 32), 2)


def test_a_photo_that_cannot_be_read_is_left_out_and_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    shapes = draw_shapes(0, 48)
    bad = DetectionExample(tmp_path / "broken.jpg", shapes.boxes, shapes.classes, shapes.crowd)
    broken = {}
    ((images, _),) = detection_batches([shapes, bad, shapes], (32, 32), 3, repeat=False, broken=broken)
    assert len(images) == 2
    assert list(broken) == [str(tmp_path / "broken.jpg")]
    assert list(detection_batches([bad], (32, 32), 1)) == [], "endless batches of nothing end"


def test_batches_are_made_without_autotune():
    assert detection_batches(examples(), (32, 32), 2).options().autotune.enabled is False


def test_endless_batches_with_augmentation():
    batches = detection_batches(examples(), (32, 32), 2, augment=augmentation.augmentation())
    for images, truth in batches.take(5):
        assert images.shape == (2, 32, 32, 3)
        assert np.isfinite(truth["boxes"]).all()
        assert (truth["num"].numpy() <= truth["boxes"].shape[1]).all()
    assert augmentation.augmentation(flip=False, crop=False) is None


@pytest.mark.parametrize("stream", [False, True])
def test_batches_from_a_later_step_on_are_the_same(tmp_path, stream):
    """Order and augmentation; a photo that cannot be read has no place in either."""
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    shapes = drawn_shapes(5, 40).examples
    rows = [*shapes, DetectionExample(tmp_path / "broken.jpg", shapes[0].boxes, shapes[0].classes, shapes[0].crowd)]
    data = type("Stream", (), {"__iter__": lambda _: iter(rows)})() if stream else rows
    options = {"augment": augmentation.augmentation(), "seed": 3}
    later = detection_batches(data, (32, 32), 2, start=4, **options)
    for (images, truth), (others, expected) in zip(
        later.take(3), detection_batches(data, (32, 32), 2, **options).skip(4), strict=False
    ):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(truth["boxes"], expected["boxes"])


@pytest.mark.parametrize(
    ("name", "labels", "expected"), [("coco_small", ["person", "zebra"], [0, 23]), ("chess", ["king", "queen"], [0, 1])]
)
def test_tfds(tmp_path, name, labels, expected):
    """A set written by TFDS itself: COCO's labels keep their published ids, others count from 0."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    rows = {
        "image": np.stack([np.full((20, 30, 3), shade, np.uint8) for shade in (10, 200)]),
        "image/id": np.array([70, 71]),
        "objects": {
            "bbox": np.float32([[[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], [[0.3, 0.3, 0.3, 0.9], [0.25, 0, 1, 0.5]]]),
            "label": np.array([[0, 1], [0, 1]]),
            "is_crowd": np.array([[False, True], [False, False]]),
            "is_difficult": np.array([[False, False], [False, True]]),
        },
    }
    features = tfds.features
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=features.FeaturesDict(
            {
                "image": features.Image(shape=(None, None, 3)),
                "image/id": np.int64,
                "objects": features.Sequence(
                    {
                        "bbox": features.BBoxFeature(),
                        "label": features.ClassLabel(names=labels),
                        "is_crowd": np.bool_,
                        "is_difficult": np.bool_,
                    }
                ),
            }
        ),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(rows)},
        data_dir=tmp_path,
    )
    data = read_tfds(name, "train", tmp_path)
    assert len(data.examples) == 2
    first, second = data.examples
    np.testing.assert_allclose(first.boxes, rows["objects"]["bbox"][0])
    assert first.classes.tolist() == expected
    assert first.crowd.tolist() == [False, True]
    assert (first.number, second.number) == (70, 71)
    assert second.classes.tolist() == expected[1:], "a box without area is left out"
    assert second.crowd.tolist() == [True], "what is difficult counts as crowd"
    assert list(data.skipped) == [f"image 71: {labels[0]} has a box without area inside its image"]
    assert (data.labels[expected[1]], data.categories[expected[1]]) == (labels[1], expected[1] + 1)
