"""Training of classifiers: what a run learns and writes, its loss, class weights, data that cannot be used."""

import csv
import json
import math
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from training_tasks import examples, frozen, recipe

from mnv2_keras import Recipe, figures
from mnv2_keras.data.classification import Examples
from mnv2_keras.training import classification, state
from mnv2_keras.training.classification import ClassificationStep, balanced_weights, build, train
from mnv2_keras.training.recipes import Schedule
from mnv2_keras.training.state import DivergedError, load_state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupts, with curves."""
    folder = tmp_path_factory.mktemp("run")
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "draw_training", figures.draw_training)
        run = train(examples(40, 0), examples(16, 1), recipe(), folder, progress=steps.append)
    return run, folder, steps


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """A run of one epoch with one step, and its recipe."""
    folder, chosen = tmp_path_factory.mktemp("run"), recipe(average=None, epochs=1, learning_rate=1e-3)
    train(examples(8, 0), examples(8, 1), chosen, folder)
    return folder, chosen


def test_a_run_learns_and_leaves_its_files(finished):
    run, folder, steps = finished
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert [len([s for s in steps if s.epoch == epoch and s.row is None]) for epoch in (1, 2, 3)] == [5, 5, 5]
    assert all(at.images_per_second > 0 and math.isfinite(at.seconds_left) for at in steps)
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["val_loss"]) == run.history[-1]["val_loss"]
    with Image.open(folder / "curves.png") as picture:
        assert picture.size == (1440, 420)
    assert (folder / "labels.txt").read_text().split() == ["dark", "bright"]
    assert json.loads((folder / "recipe.json").read_text())["network"]["table"] == [[1, 8, 1, 1], [6, 8, 1, 2]]
    assert {path.name for path in folder.iterdir()} == {
        "state.npz",
        "history.csv",
        "curves.png",
        "tensorboard",
        "recipe.json",
        "labels.txt",
        "last.keras",
        "best.keras",
    }


def test_the_saved_model_is_the_returned_one_with_averaged_weights(finished):
    run, folder, _ = finished
    loaded = keras.models.load_model(folder / "last.keras", compile=False)
    for array, other in zip(run.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(array, other)
    arrays, about = load_state(folder / "state.npz")
    raw = arrays["model/Conv/kernel"]
    assert not np.array_equal(raw, loaded.get_weights()[0])
    assert about["rows"] == run.history


def test_a_seed_gives_the_weights_of_the_release_before(tmp_path):
    """mnv2_keras 0.1.0 trained this network: seeds, order of draws (weights, data, augmentation) and variables are its own."""
    network = {"input_shape": (16, 16, 1), "classes": 2, "table": ((1, 8, 1, 1),)}
    network |= {"stem_channels": 8, "last_channels": 8}
    train(examples(8, 0), examples(8, 1), Recipe(network, epochs=1, batch=8, average=None), tmp_path)
    arrays, _ = load_state(tmp_path / "state.npz")
    with np.load(Path(__file__).parents[1] / "golden" / "training_state_0.1.0.npz") as file:
        expected = [file[f"a{i}"] for i in range(len(file.files) - 1)]
    for (name, array), other in zip(arrays.items(), expected, strict=True):
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-5, err_msg=name)


def test_tensorboard_reads_the_scalars(finished):
    run, folder, _ = finished
    scalars = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert scalars["loss", 2] == pytest.approx(run.history[1]["loss"], rel=1e-6)
    assert len(scalars) == 3 * 7


def test_what_a_kill_after_the_last_state_left_out_is_written_on_resume(finished, tmp_path):
    _, folder, _ = finished
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    last = sorted((again / "tensorboard").iterdir())[-1]
    for path in (again / "curves.png", last):
        path.unlink()
    rows = (again / "history.csv").read_text()
    (again / "history.csv").write_text("".join(rows.splitlines(True)[:-1]))
    train(examples(40, 0), examples(16, 1), recipe(), again, resume=True)
    assert (again / "history.csv").read_text() == rows
    assert (again / "curves.png").is_file()
    assert last.is_file()


def test_a_model_that_takes_pixels_is_refused(tmp_path):
    base = recipe()
    chosen = base.changed(network={**base.network, "include_preprocessing": True})
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        train(examples(16, 0), examples(8, 1), chosen, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_with_other_data_is_not_resumed(finished):
    _, folder, _ = finished
    with pytest.raises(ValueError, match="a run with other training"):
        train(examples(40, 5), examples(16, 1), recipe(), folder, resume=True)


@pytest.mark.parametrize(("rate", "cause"), [(1e30, "all weights are still finite"), (math.nan, "the first such weight is Conv/")])
def test_an_epoch_whose_last_step_breaks_the_weights_is_not_kept(one_epoch, tmp_path, rate, cause):
    """The loss of a step is that of the weights before it: with one step in an epoch, only the weights show it."""
    folder, chosen = one_epoch
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "rate", lambda *_: rate)
        if math.isnan(rate):  # the weights are checked too
            patch.setattr(classification, "judge", lambda *_: (0.5, 0.5))
        with pytest.raises(DivergedError, match=rf"epoch 2, step 1, .*{cause}.* 1 epoch is kept in "):
            train(examples(8, 0), examples(8, 1), chosen.changed(epochs=2), tmp_path, resume=True)
    for name, content in before.items():
        assert name == "recipe.json" or (tmp_path / name).read_bytes() == content, name
    run = train(examples(8, 0), examples(8, 1), chosen.changed(epochs=2), tmp_path, resume=True)
    assert math.isfinite(run.history[1]["val_loss"])


def test_a_first_epoch_that_breaks_the_weights_leaves_no_state(tmp_path):
    chosen = recipe(average=None, epochs=1, learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"epoch 1, step 1, "):
        train(examples(8, 0), examples(8, 1), chosen, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "labels.txt"}


def test_class_weights_and_smoothing_are_in_the_loss():
    chosen = recipe(label_smoothing=0.2, average=None)
    model = frozen(build(chosen, 2))
    step = ClassificationStep(model, chosen)
    step.optimizer.learning_rate = 0.0
    images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)
    labels, weights = np.array([0, 1, 1, 0], np.int32), np.array([1, 3, 0, 1], np.float32)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    loss, right, total = step((images, labels, weights), 1).numpy()
    probabilities = model(images, training=False).numpy()
    target = np.eye(2)[labels] * 0.8 + 0.1
    expected = (-(target * np.log(probabilities)).sum(1) * weights).sum() / 4 + float(sum(model.losses))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert total == 5
    assert right == ((probabilities.argmax(1) == labels) * weights).sum()


@pytest.mark.parametrize("key", ["dark", 2, -1, 0.5])
def test_class_weights_of_other_keys_than_labels_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=rf"class_weights has the key {key!r}: expected labels, from 0 \(dark\) to 1"):
        train(examples(16, 0), examples(8, 1), recipe(), tmp_path, class_weights={0: 1.0, key: 9})
    assert not list(tmp_path.iterdir())


def test_class_weights_may_be_of_numpy(tmp_path):
    weights = {np.int64(1): np.float32(2)}
    train(examples(8, 0), examples(8, 1), recipe(epochs=1), tmp_path, class_weights=weights)
    assert load_state(tmp_path / "state.npz")[1]["identity"]["class_weights"] == {"1": 2.0}


def test_a_class_of_broken_photos_only_stops_the_first_epoch(tmp_path):
    data = examples(8, 0)
    paths = []
    for i, image in enumerate(data.images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image[..., 0]).save(paths[-1])
        if i % 2:
            paths[-1].write_bytes(b"no picture")
    broken = Examples(paths, data.labels, data.class_names)
    with pytest.raises(ValueError, match="None of the 4 images of class 'bright' can be read"):
        train(broken, data, recipe(), tmp_path / "run")
    assert not (tmp_path / "run" / "state.npz").exists()


def test_balanced_weights_let_each_class_count_the_same():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    weights = balanced_weights(Examples(images, np.array([0, 0, 0, 1], np.int32), ("a", "b")))
    assert weights == {0: pytest.approx(4 / 6), 1: 2.0}


def test_a_network_with_a_background_has_it_first(tmp_path):
    base = recipe(epochs=1)
    chosen = base.changed(network={**base.network, "classes": 3})
    run = train(examples(16, 0), examples(8, 1), chosen, tmp_path)
    assert run.model.output_shape == (None, 3)
    assert (tmp_path / "labels.txt").read_text().split() == ["background", "dark", "bright"]
    with pytest.raises(ValueError, match="has 4 classes, the data 2"):
        build(base.changed(network={**base.network, "classes": 4}), 2)
