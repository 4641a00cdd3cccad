"""Counts without building, against published tables, genuine programs and built Keras models."""

import ast
import itertools
import json
import math
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mnv2_keras.analysis import analyze, analyze_deeplab, analyze_ssdlite, published_figures, summary_table
from mnv2_keras.architecture import TABLE_2
from mnv2_keras.registry import list_checkpoints

# ---- the classifier ---------------------------------------------------------------------------------------------------


def test_the_22_published_rows():
    records = [record for record in list_checkpoints(task="classification") if record.multiply_adds_m is not None]
    assert len(records) == 22
    for record in records:
        figures = published_figures(record.alpha, record.resolution)
        assert figures.multiply_adds_m == record.multiply_adds_m, record.name
        assert figures.parameters_m == record.parameters_m, record.name


def test_rounding_would_print_the_same_parameters():
    for alpha in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
        assert round(analyze(alpha).parameters / 1e6, 2) == published_figures(alpha, 96).parameters_m


def test_published_figures_of_a_rectangle():
    assert published_figures(1.0, (224, 224)) == published_figures(1.0, 224)
    assert published_figures(1.0, (96, 160)).multiply_adds_m == analyze(1.0, (96, 160, 3)).multiply_adds // 10**6


def genuine_calls(testdata):
    """(file, record, analysis) of each call to the genuine classifier or base."""
    for file in sorted((testdata / "golden" / "classification").glob("*.json")):
        record = json.loads(file.read_text())
        options = {name: ast.literal_eval(value) for name, value in record["kwargs"].items() if "<" not in value}
        options = {"num_classes": 1001, "finegrain_classification_mode": False, "use_explicit_padding": False} | options
        analysis = analyze(
            options.pop("depth_multiplier", 1.0),
            tuple(record["input_shape"][1:]),
            classes=options.pop("num_classes"),
            include_top="global_pool" in record["endpoints"],
            explicit_padding=options.pop("use_explicit_padding"),
            normalization="group_norm" if "GroupNorm" in str(record["variables"]) else "batch_norm",
            **options,
        )
        yield file.stem, record, analysis


def test_counts_are_those_of_the_genuine_program(testdata):
    tags = []
    for tag, record, analysis in genuine_calls(testdata):
        values = {name: math.prod(shape) for name, shape in record["variables"]}
        weights = {name: n for name, n in values.items() if name.endswith(("weights", "biases"))}
        assert analysis.trainable == record["params"], tag
        assert analysis.total == sum(values.values()), tag
        assert analysis.parameters == sum(weights.values()), tag
        assert analysis.variables == len(values), tag
        tags.append(tag)
    assert len(tags) >= 19


def test_shapes_are_those_of_the_genuine_program(testdata):
    for tag, record, analysis in genuine_calls(testdata):
        shapes = {name: endpoint["shape"][1:] for name, endpoint in record["endpoints"].items()}
        for row in analysis.rows:
            genuine = shapes[row.endpoint]
            assert list(row.output_shape) == ([1, 1, *genuine] if len(genuine) == 1 else genuine), (tag, row.endpoint)
            depthwise = [operation for operation in row.operations if operation.kind == "depthwise"]
            for operation in depthwise:
                assert list(operation.output_shape) == shapes[f"{row.endpoint}/depthwise_output"]
                assert operation.input_shape[2] == operation.output_shape[2]


small_rows = st.tuples(st.integers(1, 6), st.integers(4, 40), st.integers(1, 2), st.integers(1, 2))
small_tables = st.lists(small_rows, min_size=1, max_size=3).map(tuple)


