"""Batches for training and evaluation: tf.data pipelines that give the same batches for the same seed on any machine.

Parallelism is explicit and autotune off: tf.data's autotuning stalls at the ends of epochs on small machines.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from mnv2_keras.data.classification import Examples, TfdsExamples

#: Examples in the shuffle buffer of a TFDS stream.
SHUFFLE_BUFFER = 16_384
#: Batches that are prefetched.
AHEAD = 4


def options() -> tf.data.Options:
    """Deterministic order, no autotune, one thread per core; each worker of a distributed run takes its part itself."""
    chosen = tf.data.Options()
    chosen.autotune.enabled = False
    chosen.deterministic = True
    chosen.threading.private_threadpool_size = os.cpu_count() or 1
    chosen.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return chosen


def stream_batches(
    stream: tf.data.Dataset, prepare: Callable, batch: int, *, seed: int, start: int, drop_remainder: bool = True
) -> tf.data.Dataset:
    """Batches of a stream of examples (tuples of tensors) that begins with batch `start`, their elements padded to one shape.

    `prepare(*example, seeds)` makes an element; `seeds`, two int64, are `seed` and the example's number in the stream.
    """

    def prepared(number, example):
        return prepare(*example, tf.stack([tf.cast(seed, tf.int64), number + start * batch]))

    # Two at a time: the network needs the cores more.
    stream = stream.enumerate().map(prepared, num_parallel_calls=2, deterministic=True)
    return stream.padded_batch(batch, drop_remainder=drop_remainder).prefetch(2).with_options(options())


def steps_per_epoch(count: int, batch: int) -> int:
    """The number of full batches in `count` examples; at least one."""
    return max(1, count // batch)


def _reader(examples: Examples | TfdsExamples, channels: int) -> Callable:
    """From what `examples.read` takes to an image, uint8 (H, W, channels), and its weight: 0 if it cannot be read."""
    blank = np.zeros((2, 2, examples.channels), np.uint8)

    def pixels(index, *stored):
        image = examples.read(int(index), *stored)
        return (blank, np.float32(0)) if image is None else (image, np.float32(1))

    def read(*item):
        image, weight = tf.numpy_function(pixels, item, [tf.uint8, tf.float32], stateful=False)
        image.set_shape((None, None, examples.channels))
        weight.set_shape(())
        if examples.channels == channels:
            return image, weight
        grey = tf.image.rgb_to_grayscale(image) if channels == 1 else image[..., :1]
        return grey if channels == 1 else tf.image.grayscale_to_rgb(grey), weight

    return read


def training_batches(
    examples: Examples | TfdsExamples,
    batch: int,
    augment: Callable,
    size: tuple[int, int],
    *,
    channels: int = 3,
    seed: int = 0,
    epochs: range = range(1),
    worker: tuple[int, int] = (0, 1),
    class_weights: Mapping[int, float] | None = None,
) -> tf.data.Dataset:
    """The epochs in turn: the seed and the epoch's number decide its order and its augmentation.

    An epoch has full batches only; the examples left out differ from epoch to epoch.

    Args:
        examples: what to read.
        batch: images in a batch of all workers together.
        augment: of `augmentation.AUGMENTATIONS`.
        size: (height, width) of the result.
        channels: 1 or 3.
        seed: any number.
        epochs: numbers of the epochs; `range(3, 10)` continues after `range(3)`.
        worker: (number from 0, number of workers): this worker takes its part of each batch; together they see what a
            single one would.
        class_weights: of the loss, by label; 1 by default.

    Returns:
        Batches of images float32 (B, height, width, channels) in [-1, 1], labels int32 (B,) and weights float32 (B,); the
        weight of an image that cannot be read is 0.
    """
    count, (number, workers) = len(examples), worker
    batch = min(batch, count)
    if batch % workers:
        raise ValueError(f"A batch of {batch} cannot be shared by {workers} workers: choose a multiple of {workers}.")
    share = batch // workers
    used, read = steps_per_epoch(count, batch) * batch, _reader(examples, channels)

    def seed_of(epoch):
        return tf.cast(seed, tf.int64) * 1_000_003 + epoch

    def prepare(epoch, label, index, *stored):
        image, weight = read(index, *stored)
        return augment(image, size, tf.stack([seed_of(epoch), index])), tf.cast(label, tf.int32), weight

    if isinstance(examples, TfdsExamples):
        stream = examples.dataset().enumerate()

        def epoch_of(epoch):
            # The seed of this graph: without it the order depends on the global seed too, and TensorFlow fails where that is 0.
            tf.random.set_seed(1)
            shuffled = stream.shuffle(min(count, SHUFFLE_BUFFER), seed_of(epoch), reshuffle_each_iteration=False)
            part = shuffled.take(used).enumerate().filter(lambda position, _: position % batch // share == number)
            return part.map(lambda _, item: (epoch, item[1][1], item[0], item[1][0]))

    else:
        labels = tf.constant(examples.labels)

        def epoch_of(epoch):
            order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), tf.stack([seed, epoch]))
            part = tf.reshape(order[:used], (-1, batch))[:, number * share : (number + 1) * share]
            indices = tf.data.Dataset.from_tensor_slices(tf.reshape(part, (-1,)))
            return indices.map(lambda index: (epoch, labels[index], index))

    threads = os.cpu_count() or 1
    numbers = tf.data.Dataset.range(epochs.start, epochs.stop)
    data = numbers.flat_map(epoch_of).map(prepare, num_parallel_calls=threads, deterministic=True)
    if class_weights:
        table = tf.constant([class_weights.get(i, 1.0) for i in range(len(examples.class_names))], tf.float32)
        data = data.map(lambda image, label, weight: (image, label, weight * table[label]))
    return data.batch(share, drop_remainder=True).prefetch(AHEAD).with_options(options())


def evaluation_batches(
    examples: Examples | TfdsExamples, batch: int, prepare: Callable, *, channels: int = 3, indices: Sequence[int] | None = None
) -> tf.data.Dataset:
    """Examples once, in their order, for an evaluation or for features.

    Args:
        examples, batch, channels: as in `training_batches`; the last batch may be smaller.
        prepare: uint8 (H, W, channels) to the network's input.
        indices: of some examples, ascending; all by default.

    Returns:
        As `training_batches`, but images as `prepare` makes them.
    """
    indices = np.asarray(range(len(examples)) if indices is None else indices, np.int64)
    if isinstance(examples, TfdsExamples):
        selected = tf.constant(np.isin(np.arange(len(examples)), indices))
        data = examples.dataset().take(int(indices[-1]) + 1).enumerate().filter(lambda index, _: selected[index])
        data = data.map(lambda index, item: (item[1], index, item[0]))
    else:
        labels = tf.constant(examples.labels)
        data = tf.data.Dataset.from_tensor_slices(indices).map(lambda index: (labels[index], index))
    read = _reader(examples, channels)

    def prepared(label, *item):
        image, weight = read(*item)
        return prepare(image), tf.cast(label, tf.int32), weight

    data = data.map(prepared, num_parallel_calls=os.cpu_count() or 1, deterministic=True)
    return data.batch(batch).prefetch(AHEAD).with_options(options())
