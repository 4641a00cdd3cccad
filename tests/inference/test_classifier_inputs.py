"""What a user's .tflite is fed: floats, levels, numbers for each channel, as its metadata says."""

import numpy as np
import pytest

from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.inference.engines import TensorInfo
from mnv2_keras.preprocessing import preprocess_image


@pytest.fixture(scope="module")
def files() -> dict[tuple[str, str], bytes]:
    """By input type and by what the network takes ([-1, 1], or pixels which it scales itself): the same network.

    Its answer depends on the brightness; a MobileNetV2 that was not trained sees little of it.
    """
    import keras

    from mnv2_keras.export.conversion import convert_in_process
    from mnv2_keras.export.metadata import classifier_metadata, image_input
    from mnv2_keras.export.quantization import quantize_int8
    from mnv2_keras.export.statistics import collect
    from mnv2_keras.tflite import add_metadata

    keras.utils.set_random_seed(1)
    image = keras.Input((32, 32, 3))
    tail = keras.Sequential([keras.layers.Conv2D(8, 3, 2, activation="relu6"), keras.layers.GlobalAveragePooling2D()])
    tail.add(keras.layers.Dense(3, "softmax", kernel_initializer=keras.initializers.RandomNormal(stddev=2)))
    plain = keras.Model(image, tail(image))
    pixels = keras.Model(image, tail(keras.layers.Rescaling(1 / 127.5, -1, name="preprocessing")(image)))
    files = {}
    images = np.random.default_rng(0).uniform(-1, 1, (27, 1, 32, 32, 3)).astype(np.float32)
    images += np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), -1).reshape(27, 1, 1, 1, 3)  # every corner of the colours
    images = np.clip(images, -1, 1)
    for takes, model, mean, std in (("unit", plain, 127.5, 127.5), ("pixels", pixels, 0.0, 1.0)):
        file = convert_in_process(model, "float32", [1, 32, 32, 3])
        low, high = -mean / std, (255 - mean) / std
        ranges = collect(file, list(images * (high - low) / 2 + (high + low) / 2)).ranges()
        ranges |= {int(t): (low, high) for t in file.graph.inputs}
        about = classifier_metadata(image=image_input(mean=mean, std=std))
        files["float32", takes] = add_metadata(file.to_bytes(), about)
        for kind in ("uint8", "int8"):
            quantized = quantize_int8(file, ranges, None, kind, "float32").to_bytes()
            files[kind, takes] = add_metadata(quantized, about)
            files[f"{kind} without metadata", takes] = quantized
    return files


def scores(content: bytes, image, folder, engine="litert") -> np.ndarray:
    """Of each class, in their order."""
    path = folder / "one.tflite"
    path.write_bytes(content)
    with Classifier(path, engine) as classifier:
        return np.array([prediction.score for prediction in sorted(classifier.predict(image)[0])])


@pytest.mark.parametrize("engine", ["litert", "openvino"])
def test_a_file_is_fed_what_it_takes(files, testdata, tmp_path, engine):
    """In float and in int8, with and without metadata, whoever scales the pixels: the same answer, and not that for black."""
    photo = testdata / "images" / "hot_dog.jpg"
    expected = scores(files["float32", "unit"], photo, tmp_path)
    black = scores(files["float32", "unit"], np.zeros((32, 32, 3), np.uint8), tmp_path)
    assert np.abs(expected - black).max() > 0.15
    for (kind, _), content in files.items():
        near = 0.02 if "int8" in kind else 1e-5 if engine == "litert" else 0.03
        np.testing.assert_allclose(scores(content, photo, tmp_path, engine), expected, atol=near)


def test_uint8_files_are_fed_as_mediapipe_feeds_them(files, tmp_path):
    """A photo of one colour, which every crop and resize leaves alone: the same numbers go in, the same come out."""
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    for takes in ("unit", "pixels"):
        (tmp_path / "m.tflite").write_bytes(files["uint8", takes])
        options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=str(tmp_path / "m.tflite")))
        with vision.ImageClassifier.create_from_options(options) as mediapipe_classifier:
            for level in (0, 1, 77, 128, 254, 255):
                colour = np.full((32, 32, 3), (level, 255 - level, level), np.uint8)
                result = mediapipe_classifier.classify(mediapipe.Image(mediapipe.ImageFormat.SRGB, colour))
                score = {category.index: category.score for category in result.classifications[0].categories}
                ours = scores(files["uint8", takes], colour, tmp_path)
                np.testing.assert_allclose(ours, [score[i] for i in range(3)], atol=1e-6)


def test_each_channel_has_its_own_normalisation(files, testdata, tmp_path):
    from mnv2_keras.export.metadata import model_metadata
    from mnv2_keras.tflite import add_metadata

    def saying(**numbers):
        image = {"name": "image", "process_units": [{"options": ("NormalizationOptions", numbers)}]}
        return add_metadata(files["float32", "unit"], model_metadata("n", "d", [image], []))

    photo, means, stds = testdata / "images" / "cat.bmp", (100.0, 127.5, 150.0), (50.0, 127.5, 60.0)
    pixels = (preprocess_image(photo, (32, 32)) + 1) * 127.5
    prepared = ((pixels - means) / stds).astype(np.float32)
    content = saying(mean=means, std=stds)
    np.testing.assert_allclose(scores(content, photo, tmp_path), scores(content, prepared, tmp_path), atol=1e-5)
    for numbers, message in (
        ({"mean": (0.0, 1.0), "std": (1.0,)}, "2 means in its metadata for 3 channels"),
        ({"std": (1.0,)}, r"mean \[\] and std \[1.0\]"),
        ({"mean": (0.0,), "std": (0.0,)}, "std above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            scores(saying(**numbers), photo, tmp_path)


def test_integers_without_a_scale_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(TensorInfo, "of_litert", lambda details: TensorInfo(details["shape"][1:], np.int32))
    with pytest.raises(ValueError, match="takes int32 without a scale"):
        scores(files["float32", "unit"], np.zeros((32, 32, 3), np.uint8), tmp_path)
