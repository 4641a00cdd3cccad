"""Batches of a classifier's training and evaluation: order, shares of workers, broken images, TFDS streams."""

import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.batches import evaluation_batches, training_batches
from mnv2_keras.data.classification import Examples, TfdsExamples, read_examples, read_splits


def numbered(count=10, side=4):
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3))
    return Examples(np.ascontiguousarray(images), np.arange(count, dtype=np.int32), tuple(map(str, range(count))))


def epochs_of(examples, **options):
    batches = training_batches(examples, 4, evaluated, (4, 4), **options)
    return [y.numpy().tolist() for _, y, _ in batches]


def test_every_epoch_has_its_own_order_which_a_resumed_run_has_too():
    labels = epochs_of(numbered(), epochs=range(3), seed=5)
    assert len(labels) == 3 * 2  # full batches only
    assert all(len({*labels[i], *labels[i + 1]}) == 8 for i in (0, 2, 4))
    assert labels[:2] != labels[2:4]
    assert epochs_of(numbered(), epochs=range(1, 3), seed=5) == labels[2:]
    assert epochs_of(numbered(), epochs=range(3), seed=6) != labels


def test_workers_share_each_batch():
    labels = epochs_of(numbered(), epochs=range(2))
    parts = [epochs_of(numbered(), epochs=range(2), worker=(i, 2)) for i in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == labels
    with pytest.raises(ValueError, match="cannot be shared by 3 workers"):
        epochs_of(numbered(), worker=(0, 3))


def test_fewer_images_than_a_batch():
    (only,) = epochs_of(numbered(3))
    assert sorted(only) == [0, 1, 2]


def test_a_broken_image_counts_nothing_and_is_named(photos):
    (photos / "bee" / "2.png").write_bytes(b"not a picture")
    examples = read_examples(photos)
    ((images, labels, weights),) = training_batches(examples, 15, evaluated, (8, 8), class_weights={0: 2.0})
    assert images.shape == (15, 8, 8, 3)
    assert sorted(weights.numpy()[labels.numpy() == 1]) == [0, 1, 1, 1, 1]
    assert weights.numpy()[labels.numpy() == 0].tolist() == [2] * 5
    ((path, reason),) = examples.broken.items()
    assert path.endswith("2.png")
    assert "not an image" in reason


def test_grey_and_colour(photos):
    ((grey, _, _),) = evaluation_batches(read_examples(photos), 15, lambda image: image, channels=1)
    assert grey.shape[-1] == 1
    flat = Examples(np.full((1, 4, 4, 1), 7, np.uint8), np.zeros(1, np.int32), ("a",))
    ((colour, _, _),) = evaluation_batches(flat, 1, lambda image: image, channels=3)
    assert colour.numpy().tolist() == np.full((1, 4, 4, 3), 7).tolist()


def test_a_part_of_the_examples_in_steps():
    batches = evaluation_batches(numbered(), 3, lambda image: image, indices=range(1, 10, 3))
    assert [y.numpy().tolist() for _, y, _ in batches] == [[1, 4, 7]]


def numbers_of(examples, **options):
    batches = evaluation_batches(examples, 4, lambda image: image[:1], **options)
    return [int(image[0, 0, 0]) for images, _, _ in batches for image in images]


def test_a_tfds_set_with_a_single_part_is_sliced(flowers):
    """As `--data tf_flowers`: by name, no held-out part, images of many sizes."""
    numbers = numbers_of(read_examples(flowers))
    assert sorted(numbers) == list(range(16))
    training, held_out = read_splits(flowers, 0.3)
    assert (len(training), len(held_out)) == (11, 5)
    assert numbers_of(training) + numbers_of(held_out) == numbers
    assert numbers_of(read_examples(flowers, "validation", 0.3)) == numbers[11:]
    assert training.fingerprint() != held_out.fingerprint()
    assert training.fingerprint() == training.fingerprint(times=True)
    assert len(read_splits(flowers, 0.999)[0]) == 1
    ((images, labels, weights),) = training_batches(training, 11, evaluated, (8, 8))
    assert images.shape == (11, 8, 8, 3)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            read_splits(flowers, wrong)


def test_some_of_a_tfds_set_in_its_order(flowers):
    examples = read_examples(flowers)
    numbers = numbers_of(examples)
    assert numbers_of(examples, indices=range(1, 16, 3)) == numbers[1::3]
    assert numbers_of(examples, indices=[0, 1, 8]) == [numbers[i] for i in (0, 1, 8)]


def test_tfds_images_are_decoded_once_and_broken_ones_left_out(flowers, monkeypatch):
    examples, decode, decoded = read_examples(flowers), tf.image.decode_image, []
    assert all(label.dtype == tf.int64 and image.dtype == tf.string for image, label in examples.dataset())
    monkeypatch.setattr(tf.image, "decode_image", lambda *a, **b: decoded.append(a[0]) or decode(*a, **b))
    assert sorted(numbers_of(examples)) == sorted(numbers_of(examples)) == list(range(16))
    assert len(decoded) == len(set(decoded)) == 16
    broken = TfdsExamples(examples.builder, "train")
    rows = [(image, label) for image, label in examples.dataset().as_numpy_iterator()]
    rows[4] = rows[4][0][:20], rows[4][1]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*rows, strict=True))))
    monkeypatch.setattr(TfdsExamples, "dataset", lambda _: dataset)
    for batches in (
        training_batches(broken, 16, evaluated, (8, 8)),
        evaluation_batches(broken, 16, lambda image: evaluated(image, (8, 8))),
    ):
        ((_, _, weights),) = batches
        assert sorted(weights.numpy()) == [0, *[1] * 15]
    assert list(broken.broken) == [broken.name_of(4)] == ["flowers train, image 4"]
    assert "cannot be decoded" in broken.broken["flowers train, image 4"]


def test_a_tfds_stream_is_shuffled_and_shared_by_its_seed(flowers):
    stream = read_examples(flowers)

    def run(**options):
        batches = training_batches(stream, 4, evaluated, (8, 8), epochs=range(2), seed=1, **options)
        return [(x.numpy().tobytes(), y.numpy().tolist()) for x, y, _ in batches]

    tf.random.set_seed(0)  # as a training with the recipes' seed has it
    batches_of_one = run()
    tf.random.set_seed(5)
    assert run() == batches_of_one
    assert batches_of_one[:4] != batches_of_one[4:]
    halves = [run(worker=(i, 2)) for i in range(2)]
    assert [a[1] + b[1] for a, b in zip(*halves, strict=True)] == [labels for _, labels in batches_of_one]
