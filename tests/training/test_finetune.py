"""A head on stored features, blocks unfrozen by name, and a folder of photos to a model for the phone."""

import json
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.classification import Examples, read_splits
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.training import linear_probe as probing
from mnv2_keras.training.finetune import finetune, unfreeze, with_new_head
from mnv2_keras.training.linear_probe import linear_probe, pooled_features
from mnv2_keras.training.recipes import FINETUNE, LINEAR_PROBE

SMALL = {"input_shape": (32, 32, 3), "table": ((1, 8, 1, 1), (6, 16, 1, 2)), "stem_channels": 8, "last_channels": 32}


def make(classes=2):
    keras.utils.set_random_seed(0)
    return build_mobilenetv2(classes=classes, **SMALL)


@pytest.fixture
def striped():
    """Two classes of noisy stripes: across, and down."""
    rng = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % 2
    stripes = 80 * (np.indices((32, 32)) // 4 % 2)
    images = rng.integers(0, 120, (60, 32, 32, 3)) + stripes[labels][..., None] + 20
    return Examples(images.astype(np.uint8), labels, ("across", "down"))


def test_features_are_the_backbones_and_kept_on_the_disk(striped, own_cache):
    import tensorflow as tf

    model = make()
    seen = []
    features = pooled_features(model, striped, progress=lambda *at: seen.append(at))
    assert seen == [(32, 60), (60, 60)]
    images = np.stack([evaluated(tf.constant(image), (32, 32)) for image in striped.images])
    expected = keras.Model(model.input, endpoints(model)["global_pool"])(images)
    np.testing.assert_allclose(features.values, np.reshape(expected, (60, -1)), atol=1e-5)
    assert not features.cached
    again = pooled_features(model, striped)
    assert again.cached
    np.testing.assert_array_equal(again.values, features.values)
    # Another head, and what is frozen, is the same backbone; other weights, images or preprocessing are not.
    model.get_layer("Conv").trainable = False
    assert pooled_features(with_new_head(model, 5), striped).cached
    assert not pooled_features(model, striped, central_fraction=1.0).cached
    assert not pooled_features(model, striped.subset(range(10))).cached
    model.get_layer("Conv").kernel.assign(model.get_layer("Conv").kernel * 1.01)
    assert not pooled_features(model, striped).cached
    for path in (own_cache / "features").iterdir():
        path.write_bytes(b"damaged")
    assert not pooled_features(model, striped).cached


def test_the_probe_is_as_good_as_logistic_regression(striped):
    training, held_out = striped.split(0.3)
    model = make()
    before = [np.array(value) for value in model.get_weights()]
    probe = linear_probe(model, training, held_out, LINEAR_PROBE.changed(epochs=60, learning_rate=0.05, batch=16))
    features = [pooled_features(model, part) for part in (training, held_out)]
    regression = LogisticRegression(C=1e3, max_iter=2000).fit(features[0].values, features[0].labels)
    assert probe.history[-1]["val_accuracy"] >= regression.score(features[1].values, features[1].labels) - 0.06
    assert probe.history[-1]["loss"] < probe.history[0]["loss"]
    # It is in the model, and nothing else is changed.
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert sum(changed) == 2
    layer = model.get_layer("Logits-Conv2d_1c_1x1")
    np.testing.assert_array_equal(np.squeeze(layer.kernel), probe.kernel)
    import tensorflow as tf

    images = np.stack([evaluated(tf.constant(image), (32, 32)) for image in held_out.images])
    right = np.argmax(model(images), 1) == held_out.labels
    assert right.mean() == probe.history[-1]["val_accuracy"]


def test_the_probe_refuses_another_number_of_classes(striped):
    with pytest.raises(ValueError, match="The model has 5 classes, the data 2"):
        linear_probe(make(5), *striped.split(0.3))


def test_a_model_that_takes_pixels_is_refused(striped):
    own = build_mobilenetv2(classes=2, include_preprocessing=True, **SMALL)
    for call in (lambda: linear_probe(own, *striped.split(0.3)), lambda: pooled_features(own, striped)):
        with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
            call()


def test_broken_photos_have_no_weight_and_are_read_again(tmp_path):
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    examples = Examples(sorted(tmp_path.iterdir()), np.array([0, 0, 1, 1], np.int32), ("a", "b"))
    features = pooled_features(make(), examples)
    assert features.weights.tolist() == [1, 1, 0, 1]
    assert list(examples.broken) == [str(tmp_path / "2.png")]
    examples.broken.clear()
    assert pooled_features(make(), examples).cached
    assert list(examples.broken) == [str(tmp_path / "2.png")], "named again, though the others come from the cache"
    # A disk that was away: the same file, size and time, but now it can be read.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "fingerprint", lambda *_, **__: "the same")
        assert pooled_features(make(), examples).weights.tolist() == [1, 1, 0, 1]
        Image.new("RGB", (40, 40)).save(tmp_path / "2.png")
        again = pooled_features(make(), examples)
        assert (again.cached, again.weights.tolist()) == (False, [1, 1, 1, 1])


def test_a_class_of_broken_photos_only_is_named(striped, stripes_folder):
    for path in (stripes_folder / "down").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="None of the .* images of class 'down' can be read"):
        linear_probe(make(), *read_splits(stripes_folder))


def test_blocks_are_unfrozen_by_name():
    model = build_mobilenetv2(0.35, (96, 96, 3), classes=2)
    unfreeze(model, "layer_15")
    trained = {variable.path.split("/")[0] for variable in model.trainable_variables}
    assert "expanded_conv_13-depthwise" in trained
    assert "Conv_1" in trained
    assert "Logits-Conv2d_1c_1x1" in trained
    assert "expanded_conv_12-project" not in trained
    assert not [name for name in trained if "BatchNorm" in name]
    unfreeze(model, "Logits")
    assert len(model.trainable_variables) == 2
    unfreeze(model, "layer_1")
    assert len(model.trainable_variables) == 52 + 2
    with pytest.raises(ValueError, match="unfreeze is 'layer_99': expected one of layer_1, "):
        unfreeze(model, "layer_99")


