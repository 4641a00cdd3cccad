"""The command line as a user meets it: words, numbers, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import mnv2, run

from mnv2_keras.bundled import bundled_file
from mnv2_keras.cli import main

COMMANDS = tuple(main.COMMANDS)
PROGRAMS = Path(__file__).parents[1] / "programs"


def run_program(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, PROGRAMS / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_and_list_import_no_tensorflow():
    done = run_program("commands_without_tensorflow.py")
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_predict_imports_no_tensorflow():
    name = min(json.loads(bundled_file("digits.json").read_text())["samples"])
    done = run_program("mnv2_without_tensorflow.py", "predict", "--weights", "digits", "--json", bundled_file(name))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["predictions"][0]["index"] == int(name.split("_")[1])


def test_a_terminated_command_cleans_up(tmp_path):
    """`kill` during the writing of a file: neither the file nor its temporary file is left."""
    command = [sys.executable, PROGRAMS / "write_slowly.py", tmp_path / "r.csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as done:
        assert done.stdout.readline() == b"writing\n"
        assert list(tmp_path.iterdir())
        done.terminate()
    assert done.returncode == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, monkeypatch):
    result = run(monkeypatch, command, "--help")
    assert result.exit_code == 0
    if command != "demo":
        assert f"Example: mnv2 {command}" in result.output


def test_version(monkeypatch):
    import mnv2_keras

    assert run(monkeypatch, "--version").output == f"mnv2_keras {mnv2_keras.__version__}\n"


def test_list(monkeypatch):
    records = json.loads(run(monkeypatch, "list", "--task", "classification", "--alpha", "0.35", "--json").output)
    floats = [record for record in records if not record["quantized"]]
    assert {record["resolution"] for record in floats} == {224, 192, 160, 128, 96}
    assert "mobilenet_v2_0.35_96" in run(monkeypatch, "list").output


def test_summary(monkeypatch):
    rows = json.loads(run(monkeypatch, "summary", "--alpha", "0.75", "--resolution", "160", "--json").output)["rows"]
    total = rows[-1]
    assert (total["multiply_adds"] // 10**6, round(total["parameters"] / 1e6, 2)) == (107, 2.61)  # as published
    text = run(monkeypatch, "summary").output
    assert "300,775,552" in text
    paper = json.loads(run(monkeypatch, "summary", "--paper", "--json").output)
    assert {row["table"] for row in paper} >= {3}
    assert "published" in run(monkeypatch, "summary", "--paper").output


def test_verify(testdata, capsys, monkeypatch, tmp_path):
    from mnv2_keras import conversion

    archive = testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz"
    code, out, _ = mnv2(capsys, monkeypatch, "verify", archive, "-o", tmp_path / "receipt.json")
    assert code == 0
    assert "passed: 72 endpoints within 0.0003" in out
    assert "262 of 262 variables equal the frozen graph's constants bit for bit" in out
    assert json.loads((tmp_path / "receipt.json").read_text())["passed"]

    receipts = []
    verify = conversion.verify_checkpoint
    monkeypatch.setattr(conversion, "verify_checkpoint", lambda *a, **o: receipts.append(verify(*a, **o)) or receipts[0])
    code, out, _ = mnv2(capsys, monkeypatch, "verify", archive, "--raw", "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False
    monkeypatch.setattr(conversion, "verify_checkpoint", lambda *_, **__: receipts[0])
    code, out, _ = mnv2(capsys, monkeypatch, "verify", archive, "--raw")
    assert code == 1
    assert "failed: 158 of 262 variables" in out


def test_convert_and_back(testdata, capsys, monkeypatch, tmp_path):
    archive = testdata / "checkpoints" / "v1_format" / "mobilenet_v2_0.1_32.ckpt"
    code, out, _ = mnv2(capsys, monkeypatch, "convert", archive, "-o", tmp_path / "a.keras")
    assert code == 0
    assert "262 weights: 0 averaged, 262 as they are" in out
    code, out, _ = mnv2(capsys, monkeypatch, "convert", tmp_path / "a.keras", "-o", tmp_path / "b.ckpt", "--json")
    assert code == 0
    assert json.loads(out)["transfer"] is None
    options = ("--resolution", "48x64", "--json")
    code, out, _ = mnv2(capsys, monkeypatch, "convert", tmp_path / "b.ckpt", "-o", tmp_path / "c.keras", *options)
    assert code == 0
    assert len(json.loads(out)["transfer"]["taken"]) == 262


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "nowhere.tgz"), "nowhere.tgz does not exist"),
        (("convert", "nowhere.keras", "-o", "x.keras"), "nowhere.keras does not exist"),
        (("predict", "nowhere.jpg"), "nowhere.jpg"),
        (("fetch", "mobilenet_v2_1.0_225"), "mobilenet_v2_1.0_224"),
        (("summary", "--alpha", "0"), "alpha is 0.0: expected a finite number above 0"),
        (("summary", "--resolution", "big"), "--resolution is 'big'"),
        (("list", "--task", "cooking"), "cooking"),
    ],
)
def test_bad_use(capsys, monkeypatch, arguments, message):
    code, out, err = mnv2(capsys, monkeypatch, *arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err + out


def test_demo(capsys, monkeypatch):
    code, out, _ = mnv2(capsys, monkeypatch, "demo")
    assert code == 0
    assert out.count("ok") >= 6
    assert "NOT" not in out
    assert len(out.splitlines()) <= 14


def test_demo_says_when_a_proof_fails(capsys, monkeypatch):
    from mnv2_keras import demonstration

    facts = [demonstration.Fact(True, "one"), demonstration.Fact(False, "two")]
    monkeypatch.setattr(demonstration, "demonstrate", lambda: iter(facts))
    code, out, _ = mnv2(capsys, monkeypatch, "demo")
    assert code == 1
    assert "NOT  two" in out
