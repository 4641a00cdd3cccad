"""Photos to masks: the genuine program's labels on real photos, files, pictures, several scales, broken photos."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from deeplab_variants import ARCHIVES
from PIL import Image
from typer.testing import CliRunner

from mnv2_keras import Segmenter, build_deeplabv3_mobilenetv2
from mnv2_keras.cli.main import command_line
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables
from mnv2_keras.images import ImageError, read_image
from mnv2_keras.inference.segmenter import MultiScale
from mnv2_keras.labels import voc_labels
from mnv2_keras.masks import fit_photo, pad_photo, read_mask, save_mask, voc_palette
from mnv2_keras.preprocessing import normalize_image


@pytest.fixture(scope="module", params=ARCHIVES)
def real(request, testdata):
    return request.param, Segmenter(testdata / "checkpoints" / f"{ARCHIVES[request.param]}.tar.gz")


@pytest.fixture(scope="module")
def small():
    model = build_deeplabv3_mobilenetv2(0.35, (65, 65, 3))
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    return model


@pytest.fixture(scope="module")
def small_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("segmenter") / "small.keras"
    small.save(path)
    return path


def overlap(labels, mask, label, yes, ignored):
    judged = ~np.isin(mask, ignored)
    ours, truth = (labels == label)[judged], (mask == yes)[judged]
    return (ours & truth).sum() / (ours | truth).sum()


def test_labels_are_the_genuine_programs(real, testdata):
    variant, segmenter = real
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_real.npz")
    names = [name for name in golden.files if name.startswith(f"{variant}/") and name.endswith("|labels")]
    assert len(names) == 4
    for name in names:
        photo = name.split("/")[1].removesuffix("|labels")
        pixels = golden[f"{photo}|input"] if "@" in photo else read_image(testdata / "images" / photo)
        found = segmenter.segment(pixels)
        assert found.labels.shape == pixels.shape[:2]
        assert np.mean(found.labels == golden[name]) >= 0.999, photo


def test_bird_and_dog_as_well_as_the_genuine_program(real, testdata):
    variant, segmenter = real
    images = testdata / "images"
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_real.npz")
    for photo, mask, label, yes, ignored in (
        ("bird_segmentation.bmp", "bird_segmentation_mask.bmp", 3, 3, (1, 2)),
        ("dog_segmentation_256.bmp", "dog_segmentation_mask_256.bmp", 12, 0, (2,)),
    ):
        mask = read_image(images / mask)[..., 0]
        found = segmenter.segment(images / photo)
        genuine = overlap(golden[f"{variant}/{photo}|labels"], mask, label, yes, ignored)
        assert overlap(found.labels, mask, label, yes, ignored) >= genuine - 1e-3
        assert found.names[label] in found.areas
        assert sum(found.areas.values()) == pytest.approx(1)
        assert list(found.areas.values()) == sorted(found.areas.values(), reverse=True)


def test_exported_graph_on_375_x_500(testdata):
    """The archives' weights are others: the name rule's network, padded as the exporter pads."""
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_frozen_uint8_golden.npz")
    photo = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, 375, 500, 3), np.uint8)[0]
    for key, alpha in (("deeplab", 1.0), ("deeplab_dm05", 0.5)):
        model = build_deeplabv3_mobilenetv2(alpha)
        for name, variable in variables(model).items():
            variable.assign(name_rule_value(name, variable.shape))
        found = Segmenter(model).segment(photo)
        assert np.mean(found.labels == golden[f"{key}/SemanticPredictions"][0]) >= 0.9999
        batch = pad_photo(photo, (513, 513))[None]
        logits = keras.Model(model.input, model.get_layer("logits-semantic").output)(batch)
        np.testing.assert_allclose(logits, golden[f"{key}/logits"], rtol=0, atol=2e-3)
        probabilities = tf.nn.softmax(model(batch))[:, :375:16, :500:16]
        np.testing.assert_allclose(probabilities, golden[f"{key}/SemanticProbabilities_every16"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("stride", [16, 8])
def test_several_scales_and_mirrored(testdata, stride):
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_extra_golden.npz")
    model = build_deeplabv3_mobilenetv2(input_shape=(129, 129, 3), output_stride=stride)
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    image = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (1, 129, 129, 3)).astype(np.float32)
    found = MultiScale(model, (0.75, 1.0, 1.25), flip=True)(normalize_image(image))
    genuine = golden[f"129_os{stride}/multiscale_flip_argmax"]
    assert np.mean(np.argmax(found, -1) == genuine) >= 0.9999
    # The genuine program takes the softmax of the averaged probabilities once more.
    twice = tf.nn.softmax(found)[:, ::8, ::8]
    np.testing.assert_allclose(
        twice, golden[f"129_os{stride}/multiscale_flip_softmax_of_mean_prob_every8"], rtol=0, atol=1e-4
    )
    photo = np.round(image[0]).astype(np.uint8)
    labels = Segmenter(model, scales=(0.75, 1, 1.25), flip=True).segment(photo).labels
    assert np.mean(labels == genuine[0]) > 0.95  # rounded pixels


def test_several_scales_of_a_network_with_decoder():
    model = build_deeplabv3_mobilenetv2(0.35, (65, 65, 3), classes=5, decoder=True, aspp_rates=(6, 12, 18))
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 65, 65, 3)).astype(np.float32)
    plain, turned = tf.nn.softmax(model(image)), tf.nn.softmax(model(image[:, :, ::-1]))[:, :, ::-1]
    np.testing.assert_allclose(MultiScale(model, (1.0,), flip=True)(image), (plain + turned) / 2, atol=1e-5)
    found = MultiScale(model, (0.5, 1.0, 1.25), flip=False)(image)
    np.testing.assert_allclose(tf.reduce_sum(found, -1), 1, atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parametrize("size", [(65, 65), (20, 31), (200, 130), (64, 300)])
def test_any_size_comes_back_at_its_own(small, size):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = Segmenter(small).segment(photo)
    assert found.labels.shape == size
    assert found.labels.dtype == np.uint8
    assert found.source is None
    assert found.as_dict()["height"] == size[0]
    picture = found.picture()
    assert picture.size[0] == max(3 * size[1], 144)  # the legend too needs room
    assert picture.size[1] > size[0]
    np.testing.assert_array_equal(np.asarray(picture)[: size[0], : size[1]], photo)
    mask = np.asarray(picture)[: size[0], size[1] : 2 * size[1]]
    np.testing.assert_array_equal(mask, voc_palette()[found.labels])


def test_names(small, small_file):
    assert Segmenter(small_file).names == voc_labels()
    assert Segmenter(build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=2)).names == ("class 0", "class 1")
    with pytest.raises(ValueError, match="2 labels were given for 21 classes"):
        Segmenter(small, labels=["a", "b"])


def test_closed_and_bad_arguments(small, small_file, testdata, tmp_path):
    with Segmenter(small) as segmenter:
        segmenter.segment(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="closed"):
        segmenter.segment(np.zeros((9, 9, 3), np.uint8))
    segmenter = Segmenter(small)
    Image.new("RGB", (9, 7)).save(tmp_path / "one.png")
    for photos in (np.zeros((7, 9, 3), np.uint8), tmp_path, str(tmp_path / "one.png")):
        (found,) = segmenter.stream(photos)
        assert found.labels.shape == (7, 9)
    for bad in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match="a photo is uint8"):
            segmenter.segment(bad)
    for scales in ((), (0,), ("1",)):
        with pytest.raises(ValueError, match="scales is"):
            Segmenter(small, scales=scales)
    with pytest.raises(FileNotFoundError):
        Segmenter(tmp_path / "nothing.keras")
    with pytest.raises(ValueError, match="holds no segmenter"):
        Segmenter(testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz")
    quant = testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite"
    with pytest.raises(ValueError, match="need a Keras model"):
        Segmenter(quant, flip=True)
    with pytest.raises(ValueError, match="is no segmenter"):
        Segmenter(testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite")


def test_networks_that_are_no_segmenter_for_photos(small):
    features = small.get_layer("concat_projection-dropout").output
    anywhere = build_deeplabv3_mobilenetv2(0.35, (None, None, 3), classes=2)
    for model in (
        keras.Model(small.input, features),
        keras.Model(anywhere.input, anywhere.get_layer("logits-semantic").output),
        build_deeplabv3_mobilenetv2(0.35, (33, 33, 1)),
    ):
        with pytest.raises(ValueError, match="holds no segmenter"):
            Segmenter(model)
    with pytest.raises(ValueError, match="257 classes: labels are uint8, so 256 at most"):
        Segmenter(build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), classes=257))
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        Segmenter(build_deeplabv3_mobilenetv2(0.35, (33, 33, 3), include_preprocessing=True))


def test_googles_quantised_file_runs_as_it_is(testdata):
    segmenter = Segmenter(testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite")
    mask = read_image(testdata / "images" / "bird_segmentation_mask.bmp")[..., 0]
    found = segmenter.segment(testdata / "images" / "bird_segmentation.bmp")
    # 0.9178 was published for it; LiteRT's kernels round differently from release to release.
    assert overlap(found.labels, mask, 3, 3, (1, 2)) == pytest.approx(0.9178, abs=5e-3)


# Files


def test_palette_is_pascals():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    # From the labels of the VOC development kit.
    for label, colour in {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0)}.items():
        assert tuple(palette[label]) == colour
    assert tuple(palette[20]) == (0, 64, 128)
    assert tuple(palette[255]) == (224, 224, 192)


def test_masks_round_trip(tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, (31, 17), np.uint8)
    path = save_mask(labels, tmp_path / "deep" / "mask.png")
    np.testing.assert_array_equal(read_mask(path), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[labels])
    assert [each.name for each in path.parent.iterdir()] == ["mask.png"]
    Image.fromarray(labels).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), labels)
    Image.fromarray(labels > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png"), labels > 128)


def test_masks_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no mask"):
        read_mask(tmp_path / "nothing.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "colour.png")
    with pytest.raises(ImageError, match="mode RGB"):
        read_mask(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageError, match="is no mask"):
        read_mask(tmp_path / "text.png")
    with pytest.raises(OSError):  # noqa: PT011 - the system's own words
        save_mask(np.zeros((2, 2)), tmp_path / "text.png" / "mask.png")
    with pytest.raises(ValueError, match="does not fit"):
        pad_photo(np.zeros((66, 10, 3), np.uint8), (65, 65))


def test_fit_photo_is_pillows_lanczos(testdata):
    photo = read_image(testdata / "images" / "cat.bmp")
    assert fit_photo(photo, (513, 513)) is photo
    smaller = fit_photo(photo, (100, 100))
    assert smaller.shape == (67, 100, 3)
    expected = Image.fromarray(photo).resize((100, 67), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(smaller, np.asarray(expected))
    assert fit_photo(np.zeros((1, 4000, 3), np.uint8), (65, 65)).shape == (1, 65, 3)


# The command


def test_mnv2_segment(small_file, tmp_path, testdata):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "more/a.png"]):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 90 + i, 3), np.uint8)).save(photos / name)
    (photos / "b2.jpg").write_bytes(b"broken")
    output = tmp_path / "out"
    arguments = ["segment", str(photos), "-o", str(output), "--weights", str(small_file)]
    result = CliRunner().invoke(command_line(), [*arguments, "--json"])
    assert result.exit_code == 1
    assert "b2.jpg" in result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads((output / "areas.json").read_text())
    assert [each["width"] for each in found] == [90, 91, 92]
    for each in found:
        mask = read_mask(each["mask"])
        assert mask.shape == (each["height"], each["width"])
        shares = {voc_labels()[label]: np.mean(mask == label) for label in np.unique(mask)}
        assert each["areas"] == pytest.approx(shares)
        with Image.open(each["picture"]) as picture:
            assert picture.width == 3 * each["width"]
    (photos / "b2.jpg").unlink()
    arguments[1] = str(tmp_path)  # the masks of the first run lie below it and are no photos
    result = CliRunner().invoke(command_line(), [*arguments, "--scales", "0.75,1", "--flip"])
    assert result.exit_code == 0
    assert "b.png" in result.stdout
    assert len(json.loads((output / "areas.json").read_text())) == 3


def test_mnv2_segment_without_photos(small_file, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = ["segment", str(tmp_path / "empty"), "-o", str(tmp_path / "out"), "--weights", str(small_file)]
    result = CliRunner().invoke(command_line(), arguments)
    assert isinstance(result.exception, ValueError)
    assert "holds no images" in str(result.exception)
    assert not (tmp_path / "out").exists()
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    Image.new("RGB", (9, 9)).save(photo)
    arguments = ["segment", str(photo.parent), "-o", f"{tmp_path}/out/../photos", "--weights", str(small_file)]
    result = CliRunner().invoke(command_line(), arguments)
    assert isinstance(result.exception, ValueError)
    assert "choose another one" in str(result.exception)
    assert list(photo.parent.iterdir()) == [photo]
