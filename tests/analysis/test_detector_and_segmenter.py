"""Detectors and segmenters counted: the figures of the genuine programs, without building anything."""

import json
import math

import pytest
from deeplab_variants import OPTIONS

from mnv2_keras.analysis import analyze_deeplab, analyze_ssdlite, profiled_operations


def genuine(testdata, name: str) -> dict:
    return json.loads((testdata / "golden" / name).read_text())


def check_counts(analysis, counts: dict):
    assert analysis.trainable == counts["trainable"]
    assert analysis.total == counts["all_variables"]
    assert analysis.parameters == counts["conv_kernels_and_biases_only"]
    assert analysis.folded == counts["bn_folded (kernels+biases+one bias per BN)"]
    assert analysis.variables == counts["num_variables"]


def check_operations(analysis, rows: list):
    """Multiply-adds, kernel and output of each convolution, in the genuine program's order."""
    convolutions = [op for row in analysis.rows for op in row.operations if op.multiply_adds]
    assert len(convolutions) == len(rows)
    for operation, (name, _, output, kernel, multiply_adds) in zip(convolutions, rows, strict=True):
        scope = operation.name.removesuffix("_depthwise")
        assert scope in name
        assert operation.multiply_adds == multiply_adds, name
        assert list(operation.output_shape) == output[1:], name
        bias = operation.output_shape[2] if operation.parameters == operation.trainable else 0
        assert operation.parameters - bias == math.prod(kernel), name


@pytest.mark.parametrize(("size", "anchors"), [(300, 1917), (320, 2034)])
def test_ssdlite_is_counted_as_the_genuine_program_has_it(testdata, size, anchors):
    counts = genuine(testdata, "detection/ssdlite_counts.json")
    analysis = analyze_ssdlite(input_shape=(size, size, 3))
    check_counts(analysis, counts["params"])
    check_operations(analysis, counts[f"macs_rows_{size}"])
    assert analysis.multiply_adds == counts[f"macs_{size}_per_image"]
    assert analysis.anchors == anchors
    assert analysis.output_shape == (1, anchors, 95)
    maps = counts[f"input_{size}_feature_shapes"]
    predicted = {row.name: list(row.input_shape) for row in analysis.rows if row.stage == "predictors"}
    assert [predicted[f"BoxPredictor_{i}/ClassPredictor_depthwise"] for i in range(6)] == maps


def test_classic_ssd_is_counted_as_the_genuine_program_has_it(testdata):
    counts = genuine(testdata, "detection/ssd_counts.json")
    analysis = analyze_ssdlite(separable=False)
    check_counts(analysis, counts["params"])
    check_operations(analysis, counts["macs_rows_300"])
    assert analysis.multiply_adds == counts["macs_300_per_image"]
    for stage, name in (("backbone", "backbone"), ("extras", "extras"), ("predictors", "predictor")):
        check_counts(analysis.part(stage), counts[f"params_{name}"])
    assert analysis.part("extras").multiply_adds == counts["macs_300_extras"]
    assert analysis.part("predictors").multiply_adds == counts["macs_300_predictor"]


def test_variants_of_classic_ssd(testdata):
    counts = genuine(testdata, "detection/ssd_counts.json")
    variants = [name for name in counts if name.startswith("count_only_")]
    assert len(variants) == 6
    for name in variants:
        size, classes, *kernel = name.removeprefix("count_only_").split("_")
        shape, kernel = (int(size), int(size), 3), 3 if kernel else None
        analysis = analyze_ssdlite(1.0, shape, int(classes), separable=False, predictor_kernel=kernel)
        head = analysis.part("extras", "predictors")
        assert analysis.multiply_adds == counts[name]["macs"]
        assert analysis.anchors == counts[name]["anchors"]
        assert head.multiply_adds == counts[name]["macs_head"]
        check_counts(analysis, counts[name]["params"])
        check_counts(head, counts[name]["params_head"])


def test_ssdlite_of_80_classes():
    analysis = analyze_ssdlite(1.0, (320, 320, 3), 80)
    assert analysis.trainable == 4_500_543 - 163_530
    assert round(analysis.multiply_adds / 1e6, 1) == 788.8


def test_narrow_ssdlite_scales_its_extra_layers():
    analysis = analyze_ssdlite(0.75)
    names = [row.name for row in analysis.part("extras").rows]
    assert names[0] == "layer_19_1_Conv2d_2_1x1_192"
    assert names[2] == "layer_19_2_Conv2d_2_3x3_s2_384"
    assert {row.name: row.output_shape for row in analysis.rows}["Conv_1"] == (10, 10, 960)
    narrowest = analyze_ssdlite(0.1)
    assert min(row.output_shape[2] for row in narrowest.part("backbone", "extras").rows) == 16


def test_a_rectangular_detector():
    analysis = analyze_ssdlite(1.0, (160, 320, 3))
    maps = [(10, 20), (5, 10), (3, 5), (2, 3), (1, 2), (1, 1)]
    assert analysis.anchors == 3 * 200 + 6 * sum(h * w for h, w in maps[1:])


@pytest.mark.parametrize("name", OPTIONS)
def test_deeplab_is_counted_as_the_genuine_program_has_it(testdata, name):
    files = ("segmentation/deeplab_counts.json", "segmentation/deeplab_more_counts.json")
    counts = {key: value for file in files for key, value in genuine(testdata, file).items()}[name]
    analysis = analyze_deeplab(**OPTIONS[name])
    check_counts(analysis, counts["params"])
    check_operations(analysis, counts["macs_rows"])
    assert analysis.multiply_adds == counts["macs"]
    assert analysis.padded_multiply_adds == counts["macs_counting_space_to_batch_padding"]
    assert analysis.output_shape == (513, 513, 21)
    assert sum(profiled_operations(analysis).values()) == counts["tfprof_float_ops"]
    if "head_params" in counts:
        check_counts(analysis.part("head"), counts["head_params"])
        assert analysis.part("head").multiply_adds == counts["head_macs"]


def test_a_segmenter_of_one_pixel_resizes_nothing():
    analysis = analyze_deeplab(1.0, (1, 1, 3), decoder=True)
    assert "resize" not in {op.kind for row in analysis.rows for op in row.operations}
    assert analysis.output_shape == (1, 1, 21)


def test_a_rectangular_segmenter():
    analysis = analyze_deeplab(0.75, (65, 129, 3), 7, output_stride=8)
    assert analysis.output_shape == (65, 129, 7)
    assert {row.name: row.output_shape for row in analysis.rows}["logits/semantic"] == (9, 17, 7)
