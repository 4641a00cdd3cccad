"""`Segmenter`: the genuine program's labels on real photos, pictures, several scales, broken photos."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from deeplab_variants import ARCHIVES
from PIL import Image
from small_checkpoints import fill_by_name

from mnv2_keras import Segmenter, build_deeplabv3_mobilenetv2
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables
from mnv2_keras.images import read_image
from mnv2_keras.inference.segmenter import MultiScale
from mnv2_keras.labels import voc_labels
from mnv2_keras.masks import pad_photo, voc_palette
from mnv2_keras.preprocessing import normalize_image


@pytest.fixture(scope="module", params=ARCHIVES)
def real(request, converted_here, testdata):
    engine = {"os16": "litert", "dm05": "keras"}[request.param]
    return request.param, Segmenter(testdata / "checkpoints" / f"{ARCHIVES[request.param]}.tar.gz", engine)


@pytest.fixture(scope="module")
def small():
    return fill_by_name(build_deeplabv3_mobilenetv2(0.35, (65, 65, 3)))


@pytest.fixture(scope="module")
def segmenter(small):
    with Segmenter(small) as opened:
        yield opened


@pytest.fixture
def eagerly():
    """Keras' engine without tracing, which pays only for many photos."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


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
        labels = segmenter.segment(pixels).labels
        assert labels.shape == pixels.shape[:2]
        assert np.mean(labels == golden[name]) >= 0.999, photo


def test_bird_and_dog_as_well_as_the_genuine_program(real, testdata):
    variant, segmenter = real
    images = testdata / "images"
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_real.npz")
    for photo, mask, label, yes, ignored in (
        ("bird_segmentation.bmp", "bird_segmentation_mask.bmp", 3, 3, (1, 2)),
        ("dog_segmentation_256.bmp", "dog_segmentation_mask_256.bmp", 12, 0, (2,)),
    ):
        mask = read_image(images / mask)[..., 0]
        result = segmenter.segment(images / photo)
        genuine = overlap(golden[f"{variant}/{photo}|labels"], mask, label, yes, ignored)
        assert overlap(result.labels, mask, label, yes, ignored) >= genuine - 1e-3
        assert result.names[label] in result.areas
        assert sum(result.areas.values()) == pytest.approx(1)
        assert list(result.areas.values()) == sorted(result.areas.values(), reverse=True)


def test_exported_graph_on_375_x_500(eagerly, testdata):
    """The archives' weights are others: the name rule's network, padded as the exporter pads."""
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_frozen_uint8_golden.npz")
    photo = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, 375, 500, 3), np.uint8)[0]
    for key, alpha in (("deeplab", 1.0), ("deeplab_dm05", 0.5)):
        model = build_deeplabv3_mobilenetv2(alpha)
        for name, variable in variables(model).items():
            variable.assign(name_rule_value(name, variable.shape))
        labels = Segmenter(model).segment(photo).labels
        assert np.mean(labels == golden[f"{key}/SemanticPredictions"][0]) >= 0.9999
        outputs = keras.Model(model.input, [model.get_layer("logits-semantic").output, model.output])
        logits, enlarged = outputs(pad_photo(photo, (513, 513))[None])
        np.testing.assert_allclose(logits, golden[f"{key}/logits"], rtol=0, atol=2e-3)
        probabilities = tf.nn.softmax(enlarged)[:, :375:16, :500:16]
        np.testing.assert_allclose(probabilities, golden[f"{key}/SemanticProbabilities_every16"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("stride", [16, 8])
def test_several_scales_and_mirrored(eagerly, testdata, stride):
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_extra_golden.npz")
    model = build_deeplabv3_mobilenetv2(input_shape=(129, 129, 3), output_stride=stride)
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    image = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (1, 129, 129, 3)).astype(np.float32)
    segmenter = Segmenter(model, scales=(0.75, 1, 1.25), flip=True)
    labels, probabilities = segmenter._engine.run(normalize_image(image[0]))
    genuine = golden[f"129_os{stride}/multiscale_flip_argmax"]
    assert np.mean(labels == genuine[0]) >= 0.9999
    assert np.mean(np.argmax(probabilities, -1) == genuine[0]) >= 0.9999
    # The genuine program takes the softmax of the averaged probabilities once more.
    twice = tf.nn.softmax(probabilities)[None, ::8, ::8]
    np.testing.assert_allclose(twice, golden[f"129_os{stride}/multiscale_flip_softmax_of_mean_prob_every8"], rtol=0, atol=1e-4)
    photo = np.round(image[0]).astype(np.uint8)
    labels = segmenter.segment(photo).labels
    assert np.mean(labels == genuine[0]) > 0.95  # rounded pixels


def test_several_scales_of_a_network_with_decoder():
    model = build_deeplabv3_mobilenetv2(0.1, (65, 65, 3), classes=5, decoder=True, aspp_rates=(6, 12, 18))
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 65, 65, 3)).astype(np.float32)
    plain, turned = tf.nn.softmax(model(image)), tf.nn.softmax(model(image[:, :, ::-1]))[:, :, ::-1]
    np.testing.assert_allclose(MultiScale(model, (1.0,), flip=True)(image), (plain + turned) / 2, atol=1e-5)
    probabilities = MultiScale(model, (0.5, 1.0, 1.25), flip=False)(image)
    np.testing.assert_allclose(tf.reduce_sum(probabilities, -1), 1, atol=1e-5)
    assert np.abs(probabilities - plain).max() > 1e-3


