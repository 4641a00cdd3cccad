"""The training loop, its recipes, COCO's metrics, and the commands around them, on networks that take seconds."""

import csv
import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from mnv2_keras import build_ssdlite_mobilenetv2, ssd_anchors
from mnv2_keras.cli.main import command_line
from mnv2_keras.data.detection import DetectionData, DetectionExample, detection_batches, read_coco
from mnv2_keras.data.detection_shapes import drawn_shapes
from mnv2_keras.evaluation.coco import METRICS, evaluate_coco
from mnv2_keras.evaluation.detection import coco_results, evaluate_detector
from mnv2_keras.inference.detector import Detector
from mnv2_keras.training.detection import PAPER, SHAPES, train_detector
from mnv2_keras.training.state import DivergedError
from mnv2_keras.training.step import make_optimizer

SIDE = 48
TINY = dataclasses.replace(SHAPES, alpha=0.1, side=SIDE, batch=4, steps=3, warmup=1)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_ssdlite_mobilenetv2(0.1, (SIDE, SIDE, 3), classes=3, min_depth=8)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A detector after three steps, its rows and its log."""
    log = tmp_path_factory.mktemp("training") / "history.csv"
    batches = detection_batches(drawn_shapes(8, SIDE).examples, (SIDE, SIDE), 4)
    seen = []
    rows = train_detector(
        model, batches, TINY, every=2, folder=log.parent, progress=seen.append, evaluate=lambda: {"AP50": 0.5}
    )
    assert [at.row for at in seen if at.row] == rows
    return model, rows, log


def test_the_loop_writes_what_it_did(trained):
    _, rows, log = trained
    assert [row["step"] for row in rows] == [2, 3]
    assert all(np.isfinite(row["classification"]) and row["AP50"] == 0.5 for row in rows)
    with log.open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 3]


def test_a_diverged_loss_stops_with_the_step(model):
    batches = [(np.full((2, SIDE, SIDE, 3), np.nan, np.float32), {"boxes": np.zeros((2, 0, 4), np.float32)})]
    for _, truth in batches:
        truth |= {"classes": np.zeros((2, 0), np.int32), "num": np.zeros(2, np.int32)}
    clone = keras.models.clone_model(model)
    with pytest.raises(DivergedError, match="NaN or infinite at step 1, .*the images hold NaN"):
        train_detector(clone, batches, dataclasses.replace(TINY, steps=1))
    with pytest.raises(ValueError, match="end after 0 steps"):
        train_detector(clone, [], TINY)


def test_the_published_schedule():
    rate = PAPER.learning_rates().rate
    assert rate(0) == rate(800_719) == 0.004
    np.testing.assert_allclose(rate(800_720), 0.0038)
    variable = keras.Variable(np.ones(2, np.float32))
    optimizer = make_optimizer(PAPER)
    optimizer.learning_rate = rate(0)
    optimizer.apply([np.float32([2, 0])], [variable])
    # TensorFlow 1's: 1 - 0.004 * 2 / sqrt(0.9 + 0.1 * 4 + 1)
    np.testing.assert_allclose(variable, [1 - 0.004 * 2 / np.sqrt(2.3), 1], rtol=1e-6)
    rate = SHAPES.learning_rates().rate
    assert rate(0) < rate(SHAPES.warmup) == SHAPES.learning_rate
    assert rate(SHAPES.steps) < 1e-9


def documents():
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in (1, 2)],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]},
            {"image_id": 2, "category_id": 2, "bbox": [20, 20, 50, 50]},
            {"image_id": 2, "category_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    }
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9},
        {"image_id": 2, "category_id": 2, "bbox": [20, 20, 50, 34], "score": 0.8},  # IoU 0.68
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 80, 80], "score": 0.7},  # in the crowd: not counted
    ]
    return truth, rows


def test_metrics_by_hand_and_by_pycocotools_itself(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, rows = documents()
    found = evaluate_coco(truth, rows)
    assert tuple(found) == METRICS
    # The second box passes the thresholds 0.50, 0.55, 0.60 and 0.65 of ten.
    np.testing.assert_allclose([found["AP"], found["AP50"], found["AP75"]], [0.7, 1.0, 0.5], atol=1e-6)

    complete = [
        {"id": i, "iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3]} | each
        for i, each in enumerate(truth["annotations"], 1)
    ]
    truth["annotations"] = complete
    for name, content in (("truth", truth), ("results", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    theirs = COCO(str(tmp_path / "truth.json"))
    run = COCOeval(theirs, theirs.loadRes(str(tmp_path / "results.json")), "bbox")
    for step in (run.evaluate, run.accumulate, run.summarize):
        step()
    ours = evaluate_coco(tmp_path / "truth.json", tmp_path / "results.json")
    np.testing.assert_array_equal(list(ours.values()), run.stats)
    first = evaluate_coco(truth, rows, limit=1)
    np.testing.assert_allclose(first["AP"], 1.0)


def test_nothing_found_and_nothing_there():
    truth, rows = documents()
    assert evaluate_coco(truth, [])["AP"] == 0
    assert evaluate_coco(truth | {"annotations": []}, rows)["AP"] == -1


def test_results_that_do_not_belong(tmp_path):
    truth, rows = documents()
    with pytest.raises(ValueError, match="another data set"):
        evaluate_coco(truth, [rows[0] | {"image_id": 9}])
    with pytest.raises(FileNotFoundError, match="no results file"):
        evaluate_coco(truth, tmp_path / "none.json")
    short = [rows[0], rows[1] | {"bbox": [1, 2, 3]}]
    with pytest.raises(ValueError, match=r"results\[1\] has the bbox \[1, 2, 3\]: expected x, y, width and height"):
        evaluate_coco(truth, short)
    with pytest.raises(ValueError, match=r"annotations\[0\] has the bbox \[1\]"):
        evaluate_coco(truth | {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1]}]}, rows)
    for content, message in (
        ("[{", "no whole JSON"),
        ('[{"image_id": 1}]', "no COCO results file"),
        (json.dumps(short), r"bad.json: results\[1\] has the bbox"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            evaluate_coco(truth, tmp_path / "bad.json")


def perfect(data):
    """A stand-in for a network that knows the truth: its logits and encodings are made from the boxes."""
    anchors = ssd_anchors((SIDE, SIDE))
    outputs = []
    from mnv2_keras.training.detection_loss import assign_targets

    for example in data.examples:
        targets = assign_targets(example.boxes[None], example.classes[None], [len(example.boxes)], anchors, 3)
        outputs.append((np.asarray(targets.encodings), 20 * np.asarray(targets.classes) - 10))
    return outputs


def test_a_perfect_detector_scores_one(model, monkeypatch):
    data = drawn_shapes(6, SIDE, held_out=True)
    encodings, logits = (np.concatenate(parts) for parts in zip(*perfect(data), strict=True))
    calls = iter([slice(0, 4), slice(4, 6)])

    def answered(images):
        part = next(calls)
        assert len(images) == part.stop - part.start
        return {"box_encodings": encodings[part], "class_predictions_with_background": logits[part]}

    monkeypatch.setattr(model, "predict_on_batch", answered)
    seen = []
    found = evaluate_detector(model, data, batch=4, progress=seen.append, score_threshold=0.5)
    assert seen == [4, 6]
    np.testing.assert_allclose([found["AP"], found["AP50"]], 1.0)


def test_by_size_it_counts_the_areas_of_the_file_as_pycocotools_does(model, tmp_path, monkeypatch):
    """Areas of masks are smaller than their boxes: some objects of medium boxes are small."""
    from PIL import Image
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    drawn = drawn_shapes(6, SIDE, held_out=True)
    document = {"images": [], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)]}
    for number, example in enumerate(drawn.examples, 11):
        Image.fromarray(example.image).resize((200, 200)).save(tmp_path / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{number}.png", "height": 200, "width": 200})
        for box, label in zip(example.boxes.astype(float) * 200, example.classes.tolist(), strict=True):
            bbox = [box[1], box[0], box[3] - box[1], box[2] - box[0]]
            row = {"id": len(document["annotations"]) + 1, "image_id": number, "category_id": label + 1, "bbox": bbox}
            row |= {"area": bbox[2] * bbox[3] * (0.2 if row["id"] % 2 else 1), "iscrowd": 0}
            document["annotations"].append(row)
    (tmp_path / "truth.json").write_text(json.dumps(document))
    data = read_coco(tmp_path / "truth.json", tmp_path)
    encodings, logits = (np.concatenate(parts) for parts in zip(*perfect(drawn), strict=True))
    answer = {"box_encodings": encodings, "class_predictions_with_background": logits}
    monkeypatch.setattr(model, "predict_on_batch", lambda images: answer)
    ours = evaluate_detector(model, data, score_threshold=0.5)
    assert ours["AP_small"] > 0.9
    assert ours["AP_medium"] > 0.9

    seen = {"images": [], "annotations": []}
    rows = list(coco_results(model, data, seen, score_threshold=0.5))
    for row in rows:
        row["image_id"] = int(seen["images"][row["image_id"] - 1]["file_name"])
    (tmp_path / "results.json").write_text(json.dumps(rows))
    theirs = COCO(str(tmp_path / "truth.json"))
    run = COCOeval(theirs, theirs.loadRes(str(tmp_path / "results.json")), "bbox")
    for step in (run.evaluate, run.accumulate, run.summarize):
        step()
    np.testing.assert_allclose(list(ours.values()), run.stats, atol=1e-9)


def test_models_that_take_pixels_are_refused():
    own = build_ssdlite_mobilenetv2(0.1, (SIDE, SIDE, 3), classes=3, min_depth=8, include_preprocessing=True)
    data = drawn_shapes(2, SIDE)
    batches = detection_batches(data.examples, (SIDE, SIDE), 2)
    calls = (lambda: Detector(own), lambda: evaluate_detector(own, data), lambda: train_detector(own, batches, TINY))
    for call in calls:
        with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
            call()


def test_classes_must_be_the_same(model):
    one = DetectionExample(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    with pytest.raises(ValueError, match="3 classes, the data 2"):
        evaluate_detector(model, DetectionData([one], ("a", "b"), (1, 2)))


def test_the_detector_and_its_command(model, testdata, tmp_path):
    detector = Detector(model, labels=["circle", "square", "triangle"], score_threshold=0.0, max_detections=5)
    photo = testdata / "images" / "cat.bmp"
    result = detector.detect(photo)
    assert len(result.detections) == 5
    assert [each.score for each in result.detections] == sorted(
        (each.score for each in result.detections), reverse=True
    )
    assert result.picture().size == result.photo.shape[1::-1]
    assert result.as_dict()["detections"][0]["label"] == result.detections[0].label
    with pytest.raises(ValueError, match="a photo is uint8"):
        detector.detect(np.zeros((5, 5)))

    folder = tmp_path / "weights"
    folder.mkdir()
    model.save(folder / "detector.keras")
    (folder / "labels.txt").write_text("circle\nsquare\ntriangle\n")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "labels.txt").write_text("of\nsomething\nelse\nhere\n")
    model.save(tmp_path / "other.keras")
    assert Detector(tmp_path / "other.keras").labels == ("class 1", "class 2", "class 3"), (
        "four lines are not its labels"
    )
    arguments = ["--weights", str(folder / "detector.keras"), "--score", "0", "--top", "3", "-o", str(tmp_path / "out")]
    runner = CliRunner()
    done = runner.invoke(command_line(), ["detect", str(photo), str(tmp_path / "broken.jpg"), "--json", *arguments])
    assert done.exit_code == 1, "one photo could not be used"
    (line,) = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert [each["label"] for each in found["detections"]] == [each.label for each in result.detections[:3]]
    assert (tmp_path / "out" / "cat_detections.png").is_file()
    assert json.loads(done.stdout.splitlines()[0]) == found
    assert runner.invoke(command_line(), ["detect", str(photo), *arguments]).exit_code == 0


@pytest.fixture
def few_shapes(monkeypatch):
    """Twelve images wherever the commands draw thousands."""
    from mnv2_keras.data import detection_shapes

    monkeypatch.setattr(
        detection_shapes, "drawn_shapes", lambda count, side, held_out=False: drawn_shapes(12, side, held_out)
    )


def test_the_evaluation_command(model, tmp_path, few_shapes):
    model.save(tmp_path / "detector.keras")
    arguments = ["evaluate", "detection", str(tmp_path / "detector.keras"), "--shapes"]
    done = CliRunner().invoke(command_line(), [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == evaluate_detector(model, drawn_shapes(12, SIDE, held_out=True))
    table = CliRunner().invoke(command_line(), arguments)
    assert table.exit_code == 0
    assert f"{found['AP50']:.4f}" in table.stdout


def test_the_command_judges_a_results_file(tmp_path):
    truth, rows = documents()
    for name, content in (("truth", truth), ("results", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    arguments = ["--annotations", str(tmp_path / "truth.json"), "--results", str(tmp_path / "results.json"), "--json"]
    code = (
        "import sys; from mnv2_keras.cli.main import command_line; command_line()(sys.argv[1:], standalone_mode=False); "
        "sys.exit(', '.join({'tensorflow', 'keras'} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", code, "evaluate", "detection", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # which names what was imported, and is slow
    assert json.loads(done.stdout) == evaluate_coco(truth, rows)


def test_detectors_that_cannot_be():
    open_size = build_ssdlite_mobilenetv2(0.1, (None, None, 3), classes=2)
    with pytest.raises(ValueError, match="any size"):
        Detector(open_size)
    with pytest.raises(ValueError, match="no detector"):
        Detector(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))


def test_nan_weights_are_said(model):
    broken = keras.models.clone_model(model)
    layer = broken.get_layer("BoxPredictor_0-ClassPredictor")
    layer.bias.assign(np.full(layer.bias.shape, np.nan))
    with pytest.raises(ValueError, match="diverged"):
        Detector(broken).detect(np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(ValueError, match="2 labels were given for 3"):
        Detector(model, labels=["a", "b"])


def test_the_training_command(tmp_path, few_shapes):
    options = ["--alpha", "0.1", "--side", str(SIDE), "--steps", "2", "--batch", "2", "--every", "1"]
    done = CliRunner().invoke(command_line(), ["train", "detection", "--shapes", "-o", str(tmp_path), *options])
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


def test_the_training_command_names_a_photo_it_cannot_read_and_needs_no_matplotlib(tmp_path, monkeypatch, caplog):
    from PIL import Image

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number in (1, 2):
        Image.new("RGB", (60, 60)).save(tmp_path / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 60})
        document["annotations"].append({"image_id": number, "category_id": 1, "bbox": [9, 9, 20, 20]})
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "truth.json").write_text(json.dumps(document))
    options = ["--alpha", "0.1", "--side", str(SIDE), "--steps", "3", "--batch", "1"]
    data = ["--annotations", str(tmp_path / "truth.json"), "--images", str(tmp_path)]
    done = CliRunner().invoke(command_line(), ["train", "detection", "-o", str(tmp_path / "out"), *data, *options])
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "detection", "-o", "x"],
        ["train", "detection", "-o", "x", "--shapes", "--recipe", "none"],
        ["train", "detection", "-o", "x", "--images", "folder"],
        ["evaluate", "detection", "--results", "x.json"],
        ["evaluate", "detection", "weights.keras", "--shapes", "--limit", "100"],
    ],
)
def test_bad_use_is_a_value_error(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command_line(), arguments)
    assert isinstance(done.exception, ValueError), done.output
