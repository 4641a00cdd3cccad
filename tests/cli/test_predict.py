"""`mnv2 predict`: which options go together, and what it prints and writes."""

import csv
import io
import json
import os
import shutil
import sys

import pytest
from command_line import mnv2
from typer.testing import CliRunner

from mnv2_keras.bundled import bundled_file
from mnv2_keras.cli.main import command_line


def test_without_ray_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    photos = bundled_file("digit_3_1.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = mnv2(capsys, monkeypatch, "predict", photos, "--engine-cluster", "ray", "-o", tmp_path / "a.parquet")
    assert code == 2
    assert "A cluster needs Ray: pip install 'mnv2-keras[ray]'" in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine-cluster", "spark", "-o", "a.parquet"], "--engine-cluster is 'spark': expected ray"),
        (["--engine-cluster", "ray"], "add -o found.parquet"),
        (["--engine-cluster", "ray", "-o", "a.csv"], "a.csv: a cluster writes Parquet"),
        (["--engine-cluster", "ray", "-o", "a.parquet", "--threads", "2"], "--threads is for a single process"),
        (["--engine-cluster", "ray", "-o", "a.parquet", "--strict"], "--strict is for a single process"),
        (["--workers", "2"], "--workers is for a cluster"),
        (["-o", "a.txt"], "results are written as .jsonl, .csv, .parquet"),
    ],
)
def test_options_that_do_not_go_together(monkeypatch, capsys, options, message):
    code, _, err = mnv2(capsys, monkeypatch, "predict", "photos", *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_the_command_line_knows_the_digits(capsys, monkeypatch):
    code, out, _ = mnv2(capsys, monkeypatch, "predict", bundled_file("digit_3_1.png"), "--weights", "digits", "--top", "1")
    assert code == 0
    assert "│ 3 " in out


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


def test_file_names_are_printed_unchanged(exported, photos, tmp_path, capsys, monkeypatch):
    """Brackets, colons and bytes that are not text: in tables and in files."""
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
    strict = CliRunner().invoke(command_line(), ["predict", str(photos), "--weights", str(folder / "m.tflite"), "--strict"])
    assert isinstance(strict.exception, ValueError)
    wrong = CliRunner().invoke(command_line(), ["predict", good, "--weights", str(folder / "m.tflite"), "-o", "results.xls"])
    assert "choose a file name with one of these endings" in str(wrong.exception)
