"""Labels against the published lists, and the ranking of predictions."""

import json

import numpy as np
import pytest

from mnv2_keras.labels import Prediction, class_labels, coco_labels, decode_predictions, imagenet_labels, labels_beside, voc_labels


def test_imagenet_is_the_published_list(testdata):
    published = (testdata / "models" / "imagenet_labels.txt").read_text().splitlines()
    assert list(imagenet_labels()) == published
    assert list(imagenet_labels(1000)) == published[1:]
    assert len(imagenet_labels(1000)) == 1000


def test_imagenet_names_what_the_goldens_saw(testdata):
    """Top-1 of TF-Slim's checkpoint on the photos (index with background), by `golden/README.md`."""
    expected = {"cat.bmp": (286, "Egyptian cat"), "bird.bmp": (20, "chickadee"), "hot_dog.jpg": (935, "hotdog")}
    expected |= {"grace_hopper.bmp": (653, "military uniform"), "dog_segmentation.bmp": (259, "Samoyed")}
    with np.load(testdata / "golden" / "classification" / "real.npz") as golden:
        for photo, (index, label) in expected.items():
            logits = golden[f"{photo}|logits"]
            [[best, *_]] = decode_predictions(logits)
            assert best.index == index
            assert label in best.label
            [[best, *_]] = decode_predictions(logits[1:])
            assert best.index == index - 1
            assert label in best.label


def test_labels_are_taken_in_every_form(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfcat\r\nhot dog\n\n")
    forms = [tmp_path / "labels.txt", str(tmp_path / "labels.txt"), ["cat", "hot dog"], np.array(["cat", "hot dog"])]
    for labels in [*forms, {1: "hot dog", 0: "cat"}, {np.int64(0): "cat", np.int64(1): "hot dog"}]:
        assert class_labels(labels, 2) == ("cat", "hot dog")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"cat", "dog"}, "labels is a set: expected a path, a sequence"),
        (b"cat", "labels is a bytes"),
        (None, "labels is a NoneType"),
        (2, "labels is a int"),
        ({"cat": 0, "dog": 1}, r"labels has the keys \['cat', 'dog'\]: expected the indices 0 to 1"),
        ({1: "cat", 2: "dog"}, "expected the indices 0 to 1"),
        ([1, 2], "labels holds 1: expected texts"),
        (["cat"], "1 labels were given for 2 classes"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        class_labels(labels, 2)


def test_a_file_of_labels_that_is_missing_or_in_another_encoding(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of labels .*none\.txt"):
        class_labels(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text"):
        class_labels(tmp_path / "latin.txt")
    with pytest.raises(FileNotFoundError):
        class_labels("cat and dog")


@pytest.mark.parametrize("classes", [0, 21, 999, 1002])
def test_imagenet_has_no_other_lists(classes):
    with pytest.raises(ValueError, match=f"no list of {classes} labels: expected 1001"):
        imagenet_labels(classes)


def test_voc_is_the_published_list(testdata):
    published = (testdata / "models" / "pascal_voc_segmentation_labels.txt").read_text().splitlines()
    assert list(voc_labels()) == published[:21]
    assert published[21] == ""
    assert voc_labels()[0] == "background"
    assert voc_labels()[-1] == "tvmonitor"


def test_coco_has_80_names_and_ten_gaps():
    labels = coco_labels()
    assert len(labels) == len(set(labels.values())) == 80
    assert sorted(set(range(1, 91)) - set(labels)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    anchors = {1: "person", 17: "cat", 18: "dog", 44: "bottle", 58: "hot dog", 67: "dining table", 90: "toothbrush"}
    assert {number: labels[number] for number in anchors} == anchors
    labels.clear()
    assert len(coco_labels()) == 80


def test_coco_shares_voc_s_things():
    """The 20 things of VOC are in COCO, six of them under another name."""
    renamed = {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert {renamed.get(name, name) for name in voc_labels()[1:]} <= set(coco_labels().values())


def test_labels_beside_are_of_a_file_that_has_them(tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    assert labels_beside(tmp_path / "model.keras", 2) == ("ant", "bee")
    assert labels_beside(str(tmp_path / "model.tflite"), 2) == ("ant", "bee")
    assert labels_beside(tmp_path / "model.keras", 3) is None, "another number"
    monkeypatch.chdir(tmp_path)
    for weights in ("mobilenet_v2_1.0_224", "mobilenet_v2_1.0_224.tgz", tmp_path, None, object()):
        assert labels_beside(weights, 2) is None
    assert labels_beside(tmp_path / "none" / "model.keras", 2) is None


def test_best_first():
    predictions = decode_predictions([0.1, 0.6, 0.3], top=2, labels=["cat", "dog", "bird"])
    assert predictions == [[Prediction(1, "dog", 0.6), Prediction(2, "bird", 0.3)]]
    assert json.loads(json.dumps(predictions)) == [[[1, "dog", 0.6], [2, "bird", 0.3]]]


def test_a_batch_is_decoded_image_by_image():
    probs = np.random.default_rng(0).dirichlet(np.ones(1001), 7).astype(np.float32)
    batch = decode_predictions(probs)
    assert batch == [decode_predictions(row)[0] for row in probs]
    for row, predictions in zip(probs, batch, strict=True):
        assert len(predictions) == 5
        assert [p.score for p in predictions] == sorted(row.tolist(), reverse=True)[:5]
        assert all(row[p.index] == np.float32(p.score) and p.label == imagenet_labels()[p.index] for p in predictions)
    assert decode_predictions(probs[:0]) == []


def test_equal_scores_keep_the_order_of_the_classes():
    [predictions] = decode_predictions(np.uint8([3, 9, 0, 9, 3]), labels="abcde")
    assert "".join(p.label for p in predictions) == "bdaec"


def test_top_is_clipped_to_the_classes():
    assert len(decode_predictions(np.ones(3), top=99, labels="abc")[0]) == 3


def test_tensors_are_read():
    tf = pytest.importorskip("tensorflow")
    probs = tf.one_hot([286, 20], 1001)
    assert [row[0].index for row in decode_predictions(probs, top=1)] == [286, 20]


@pytest.mark.parametrize(
    ("probs", "options", "message"),
    [
        (np.ones(21), {}, "no labels for 21 classes .*give labels="),
        (np.ones((2, 0)), {}, "no labels for 0 classes"),
        (np.ones(21), {"labels": ["a", "b"]}, "2 labels were given for 21 classes"),
        (np.ones((2, 2, 1001)), {}, r"not \(2, 2, 1001\)"),
        (np.float32(1), {}, r"not \(\)"),
        (np.ones(1001), {"top": 0}, "top is 0"),
        (np.ones(1001), {"top": 2.5}, "top is 2.5: expected a whole number"),
        (np.array([[0, 1], [np.nan, 1]]), {"labels": "ab"}, "scores of image 1 hold NaN"),
    ],
)
def test_bad_scores_are_named(probs, options, message):
    with pytest.raises(ValueError, match=message):
        decode_predictions(probs, **options)