@st.composite
def networks(draw, tables=st.just(TABLE_2) | small_tables):  # noqa: B008 - a strategy is a constant
    """Options that the builder and the analysis share."""
    table = draw(tables)
    split = draw(st.sampled_from([(1, 1), (2, 3), (4, 2)]))
    divisor = 8 if max(split) > 1 else draw(st.sampled_from([1, 4, 8]))
    shared = {
        "alpha": draw(st.integers(10, 140)) / 100,
        "input_shape": (draw(st.integers(32, 97)), draw(st.integers(32, 97)), draw(st.sampled_from([1, 3, 4]))),
        "classes": draw(st.sampled_from([0, 1, 10, 1001])),
        "include_top": draw(st.booleans()),
        "output_stride": draw(st.sampled_from([None, 2, 8, 16])),
        "explicit_padding": draw(st.booleans()),
        "finegrain_classification_mode": draw(st.booleans()),
        "min_depth": draw(st.sampled_from([8, 16])) if max(split) > 1 else draw(st.integers(1, 16)),
        "divisible_by": divisor,
        "normalization": draw(st.sampled_from(["batch_norm", "group_norm"])),
        "split_expansion": split[0],
        "split_projection": split[1],
        "table": table,
        "stem_channels": draw(st.sampled_from([8, 32])),
        "last_channels": draw(st.sampled_from([64, 1280])),
    }
    last = sum(row[2] for row in table) + 2
    inner = [f"layer_{last - 1}/depthwise_output", f"layer_{last - 1}/output"]
    ends = [None, None, "layer_1", f"layer_{last}", f"layer_{last - 1}", *inner]
    shared["final_endpoint"] = draw(st.sampled_from(ends))
    return shared


def keras_counts(model) -> dict[str, int]:
    """Figures read from a built model's own variables, kernels and tensors."""
    kernels, multiply_adds = 0, 0
    for layer in model.layers:
        if hasattr(layer, "kernel_size"):
            kernel = math.prod(layer.kernel.shape)
            kernels += kernel + (layer.bias.shape[0] if layer.use_bias else 0)
            multiply_adds += kernel * math.prod(layer.output.shape[1:3])
    return {
        "parameters": kernels,
        "trainable": sum(math.prod(variable.shape) for variable in model.trainable_variables),
        "total": model.count_params(),
        "variables": len(model.weights),
        "multiply_adds": multiply_adds,
    }


def figures(analysis) -> dict[str, int]:
    return {name: getattr(analysis, name) for name in ("parameters", "trainable", "total", "variables", "multiply_adds")}


def check_counts_of_the_built_model(options):
    import keras

    from mnv2_keras import build_mobilenetv2

    model = build_mobilenetv2(**options, groups=1)
    analysis = analyze(**options)
    assert figures(analysis) == keras_counts(model)
    shape = model.output.shape[1:]
    assert analysis.output_shape == ((1, 1, *shape) if len(shape) == 1 else shape)
    keras.backend.clear_session()


every_option = example(
    {
        "alpha": 0.35,
        "input_shape": (97, 130, 3),
        "output_stride": 16,
        "explicit_padding": True,
        "normalization": "group_norm",
        "split_expansion": 2,
        "min_depth": 16,
    }
)


@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@every_option
@given(networks(small_tables))  # Table 2 takes longer to build
def test_counts_are_those_of_the_built_model(options):
    check_counts_of_the_built_model(options)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_counts_are_those_of_many_built_models(options):
    check_counts_of_the_built_model(options)


def test_the_digits_network_is_counted_as_built():
    from mnv2_keras import build_mobilenetv2

    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    options = {"input_shape": (28, 28, 1), "classes": 10, "table": rows, "last_channels": 64}
    model, analysis = build_mobilenetv2(**options), analyze(**options)
    assert figures(analysis) == keras_counts(model)
    built = {layer.name: layer.output.shape[1:] for layer in model.layers if hasattr(layer, "kernel_size")}
    counted = {
        operation.name.replace("/", "-"): operation.output_shape
        for row in analysis.rows
        for operation in row.operations
        if operation.multiply_adds
    }
    assert counted == built


# ---- memory -----------------------------------------------------------------------------------------------------------


