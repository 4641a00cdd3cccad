"""Photos with masks: their sources, what is refused or left out, and the augmentation."""

import numpy as np
import pytest
import tensorflow as tf
from training_tasks import small_segmenter

from mnv2_keras.data.drawn_shapes import DrawnShapes
from mnv2_keras.data.segmentation import (
    _TfdsPairs,
    augmented,
    check_labels,
    photos_and_masks,
    segmentation_batches,
    tfds_photos_and_masks,
)
from mnv2_keras.evaluation.segmentation import evaluate_segmenter
from mnv2_keras.images import ImageError
from mnv2_keras.masks import read_mask, save_mask
from mnv2_keras.training.segmentation import SegmentationRecipe, train_segmenter

# Augmentation


def test_augmentation_keeps_photo_and_mask_together():
    """A photo whose red tells its label: after any scaling, padding, cropping and mirroring it still does."""
    labels = np.kron(np.arange(12).reshape(3, 4), np.ones((12, 12))).astype(np.uint8)
    photo = np.repeat((labels * 20)[..., None], 3, -1).astype(np.uint8)
    padded = 0
    for scales in [(1.0,), (0.5, 2.0)]:
        for seed in range(12):
            image, mask = (
                tensor.numpy() for tensor in augmented(tf.constant(photo), tf.constant(labels), (50, 40), (seed, 0), scales)
            )
            assert image.shape == (50, 40, 3)
            assert mask.shape == (50, 40)
            outside = mask == 255
            padded += outside.any()
            np.testing.assert_allclose(image[outside], 0, atol=1e-6)  # 127.5, normalised
            shown = np.rint((image[..., 0] + 1) * 127.5 / 20)
            # Between two labels bilinear pixels are blends.
            assert np.mean(shown[~outside] == mask[~outside]) > (0.999 if scales == (1.0,) else 0.8)
    assert padded
    image, mask = augmented(tf.constant(photo), tf.constant(labels), (36, 48), (0, 0), (1.0,), flip=1.0)
    np.testing.assert_array_equal(mask, labels[:, ::-1])


def test_augmentation_draws_everything():
    """Every scale, every place and both sides come up."""
    labels = np.arange(200).reshape(10, 20).astype(np.uint8)
    photo = np.zeros((10, 20, 3), np.uint8)

    def drawn(count, crop, scales):
        mask = tf.function(lambda seed: augmented(tf.constant(photo), tf.constant(labels), crop, seed, scales)[1])
        return [mask(tf.constant((0, i))).numpy() for i in range(count)]

    masks = drawn(100, (8, 19), (1.0,))
    corners = {(int(mask[0, 0]), int(mask[0, 1]) - int(mask[0, 0])) for mask in masks}
    plain = {(20 * top + left, 1) for top in range(3) for left in range(2)}
    assert corners == plain | {(first + 18, -1) for first, _ in plain}
    masks = drawn(30, (30, 60), (0.5, 1.0, 2.0))
    assert {int((mask != 255).sum()) for mask in masks} == {50, 200, 800}


def test_batches_are_endless_and_given_by_the_seed_alone():
    def batches(seed, others_seed, start=0):
        tf.random.set_seed(others_seed)
        stream = segmentation_batches(DrawnShapes(3, 33), 2, (33, 33), (0.75, 1.5), 0.5, seed, start)
        return [batch for batch, _ in zip(stream, range(5 - start), strict=False)]

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


def test_each_pass_has_an_order_of_its_own(shapes_folder):
    for pairs in (photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4), DrawnShapes(3, 40)):
        drawn = [photo.tobytes() for photo, _ in DrawnShapes(3, 40)]
        orders = [[drawn.index(photo.tobytes()) for photo, _ in pairs.shuffled((0, i))] for i in range(20)]
        assert all(sorted(order) == [0, 1, 2] for order in orders)
        assert len({tuple(order) for order in orders}) == 6
        assert [drawn.index(photo.tobytes()) for photo, _ in pairs.shuffled((0, 7), 1)] == orders[7][1:]


# Where photos and masks come from


