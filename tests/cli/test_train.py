"""`mnv2 train` and `mnv2 finetune`, called in this process."""

import functools
import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from training_tasks import SHORT_TABLE, draw_nothing, examples, recipe
from typer import Typer
from typer.testing import CliRunner

from mnv2_keras.architecture import detector, make_plan, segmenter
from mnv2_keras.cli import evaluate, train
from mnv2_keras.cli.console import print_skipped
from mnv2_keras.cli.finetune import finetune
from mnv2_keras.cli.train import training_bar
from mnv2_keras.data import drawn_shapes as shapes
from mnv2_keras.data.drawn_shapes import DrawnShapes
from mnv2_keras.evaluation.segmentation import evaluate_segmenter
from mnv2_keras.inference.segmenter import Segmenter
from mnv2_keras.training import classification, recipes, state

run = CliRunner().invoke


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Short networks, a dozen drawn images, no curves, and no switch that would hold for all tests of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
        patch.setattr(state, "draw_training", draw_nothing)
        for name in ("drawn_shapes", "DrawnShapes"):
            draw = getattr(shapes, name)
            patch.setattr(shapes, name, lambda count, *sizes, draw=draw, **options: draw(min(count, 12), *sizes, **options))
        for module in (detector, segmenter):
            patch.setattr(module, "make_plan", functools.partial(make_plan, table=SHORT_TABLE))
        yield


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
        arguments = ["--recipe", "tiny", "--data", str(folder / "data"), "-o", str(folder / "run"), "--batch", "4", "--balanced"]
        yield run(train.app, arguments, catch_exceptions=False), folder, arguments


def test_the_command_trains_and_reports(trained):
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
    complete = run(evaluate.app, [*arguments, "--json", "--picture", str(tmp_path / "confusion.png")], catch_exceptions=False)
    about = json.loads(complete.stdout)
    assert about["images"] == 12
    assert about["labels"] == ["bright", "dark"]
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    for i in (1, 2):
        part = run(evaluate.app, [*arguments, "--shard", f"{i}/2", "-o", str(tmp_path / f"{i}.json")], catch_exceptions=False)
        assert "top-1" in part.stdout
        assert "mnv2 evaluate merge" in part.stderr
    merged = run(evaluate.app, ["merge", str(tmp_path / "1.json"), str(tmp_path / "2.json"), "--json"], catch_exceptions=False)
    assert json.loads(merged.stdout)["accuracy"] == about["accuracy"]


def test_the_finetune_command_trains_the_head(trained, tmp_path, monkeypatch, conversion_in_process):
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
        arguments = ["--data", str(folder / "data"), "-o", str(tmp_path / "run"), "--size", "24", "--alpha", "0.5"]
        run(train.app, arguments, catch_exceptions=False)
    model = keras.models.load_model(tmp_path / "run" / "last.keras", compile=False)
    assert (model.input_shape, model.output_shape) == ((None, 24, 24, 1), (None, 2))
    network = json.loads((tmp_path / "run" / "recipe.json").read_text())["network"]
    assert (network["classes"], network["input_shape"], network["alpha"]) == (2, [24, 24, 1], 0.5)


def test_missing_data_are_named():
    for app, command in ((train.app, []), (train.app, ["classification"]), (evaluate.app, []), (evaluate.app, ["classification"])):
        with pytest.raises(ValueError, match="--data is missing"):
            run(app, [*command, "--weights", "x"], catch_exceptions=False)


@pytest.mark.parametrize("recipe", ["finetune", "linear_probe"])
def test_the_stages_of_finetune_are_not_trained_from_scratch(recipe):
    with pytest.raises(ValueError, match=f"--recipe {recipe} is a stage of `mnv2 finetune`.*mnv2 finetune --data photos"):
        run(train.app, ["--recipe", recipe, "--data", "photos"], catch_exceptions=False)


def test_subcommands_print_help_without_training():
    assert run(train.app, ["segmentation", "--help"]).exit_code == 0
    assert run(evaluate.app, ["segmentation", "--help"]).exit_code == 0


def test_a_stopped_run_says_how_to_resume(capsys):
    with pytest.raises(KeyboardInterrupt), training_bar():
        raise KeyboardInterrupt
    assert "--resume continues" in capsys.readouterr().err


def test_features_are_shown_while_they_are_computed():
    with training_bar() as progress:
        progress.features(32, 1000)
        (task,) = progress._progress.tasks
        assert (task.completed, task.total, task.description, task.fields["detail"]) == (32, 1000, "features", "photos")


def test_many_broken_images_are_not_all_listed(capsys):
    print_skipped({f"{i}.png": "damaged" for i in range(30)}, most=20)
    errors = capsys.readouterr().err
    assert "skipped: 10 more" in errors
    assert "25.png" not in errors


def test_a_network_starts_from_weights(trained):
    _, folder, _ = trained
    model = classification.build(recipe(), 2, folder / "run" / "last.keras")
    saved = keras.models.load_model(folder / "run" / "last.keras", compile=False)
    for weights, expected in zip(model.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, expected)