def live_bytes(analysis, activation_bytes: int) -> dict[str, int]:
    """Input, output and waiting residual of each convolution and of the pooling, from the plan and the rows' sizes alone."""
    alive = {}
    for row, layer in zip(analysis.rows, analysis.plan.layers, strict=False):
        inputs, outputs = (math.prod(shape[:2]) for shape in (row.input_shape, row.output_shape))
        if not hasattr(layer, "hidden"):
            alive[layer.name] = inputs * layer.inputs + outputs * layer.outputs
            continue
        residual = inputs * layer.inputs if layer.residual else 0
        if layer.expand:
            alive[f"{layer.name}/expand"] = inputs * (layer.inputs + layer.hidden)
        # Without an expansion the depthwise convolution's input is the block's own, counted once.
        waiting = residual if layer.expand else 0
        alive[f"{layer.name}/depthwise"] = (inputs + outputs) * layer.hidden + waiting
        alive[f"{layer.name}/project"] = outputs * (layer.hidden + layer.outputs) + residual
        if layer.residual:
            alive[f"{layer.name}/add"] = 2 * residual
    for row in analysis.rows[len(analysis.plan.layers) :]:
        name = row.operations[0].name
        alive[name] = math.prod(row.input_shape) + math.prod(row.output_shape)
    return {name: numbers * activation_bytes for name, numbers in alive.items()}


@given(networks(), st.sampled_from([1, 2, 4]))
def test_memory_is_input_output_and_waiting_residual(options, activation_bytes):
    analysis = analyze(**options | {"final_endpoint": None}, activation_bytes=activation_bytes)
    expected = live_bytes(analysis, activation_bytes)
    assert {op.name: op.memory for row in analysis.rows for op in row.operations} == expected
    assert analysis.peak_activation_memory == max(expected.values())
    assert expected[analysis.peak_at] == analysis.peak_activation_memory


def test_memory_of_the_full_network():
    analysis = analyze(activation_bytes=2)
    # expanded_conv_1's depthwise convolution: 96 channels in at 112 x 112 and out at 56 x 56.
    assert (analysis.peak_at, analysis.peak_activation_memory) == ("expanded_conv_1/depthwise", 2 * 96 * (112**2 + 56**2))
    # The first block as one operation: 32 channels in and 16 out at 112 x 112.
    assert (analysis.bottleneck_at, analysis.bottleneck_memory) == ("expanded_conv", 2 * 112**2 * (32 + 16))


def test_the_decoder_keeps_its_skip_alive():
    with_decoder, without = analyze_deeplab(decoder=True), analyze_deeplab()
    skip = 4 * 129 * 129 * 144
    memory = [{op.name: op.memory for row in a.rows for op in row.operations} for a in (with_decoder, without)]
    for name in ("expanded_conv_3/expand", "expanded_conv_9/depthwise", "aspp0", "concat_projection"):
        assert memory[0][name] == memory[1][name] + skip
    assert memory[0]["expanded_conv_1/expand"] == memory[1]["expanded_conv_1/expand"]


def test_a_detector_keeps_its_feature_maps_alive():
    analysis = analyze_ssdlite()
    memory = {op.name: op.memory for row in analysis.rows for op in row.operations}
    maps = [19 * 19 * 576, 10 * 10 * 1280, 5 * 5 * 512, 3 * 3 * 256, 2 * 2 * 256, 128]
    # All maps wait; the first predictor reads the first one and writes as much.
    assert memory["BoxPredictor_0/BoxEncodingPredictor_depthwise"] == 4 * (sum(maps) + maps[0])
    # At the end every encoding and class score is there, and what the last predictor reads.
    assert memory["BoxPredictor_5/ClassPredictor"] == 4 * (1917 * (4 + 91) + 128)


# ---- summary ----------------------------------------------------------------------------------------------------------


def test_the_summary_is_table_2_of_the_paper():
    lines = summary_table(analyze())
    printed = [(line["operator"], *(line[key] for key in "tcns")) for line in lines[:-1]]
    assert printed == [
        ("conv2d 3x3", None, 32, 1, 2),
        *(("bottleneck", *row) for row in TABLE_2),
        ("conv2d 1x1", None, 1280, 1, 1),
        ("avgpool 7x7", None, 1280, 1, None),
        ("conv2d 1x1", None, 1001, 1, 1),
    ]
    sides = [(224, 3), (112, 32), (112, 16), (56, 24), (28, 32), (14, 64), (14, 96), (7, 160), (7, 320), (7, 1280)]
    assert [line["input_shape"] for line in lines[:-2]] == [[side, side, channels] for side, channels in sides]
    for before, after in itertools.pairwise(lines[:-1]):
        assert before["output_shape"] == after["input_shape"]
    assert [line["endpoints"] for line in lines[1:4]] == [["layer_2"], ["layer_3", "layer_4"], ["layer_5", "layer_7"]]


