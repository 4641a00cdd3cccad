"""Training of detectors: recipes, rows, batches that end or hold NaN, old arguments."""

import csv
import dataclasses

import keras
import numpy as np
import pytest
from training_tasks import DETECTION, detection_data, small_detector

from mnv2_keras import DetectionRecipe
from mnv2_keras.data.detection import detection_batches
from mnv2_keras.data.drawn_shapes import drawn_shapes
from mnv2_keras.evaluation.detection import evaluate_detector
from mnv2_keras.inference.detector import Detector
from mnv2_keras.training.detection import PAPER, SHAPES, train_detector
from mnv2_keras.training.state import DivergedError
from mnv2_keras.training.step import make_optimizer

SIDE = 48
TINY = dataclasses.replace(DETECTION, steps=3, warmup=1)


@pytest.fixture(scope="module")
def model():
    return small_detector()


def test_rows_hold_the_parts_of_the_loss_and_the_evaluation(model, tmp_path):
    """The folder is given under its name of the release before, as a log within it."""
    with pytest.warns(DeprecationWarning, match="the argument log of train_detector is called folder"):
        rows = train_detector(
            model, detection_data(TINY), TINY, every=2, log=tmp_path / "training.csv", evaluate=lambda: {"AP50": 0.5}
        )
    assert [row["step"] for row in rows] == [2, 3]
    assert all(row["AP50"] == 0.5 for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(row["localization"] + row["classification"] + row["l2"], rel=1e-5)
    with (tmp_path / "history.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 3]


def test_batches_that_hold_nan_or_end_early_are_named(model):
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


def test_the_kind_of_schedule_is_accepted_under_its_old_name():
    with pytest.warns(DeprecationWarning, match="the kind of schedule is given as schedule"):
        chosen = DetectionRecipe(alpha=1.0, side=96, batch=8, steps=10, learning_rate=0.1, optimizer="adam", decay="cosine")
    assert (chosen.schedule, chosen.decay) == ("cosine", 0.95)


def test_models_that_take_pixels_are_refused():
    own = small_detector(include_preprocessing=True)
    data = drawn_shapes(2, SIDE)
    batches = detection_batches(data.examples, (SIDE, SIDE), 2)
    calls = (lambda: Detector(own), lambda: evaluate_detector(own, data), lambda: train_detector(own, batches, TINY))
    for call in calls:
        with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
            call()