@pytest.mark.parametrize("size", [(65, 65), (20, 31), (200, 130), (64, 300)])
def test_labels_have_the_size_of_the_photo(segmenter, size):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = segmenter.segment(photo)
    assert result.labels.shape == size
    assert result.labels.dtype == np.uint8
    assert result.source is None
    assert result.as_dict()["height"] == size[0]
    picture = result.picture()
    assert picture.size[0] == max(3 * size[1], 144)  # the legend too needs room
    assert picture.size[1] > size[0]
    np.testing.assert_array_equal(np.asarray(picture)[: size[0], : size[1]], photo)
    mask = np.asarray(picture)[: size[0], size[1] : 2 * size[1]]
    np.testing.assert_array_equal(mask, voc_palette()[result.labels])


def test_names(small, segmenter, tmp_path):
    assert segmenter.names == voc_labels()
    small.save(tmp_path / "small.keras")
    assert Segmenter(tmp_path / "small.keras", "keras").names == voc_labels()
    assert Segmenter(build_deeplabv3_mobilenetv2(0.1, (33, 33, 3), classes=2)).names == ("class 0", "class 1")
    with pytest.raises(ValueError, match="2 labels were given for 21 classes"):
        Segmenter(small, labels=["a", "b"])


def test_closed_and_bad_arguments(small, segmenter, testdata, tmp_path):
    with Segmenter(small) as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        closed.segment(np.zeros((9, 9, 3), np.uint8))
    Image.new("RGB", (9, 7)).save(tmp_path / "one.png")
    for photos in (np.zeros((7, 9, 3), np.uint8), tmp_path, str(tmp_path / "one.png")):
        (result,) = segmenter.stream(photos)
        assert result.labels.shape == (7, 9)
    for bad in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match="a photo is uint8"):
            segmenter.segment(bad)
    for scales in ((), (0,), ("1",)):
        with pytest.raises(ValueError, match="scales is"):
            Segmenter(small, scales=scales)
    with pytest.raises(FileNotFoundError):
        Segmenter(tmp_path / "nothing.keras")
    with pytest.raises(ValueError, match="holds no segmenter"):
        Segmenter(testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz", "keras")
    quant = testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite"
    with pytest.raises(ValueError, match="need a Keras model"):
        Segmenter(quant, flip=True)
    with pytest.raises(ValueError, match="is not a segmenter"):
        Segmenter(testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite")


def test_networks_that_are_not_segmenters_of_photos_are_refused(small):
    features = small.get_layer("concat_projection-dropout").output
    anywhere = build_deeplabv3_mobilenetv2(0.1, (None, None, 3), classes=2)
    for model in (
        keras.Model(small.input, features),
        keras.Model(anywhere.input, anywhere.get_layer("logits-semantic").output),
        build_deeplabv3_mobilenetv2(0.1, (33, 33, 1)),
    ):
        with pytest.raises(ValueError, match="holds no segmenter"):
            Segmenter(model)
    with pytest.raises(ValueError, match="257 classes: labels are uint8, so 256 at most"):
        Segmenter(build_deeplabv3_mobilenetv2(0.1, (33, 33, 3), classes=257))
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        Segmenter(build_deeplabv3_mobilenetv2(0.1, (33, 33, 3), include_preprocessing=True))


def test_googles_quantised_file_runs_as_it_is(testdata):
    segmenter = Segmenter(testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite")
    mask = read_image(testdata / "images" / "bird_segmentation_mask.bmp")[..., 0]
    labels = segmenter.segment(testdata / "images" / "bird_segmentation.bmp").labels
    # 0.9178 was published for it; LiteRT's kernels round differently from release to release.
    assert overlap(labels, mask, 3, 3, (1, 2)) == pytest.approx(0.9178, abs=5e-3)