@given(networks())
def test_the_summary_adds_up(options):
    analysis = analyze(**options)
    *lines, total = json.loads(json.dumps(summary_table(analysis)))
    assert total["operator"] == "total"
    for key in ("parameters", "trainable", "total", "multiply_adds"):
        assert sum(line[key] for line in lines) == total[key] == getattr(analysis, key)
    assert max(line["activation_memory"] for line in lines) == analysis.peak_activation_memory
    assert sum(line["n"] for line in lines) == len(analysis.rows)


def test_the_summary_shows_dilation():
    lines = summary_table(analyze(0.5, (129, 129, 3), include_top=False, output_stride=8))
    assert [(line["s"], line["rate"]) for line in lines[4:8]] == [(1, 2), (1, 2), (1, 4), (1, 4)]


def test_the_summary_of_a_segmenter_names_its_head():
    operators = [line["operator"] for line in summary_table(analyze_deeplab(aspp_rates=(6, 12, 18), decoder=True))]
    assert operators[-4:] == ["conv2d 1x1", "conv2d 1x1", "resize", "total"]
    assert "dwise 3x3" in operators


def test_an_analysis_as_json():
    read = json.loads(json.dumps(analyze(0.75, (160, 160, 3)).as_dict()))
    assert read["alpha"] == 0.75
    assert read["parameters"] == sum(row["parameters"] for row in read["rows"])
    assert read["multiply_adds"] == sum(row["multiply_adds"] for row in read["rows"])
    assert read["total"] == read["trainable"] + read["non_trainable"]
    assert read["rows"][1]["table_row"] == 0
    assert "anchors" not in read
    assert analyze_ssdlite().as_dict()["anchors"] == 1917


# ---- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analyze(0), "alpha is 0"),
        (lambda: analyze(1.0, (None, None, 3)), "counting needs a height and a width"),
        (lambda: analyze(1.0, (224, 224)), r"input_shape is \(224, 224\)"),
        (lambda: analyze(1.0, 224), "input_shape is 224"),
        (lambda: analyze(1.0, (224, 0, 3)), "width in input_shape is 0"),
        (lambda: analyze(1.0, (224, 2.5, 3)), "width in input_shape is 2.5"),
        (lambda: analyze(classes=-1), "classes is -1"),
        (lambda: analyze(normalization="layer_norm"), "normalization is 'layer_norm'"),
        (lambda: analyze(activation_bytes=0), "activation_bytes is 0"),
        (lambda: analyze(final_endpoint="layer_20"), "final_endpoint is 'layer_20'.*layer_1, layer_2/depthwise_output"),
        (lambda: analyze(output_stride=3), "output_stride is 3"),
        (lambda: analyze_ssdlite(classes=0), "classes is 0"),
        (lambda: analyze_ssdlite(predictor_kernel=1), "predictor_kernel is 1: expected 3"),
        (lambda: analyze_ssdlite(separable=False, predictor_kernel=5), "predictor_kernel is 5: expected 1 or 3"),
        (lambda: analyze_ssdlite().part("head"), "'head' is not a stage .* backbone, extras, predictors"),
        (lambda: analyze_deeplab(aspp_rates=6), "aspp_rates is 6"),
        (lambda: analyze_deeplab(aspp_rates=(6, 0)), "a rate in aspp_rates is 0"),
        (lambda: analyze_deeplab(head=False, decoder=True), "head is False"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_counting_imports_neither_tensorflow_nor_keras_nor_numpy():
    code = (
        "import sys, mnv2_keras.analysis as a; a.analyze(); a.table_7_rows();"
        "print({'tensorflow', 'keras', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