def test_folder(shapes_folder):
    pairs = photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4)
    assert len(pairs) == 3
    for (photo, mask), (drawn, truth) in zip(pairs, DrawnShapes(3, 40), strict=True):
        np.testing.assert_array_equal(photo, drawn)
        np.testing.assert_array_equal(mask, truth)


def test_bad_folders(shapes_folder, tmp_path):
    photos, masks = shapes_folder / "photos", shapes_folder / "masks"
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
    with pytest.raises(ImageError, match=r"2\.png is not a mask"):
        pairs.read(2)


def test_photos_are_paired_by_their_paths(shapes_folder, caplog):
    """As in Pascal VOC: more photos than masks, a list of names for each part; and folders within folders."""
    photos, masks = shapes_folder / "photos", shapes_folder / "masks"
    (masks / "0.png").unlink()
    assert [photo.name for photo, _ in photos_and_masks(photos, masks, 4).pairs] == ["1.png", "2.png"]
    assert "1 of 3 photos have no mask in" in caplog.text
    assert "first 0: they are left out" in caplog.text
    caplog.clear()
    assert [photo.name for photo, _ in photos_and_masks(photos, masks, 4, ["2", "1", "2"]).pairs] == ["2.png", "1.png"]
    assert not caplog.text
    with pytest.raises(ValueError, match="The list names no photo"):
        photos_and_masks(photos, masks, 4, [])
    with pytest.raises(FileNotFoundError, match=r"1 of 2 listed names are not in .*masks, first 0: expected lines such as 1"):
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


def test_what_does_not_fit_is_told_before_the_first_step(shapes_folder):
    photos, masks = shapes_folder / "photos", shapes_folder / "masks"
    (photos / "0.png").write_bytes(b"")
    pairs, seen = photos_and_masks(photos, masks, 4), []
    pairs.check(seen.append)
    assert seen == [1, 2, 3]
    assert list(pairs.broken) == [str(photos / "0.png")]
    for name in "12":
        save_mask(np.zeros((40, 39)), masks / f"{name}.png")
    with pytest.raises(ValueError, match=r"1\.png is 40 x 40, its mask .*1\.png 40 x 39: .* And 1 more of 3 do not fit"):
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


def test_what_cannot_be_read_is_left_out_and_named(shapes_folder):
    """A photo or mask that is broken costs nothing but itself, wherever it stands."""
    photos, masks = shapes_folder / "photos", shapes_folder / "masks"
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
    assert len(list(segmentation_batches(pairs, 3, (33, 33), (1.0,)).take(2))) == 2
    assert list(pairs.broken) == [str(photos / "1.png")]
    (photos / "0.png").write_bytes(b"")
    (masks / "2.png").write_bytes(b"broken")
    for reading in (iter, lambda pairs: pairs.shuffled((0, 0))):
        with pytest.raises(ImageError, match="None of 3 photos with masks can be read: .*png is"):
            list(reading(photos_and_masks(photos, masks, 4)))


@pytest.mark.slow
def test_training_leaves_out_what_cannot_be_read(shapes_folder):
    (shapes_folder / "photos" / "1.png").write_bytes(b"broken")
    pairs = photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4)
    rows = train_segmenter(small_segmenter(), pairs, SegmentationRecipe(steps=2, batch=3, crop=(33, 33)))
    assert rows[-1]["step"] == 2
    assert list(pairs.broken) == [str(shapes_folder / "photos" / "1.png")]


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

    builder = Drawn(data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    pairs = tfds_photos_and_masks("drawn", "train", 4)
    assert len(pairs) == 4
    photo_of = {mask.tobytes(): photo for photo, mask in pairs}
    for photo, mask in DrawnShapes(4, 33):
        np.testing.assert_array_equal(photo_of[mask.tobytes()], photo)
    orders = [[mask.tobytes() for _, mask in pairs.shuffled((0, i))] for i in range(8)]
    assert all(sorted(order) == sorted(photo_of) for order in orders)
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
def test_classes_that_masks_cannot_hold(shapes_folder, classes):
    with pytest.raises(ValueError, match=f"classes is {classes}: .* expected 1 to 255"):
        photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", classes)
    with pytest.raises(ValueError, match=f"classes is {classes}"):
        tfds_photos_and_masks("drawn", "train", classes)
