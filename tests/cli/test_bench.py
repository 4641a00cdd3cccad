"""The command bench."""

import csv
import io
import json

import pytest
from command_line import mnv2
from typer.testing import CliRunner

from mnv2_keras.cli.main import command_line
from mnv2_keras.inference import benchmark


def test_bench_measures_every_variant(weights, tmp_path, monkeypatch):
    output, plot = tmp_path / "bench.csv", tmp_path / "new" / "bench.png"
    arguments = ["bench", str(weights), "--rounds", "3", "--threads", "1", "-o", str(output), "--plot", str(plot)]
    for variant in ("litert float32", "litert int8", "keras float32"):
        arguments += ["--variant", variant]
    result = CliRunner().invoke(command_line(), [*arguments, "--no-cold"])
    assert result.exit_code == 0, result.exception
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [(row["engine"], row["precision"]) for row in rows] == [("litert", "float32"), ("litert", "int8"), ("keras", "float32")]
    assert all(0 < float(row["p50_ms"]) <= float(row["p90_ms"]) <= float(row["p99_ms"]) for row in rows)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    # The file is in the cache now: a cold start of a process of its own, without TensorFlow.
    result = CliRunner().invoke(command_line(), ["bench", str(weights), "--rounds", "1", "--variant", "litert float32", "--json"])
    measured = json.loads(result.stdout)
    assert all(row["memory_mb"] < 250 for row in measured)
    assert all(row["cold_start_s"] > 0 for row in measured)


def test_bench_of_a_tflite(exported):
    """It runs in its own precision; "digits" is such a file too."""
    folder, _ = exported
    for weights in (folder / "m.tflite", "digits"):
        (measured,) = benchmark.measure(weights, threads=[1], rounds=1, cold=False)
        assert (measured.engine, measured.precision) == ("litert", "int8")
    with pytest.raises(ValueError, match="variant 'litert float32': of digits expected any of litert int8, openvino int8"):
        benchmark.measure("digits", ["litert float32"])


def test_bench_refuses_unknown_variants(weights, capsys, monkeypatch):
    assert mnv2(capsys, monkeypatch, "bench", weights, "--plot", "bench.doc")[0] == 2
    with pytest.raises(ValueError, match="variant 'abacus'"):
        benchmark.measure(weights, ["abacus"])
    with pytest.raises(ValueError, match="rounds is 0"):
        benchmark.measure(weights, rounds=0)
