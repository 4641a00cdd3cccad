"""DeepLab's recipe against the genuine loss and schedule; augmentation, data sources, and the commands."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from typer.testing import CliRunner

from mnv2_keras import build_deeplabv3_mobilenetv2
from mnv2_keras.cli.main import command_line
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables
from mnv2_keras.data.segmentation import (
    _TfdsPairs,
    augmented,
    check_labels,
    photos_and_masks,
    tfds_photos_and_masks,
    training_batches,
)
from mnv2_keras.data.segmentation_shapes import SHAPE_NAMES, DrawnShapes
from mnv2_keras.evaluation.segmentation import evaluate_segmenter
from mnv2_keras.images import ImageError
from mnv2_keras.inference.segmenter import Segmenter
from mnv2_keras.masks import read_mask, save_mask
from mnv2_keras.training.segmentation import (
    SegmentationLoss,
    SegmentationRecipe,
    compile_segmenter,
    train_segmenter,
)
from mnv2_keras.training.state import Diverged

TINY = SegmentationRecipe(steps=2, batch=2, crop=(33, 33), learning_rate=0.01, scales=(0.75, 1.5))


@pytest.fixture
def folder(tmp_path):
    """Three drawn pictures as photos and masks."""
    (tmp_path / "photos").mkdir()
    for i, (photo, mask) in enumerate(DrawnShapes(3, 40)):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{i}.png")
        save_mask(mask, tmp_path / "masks" / f"{i}.png")
    return tmp_path


# The recipe


def test_loss_and_weight_decay_are_the_genuine_ones(testdata):
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_extra_golden.npz")
    labels = np.random.Generator(np.random.PCG64(3)).integers(0, 21, (1, 513, 513, 1))
    labels[np.random.Generator(np.random.PCG64(4)).uniform(size=labels.shape) < 0.1] = 255
    np.testing.assert_array_equal(labels[:, ::64, ::64], golden["loss_os16/labels_every64"])
    assert np.sum(labels == 255) == golden["loss_os16/ignored"]
    model = build_deeplabv3_mobilenetv2(weight_decay=4e-5, include_preprocessing=True)
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    image = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (1, 513, 513, 3)).astype(np.float32)
    loss = SegmentationLoss()(labels[..., 0], model(image))
    assert float(loss) == pytest.approx(float(golden["loss_os16/softmax_ce"]), rel=1e-4)
    assert float(sum(model.losses)) == pytest.approx(float(golden["loss_os16/l2_total_weight_decay_4e-5"]), rel=1e-4)


def test_loss_of_ignored_pixels():
    logits = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, (2, 5, 4))
    labels[0, :2] = 255
    log_probability = np.log(keras.ops.softmax(logits).numpy())
    judged = labels != 255
    expected = -np.mean(np.take_along_axis(log_probability, np.where(judged, labels, 0)[..., None], -1)[..., 0][judged])
    assert float(SegmentationLoss()(labels, logits)) == pytest.approx(float(expected), rel=1e-5)
    assert float(SegmentationLoss()(np.full((1, 2, 2), 255), np.ones((1, 2, 2, 3), np.float32))) == 0
    again = keras.losses.deserialize(keras.losses.serialize(SegmentationLoss(ignored=7)))
    assert again.ignored == 7


def test_schedule_and_batch_norms():
    recipe = SegmentationRecipe(steps=100, learning_rate=0.007, fine_tune_batch_norm=False, batch_norm_momentum=0.5)
    model = compile_segmenter(build_deeplabv3_mobilenetv2(0.35, (33, 33, 3)), recipe)
    rate = model.optimizer._learning_rate
    for step in (0, 1, 50, 99, 100, 200):
        assert float(rate(step)) == pytest.approx(0.007 * (1 - min(step, 100) / 100) ** 0.9, abs=1e-9)
    assert model.optimizer.momentum == 0.9
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 54
    assert all(not layer.trainable and layer.momentum == 0.5 for layer in norms)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"batch": 0}, {"crop": (33,)}, {"learning_rate": 0}, {"scales": ()}, {"scales": (0,)}, {"flip": 2}],
)
def test_bad_recipes(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is"):
        dataclasses.replace(TINY, **change)


# Augmentation


def test_augmentation_keeps_photo_and_mask_together():
    """A photo whose red tells its label: after any scaling, padding, cropping and mirroring it still does."""
    labels = np.kron(np.arange(12).reshape(3, 4), np.ones((12, 12))).astype(np.uint8)
    photo = np.repeat((labels * 20)[..., None], 3, -1).astype(np.uint8)
    padded = 0
    for scales in [(1.0,), (0.5, 2.0)]:
        for seed in range(12):
            made = augmented(tf.constant(photo), tf.constant(labels), (50, 40), (seed, 0), scales)
            image, mask = (each.numpy() for each in made)
            assert image.shape == (50, 40, 3)
            assert mask.shape == (50, 40)
            outside = mask == 255
            padded += outside.any()
            np.testing.assert_allclose(image[outside], 0, atol=1e-6)  # 127.5, normalised
            told = np.rint((image[..., 0] + 1) * 127.5 / 20)
            # Between two labels bilinear pixels are blends.
            assert np.mean(told[~outside] == mask[~outside]) > (0.999 if scales == (1.0,) else 0.8)
    assert padded
    image, mask = augmented(tf.constant(photo), tf.constant(labels), (36, 48), (0, 0), (1.0,), flip=1.0)
    np.testing.assert_array_equal(mask, labels[:, ::-1])


def test_augmentation_draws_everything():
    """Every scale, every place and both sides come up."""
    labels = np.arange(200).reshape(10, 20).astype(np.uint8)
    photo = np.zeros((10, 20, 3), np.uint8)
    masks = [augmented(tf.constant(photo), labels, (8, 19), (0, i), (1.0,))[1].numpy() for i in range(100)]
    corners = {(int(mask[0, 0]), int(mask[0, 1]) - int(mask[0, 0])) for mask in masks}
    plain = {(20 * top + left, 1) for top in range(3) for left in range(2)}
    assert corners == plain | {(first + 18, -1) for first, _ in plain}
    masks = [augmented(tf.constant(photo), labels, (30, 60), (0, i), (0.5, 1.0, 2.0))[1].numpy() for i in range(30)]
    assert {int((mask != 255).sum()) for mask in masks} == {50, 200, 800}


def test_batches_are_endless_and_given_by_the_seed_alone():
    def batches(seed, others_seed, start=0):
        tf.random.set_seed(others_seed)
        made = training_batches(DrawnShapes(3, 33), 2, (33, 33), (0.75, 1.5), 0.5, seed, start)
        return [batch for batch, _ in zip(made, range(5 - start), strict=False)]

    first, again, other = batches(1, 2), batches(1, 3), batches(4, 2)
    for (image, mask), (image_2, mask_2) in zip(first, again, strict=True):
        assert image.shape == (2, 33, 33, 3)
        assert mask.dtype == tf.int32
        np.testing.assert_array_equal(image, image_2)
        np.testing.assert_array_equal(mask, mask_2)
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))
    for start in (1, 2, 4):  # within the first pass, and in later ones
        for (image, mask), (image_2, mask_2) in zip(batches(1, 5, start), first[start:], strict=True):
            np.testing.assert_array_equal(image, image_2)
            np.testing.assert_array_equal(mask, mask_2)


def test_each_pass_has_an_order_of_its_own(folder):
    for pairs in (photos_and_masks(folder / "photos", folder / "masks", 4), DrawnShapes(3, 40)):
        drawn = [photo.tobytes() for photo, _ in DrawnShapes(3, 40)]
        orders = [[drawn.index(photo.tobytes()) for photo, _ in pairs.shuffled((0, i))] for i in range(20)]
        assert all(sorted(order) == [0, 1, 2] for order in orders)
        assert len({tuple(order) for order in orders}) == 6
        assert [drawn.index(photo.tobytes()) for photo, _ in pairs.shuffled((0, 7), 1)] == orders[7][1:]


# Where photos and masks come from


def test_drawn_shapes():
    shapes = DrawnShapes(60, 65)
    pictures = list(shapes)
    assert len(pictures) == len(shapes) == 60
    for picture, mask in pictures:
        assert picture.shape == (65, 65, 3)
        assert picture.dtype == mask.dtype == np.uint8
        assert mask.max() < len(SHAPE_NAMES)
    np.testing.assert_array_equal(pictures[5][0], shapes.draw(5)[0])
    assert not np.array_equal(pictures[5][0], DrawnShapes(60, 65, seed=1).draw(5)[0])
    shares = np.bincount(np.concatenate([mask.ravel() for _, mask in pictures])) / (60 * 65 * 65)
    assert (shares > 0.03).all()


def test_folder(folder):
    pairs = photos_and_masks(folder / "photos", folder / "masks", 4)
    assert len(pairs) == 3
    for (photo, mask), (drawn, truth) in zip(pairs, DrawnShapes(3, 40), strict=True):
        np.testing.assert_array_equal(photo, drawn)
        np.testing.assert_array_equal(mask, truth)


def test_bad_folders(folder, tmp_path):
    photos, masks = folder / "photos", folder / "masks"
    (tmp_path / "empty").mkdir()
    for arguments in ((tmp_path / "empty", masks), (photos, tmp_path / "empty")):
        with pytest.raises(ImageError, match="holds no images"):
            photos_and_masks(*arguments, 4)
    with pytest.raises(FileNotFoundError):
        photos_and_masks(photos, tmp_path / "nowhere", 4)
    (masks / "1.bmp").write_bytes((masks / "1.png").read_bytes())
    with pytest.raises(ValueError, match="have the same name"):
        photos_and_masks(photos, masks, 4)
    (masks / "1.bmp").unlink()
    save_mask(np.full((40, 40), 3), masks / "1.png")
    with pytest.raises(ValueError, match=r"1\.png has unknown labels 3: expected 0 to 2, or 255"):
        photos_and_masks(photos, masks, 3).read(1)
    check_labels(np.uint8([[0, 2, 255]]), 3, "fine.png")
    save_mask(np.zeros((40, 39)), masks / "1.png")
    pairs = photos_and_masks(photos, masks, 4)
    pairs.read(0)
    with pytest.raises(ValueError, match=r"1\.png is 40 x 40, its mask .*1\.png 40 x 39"):
        pairs.read(1)
    (masks / "2.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"2\.png is no mask"):
        pairs.read(2)


def test_photos_are_paired_by_their_paths(folder, caplog):
    """As in Pascal VOC: more photos than masks, a list of names for each part; and folders within folders."""
    photos, masks = folder / "photos", folder / "masks"
    (masks / "0.png").unlink()
    assert [photo.name for photo, _ in photos_and_masks(photos, masks, 4).pairs] == ["1.png", "2.png"]
    assert "1 of 3 photos have no mask in" in caplog.text
    assert "first 0: they are left out" in caplog.text
    caplog.clear()
    assert [photo.name for photo, _ in photos_and_masks(photos, masks, 4, ["2", "1", "2"]).pairs] == ["2.png", "1.png"]
    assert not caplog.text
    with pytest.raises(ValueError, match="The list names no photo"):
        photos_and_masks(photos, masks, 4, [])
    with pytest.raises(
        FileNotFoundError, match=r"1 of 2 listed names are not in .*masks, first 0: expected lines such as 1"
    ):
        photos_and_masks(photos, masks, 4, ["0", "1"])
    for part, name in (("a", "1"), ("b", "2")):
        (photos / part).mkdir()
        (masks / part).mkdir()
        (photos / f"{name}.png").rename(photos / part / "same.png")
        (masks / f"{name}.png").rename(masks / part / "same.png")
    pairs = photos_and_masks(photos, masks, 4)
    assert [(photo.parent.name, mask.parent.name) for photo, mask in pairs.pairs] == [("a", "a"), ("b", "b")]
    for (_, mask), index in zip(pairs, (1, 2), strict=True):
        np.testing.assert_array_equal(mask, DrawnShapes(3, 40).draw(index)[1])
    for mask in masks.rglob("*.png"):
        mask.rename(mask.with_name("other.png"))
    with pytest.raises(FileNotFoundError, match="3 of 3 photos have no mask in"):
        photos_and_masks(photos, masks, 4)


def test_what_does_not_fit_is_told_before_the_first_step(folder):
    photos, masks = folder / "photos", folder / "masks"
    (photos / "0.png").write_bytes(b"")
    pairs, seen = photos_and_masks(photos, masks, 4), []
    pairs.check(seen.append)
    assert seen == [1, 2, 3]
    assert list(pairs.broken) == [str(photos / "0.png")]
    for name in "12":
        save_mask(np.zeros((40, 39)), masks / f"{name}.png")
    with pytest.raises(
        ValueError, match=r"1\.png is 40 x 40, its mask .*1\.png 40 x 39: .* And 1 more of 3 do not fit"
    ):
        photos_and_masks(photos, masks, 4).check()
    with pytest.raises(ValueError, match=r"1\.png is 40 x 40, .* And 1 more of 3 do not fit"):
        evaluate_segmenter(None, photos_and_masks(photos, masks, 4))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_few_bits_hold_their_labels(tmp_path, bits):
    """PNG stores the label itself; Pillow spreads it over 0 to 255."""
    import struct
    import zlib

    labels = np.arange(min(2**bits, 32), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(labels[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(labels), 1, bits, 0, 0, 0, 0)
    picture = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + picture)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png")[0], labels)


def test_what_cannot_be_read_is_left_out_and_named(folder):
    """A photo or mask that is broken costs nothing but itself, wherever it stands."""
    photos, masks = folder / "photos", folder / "masks"
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:300])
    pairs = photos_and_masks(photos, masks, 4)
    drawn = [mask.tobytes() for _, mask in DrawnShapes(3, 40)]
    assert [drawn.index(mask.tobytes()) for _, mask in pairs] == [0, 2]
    assert list(pairs.broken) == [str(photos / "1.png")]
    assert "1.png is truncated or damaged" in pairs.broken[str(photos / "1.png")]
    for i in range(6):  # a pass keeps its length
        order = [drawn.index(mask.tobytes()) for _, mask in pairs.shuffled((0, i))]
        assert len(order) == 3
        assert set(order) == {0, 2}
    pairs = photos_and_masks(photos, masks, 4)
    model = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4)
    assert train_segmenter(model, pairs, dataclasses.replace(TINY, batch=3))[-1]["step"] == 2
    assert list(pairs.broken) == [str(photos / "1.png")]
    (photos / "0.png").write_bytes(b"")
    (masks / "2.png").write_bytes(b"broken")
    for reading in (iter, lambda pairs: pairs.shuffled((0, 0))):
        with pytest.raises(ImageError, match="None of 3 photos with masks can be read: .*png is"):
            list(reading(photos_and_masks(photos, masks, 4)))


@pytest.mark.filterwarnings("ignore")  # TFDS's own
def test_tfds(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class Drawn(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3))
            features = {"image": image, "segmentation_mask": tfds.features.Image(shape=(None, None, 1))}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (image, mask) in enumerate(DrawnShapes(4, 33)):
                yield i, {"image": image, "segmentation_mask": mask[..., None]}

    made = Drawn(data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: made)
    pairs = tfds_photos_and_masks("drawn", "train", 4)
    assert len(pairs) == 4
    found = {mask.tobytes(): photo for photo, mask in pairs}
    for photo, mask in DrawnShapes(4, 33):
        np.testing.assert_array_equal(found[mask.tobytes()], photo)
    orders = [[mask.tobytes() for _, mask in pairs.shuffled((0, i))] for i in range(8)]
    assert all(sorted(order) == sorted(found) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert [mask.tobytes() for _, mask in pairs.shuffled((0, 3), 2)] == orders[3][2:]
    with pytest.raises(ValueError, match="unknown labels"):
        list(tfds_photos_and_masks("drawn", "train", 1))
    monkeypatch.setattr("mnv2_keras.data.segmentation._MASKS", ("annotation",))
    with pytest.raises(ValueError, match="expected an image and a mask"):
        tfds_photos_and_masks("drawn", "train", 4)


def test_tfds_masks_are_checked_as_they_are():
    class Builder:
        name = "drawn"

        def __init__(self, mask):
            self.example = {"image": np.zeros((4, 4, 3), np.uint8), "mask": mask}

        def as_dataset(self, split):
            return tf.data.Dataset.from_tensors(self.example)

    good = np.array([[0, 1, 2, 255]] * 4, np.uint16)[..., None]
    photo, mask = next(iter(_TfdsPairs(Builder(good), "train", "mask", 3)))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, good[..., 0])
    with pytest.raises(ValueError, match="train, example 0 has unknown labels 254, 256, 509"):
        next(iter(_TfdsPairs(Builder(good + 254), "train", "mask", 3)))  # in 8 bits 256 would be label 0


@pytest.mark.parametrize("classes", [0, 256])
def test_classes_that_masks_cannot_hold(folder, classes):
    with pytest.raises(ValueError, match=f"classes is {classes}: .* expected 1 to 255"):
        photos_and_masks(folder / "photos", folder / "masks", classes)
    with pytest.raises(ValueError, match=f"classes is {classes}"):
        tfds_photos_and_masks("drawn", "train", classes)


# Training


def test_all_steps_are_trained(folder):
    model = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4)
    pairs = photos_and_masks(folder / "photos", folder / "masks", 4)
    seen = []
    recipe = dataclasses.replace(TINY, steps=5, batch=1, weight_decay=0.0)
    rows = train_segmenter(model, pairs, recipe, every=2, progress=lambda *told: seen.append(told))
    assert int(model.optimizer.iterations) == 5
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [(step, row) for step, _, row in seen] == [(1, None), (2, rows[0]), (3, None), (4, rows[1]), (5, rows[2])]
    losses = [loss for _, loss, _ in seen]
    assert [row["loss"] for row in rows] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]])


def test_a_step_is_the_genuine_programs():
    """Loss with weight decay, for a model built without any; momentum; twice the gradient for biases."""
    model = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4, dropout_rate=0.0)
    before = {variable.path: variable.numpy() for variable in model.trainable_variables}
    recipe = dataclasses.replace(TINY, steps=1, weight_decay=4e-3, fine_tune_batch_norm=False)
    ((images, masks),) = training_batches(DrawnShapes(3, 33), 2, (33, 33), recipe.scales, recipe.flip, 0).take(1)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    with tf.GradientTape() as tape:
        loss = SegmentationLoss()(masks, model(images, training=True))
        kernels = [layer.kernel for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
        kernels = [kernel for kernel in kernels if "depthwise" not in kernel.path]
        assert len(kernels) == 38
        loss += 4e-3 * sum(tf.reduce_sum(kernel**2) / 2 for kernel in kernels)
    gradients = tape.gradient(loss, model.trainable_variables)
    expected = {
        v.path: before[v.path] - 0.01 * each for v, each in zip(model.trainable_variables, gradients, strict=True)
    }
    (bias,) = [path for path in expected if path.endswith("bias")]
    expected[bias] -= 0.01 * gradients[[v.path for v in model.trainable_variables].index(bias)]
    (row,) = train_segmenter(model, DrawnShapes(3, 33), recipe)
    assert row["loss"] == pytest.approx(float(loss), rel=1e-5)
    for variable in model.trainable_variables:
        np.testing.assert_allclose(variable.numpy(), expected[variable.path], atol=1e-6)


def test_a_stopped_run_goes_on_to_the_same_bits(folder, tmp_path):
    recipe = dataclasses.replace(TINY, steps=6)

    def train(progress=None, **options):
        keras.utils.set_random_seed(3)
        model = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4, weight_decay=4e-5)
        pairs = photos_and_masks(folder / "photos", folder / "masks", 4)
        rows = train_segmenter(model, pairs, recipe, every=2, progress=progress, **options)
        return rows, model.get_weights()

    def stop(step, loss, row):
        if step == 5:
            raise KeyboardInterrupt

    state = tmp_path / "state.npz"
    rows, weights = train()
    with pytest.raises(KeyboardInterrupt):
        train(stop, state=state, evaluate=lambda: {"mean_iou": 0.5})
    with pytest.raises(ValueError, match="of a run that has not ended: resume it"):
        train(state=state)
    steps = []
    with pytest.raises(ZeroDivisionError):
        train(state=state, resume=True, evaluate=lambda: 1 / 0)  # steps 5 and 6 are kept, but not judged
    judged = iter([{"mean_iou": 0.75}])
    resumed, again = train(lambda step, *_: steps.append(step), state=state, resume=True, evaluate=lambda: next(judged))
    assert steps == []
    assert [row["mean_iou"] for row in resumed] == [0.5, 0.5, 0.75]
    assert [(row["step"], row["loss"]) for row in resumed] == [(row["step"], row["loss"]) for row in rows]
    for ours, theirs in zip(again, weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    recipe = dataclasses.replace(recipe, learning_rate=0.5)
    with pytest.raises(ValueError, match="is of a run with other recipe"):
        train(state=state, resume=True)
    recipe = dataclasses.replace(recipe, learning_rate=1e30)
    with pytest.raises(
        Diverged, match=r"The loss is (nan|inf) at step \d: start anew with a learning rate below 1e\+30"
    ):
        train()


def test_frozen_batch_norms_stay_as_they_are(folder):
    model = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [norm.get_weights() for norm in norms]
    recipe = dataclasses.replace(TINY, fine_tune_batch_norm=False, batch_norm_momentum=0.5)
    train_segmenter(model, photos_and_masks(folder / "photos", folder / "masks", 4), recipe)
    for norm, values in zip(norms, before, strict=True):
        assert len(values) == 4  # gamma, beta, mean, variance
        for ours, theirs in zip(norm.get_weights(), values, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_model_that_takes_pixels_is_not_trained():
    model = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4, include_preprocessing=True)
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        train_segmenter(model, DrawnShapes(3, 33), TINY)


def test_training_learns_and_refuses_what_does_not_fit(folder):
    model = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4, weight_decay=4e-5)
    before = [weight.numpy() for weight in model.weights]
    pairs = photos_and_masks(folder / "photos", folder / "masks", 4)
    learned = dataclasses.replace(TINY, steps=24, batch=3, learning_rate=0.05, scales=(1.0,), flip=0.0)
    rows = train_segmenter(model, pairs, learned, every=8)
    assert rows[2]["loss"] < 0.8 * rows[0]["loss"]
    changed = [not np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True)]
    assert np.mean(changed) > 0.95
    save_mask(np.zeros((40, 39)), folder / "masks" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is 40 x 40, its mask"):
        train_segmenter(model, photos_and_masks(folder / "photos", folder / "masks", 4), TINY)
    other = build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=4, output_stride=8)
    train_segmenter(model, DrawnShapes(3, 33), TINY, state=folder / "state.npz")
    with pytest.raises(ValueError, match="of a run with other network"):
        train_segmenter(other, DrawnShapes(3, 33), TINY, state=folder / "state.npz", resume=True)
    with pytest.raises(ValueError, match="the recipe crops to 65 x 65"):
        train_segmenter(model, pairs, dataclasses.replace(TINY, crop=(65, 65)))
    with pytest.raises(ValueError, match="the masks have 5 classes, the model 4"):
        train_segmenter(model, dataclasses.replace(pairs, classes=5), TINY)


def test_commands(folder, tmp_path):
    model = tmp_path / "model.keras"
    sources = ["--photos", str(folder / "photos"), "--masks", str(folder / "masks")]
    command = ["train", "segmentation", "-o", str(model), "--classes", "4", "--alpha", "0.35", "--crop", "33"]
    result = CliRunner().invoke(
        command_line(), [*command, *sources, "--steps", "2", "--batch", "1", "--freeze-batch-norm"]
    )
    assert result.exit_code == 0, result.output
    assert sorted(tmp_path.glob("model*")) == [model]  # no state is left
    again = CliRunner().invoke(command_line(), [*command, *sources, "--resume"])
    assert "is finished: there is nothing to resume" in again.stdout.replace("\n", " ")
    plot = tmp_path / "confusion.png"
    command = ["evaluate", "segmentation", str(model), *sources, "--plot", str(plot)]
    result = CliRunner().invoke(command_line(), [*command, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["photos"] == 3
    assert found["pixels"] == 3 * 40 * 40
    assert 0 <= found["mean_iou"] <= 1
    with Image.open(plot) as image:
        assert image.size[0] > 300
    (folder / "photos" / "2.png").write_bytes(b"broken")
    result = CliRunner().invoke(command_line(), command)
    assert "mean IoU" in result.stdout
    assert "2 photos." in result.stdout
    assert "1 images could not be read and were left out:" in result.stderr
    assert "2.png" in result.stderr
    (folder / "one.txt").write_text("\ufeff1 \n\n", "utf-8")
    command = ["evaluate", "segmentation", str(model), *sources, "--list", str(folder / "one.txt"), "--json"]
    assert json.loads(CliRunner().invoke(command_line(), command).stdout)["photos"] == 1
    wrong = CliRunner().invoke(command_line(), ["train", "segmentation", "-o", "voc.tflite", "--shapes"])
    assert "expected .keras, .h5, .weights.h5 or .ckpt" in str(wrong.exception)
    for bad in (["--shapes", "--tfds", "x"], [], ["--photos", "x"]):
        result = CliRunner().invoke(command_line(), ["evaluate", "segmentation", str(model), *bad])
        assert isinstance(result.exception, ValueError)
        assert "Name one source" in str(result.exception)


def test_the_command_trains_on_drawn_shapes(tmp_path):
    options = ["--alpha", "0.35", "--crop", "33", "--steps", "2", "--batch", "2", "--plot", str(tmp_path / "curve.png")]
    command = ["train", "segmentation", "--shapes", "-o", str(tmp_path / "shapes.keras"), *options]
    result = CliRunner().invoke(command_line(), command)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] > 600  # losses and mean IoU side by side
    ending = result.stdout.replace("\n", " ")
    told = re.search(r"in 2 steps; mean IoU (\d\.\d{4}) on 300 held-out pictures", ending)
    pairs = DrawnShapes(300, 33, seed=1)
    found = evaluate_segmenter(Segmenter(tmp_path / "shapes.keras"), pairs)
    assert f"{found.mean_iou:.4f}" == told[1]
    result = CliRunner().invoke(
        command_line(), ["evaluate", "segmentation", str(tmp_path / "shapes.keras"), "--shapes", "--json"]
    )
    judged = json.loads(result.stdout)
    assert judged["pixels"] == 300 * 33 * 33
    assert judged["mean_iou"] == pytest.approx(found.mean_iou)
