"""Recipes and their schedules."""

import json
import math

import pytest
from training_tasks import recipe

from mnv2_keras.training.recipes import RECIPES, recipe_named


def test_recipes_have_the_published_rates_and_refuse_wrong_values():
    paper = recipe_named("paper")
    assert paper.rate(0, 100) == 0.045
    assert paper.rate(99, 100) == 0.045
    assert paper.rate(250, 100) == pytest.approx(0.045 * 0.98**2)
    assert (paper.average, paper.network["weight_decay"], paper.augmentation) == (0.9999, 4e-5, "inception")
    digits = recipe_named("digits")
    rates = [digits.rate(step, 10) for step in range(10 * digits.epochs)]
    assert rates[0] < rates[5] < max(rates) <= digits.learning_rate
    assert rates[-1] < 0.01 * digits.learning_rate
    assert recipe(schedule="constant").rate(10**6, 1) == 0.01
    for each in RECIPES.values():
        assert json.loads(json.dumps(each.as_dict()))["epochs"] == each.epochs
    with pytest.raises(ValueError, match="expected one of paper, finetune, linear_probe, digits"):
        recipe_named("papre")
    for options in (
        {"optimizer": "sgd"},
        {"schedule": "linear"},
        {"mixed_precision": "int8"},
        {"augmentation": "mixup"},
        {"epochs": 0},
        {"batch": 0},
        {"label_smoothing": 1.0},
        {"learning_rate": math.nan},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            recipe(**options)
