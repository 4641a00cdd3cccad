"""The paper's tables beside computed values."""

import json

from mnv2_keras.analysis import analyze_deeplab, profiled_multiply_adds, table_3, table_5, table_6_row, table_7_rows


def test_table_3_and_its_differences():
    rows = {row.row: row for row in table_3()}
    assert [(row.row, row.published.get("channels"), row.published["memory"]) for row in rows.values()] == [
        ("112x112", "16", "400K"),
        ("56x56", "32", "200K"),
        ("28x28", "64", "100K"),
        ("14x14", "160", "62K"),
        ("7x7", "320", "32K"),
        ("1x1", "1280", "2K"),
        ("max", None, "400K"),
    ]
    # The widest c of Table 2 at each size: what the rows put out there.
    computed = {112: 16, 56: 24, 28: 32, 14: 96, 7: 320, 1: 1280}
    for size, channels in computed.items():
        row = rows[f"{size}x{size}"]
        assert row.computed == {"channels": channels, "memory": 2 * size * size * channels}
        assert (f"{2 * size**2 * int(row.published['channels']):,} bytes") in row.explanation
    # Where the channels differ, the printed ones belong to a row of Table 2 whose input has that size.
    for size, (wide, text) in {56: (32, "truncated: 200K"), 28: (64, "100K"), 14: (160, "truncated: 62K")}.items():
        explanation = rows[f"{size}x{size}"].explanation
        assert f"have their input at {size}x{size}: {wide} channels" in explanation
        assert text in explanation
    assert "cut to its first digits: 400K" in rows["112x112"].explanation
    assert "32 channels of Conv (802,816 bytes) are not counted" in rows["112x112"].explanation
    assert "only rounding up gives it" in rows["7x7"].explanation
    assert "1280 channels of Conv_1 (125,440 bytes) are not counted" in rows["7x7"].explanation
    assert rows["1x1"].agrees
    assert not rows["56x56"].agrees
    assert rows["max"].computed == {"memory": 401_408}
    assert all(row.explanation for row in rows.values())


def test_table_5_and_its_differences():
    ssd, ssdlite = table_5()
    assert ssd.published == {"parameters": "14.8M", "multiply_adds": "1.25B"}
    assert ssd.computed["parameters"] == 14_776_629  # the genuine program's graph, counted
    assert ssd.computed["multiply_adds"] == 1_259_068_672
    assert ssd.agrees
    assert "rounded: 14.8M" in ssd.explanation
    assert "truncated: 1.25B" in ssd.explanation
    assert ssdlite.published == {"parameters": "2.1M", "multiply_adds": "0.35B"}
    assert ssdlite.computed["parameters"] == 4_500_543 - 163_530 - 2_223_872  # whole, fewer classes, without the backbone
    assert ssdlite.computed["network_parameters"] == 4_500_543 - 163_530
    assert not ssdlite.agrees
    assert 0.35e9 <= 2 * ssdlite.computed["multiply_adds"] < 0.36e9
    assert "Twice the multiply-adds" in ssdlite.explanation
    assert "not the printed 0.8B" in ssdlite.explanation


def test_table_6_row():
    row = table_6_row()
    assert row.published == {"mAP": "22.1", "parameters": "4.3M", "multiply_adds": "0.8B", "CPU": "200ms"}
    assert row.computed["parameters"] == 4_500_543 - 163_530
    assert row.agrees
    assert "4,500,543 trainable parameters (not the printed 4.3M)" in row.explanation


def test_table_7_rows_and_their_differences():
    rows = table_7_rows()
    assert [tuple(row.published.values()) for row in rows] == [
        ("75.70", "4.52M", "5.8B"),
        ("78.42", "4.52M", "387B"),
        ("75.32", "2.11M", "2.75B"),
        ("77.33", "2.11M", "152.6B"),
    ]
    assert [row.computed["parameters"] for row in rows[2:]] == [2_113_557] * 2
    assert rows[2].computed["multiply_adds"] == 2_740_709_056
    assert rows[2].computed["padded_multiply_adds"] == 2_742_445_696
    # The profiler's count of the genuine graph, 5,527,867,003 operations, without 5 for each softmax value.
    assert rows[2].computed["profiled"] == (5_527_867_003 - 5 * 513 * 513 * 21) // 2
    # DeepLab's model zoo prints the last row's with two decimals.
    assert round(rows[3].computed["profiled"] / 1e9, 2) == 152.59
    for row in rows:
        assert not row.agrees  # convolutions alone never give the printed figure
        assert f"({'truncated' if row is rows[1] else 'rounded'}: {row.published['multiply_adds']}). mIOU" in row.explanation


def test_the_model_zoo_s_cityscapes_figure_comes_out_too():
    analysis = analyze_deeplab(1.0, (1025, 2049, 3), 19)
    assert round(profiled_multiply_adds(analysis) / 1e9, 2) == 21.27


def test_comparisons_are_ready_for_json():
    rows = [*table_3(), *table_5(), table_6_row(), *table_7_rows()]
    read = json.loads(json.dumps([row.as_dict() for row in rows]))
    assert [row["table"] for row in read] == [3] * 7 + [5] * 2 + [6] + [7] * 4
    assert all(set(row) == {"table", "row", "published", "computed", "explanation", "agrees"} for row in read)
