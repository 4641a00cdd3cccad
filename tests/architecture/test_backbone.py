"""Rounding and plan, against independent restatements and the genuine program's variables."""

import ast
import itertools
import json
import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mnv2_keras.architecture import EXPANSION_DIVISOR, TABLE_2, Block, Row, make_divisible, make_plan, split_divisible

alphas = st.integers(5, 250).map(lambda hundredths: hundredths / 100)
values = st.tuples(st.integers(1, 2000), alphas).map(math.prod)
divisors = st.sampled_from([1, 2, 3, 4, 8, 16])
rows = st.builds(Row, st.integers(1, 6), st.integers(1, 160), st.integers(1, 3), st.integers(1, 3))
tables = st.one_of(st.just(TABLE_2), st.lists(rows, min_size=1, max_size=4).map(tuple))
output_strides = st.sampled_from([None, 1, 2, 4, 6, 8, 16, 32])


def nearest_multiple(value: float, divisor: int, minimum: int) -> int:
    """The rule in exact arithmetic: to the nearest multiple, ties up; at least the minimum; one more if a tenth got lost."""
    exact = Fraction(value)
    below = exact // divisor * divisor
    rounded = max(minimum, int(below if exact - below < Fraction(divisor, 2) else below + divisor))
    return rounded + divisor if rounded < Fraction(0.9) * exact else rounded


@given(values, divisors, st.none() | st.integers(1, 40))
def test_make_divisible_is_the_rule_in_exact_arithmetic(value, divisor, minimum):
    # Where floating point itself decides (a value a hair off a tie or a tenth), there is no rule to compare with.
    exact = Fraction(value)
    tie = exact / divisor % 1 - Fraction(1, 2)
    assume(tie == 0 or abs(tie) > 1e-9)
    expected = nearest_multiple(value, divisor, divisor if minimum is None else minimum)
    assume(abs(float(expected) - 0.9 * value) > 1e-9 and abs(expected - divisor - 0.9 * value) > 1e-9)
    assert make_divisible(value, divisor, minimum) == expected


@given(values, divisors, st.none() | st.integers(1, 5))
def test_make_divisible_gives_multiples_near_the_value(value, divisor, multiple):
    minimum = None if multiple is None else multiple * divisor
    result = make_divisible(value, divisor, minimum)
    assert result % divisor == 0
    assert result >= (minimum or divisor)
    assert result >= 0.9 * value - 1e-9
    assert result == (minimum or divisor) or abs(result - value) < divisor


@given(values, values, divisors)
def test_make_divisible_grows_with_the_value(one, other, divisor):
    low, high = sorted((one, other))
    assert make_divisible(low, divisor) <= make_divisible(high, divisor)


@given(st.integers(1, 200), divisors)
def test_make_divisible_leaves_multiples_alone(times, divisor):
    assert make_divisible(times * divisor, divisor) == times * divisor


def test_the_product_is_not_truncated_first():
    differing = [
        (hundredths, row.c)
        for hundredths in range(10, 201)
        for row in TABLE_2
        if make_divisible(row.c * (hundredths / 100)) != make_divisible(int(row.c * (hundredths / 100)))
    ]
    assert len(differing) == 15  # rows of Table 2 at alpha from 0.10 to 2.00, found independently in TF-Slim
    assert {hundredths for hundredths, _ in differing} == {14, 28, 42, 56, 84, 112, 149, 167, 168}


@given(st.integers(1, 200), st.integers(1, 12))
def test_split_divisible_cuts_at_rounded_up_shares(eighths, ways):
    total = 8 * eighths
    cuts = [math.ceil(Fraction(eighths * i, ways)) * 8 for i in range(ways + 1)]
    assert split_divisible(total, ways) == tuple(after - before for before, after in itertools.pairwise(cuts))


@given(st.integers(1, 200), st.integers(1, 12))
def test_split_divisible_parts_add_up_and_are_alike(eighths, ways):
    parts = split_divisible(8 * eighths, ways)
    assert sum(parts) == 8 * eighths
    assert len(parts) == ways
    assert all(part % 8 == 0 for part in parts)
    assert max(parts) - min(parts) <= 8


def test_split_divisible_refuses_what_has_no_such_parts():
    with pytest.raises(ValueError, match="12 channels cannot be split 3 ways"):
        split_divisible(12, 3)


options = st.fixed_dictionaries(
    {
        "alpha": alphas,
        "channels": st.integers(1, 4),
        "table": tables,
        "stem_channels": st.integers(1, 64),
        "last_channels": st.integers(1, 1280),
        "output_stride": output_strides,
        "finegrain_classification_mode": st.booleans(),
        "min_depth": st.integers(1, 24),
        "divisible_by": divisors,
    }
)


@given(options)
def test_layers_chain_and_keep_the_rules(chosen):
    plan = make_plan(**chosen)
    assert [layer.endpoint for layer in plan.layers] == [f"layer_{i + 1}" for i in range(len(plan.layers))]
    assert plan.stem.inputs == chosen["channels"]
    for before, after in itertools.pairwise(plan.layers):
        assert before.outputs == after.inputs
    assert [block.row for block in plan.blocks] == [i for i, row in enumerate(chosen["table"]) for _ in range(row.n)]
    for i, block in enumerate(plan.blocks):
        t = chosen["table"][block.row].t
        assert block.name == ("expanded_conv" if i == 0 else f"expanded_conv_{i}")
        assert block.outputs == make_divisible(
            chosen["table"][block.row].c * plan.alpha, chosen["divisible_by"], chosen["min_depth"]
        )
        assert block.hidden == (block.inputs if t == 1 else make_divisible(block.inputs * t, 8))
        assert bool(block.expand) == (block.hidden > block.inputs)
        assert block.residual == (block.stride == 1 and block.inputs == block.outputs)
        for parts, inputs, outputs in ((block.expand, block.inputs, block.hidden), (block.project, block.hidden, block.outputs)):
            assert [(part.inputs, part.outputs) for part in parts] in ([], [(inputs, outputs)])
    assert min(layer.outputs for layer in plan.layers) >= chosen["min_depth"]