def test_detection_on_drawn_shapes(tmp_path):
    options = ["--alpha", "0.1", "--side", "48", "--steps", "2", "--batch", "2", "--every", "2", "--classic"]
    done = run(train.app, ["detection", "--shapes", "-o", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "detector.keras",
        "labels.txt",
        "history.csv",
        "curves.png",
        "tensorboard",
        "recipe.json",
        "state.npz",
    }
    assert (tmp_path / "labels.txt").read_text().splitlines() == ["circle", "square", "triangle"]


def test_detection_names_a_photo_it_cannot_read_and_needs_no_matplotlib(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number in (1, 2):
        Image.new("RGB", (60, 60)).save(tmp_path / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 60})
        document["annotations"].append({"image_id": number, "category_id": 1, "bbox": [9, 9, 20, 20]})
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "truth.json").write_text(json.dumps(document))
    options = ["--alpha", "0.1", "--side", "48", "--steps", "2", "--batch", "2"]
    data = ["--annotations", str(tmp_path / "truth.json"), "--images", str(tmp_path)]
    done = run(train.app, ["detection", "-o", str(tmp_path / "out"), *data, *options])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / '2.png'} is not an image" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "detector.keras",
        "labels.txt",
        "history.csv",
        "recipe.json",
        "state.npz",
        "tensorboard",
    }
    assert "curves.png is left out. To get it: pip install matplotlib" in caplog.text


@pytest.mark.parametrize("options", [[], ["--shapes", "--recipe", "none"], ["--images", "folder"]])
def test_options_of_detection_that_do_not_go_together_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match="Name one source|--recipe is 'none'|--images needs --annotations"):
        run(train.app, ["detection", "-o", str(tmp_path), *options], catch_exceptions=False)


def test_segmentation_into_a_file_as_before_and_its_evaluation(shapes_folder, tmp_path):
    model = tmp_path / "model.keras"
    sources = ["--photos", str(shapes_folder / "photos"), "--masks", str(shapes_folder / "masks")]
    command = ["segmentation", "-o", str(model), "--classes", "4", "--alpha", "0.1", "--crop", "33", *sources]
    command += ["--steps", "2", "--batch", "1", "--freeze-batch-norm"]
    result = run(train.app, command)
    assert result.exit_code == 0, result.output
    assert f"warning: -o is the run's folder now: the model is written to {model}" in result.stderr
    assert sorted(tmp_path.glob("model*")) == [tmp_path / "model", model]
    again = run(train.app, [*command, "--resume"])
    assert f"{tmp_path / 'model'} is finished: there is nothing to resume" in again.stdout
    np.savez(tmp_path / "model.keras.state.npz", about=np.array("{}"), a0=np.zeros(2))
    with pytest.raises(ValueError, match="written by an earlier release"):
        run(train.app, [*command, "--resume"], catch_exceptions=False)
    plot = tmp_path / "confusion.png"
    command = ["segmentation", str(model), *sources, "--plot", str(plot)]
    result = run(evaluate.app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["photos"], figures["pixels"]) == (3, 3 * 40 * 40)
    assert 0 <= figures["mean_iou"] <= 1
    with Image.open(plot) as image:
        assert image.size[0] > 300
    (shapes_folder / "photos" / "2.png").write_bytes(b"broken")
    result = run(evaluate.app, command)
    assert "mean IoU" in result.stdout
    assert "2 photos." in result.stdout
    assert f"skipped: {shapes_folder / 'photos' / '2.png'}" in result.stderr
    (shapes_folder / "one.txt").write_text("\ufeff1 \n\n", "utf-8")
    command = ["segmentation", str(model), *sources, "--list", str(shapes_folder / "one.txt"), "--json"]
    assert json.loads(run(evaluate.app, command).stdout)["photos"] == 1
    wrong = run(train.app, ["segmentation", "-o", "voc.tflite", "--shapes"])
    assert "expected .keras, .h5, .weights.h5 or .ckpt" in str(wrong.exception)
    for options in (["--shapes", "--tfds", "x"], [], ["--photos", "x"]):
        with pytest.raises(ValueError, match="Name one source"):
            run(evaluate.app, ["segmentation", str(model), *options], catch_exceptions=False)


@pytest.mark.parametrize(
    ("output", "folder", "model"),
    [
        ("runs/voc", "runs/voc", "runs/voc/segmenter.keras"),
        ("voc.keras", "voc", "voc.keras"),
        ("a.b.weights.h5", "a.b", "a.b.weights.h5"),
        ("x/model.ckpt-100", "x/model", "x/model.ckpt-100"),
    ],
)
def test_segmentation_writes_into_a_folder_or_a_file(output, folder, model):
    assert train.folder_and_model(Path(output)) == (Path(folder), Path(model))


def test_segmentation_on_drawn_shapes(tmp_path):
    options = ["--alpha", "0.1", "--crop", "33", "--steps", "2", "--batch", "2", "--plot", str(tmp_path / "curve.png")]
    result = run(train.app, ["segmentation", "--shapes", "-o", str(tmp_path / "shapes"), *options])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size[0] > 600  # losses and mean IoU side by side
    printed = re.search(r"in 2 steps; mean IoU (\d\.\d{4}) on 12 held-out pictures", result.stdout)
    model = tmp_path / "shapes" / "segmenter.keras"
    mean_iou = evaluate_segmenter(Segmenter(model), DrawnShapes(12, 33, seed=1)).mean_iou
    assert f"{mean_iou:.4f}" == printed[1]
    result = run(evaluate.app, ["segmentation", str(model), "--shapes", "--json"])
    figures = json.loads(result.stdout)
    assert figures["pixels"] == 12 * 33 * 33
    assert figures["mean_iou"] == pytest.approx(mean_iou)
