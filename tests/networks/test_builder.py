"""A ready plan in place of the arguments that describe one, for all three builders."""

import dataclasses

import pytest

from mnv2_keras import (
    build_deeplabv3_mobilenetv2,
    build_mobilenetv2,
    build_ssdlite_mobilenetv2,
    make_detector_plan,
    make_plan,
    make_segmenter_plan,
)
from mnv2_keras.convert.names import classifier_shapes, detector_shapes, segmenter_shapes, variables


def shapes(model) -> list:
    return [(name, tuple(variable.shape)) for name, variable in variables(model).items()]


def test_a_classifier_of_a_plan():
    plan = make_plan(0.35, channels=1, table=[(1, 16, 1, 2), (6, 24, 2, 2)], last_channels=64)
    model = build_mobilenetv2(input_shape=(32, 32, 1), classes=5, plan=plan)
    assert shapes(model) == list(classifier_shapes(plan, 5).items())


def test_a_detector_of_a_plan():
    plan = make_detector_plan(0.35, classes=3, separable=False, min_depth=8)
    model = build_ssdlite_mobilenetv2(input_shape=(64, 64, 3), plan=plan)
    assert shapes(model) == list(detector_shapes(plan).items())
    assert model.output["class_predictions_with_background"].shape[-1] == 4


def test_a_segmenter_of_a_plan():
    plan = make_segmenter_plan(0.35, classes=4, aspp_rates=(2,), decoder=True, output_stride=8)
    model = build_deeplabv3_mobilenetv2(input_shape=(33, 33, 3), plan=plan)
    assert shapes(model) == list(segmenter_shapes(plan).items())
    assert model.output_shape == (None, 33, 33, 4)


def test_a_plan_may_be_changed_by_hand():
    plan = make_detector_plan(0.1, classes=2)
    fewer = dataclasses.replace(plan, extra_maps=plan.extra_maps[:1], predictors=plan.predictors[:3])
    model = build_ssdlite_mobilenetv2(input_shape=(64, 64, 3), plan=fewer)
    assert shapes(model) == list(detector_shapes(fewer).items())


def test_arguments_that_agree_with_the_plan_are_accepted():
    model = build_mobilenetv2(0.35, (32, 32, 3), classes=5, divisible_by=4, plan=make_plan(0.35, divisible_by=4))
    assert model.output_shape == (None, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: build_mobilenetv2(0.75, (32, 32, 3), min_depth=4, plan=make_plan(0.5)),
            "plan does not agree with alpha=0.75, min_depth=4: leave these arguments out",
        ),
        (lambda: build_ssdlite_mobilenetv2(classes=5, plan=make_detector_plan(classes=3)), "plan does not agree with classes=5"),
        (lambda: build_deeplabv3_mobilenetv2(decoder=True, plan=make_segmenter_plan()), "plan does not agree with decoder=True"),
        (
            lambda: build_mobilenetv2(plan=make_plan(channels=1)),
            "input_shape has 3 channels, the plan was made for 1: pass input_shape=\\(height, width, 1\\)",
        ),
        (
            lambda: build_ssdlite_mobilenetv2(plan=make_plan()),
            "plan is a Plan: expected a DetectorPlan as make_detector_plan returns it",
        ),
    ],
)
def test_arguments_that_contradict_the_plan_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("build", "size"), [(build_mobilenetv2, 32), (build_ssdlite_mobilenetv2, 64), (build_deeplabv3_mobilenetv2, 33)]
)
def test_epsilon_of_the_batch_norms_is_an_option(build, size):
    """PyTorch's weights need 1e-5. The heads of DeepLab have 1e-5 always."""
    model = build(0.1, (size, size, 3), classes=2, batch_norm_epsilon=1e-5)
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    assert len(norms) >= 52
    assert {layer.epsilon for layer in norms} == {1e-5}
    with pytest.raises(ValueError, match="batch_norm_epsilon is -1: expected a finite number from 0"):
        build(0.1, (size, size, 3), classes=2, batch_norm_epsilon=-1)