def test_a_new_head_shares_the_backbone():
    model = make(7)
    other = with_new_head(model, 3)
    assert other.output_shape == (None, 3)
    assert other.get_layer("Conv") is model.get_layer("Conv")
    assert other.get_layer("Logits-Conv2d_1c_1x1") is not model.get_layer("Logits-Conv2d_1c_1x1")


@pytest.fixture
def stripes_folder(tmp_path, striped):
    for i, (image, label) in enumerate(zip(striped.images, striped.labels, strict=True)):
        path = tmp_path / "photos" / striped.class_names[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "photos" / "down" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


def test_from_a_folder_to_a_phone_model(stripes_folder, tmp_path, conversion_in_process):
    from mnv2_keras.evaluation.classification import evaluate

    make(9).save(tmp_path / "weights.keras")
    seen, features = [], []
    arguments = {
        "first": "layer_3",
        "recipe": FINETUNE.changed(epochs=2, batch=16),
        "probe": LINEAR_PROBE.changed(epochs=40, learning_rate=0.03, batch=16),
        "precision": "int8",
    }

    def stop(at):
        seen.append(at)
        if at.row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(stripes_folder, tmp_path / "weights.keras", tmp_path / "run", progress=stop, **arguments)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=r"blocks holds a run already: resume it"):
        patch.setattr(probing, "_features", lambda *_, **__: pytest.fail("too late"))
        finetune(stripes_folder, tmp_path / "weights.keras", tmp_path / "run", **arguments)
    before = len(seen)
    result = finetune(
        stripes_folder,
        tmp_path / "weights.keras",
        tmp_path / "run",
        progress=seen.append,
        features=lambda *at: features.append(at),
        resume=True,
        **arguments,
    )
    assert not features, "they were kept, broken photos and all"
    assert {at.epoch for at in seen[before:]} == {2}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "blocks",
        "model.keras",
        "model.tflite",
        "labels.txt",
        "confusion.png",
        "report.json",
    }
    assert seen[-1].row["epoch"] == 2
    assert [path.endswith("broken.jpg") for path in result.broken] == [True]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["accuracy"] == result.evaluation.top1
    assert report["unfrozen_from"] == "layer_3"
    assert report["broken"] == len(report["left_out"]) == 1
    assert report["tflite"]["bytes"] < 100_000
    held_out = read_splits(stripes_folder, FINETUNE.held_out)[1]
    ours = evaluate(tmp_path / "run" / "model.keras", held_out)
    assert ours.top1 == result.evaluation.top1
    phone = evaluate(tmp_path / "run" / "model.tflite", held_out)
    assert phone.about["labels"] == ["across", "down"]
    assert abs(phone.top1 - ours.top1) <= 2 / held_out.labels.size + 1e-9
    # Batch norms did not move.
    start = keras.models.load_model(tmp_path / "weights.keras", compile=False)
    for name in ("Conv-BatchNorm", "Conv_1-BatchNorm"):
        for a, b in zip(start.get_layer(name).get_weights(), result.model.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(start.get_layer("Conv_1").kernel, result.model.get_layer("Conv_1").kernel)
    np.testing.assert_array_equal(start.get_layer("Conv").kernel, result.model.get_layer("Conv").kernel)


def test_without_matplotlib_the_report_is_written_and_the_figure_left_out(
    stripes_folder, tmp_path, monkeypatch, caplog, conversion_in_process
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    make(9).save(tmp_path / "weights.keras")
    probe = LINEAR_PROBE.changed(epochs=2)
    finetune(stripes_folder, tmp_path / "weights.keras", tmp_path / "run", first=None, probe=probe)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"model.keras", "model.tflite", "labels.txt", "report.json"}
    (record,) = (record for record in caplog.records if "matplotlib" in record.message)
    assert "confusion.png is left out. To get it: pip install matplotlib" in record.message


def test_an_unknown_block_is_refused_at_once(stripes_folder, tmp_path, monkeypatch):
    make(9).save(tmp_path / "weights.keras")
    monkeypatch.setattr(probing, "_features", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ValueError, match="expected one of layer_1"):
        finetune(stripes_folder, tmp_path / "weights.keras", tmp_path / "run", first="block_3")
    build_mobilenetv2(classes=2, **(SMALL | {"input_shape": (None, None, 3)})).save(tmp_path / "any.keras")
    with pytest.raises(ValueError, match="precision is 'int9': expected one of float32"):
        finetune(stripes_folder, tmp_path / "weights.keras", tmp_path / "run", precision="int9")
    with pytest.raises(ValueError, match="give weights of a fixed one"):
        finetune(stripes_folder, tmp_path / "any.keras", tmp_path / "run")


def test_what_users_call_comes_from_the_package_itself():
    import mnv2_keras

    for function in (finetune, unfreeze, linear_probe, pooled_features, read_splits):
        assert getattr(mnv2_keras, function.__name__) is function
    for name in ("train", "evaluate", "predict_on_cluster", "recipe_named", "sample_digits", "bundled_file"):
        assert callable(getattr(mnv2_keras, name))
    for name in ("Recipe", "SlimRMSprop", "MovingAverages", "Evaluation", "Finetuned", "Probe", "WorkerLostError", "DivergedError"):
        assert isinstance(getattr(mnv2_keras, name), type)
    assert mnv2_keras.RECIPES["finetune"] is FINETUNE
