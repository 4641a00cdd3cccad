"""The evaluation of detectors, against networks that know the truth and pycocotools itself."""

import dataclasses
import json

import numpy as np
import pytest
from training_tasks import small_detector
from typer.testing import CliRunner

from mnv2_keras import ImageError, build_mobilenetv2, ssd_anchors
from mnv2_keras.cli.main import command_line
from mnv2_keras.data.detection import DetectionData, DetectionExample, read_coco
from mnv2_keras.data.drawn_shapes import drawn_shapes
from mnv2_keras.evaluation.detection import detector_metrics, evaluate_detector
from mnv2_keras.training.detection_loss import assign_targets

SIDE = 48


@pytest.fixture(scope="module")
def model():
    return small_detector()


def perfect(data):
    """A stand-in for a network that knows the truth: its logits and encodings are made from the boxes."""
    anchors = ssd_anchors((SIDE, SIDE))
    outputs = []
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
    metrics = evaluate_detector(model, data, batch=4, progress=seen.append, score_threshold=0.5)
    assert seen == [4, 6]
    np.testing.assert_allclose([metrics["AP"], metrics["AP50"]], 1.0)


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
    metrics = evaluate_detector(model, data, score_threshold=0.5)
    assert metrics["AP_small"] > 0.9
    assert metrics["AP_medium"] > 0.9

    judged = detector_metrics(model, data, score_threshold=0.5)
    rows = judged.rows
    for row in rows:
        row["image_id"] = int(judged.document["images"][row["image_id"] - 1]["file_name"])
    (tmp_path / "results.json").write_text(json.dumps(rows))
    reference = COCO(str(tmp_path / "truth.json"))
    run = COCOeval(reference, reference.loadRes(str(tmp_path / "results.json")), "bbox")
    for step in (run.evaluate, run.accumulate, run.summarize):
        step()
    np.testing.assert_allclose(list(metrics.values()), run.stats, atol=1e-9)


def test_an_image_that_cannot_be_read_is_not_counted(model, tmp_path):
    shapes = drawn_shapes(2, SIDE)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = dataclasses.replace(shapes.examples[0], image=tmp_path / "broken.png")
    data = dataclasses.replace(shapes, examples=[broken, *shapes.examples], broken={})
    seen = []
    assert evaluate_detector(model, data, batch=2, progress=seen.append) == evaluate_detector(model, shapes, batch=2)
    assert seen == [3], "images that were skipped are done too"
    assert list(data.broken) == [str(tmp_path / "broken.png")]
    with pytest.raises(ImageError, match=r"broken\.png is not an image"):
        evaluate_detector(model, dataclasses.replace(data, on_error="raise"))
    with pytest.raises(ImageError, match=r"None of the images can be read: .*broken\.png"):
        evaluate_detector(model, dataclasses.replace(data, examples=[broken]))


def test_a_model_of_another_task_is_refused():
    with pytest.raises(ValueError, match="holds no detector"):
        evaluate_detector(build_mobilenetv2(0.1, (32, 32, 3), classes=3), drawn_shapes(1, 32))


def test_classes_must_be_the_same(model):
    one = DetectionExample(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    with pytest.raises(ValueError, match="3 classes, the data 2"):
        evaluate_detector(model, DetectionData([one], ("a", "b"), (1, 2)))


@pytest.fixture
def few_shapes(monkeypatch):
    """Twelve images wherever the commands draw thousands."""
    from mnv2_keras.data import drawn_shapes as shapes

    monkeypatch.setattr(shapes, "drawn_shapes", lambda count, side, held_out=False: drawn_shapes(12, side, held_out))


def test_the_evaluation_command(model, tmp_path, few_shapes):
    model.save(tmp_path / "detector.keras")
    arguments = ["evaluate", "detection", str(tmp_path / "detector.keras"), "--shapes"]
    done = CliRunner().invoke(command_line(), [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)
    assert metrics == evaluate_detector(model, drawn_shapes(12, SIDE, held_out=True))


@pytest.mark.parametrize("arguments", [["--results", "x.json"], ["weights.keras", "--shapes", "--limit", "100"]])
def test_options_that_do_not_go_together_are_refused(arguments):
    done = CliRunner().invoke(command_line(), ["evaluate", "detection", *arguments])
    assert isinstance(done.exception, ValueError), done.output
