"""From the photo file to the probabilities, as TF-Slim gives them."""

import json

import numpy as np
import pytest

from mnv2_keras import decode_predictions, preprocess_image
from mnv2_keras.convert.goldens import subsample
from mnv2_keras.networks.endpoints import endpoint_values

#: What TF-Slim says, with its probability.
TOP_1 = {
    "cat.bmp": (286, "Egyptian cat", 0.785),
    "bird.bmp": (20, "chickadee", 0.992),
    "hot_dog.jpg": (935, "hotdog", 0.989),
    "grace_hopper.bmp": (653, "military uniform", 0.421),
    "dog_segmentation.bmp": (259, "Samoyed", 0.968),
}


@pytest.mark.parametrize("photo", TOP_1)
def test_photo(testdata, imagenet_model, photo):
    with np.load(testdata / "golden" / "classification" / "real.npz") as real:
        genuine = {name: real[f"{photo}|{name}"] for name in ("input", "layer_8", "logits")}
    image = preprocess_image(testdata / "images" / photo)
    np.testing.assert_allclose(image[::16, ::16], genuine["input"], rtol=0, atol=1e-6)
    values = endpoint_values(imagenet_model, image[None])
    np.testing.assert_allclose(
        values["layer_8"][0, ::4, ::4, ::8], genuine["layer_8"], rtol=0, atol=3e-4 * np.ptp(values["layer_8"])
    )
    shifted = np.exp(genuine["logits"].astype(np.float64) - genuine["logits"].max())
    expected = shifted / shifted.sum()
    np.testing.assert_allclose(values["Predictions"][0], expected, rtol=0, atol=1e-4)
    (best,) = decode_predictions(values["Predictions"], top=5)
    assert [prediction.index for prediction in best] == np.argsort(-expected)[:5].tolist()
    index, label, probability = TOP_1[photo]
    assert best[0].index == index
    assert label in best[0].label
    assert abs(best[0].score - probability) < 1e-3


def test_command_line(testdata, shared_cache, capsys, monkeypatch):
    import sys

    from mnv2_keras.cli import main

    photos = [str(testdata / "images" / photo) for photo in TOP_1]
    weights = str(testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz")
    monkeypatch.setattr(sys, "argv", ["mnv2", "predict", *photos, "--weights", weights, "--top", "2", "--json"])
    with pytest.raises(SystemExit) as exit_:
        main.main()
    assert not exit_.value.code
    photos = json.loads(capsys.readouterr().out)
    assert [photo["predictions"][0]["index"] for photo in photos] == [index for index, _, _ in TOP_1.values()]
    assert all(len(photo["predictions"]) == 2 for photo in photos)


def test_subsample_is_the_goldens():
    array = np.arange(2 * 28 * 28 * 32.0).reshape(2, 28, 28, 32)
    np.testing.assert_array_equal(subsample(array), array[:, ::4, ::4, ::4])
