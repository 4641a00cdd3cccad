"""Training speed compared with Keras Applications in one run: a step, an epoch, the input pipeline, the linear probe.

    python benchmarks/training.py [--images FOLDER] [--archive mobilenet_v2_1.0_224.tgz] [--rounds 7]

96 x 96 pixels, batch 32, float32. The photos are 1,024 JPEG files of about 250 pixels, crops of the images in FOLDER
(one class for each) or of drawn textures, and 256 more for evaluation. Rounds are interleaved in alternating order, so
that a busy machine slows both sides. Times are medians over the rounds; ratios are medians of the ratios of the rounds,
with their quartiles. Both sides start from the same weights: those of the archive, or random ones.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from mnv2_keras.data.augmentation import AUGMENTATIONS
from mnv2_keras.data.batches import steps_per_epoch, training_batches
from mnv2_keras.data.classification import read_examples
from mnv2_keras.images import find_images, read_image
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.training.classification import ClassificationStep
from mnv2_keras.training.linear_probe import linear_probe
from mnv2_keras.training.recipes import LINEAR_PROBE, Recipe

BATCH, SIDE = 32, 96
WHAT = ("step", "epoch", "pipeline", "probe")


def write_photos(folder: Path, sources: list[np.ndarray], count: int, seed: int) -> None:
    """Write JPEG files into class folders: crops of half of each source or more, some flipped, about 250 pixels wide."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        kind = i % len(sources)
        height, width = sources[kind].shape[:2]
        high, wide = (int(side * rng.uniform(0.7, 1)) for side in (height, width))
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        crop = Image.fromarray(sources[kind][top : top + high, left : left + wide])
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
        path = folder / f"class_{kind}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.resize((int(rng.integers(230, 271)), int(rng.integers(180, 271)))).save(path, quality=90)


def textures(count: int = 6) -> list[np.ndarray]:
    """Drawn images that replace photos."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (12 + 3 * i, 16 + 4 * i, 3)).astype(np.uint8) for i in range(count)]
    return [np.asarray(Image.fromarray(image).resize((640, 480))) for image in coarse]


def both_models(classes: int, archive):
    """The classifiers of this package and of Keras Applications, with equal weights in the backbone."""
    keras.utils.set_random_seed(0)
    ours = build_mobilenetv2(input_shape=(SIDE, SIDE, 3), classes=classes, weights=archive)
    reference = keras.applications.MobileNetV2((SIDE, SIDE, 3), weights=None, include_top=False, pooling="avg")
    values = ours.get_weights()[: len(reference.weights)]
    assert [value.shape for value in values] == [tuple(variable.shape) for variable in reference.weights]
    reference.set_weights(values)
    return ours, reference


def with_top(base: keras.Model, classes: int) -> keras.Model:
    """A classifier on a base, as in the guides of Keras."""
    return keras.Model(base.input, keras.layers.Dense(classes, "softmax")(base.output))


class Sides:
    """The work of both sides. Each method returns a call that does the work once."""

    def __init__(self, photos: Path, classes: int, archive):
        self.photos, self.classes, self.archive = photos, classes, archive
        self.recipe = Recipe(
            {"input_shape": (SIDE, SIDE, 3), "classes": classes},
            epochs=1,
            batch=BATCH,
            optimizer="adam",
            learning_rate=1e-4,
            average=None,
            augmentation="flip",
        )
        images = tf.random.stateless_uniform((BATCH, SIDE, SIDE, 3), [1, 2], -1, 1)
        self.batch = images, tf.range(BATCH) % classes

    def our_step(self):
        """A training step on one fixed batch."""
        step = ClassificationStep(both_models(self.classes, self.archive)[0], self.recipe)
        return lambda: step((*self.batch, tf.ones(BATCH)), 1).numpy()

    def their_step(self, xla: bool | str):
        """The function that Keras' `fit` calls, with the same optimiser, batch and tf.data options; "auto" compiles with XLA."""
        model = with_top(both_models(self.classes, self.archive)[1], self.classes)
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=xla)
        model.make_train_function()
        options = tf.data.Options()
        options.autotune.enabled = False
        data = iter(tf.data.Dataset.from_tensors(self.batch).repeat().with_options(options))
        return lambda: {name: float(value) for name, value in model.train_function(data).items()}

    def our_epoch(self):
        """An epoch from files to trained weights, with random crops and flips. Decoded photos stay in memory, as in `train`."""
        examples = read_examples(self.photos)
        step = ClassificationStep(both_models(self.classes, self.archive)[0], self.recipe)

        def run():
            batches = training_batches(examples, BATCH, AUGMENTATIONS["flip"], self.recipe.size)
            for number, (images, labels, weights) in enumerate(batches, 1):
                step((images, labels, weights), number).numpy()

        return run

    def their_epoch(self, cached: bool):
        """An epoch from files to trained weights with flips, as in the guides of Keras; with `cache()` as in TensorFlow's."""
        data = keras.utils.image_dataset_from_directory(self.photos, image_size=(SIDE, SIDE), batch_size=BATCH, verbose=False)
        data = data.cache() if cached else data
        data = data.prefetch(tf.data.AUTOTUNE)
        inputs = keras.Input((SIDE, SIDE, 3))
        x = keras.applications.mobilenet_v2.preprocess_input(keras.layers.RandomFlip("horizontal")(inputs))
        base = both_models(self.classes, self.archive)[1]
        model = keras.Model(inputs, keras.layers.Dense(self.classes, "softmax")(base(x)))
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return lambda: model.fit(data, verbose=0)

    def our_pipeline(self, decoded: bool):
        """The batches of an epoch without training; `decoded`: the photos were decoded in an earlier epoch."""
        examples = read_examples(self.photos)

        def run():
            source = examples if decoded else read_examples(self.photos)
            for _ in training_batches(source, BATCH, AUGMENTATIONS["flip"], self.recipe.size):
                pass

        return run


