"""The command export, for each task."""

import base64
import json
from pathlib import Path

import pytest
from command_line import mnv2
from typer.testing import CliRunner

from mnv2_keras.cli.main import command_line
from mnv2_keras.tflite import read_metadata


def test_export_prints_and_writes_a_report(exported):
    folder, result = exported
    report = json.loads((folder / "r.json").read_text())
    assert report["precision"] == "int8"
    assert report["calibration_images"] == 3
    assert "broken.jpg" in report["skipped"][0]
    assert len(report["layers"]) == 64
    for words in ("signal to noise", "layer that loses most", "uint8", "broken.jpg", "Only 3 photos"):
        assert words in result.output
    assert sorted(file.name for file in folder.iterdir()) == ["m.tflite", "r.json"]


@pytest.mark.usefixtures("conversion_in_process")
def test_export_of_a_segmenter_and_of_a_detector(photos, tmp_path):
    """Each is written as its MediaPipe task expects it."""
    from mnv2_keras import build_deeplabv3_mobilenetv2, build_ssdlite_mobilenetv2

    paths = {name: str(tmp_path / name) for name in ("s.keras", "s.tflite", "d.keras", "d.tflite", "s.json")}
    build_deeplabv3_mobilenetv2(0.1, (33, 33, 3)).save(paths["s.keras"])
    build_ssdlite_mobilenetv2(0.1, (64, 64, 3), classes=3, min_depth=8).save(paths["d.keras"])
    command = ["export", paths["s.keras"], "-o", paths["s.tflite"], "--photos", str(photos), "--report", paths["s.json"]]
    result = CliRunner().invoke(command_line(), command)
    assert result.exit_code == 0, result.output
    for words in ("same labels as Keras", "0.png", "RESIZE_BILINEAR", "skipped"):
        assert words in result.output
    assert len(json.loads(Path(paths["s.json"]).read_text())["agreement"]) == 3
    about = read_metadata(paths["s.tflite"]).about["subgraph_metadata"][0]
    assert [table["name"] for table in about["custom_metadata"]] == ["SEGMENTER_METADATA"]
    result = CliRunner().invoke(command_line(), ["inspect", paths["s.tflite"], "--json"])
    (custom,) = json.loads(result.stdout)["metadata"]["subgraph_metadata"][0]["custom_metadata"]
    assert base64.b64decode(custom["data"]) == about["custom_metadata"][0]["data"]
    result = CliRunner().invoke(command_line(), [*command, "--precision", "dynamic", "--layers"])
    assert "--layers is for classifiers and detectors" in str(result.exception)
    result = CliRunner().invoke(command_line(), [*command, "--no-metadata"])
    assert "metadata goes with export_litert" in str(result.exception)
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n\n", "utf-8-sig")  # as Windows' editor writes it
    command = ["export", paths["d.keras"], "-o", paths["d.tflite"], "--labels", str(tmp_path / "names.txt")]
    result = CliRunner().invoke(command_line(), command)
    assert result.exit_code == 0, result.output
    assert "TFLite_Detection_PostProcess" in result.output
    assert read_metadata(paths["d.tflite"]).labels == ["cat", "dog", "bird"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "layers.png"], "--plot compares layers with float32 ones"),
        (["--layers", "--precision", "int8", "--batch", "4"], "--layers compares layers with float32 ones"),
        (["--plot", "layers.doc", "--precision", "dynamic"], "drawn as .png or .svg"),
        (["--resolution", "0"], "--resolution"),
    ],
)
def test_wrong_options_are_refused_before_the_conversion(weights, tmp_path, capsys, monkeypatch, options, message):
    code, _, err = mnv2(capsys, monkeypatch, "export", weights, "-o", tmp_path / "m.tflite", *options)
    assert code == 2
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []
