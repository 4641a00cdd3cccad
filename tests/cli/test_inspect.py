"""The command inspect."""

import json

from typer.testing import CliRunner

from mnv2_keras.cli.main import command_line


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
    official = CliRunner().invoke(command_line(), ["inspect", str(testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite")])
    assert "ImageClassifier" in official.output


def test_inspect_names_a_missing_file(tmp_path):
    result = CliRunner().invoke(command_line(), ["inspect", str(tmp_path / "none.tflite")])
    assert isinstance(result.exception, FileNotFoundError)
