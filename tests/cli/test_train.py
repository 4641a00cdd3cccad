"""`mnv2 train`, `finetune` and `evaluate`, as they are typed."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from training_tasks import examples, recipe
from typer.testing import CliRunner

from mnv2_keras.cli import evaluate, train
from mnv2_keras.cli.console import print_skipped
from mnv2_keras.cli.finetune import finetune
from mnv2_keras.cli.train import training_bar
from mnv2_keras.training import recipes

run = CliRunner().invoke


def write(folder, data, broken=False):
    for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = folder / data.class_names[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    if broken:
        (folder / data.class_names[0] / "broken.png").write_bytes(b"no picture")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the command, and its data."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder / "data" / "train", examples(24, 0), broken=True)
    write(folder / "data" / "test", examples(12, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPES", {"tiny": recipe(epochs=2)})
        patch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
        arguments = [
            "--recipe",
            "tiny",
            "--data",
            str(folder / "data"),
            "-o",
            str(folder / "run"),
            "--batch",
            "4",
            "--balanced",
        ]
        yield run(train.app, arguments, catch_exceptions=False), folder, arguments


def test_train(trained):
    done, folder, _ = trained
    assert done.exit_code == 0
    assert "of 12 held-out images right after 2 epochs" in done.stdout
    assert "25 images of 2 classes, 12 held out" in done.stderr
    assert "broken.png" in done.stderr
    assert json.loads((folder / "run" / "recipe.json").read_text())["batch"] == 4


def test_a_finished_run_is_resumed_at_once(trained):
    _, folder, arguments = trained
    before = (folder / "run" / "history.csv").read_text()
    again = run(train.app, [*arguments, "--resume"], catch_exceptions=False)
    assert "after 2 epochs" in again.stdout
    assert (folder / "run" / "history.csv").read_text() == before
    with pytest.raises(ValueError, match="holds a run already"):
        run(train.app, arguments, catch_exceptions=False)


def test_evaluate_in_shards(trained, tmp_path):
    _, folder, _ = trained
    arguments = ["--data", str(folder / "data"), "--weights", str(folder / "run" / "last.keras")]
    whole = run(
        evaluate.app, [*arguments, "--json", "--picture", str(tmp_path / "confusion.png")], catch_exceptions=False
    )
    about = json.loads(whole.stdout)
    assert about["images"] == 12
    assert about["labels"] == ["bright", "dark"]
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    for i in (1, 2):
        part = run(
            evaluate.app, [*arguments, "--shard", f"{i}/2", "-o", str(tmp_path / f"{i}.json")], catch_exceptions=False
        )
        assert "top-1" in part.stdout
        assert "mnv2 evaluate merge" in part.stderr
    merged = run(
        evaluate.app, ["merge", str(tmp_path / "1.json"), str(tmp_path / "2.json"), "--json"], catch_exceptions=False
    )
    assert json.loads(merged.stdout)["accuracy"] == about["accuracy"]


def test_finetune(trained, tmp_path, monkeypatch):
    from typer import Typer

    from mnv2_keras.training import finetune as stages

    probes, probe = [], stages.linear_probe
    monkeypatch.setattr(stages, "linear_probe", lambda *a, **b: probes.append(a[3]) or probe(*a, **b))
    _, folder, _ = trained
    app = Typer()
    app.command()(finetune)
    done = run(
        app,
        [
            "--data",
            str(folder / "data"),
            "--weights",
            str(folder / "run" / "last.keras"),
            "--probe",
            "--epochs",
            "3",
            "--learning-rate",
            "0.1",
            "-o",
            str(tmp_path / "out"),
        ],
        catch_exceptions=False,
    )
    assert [(chosen.epochs, chosen.learning_rate) for chosen in probes] == [(3, 0.1)]
    assert "the head alone had" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.keras",
        "model.tflite",
        "labels.txt",
        "confusion.png",
        "report.json",
    }


def test_the_papers_recipe_takes_the_classes_of_the_data(trained, tmp_path):
    _, folder, _ = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPES", {"paper": recipe(epochs=1, network={"classes": 1001})})
        patch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
        arguments = ["--data", str(folder / "data"), "-o", str(tmp_path / "run"), "--size", "24", "--alpha", "0.5"]
        run(train.app, arguments, catch_exceptions=False)
    model = keras.models.load_model(tmp_path / "run" / "last.keras", compile=False)
    assert (model.input_shape, model.output_shape) == ((None, 24, 24, 1), (None, 2))
    network = json.loads((tmp_path / "run" / "recipe.json").read_text())["network"]
    assert (network["classes"], network["input_shape"], network["alpha"]) == (2, [24, 24, 1], 0.5)


def test_what_is_missing_is_told():
    for app in (train.app, evaluate.app):
        with pytest.raises(ValueError, match="--data is missing"):
            run(app, ["--weights", "x"], catch_exceptions=False)


@pytest.mark.parametrize("recipe", ["finetune", "linear_probe"])
def test_the_stages_of_finetune_are_not_trained_from_scratch(recipe):
    with pytest.raises(
        ValueError, match=f"--recipe {recipe} is a stage of `mnv2 finetune`.*mnv2 finetune --data photos"
    ):
        run(train.app, ["--recipe", recipe, "--data", "photos"], catch_exceptions=False)


def test_sub_commands_do_not_train():
    assert run(train.app, ["segmentation", "--help"]).exit_code == 0
    assert run(evaluate.app, ["segmentation", "--help"]).exit_code == 0


def test_a_stopped_run_says_how_to_go_on(capsys):
    with pytest.raises(KeyboardInterrupt), training_bar():
        raise KeyboardInterrupt
    assert "--resume goes on" in capsys.readouterr().err


def test_features_are_shown_while_they_are_computed():
    with training_bar() as progress:
        progress.features(32, 1000)
        (task,) = progress.bar._progress.tasks
        assert (task.completed, task.total, task.description, task.fields["detail"]) == (32, 1000, "features", "photos")


def test_many_broken_images_are_not_all_listed(capsys):
    print_skipped({f"{i}.png": "damaged" for i in range(30)}, most=20)
    found = capsys.readouterr().err
    assert "skipped: 10 more" in found
    assert "25.png" not in found


def test_start_from_weights(trained):
    from mnv2_keras.training import classification as loop

    _, folder, _ = trained
    model = loop.build(recipe(), 2, folder / "run" / "last.keras")
    saved = keras.models.load_model(folder / "run" / "last.keras", compile=False)
    for ours, theirs in zip(model.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
