"""The variables of a plan, without building anything, against the genuine programs' lists."""

import json
from types import SimpleNamespace

import pytest
from deeplab_variants import OPTIONS

from mnv2_keras import make_detector_plan, make_segmenter_plan
from mnv2_keras.convert.names import depth, detector_shapes, segmenter_shapes, variables

#: The genuine list of each segmenter: the output stride makes no difference to the variables.
SEGMENTERS = {name: name.removesuffix("_os16").removesuffix("_os8") for name in OPTIONS if name != "os8"}


def genuine(testdata, file: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in order of creation."""
    return [(name, tuple(shape)) for name, shape in json.loads((testdata / "golden" / file).read_text())]


@pytest.mark.parametrize(("name", "separable"), [("ssdlite", True), ("ssd", False)])
def test_variables_of_a_detector_plan_are_the_genuine_ones(testdata, name, separable):
    expected = genuine(testdata, f"detection/{name}_variables.json")
    assert list(detector_shapes(make_detector_plan(separable=separable)).items()) == expected


@pytest.mark.parametrize(("options", "file"), SEGMENTERS.items())
def test_variables_of_a_segmenter_plan_are_the_genuine_ones(testdata, options, file):
    expected = genuine(testdata, f"segmentation/deeplab_{file}_variables.json")
    assert list(segmenter_shapes(make_segmenter_plan(**OPTIONS[options])).items()) == expected


@pytest.mark.parametrize("folder", ["detection", "segmentation"])
def test_depth_sorts_variables_in_order_of_creation(testdata, folder):
    files = sorted((testdata / "golden" / folder).glob("*_variables.json"))
    assert len(files) >= 2
    for file in files:
        places = [depth(name) for name, _ in genuine(testdata, f"{folder}/{file.name}")]
        assert places == sorted(places), file.name


def test_variables_of_unknown_scopes_come_first_among_the_heads():
    assert depth("MobilenetV2/Conv_1/weights") < depth("my/own/weights") < depth("image_pooling/weights")
    assert variables(SimpleNamespace(layers=[])) == {}