@given(options)
def test_strides_turn_into_dilation_once_the_output_stride_is_reached(chosen):
    plan, target = make_plan(**chosen), chosen["output_stride"]
    strides = [2]
    for row in chosen["table"]:
        strides += [row.s] + [1] * (row.n - 1)
    # What one step of the layer's input would be if every stride were kept.
    reach = [math.prod(strides[:i]) for i in range(len(strides))]
    start = reach.index(target) if target in reach else len(strides)
    placed = [(layer.stride, layer.rate) for layer in plan.layers[:-1]]
    assert placed == [(s, 1) if i < start else (1, reach[i] // target) for i, s in enumerate(strides)]
    assert (plan.last.stride, plan.last.rate) == (1, 1)
    assert plan.output_stride == (target if start < len(strides) else math.prod(strides))


@given(alphas, st.booleans(), st.integers(8, 1280))
def test_finegrain_keeps_the_last_layer_wide(alpha, finegrain, last):
    plan = make_plan(alpha, last_channels=last, finegrain_classification_mode=finegrain)
    if finegrain and alpha < 1:
        assert abs(plan.last.outputs - last) < 8
    else:
        assert plan.last.outputs == make_divisible(last * alpha)


@given(alphas, st.integers(1, 6), st.integers(1, 6))
def test_split_parts_cover_the_whole_convolution(alpha, expansion, projection):
    plan = make_plan(alpha, split_expansion=expansion, split_projection=projection)
    for block in plan.blocks:
        for parts, ways, inputs, outputs in (
            (block.expand, expansion, block.inputs, block.hidden),
            (block.project, projection, block.hidden, block.outputs),
        ):
            if not parts:
                continue
            whole = min(inputs // ways, outputs // ways) < EXPANSION_DIVISOR or ways == 1
            assert len(parts) == (1 if whole else ways)
            assert sum(part.inputs for part in parts) == inputs
            assert sum(part.outputs for part in parts) == outputs


def genuine_plan(record: dict):
    """The plan of a call to the genuine program, from its recorded arguments."""
    arguments = {name: ast.literal_eval(value) for name, value in record["kwargs"].items() if "<" not in value}
    names = {"depth_multiplier": "alpha"}
    ignored = {"num_classes", "use_explicit_padding"}
    options = {names.get(name, name): value for name, value in arguments.items() if name not in ignored}
    options.setdefault("finegrain_classification_mode", False)
    return make_plan(channels=record["input_shape"][3], **options)


def kernels(plan) -> list[tuple[str, list[int]]]:
    """TF-Slim names and shapes of the kernels of a plan, in creation order."""
    shapes = []
    for layer in plan.layers:
        scope = f"MobilenetV2/{layer.name}"
        if not isinstance(layer, Block):
            shapes.append((f"{scope}/weights", [layer.kernel, layer.kernel, layer.inputs, layer.outputs]))
            continue
        shapes += [(f"MobilenetV2/{part.name}/weights", [1, 1, part.inputs, part.outputs]) for part in layer.expand]
        shapes.append((f"{scope}/depthwise/depthwise_weights", [3, 3, layer.hidden, 1]))
        shapes += [(f"MobilenetV2/{part.name}/weights", [1, 1, part.inputs, part.outputs]) for part in layer.project]
    return shapes


def test_plans_are_those_of_the_genuine_program(testdata):
    files = sorted((testdata / "golden" / "classification").glob("*.json"))
    assert len(files) >= 19
    for file in files:
        record = json.loads(file.read_text())
        genuine = [
            (name, shape)
            for name, shape in record["variables"]
            if name.endswith("weights") and not name.startswith("MobilenetV2/Logits/")
        ]
        assert kernels(genuine_plan(record)) == genuine, file.name


def test_a_plan_of_table_2():
    plan = make_plan()
    assert len(plan.blocks) == 17
    assert plan.output_stride == 32
    assert [layer.outputs for layer in plan.layers] == (
        [32, 16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320, 1280]
    )
    assert sum(block.residual for block in plan.blocks) == 10


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": "1"}, "alpha is '1'"),
        ({"alpha": True}, "alpha is True"),
        ({"table": ()}, "table has no rows"),
        ({"table": 6}, "table is 6"),
        ({"table": [(1, 16, 1)]}, "expected rows of four"),
        ({"table": [(1, 16, 0, 1)]}, "n of row 0 of the table is 0"),
        ({"output_stride": 3}, "output_stride is 3"),
        ({"output_stride": 0}, "output_stride is 0"),
        ({"divisible_by": 0}, "divisible_by is 0"),
        ({"split_expansion": 1.5}, "split_expansion is 1.5"),
        ({"split_expansion": 2, "divisible_by": 4, "alpha": 0.6}, "cannot be split 2 ways"),
    ],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**bad)
