"""The commands export, inspect, predict and bench, from the shell's side."""

import base64
import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import mnv2
from PIL import Image
from typer.testing import CliRunner

from mnv2_keras.cli.main import command_line
from mnv2_keras.inference import benchmark
from mnv2_keras.tflite import read_metadata


@pytest.fixture(scope="module")
def weights(testdata) -> Path:
    return testdata / "checkpoints" / "v1_format" / "mobilenet_v2_0.1_32.ckpt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture(scope="module")
def exported(weights, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    arguments = [
        "export",
        str(weights),
        "-o",
        str(folder / "m.tflite"),
        "--precision",
        "int8",
        "--calibrate",
        str(photos),
    ]
    result = CliRunner().invoke(
        command_line(), [*arguments, "--output-type", "float32", "--report", str(folder / "r.json"), "--layers"]
    )
    assert result.exit_code == 0, result.output
    return folder, result


def test_export_prints_and_writes_a_report(exported):
    folder, result = exported
    report = json.loads((folder / "r.json").read_text())
    assert report["precision"] == "int8"
    assert report["calibration_images"] == 3
    assert "broken.jpg" in report["skipped"][0]
    assert len(report["layers"]) == 64
    for words in ("signal to noise", "layer that loses most", "uint8", "broken.jpg", "Only 3 photos"):
        assert words in result.output
    assert sorted(each.name for each in folder.iterdir()) == ["m.tflite", "r.json"]


def test_export_of_a_segmenter_and_of_a_detector(photos, tmp_path):
    """Each as its MediaPipe task takes it."""
    from mnv2_keras import build_deeplabv3_mobilenetv2, build_ssdlite_mobilenetv2

    paths = {name: str(tmp_path / name) for name in ("s.keras", "s.tflite", "d.keras", "d.tflite", "s.json")}
    build_deeplabv3_mobilenetv2(0.35, (33, 33, 3)).save(paths["s.keras"])
    build_ssdlite_mobilenetv2(0.1, (64, 64, 3), classes=3, min_depth=8).save(paths["d.keras"])
    command = [
        "export",
        paths["s.keras"],
        "-o",
        paths["s.tflite"],
        "--photos",
        str(photos),
        "--report",
        paths["s.json"],
    ]
    result = CliRunner().invoke(command_line(), command)
    assert result.exit_code == 0, result.output
    for words in ("same labels as Keras", "0.png", "RESIZE_BILINEAR", "skipped"):
        assert words in result.output
    assert len(json.loads(Path(paths["s.json"]).read_text())["agreement"]) == 3
    about = read_metadata(paths["s.tflite"]).about["subgraph_metadata"][0]
    assert [each["name"] for each in about["custom_metadata"]] == ["SEGMENTER_METADATA"]
    result = CliRunner().invoke(command_line(), ["inspect", paths["s.tflite"], "--json"])
    (custom,) = json.loads(result.stdout)["metadata"]["subgraph_metadata"][0]["custom_metadata"]
    assert base64.b64decode(custom["data"]) == about["custom_metadata"][0]["data"]
    result = CliRunner().invoke(command_line(), [*command, "--precision", "dynamic", "--layers"])
    assert "--layers is for classifiers and detectors" in str(result.exception)
    result = CliRunner().invoke(command_line(), [*command, "--no-metadata"])
    assert "metadata goes with export_litert" in str(result.exception)
    result = CliRunner().invoke(command_line(), ["export", paths["d.keras"], "-o", paths["d.tflite"]])
    assert result.exit_code == 0, result.output
    assert "TFLite_Detection_PostProcess" in result.output


def test_inspect(exported, testdata):
    folder, _ = exported
    result = CliRunner().invoke(command_line(), ["inspect", str(folder / "m.tflite")])
    assert result.exit_code == 0
    for words in ("36 CONV_2D", "(pixel - 127.5) / 127.5", "Apache", "bytes at least"):
        assert words in result.output
    result = CliRunner().invoke(command_line(), ["inspect", str(folder / "m.tflite"), "--json"])
    about = json.loads(result.output)
    assert about["inputs"][0]["dtype"] == "uint8"
    assert about["outputs"][0]["dtype"] == "float32"
    theirs = CliRunner().invoke(
        command_line(), ["inspect", str(testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite")]
    )
    assert "ImageClassifier" in theirs.output


def test_inspect_of_what_is_none(tmp_path):
    result = CliRunner().invoke(command_line(), ["inspect", str(tmp_path / "none.tflite")])
    assert isinstance(result.exception, FileNotFoundError)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_predict_writes_results(exported, photos, tmp_path, suffix):
    folder, _ = exported
    output = tmp_path / f"results{suffix}"
    arguments = ["predict", str(photos), "--weights", str(folder / "m.tflite"), "--top", "2", "-o", str(output)]
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exit_code == 1  # one photo is broken
    assert "broken.jpg" in result.output
    if suffix == ".jsonl":
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert [len(line.get("predictions", [])) for line in lines] == [2, 2, 2, 0]
        assert "broken.jpg" in lines[3]["error"]
    elif suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(output.read_text())))
        assert [row["rank"] for row in rows] == ["1", "2"] * 3 + [""]
        assert float(rows[0]["score"]) >= float(rows[1]["score"])
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(output).to_pylist()
        assert len(table) == 7
        assert table[0]["rank"] == 1
        assert table[6]["error"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plot", "layers.png"], "--plot compares layers with float32 ones"),
        (["--layers", "--precision", "int8", "--batch", "4"], "--layers compares layers with float32 ones"),
        (["--plot", "layers.doc", "--precision", "dynamic"], "drawn as .png or .svg"),
        (["--resolution", "0"], "--resolution"),
    ],
)
def test_export_refuses_first(weights, tmp_path, capsys, monkeypatch, options, said):
    code, _, err = mnv2(capsys, monkeypatch, "export", weights, "-o", tmp_path / "m.tflite", *options)
    assert code == 2
    assert said in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_names_are_taken_as_they_are(exported, photos, tmp_path, capsys, monkeypatch):
    """Brackets, colons and bytes that are no text: in tables and in files."""
    folder, _ = exported
    names = ["IMG [edited].png", "a :cat: in the sun.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        shutil.copy(photos / "0.png", tmp_path / name)
    shutil.copy(folder / "m.tflite", tmp_path / "a [draft].tflite")
    arguments = ["predict", tmp_path, "--weights", tmp_path / "a [draft].tflite", "--top", "1"]
    code, out, err = mnv2(capsys, monkeypatch, *arguments)
    assert code == 0, err
    assert all(name.replace("\udce9", r"\udce9") in out for name in names)
    for suffix in (".csv", ".parquet", ".jsonl"):
        code, _, err = mnv2(capsys, monkeypatch, *arguments, "-o", tmp_path / f"r [1]{suffix}")
        assert code == 0, err
        assert f"r [1]{suffix}: 3 photos" in " ".join(err.split())
    assert r"caf\udce9.png" in (tmp_path / "r [1].csv").read_text()
    assert "a [draft].tflite" in mnv2(capsys, monkeypatch, "inspect", tmp_path / "a [draft].tflite")[1]


def test_predict_to_the_terminal(exported, photos):
    folder, _ = exported
    good = str(photos / "0.png")
    result = CliRunner().invoke(command_line(), ["predict", good, "--weights", str(folder / "m.tflite")])
    assert result.exit_code == 0
    assert "class 3" in result.output
    result = CliRunner().invoke(command_line(), ["predict", good, "--weights", str(folder / "m.tflite"), "--json"])
    assert len(json.loads(result.output)[0]["predictions"]) == 5
    many = ["predict", *[good] * 25, "--weights", str(folder / "m.tflite"), "--json"]
    assert len(json.loads(CliRunner().invoke(command_line(), many).stdout)) == 25
    strict = CliRunner().invoke(
        command_line(), ["predict", str(photos), "--weights", str(folder / "m.tflite"), "--strict"]
    )
    assert isinstance(strict.exception, ValueError)
    wrong = CliRunner().invoke(
        command_line(), ["predict", good, "--weights", str(folder / "m.tflite"), "-o", "results.xls"]
    )
    assert "choose a file name with one of these endings" in str(wrong.exception)


def test_bench_measures_every_variant(weights, tmp_path, monkeypatch):
    output, plot = tmp_path / "bench.csv", tmp_path / "new" / "bench.png"
    arguments = ["bench", str(weights), "--rounds", "3", "--threads", "1", "-o", str(output), "--plot", str(plot)]
    for variant in ("litert float32", "litert int8", "keras float32"):
        arguments += ["--variant", variant]
    result = CliRunner().invoke(command_line(), [*arguments, "--no-cold"])
    assert result.exit_code == 0, result.exception
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [(row["engine"], row["precision"]) for row in rows] == [
        ("litert", "float32"),
        ("litert", "int8"),
        ("keras", "float32"),
    ]
    assert all(0 < float(row["p50_ms"]) <= float(row["p90_ms"]) <= float(row["p99_ms"]) for row in rows)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    # The file is in the cache now: a cold start of a process of its own, without TensorFlow.
    result = CliRunner().invoke(
        command_line(), ["bench", str(weights), "--rounds", "1", "--variant", "litert float32", "--json"]
    )
    measured = json.loads(result.stdout)
    assert all(each["memory_mb"] < 250 for each in measured)
    assert all(each["cold_start_s"] > 0 for each in measured)


def test_bench_takes_a_tflite_as_it_is(exported):
    """In its own precision; "digits" is such a file too."""
    folder, _ = exported
    for weights in (folder / "m.tflite", "digits"):
        (measured,) = benchmark.measure(weights, threads=[1], rounds=1, cold=False)
        assert (measured.engine, measured.precision) == ("litert", "int8")
    with pytest.raises(
        ValueError, match="variant 'litert float32': of digits expected any of litert int8, openvino int8"
    ):
        benchmark.measure("digits", ["litert float32"])


def test_bench_refuses_what_it_does_not_know(weights, capsys, monkeypatch):
    assert mnv2(capsys, monkeypatch, "bench", weights, "--plot", "bench.doc")[0] == 2
    with pytest.raises(ValueError, match="variant 'abacus'"):
        benchmark.measure(weights, ["abacus"])
    with pytest.raises(ValueError, match="rounds is 0"):
        benchmark.measure(weights, rounds=0)
