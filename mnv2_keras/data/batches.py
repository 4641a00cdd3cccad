"""Labelled images to batches: one tf.data pipeline, the same batches for the same seed on any machine.

Parallelism is explicit and autotune off: tf.data's autotuning stalls at the ends of epochs on small machines.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from mnv2_keras.data.classification import Examples, TfdsExamples

#: How many examples of a TFDS stream are mixed.
SHUFFLE_BUFFER = 16_384
#: Batches made ahead.
AHEAD = 4


def options() -> tf.data.Options:
    """Order kept, autotune off, one thread per core."""
    chosen = tf.data.Options()
    chosen.autotune.enabled = False
    chosen.deterministic = True
    chosen.threading.private_threadpool_size = os.cpu_count() or 1
    # Each worker of a distributed run takes its own part by itself.
    chosen.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return chosen


def steps_per_epoch(count: int, batch: int) -> int:
    """Whole batches in so many examples; one at least."""
    return max(1, count // batch)


def _reader(examples: Examples | TfdsExamples, channels: int) -> Callable:
    """What `examples.read` takes -> image uint8 (H, W, channels), weight float32: 0 for an image that cannot be read."""
    blank = np.zeros((2, 2, examples.channels), np.uint8)

    def pixels(index, *stored):
        image = examples.read(int(index), *stored)
        return (blank, np.float32(0)) if image is None else (image, np.float32(1))

    def read(*item):
        image, weight = tf.numpy_function(pixels, item, [tf.uint8, tf.float32], stateful=False)
        image.set_shape((None, None, examples.channels))
        weight.set_shape(())
        return _with_channels(image, channels), weight

    return read


def _with_channels(image, channels: int):
    """Grey to colour, or colour to grey."""
    if image.shape[-1] == channels:
        return image
    if channels == 1:
        return tf.image.rgb_to_grayscale(image)
    return tf.image.grayscale_to_rgb(image[..., :1])


def training_batches(
    examples: Examples | TfdsExamples,
    batch: int,
    augment: Callable,
    size: tuple[int, int],
    *,
    channels: int = 3,
    seed: int = 0,
    epochs: range = range(1),
    worker: int = 0,
    workers: int = 1,
    class_weights: Mapping[int, float] | None = None,
) -> tf.data.Dataset:
    """All epochs, one after the other: each in an order and with an augmentation of its own, given by the seed and its number.

    An epoch has whole batches only; what is left over differs from epoch to epoch.

    Args:
        examples: what to read.
        batch: images in a batch of all workers together.
        augment: of `augmentation.AUGMENTATIONS`.
        size: (height, width) of the result.
        channels: 1 or 3.
        seed: any number.
        epochs: numbers of the epochs; `range(3, 10)` goes on where `range(3)` ended.
        worker, workers: this worker takes its part of each batch, so that all of them see what one alone would.
        class_weights: of the loss, by label; 1 where there is none.

    Returns:
        Batches of images float32 (B, height, width, channels) in [-1, 1], labels int32 (B,) and weights float32 (B,); the
        weight of an image that cannot be read is 0.
    """
    count = len(examples)
    batch = min(batch, count)
    if batch % workers:
        raise ValueError(f"A batch of {batch} cannot be shared by {workers} workers: choose a multiple of {workers}.")
    share = batch // workers
    used = steps_per_epoch(count, batch) * batch

    read = _reader(examples, channels)

    def prepare(epoch, label, index, *stored):
        image, weight = read(index, *stored)
        own = tf.stack([tf.cast(seed, tf.int64) * 1_000_003 + epoch, index])
        return augment(image, size, own), tf.cast(label, tf.int32), weight

    def mine(position) -> bool:
        return position % batch // share == worker

    if isinstance(examples, TfdsExamples):
        stream = examples.dataset().enumerate()

        def epoch_of(epoch):
            # Of this graph alone: without it the order hangs on the global seed too, and TensorFlow fails where that is 0.
            tf.random.set_seed(1)
            own = tf.cast(seed, tf.int64) * 1_000_003 + epoch
            mixed = stream.shuffle(min(count, SHUFFLE_BUFFER), own, reshuffle_each_iteration=False)
            mixed = mixed.take(used).enumerate().filter(lambda position, _: mine(position))
            return mixed.map(lambda _, item: (epoch, item[1][1], item[0], item[1][0]))

    else:
        labels = tf.constant(examples.labels)

        def epoch_of(epoch):
            order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), tf.stack([seed, epoch]))
            part = tf.reshape(order[:used], (-1, batch))[:, worker * share : (worker + 1) * share]
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
    examples: Examples | TfdsExamples,
    batch: int,
    prepare: Callable,
    *,
    channels: int = 3,
    indices: Sequence[int] | None = None,
) -> tf.data.Dataset:
    """Some of the examples once, in their order, for evaluation or features.

    Args:
        examples: what to read.
        batch: images in a batch; the last one may have fewer.
        prepare: uint8 (H, W, channels) to the network's input.
        channels: 1 or 3.
        indices: which of them, ascending; all by default.

    Returns:
        Batches of images, labels int32 (B,) and weights float32 (B,): 0 for an image that cannot be read.
    """
    indices = np.asarray(range(len(examples)) if indices is None else indices, np.int64)
    if isinstance(examples, TfdsExamples):
        wanted = tf.constant(np.isin(np.arange(len(examples)), indices))
        data = examples.dataset().take(int(indices[-1]) + 1).enumerate().filter(lambda index, _: wanted[index])
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