def interleaved(sides: dict, rounds: int, rows: list[dict], what: str) -> dict[str, list[float]]:
    """Seconds of each side in each round; the first round is a warm-up and does not count."""
    times = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in sides if number % 2 else reversed(sides):
            start = time.perf_counter()
            sides[name]()
            if number:
                times[name].append(time.perf_counter() - start)
                rows.append({"what": what, "side": name, "round": number, "seconds": round(times[name][-1], 4)})
    return times


def show(name: str, above: list[float], below: list[float]) -> None:
    """Print the median and the quartiles of the ratios of the rounds."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(above, below, strict=True)], n=4)
    seconds = f"{statistics.median(above):.3f} s over {statistics.median(below):.3f} s"
    print(f"{name}: {middle:.2f} ({low:.2f} to {high:.2f}), {seconds}", flush=True)


def probe(photos: Path, test_photos: Path, classes: int, archive, epochs: int, rows: list[dict]) -> None:
    """Compare `linear_probe` with `fit` on a frozen base in Keras, including building, tracing and features, without a cache."""
    ours, base = both_models(classes, archive)
    training, held_out = read_examples(photos), read_examples(test_photos)
    with tempfile.TemporaryDirectory() as home:
        os.environ["MNV2_HOME"] = home
        start = time.perf_counter()
        result = linear_probe(ours, training, held_out, LINEAR_PROBE.changed(epochs=epochs))
        our_seconds = time.perf_counter() - start
    start = time.perf_counter()
    data, other = (
        keras.utils.image_dataset_from_directory(folder, image_size=(SIDE, SIDE), batch_size=BATCH, verbose=False).prefetch(
            tf.data.AUTOTUNE
        )
        for folder in (photos, test_photos)
    )
    base.trainable = False
    inputs = keras.Input((SIDE, SIDE, 3))
    x = base(keras.applications.mobilenet_v2.preprocess_input(inputs), training=False)
    model = keras.Model(inputs, keras.layers.Dense(classes, "softmax")(keras.layers.Dropout(0.2)(x)))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(data, validation_data=other, epochs=epochs, verbose=0).history
    their_seconds = time.perf_counter() - start
    for side, seconds in (("mnv2_keras", our_seconds), ("keras", their_seconds)):
        rows.append({"what": f"probe of {epochs} epochs", "side": side, "round": 1, "seconds": round(seconds, 2)})
    print(
        f"probe, {epochs} epochs: {their_seconds / our_seconds:.1f} times faster, "
        f"{our_seconds:.1f} s instead of {their_seconds:.1f} s "
        f"(features {result.seconds[0]:.1f} s, head {result.seconds[1]:.1f} s); held-out accuracy "
        f"{result.history[-1]['val_accuracy']:.3f} and {history['val_accuracy'][-1]:.3f}",
        flush=True,
    )


def main() -> None:
    """Measure, print the ratios, write each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photos to crop; default: drawn textures")
    parser.add_argument("--archive", help="weights that both sides start from; default: random")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photos", type=int, default=1024)
    parser.add_argument("--epochs", type=int, nargs="*", default=[10, 50], help="of the linear probe")
    parser.add_argument("--only", choices=WHAT, nargs="*", default=WHAT)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "training.csv")
    options = parser.parse_args()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as home:
        sources = [read_image(path) for path in find_images(options.images)] if options.images else textures()
        photos, test_photos = Path(home, "photos"), Path(home, "judged")
        write_photos(photos, sources, options.photos, 0)
        write_photos(test_photos, sources, options.photos // 4, 1)
        sides = Sides(photos, len(sources), options.archive)
        steps = steps_per_epoch(options.photos, BATCH)
        if {"step", "pipeline"} & set(options.only):
            calls = {
                "mnv2_keras": sides.our_step(),
                "keras": sides.their_step("auto"),
                "keras without XLA": sides.their_step(False),
            }
            step = interleaved(calls, 4 * options.rounds, rows, "step")
            for name in ("keras", "keras without XLA"):
                show(f"step, ours / {name}", step["mnv2_keras"], step[name])
        if "pipeline" in options.only:
            calls = {"decoding": sides.our_pipeline(False), "decoded": sides.our_pipeline(True)}
            consumed = [statistics.median(step["mnv2_keras"]) * steps] * options.rounds
            seconds = interleaved(calls, options.rounds, rows, "pipeline")
            show("pipeline, time of the steps / time of the batches in the first epoch", consumed, seconds["decoding"])
            show("pipeline, time of the steps / time of the batches with decoded photos", consumed, seconds["decoded"])
        if "epoch" in options.only:
            calls = {
                "mnv2_keras": sides.our_epoch(),
                "keras": sides.their_epoch(cached=False),
                "keras with cache()": sides.their_epoch(cached=True),
            }
            seconds = interleaved(calls, options.rounds, rows, "epoch")
            for name in ("keras", "keras with cache()"):
                show(f"epoch, {name} / ours", seconds[name], seconds["mnv2_keras"])
        for epochs in options.epochs if "probe" in options.only else ():
            probe(photos, test_photos, len(sources), options.archive, epochs, rows)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine, *versions])
        writer.writeheader()
        writer.writerows(row | machine | versions for row in rows)


if __name__ == "__main__":
    main()
