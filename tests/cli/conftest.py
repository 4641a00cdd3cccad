"""A checkpoint, photos and an exported file for the tests of commands."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_litert import convert_in_this_process
from typer.testing import CliRunner

from mnv2_keras.cli.main import command_line


@pytest.fixture(scope="session")
def weights(testdata) -> Path:
    """A checkpoint of alpha 0.1 for 32 pixels, without labels."""
    return testdata / "checkpoints" / "v1_format" / "mobilenet_v2_0.1_32.ckpt"


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder with three photos, and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture(scope="session")
def exported(weights, photos, tmp_path_factory):
    """(folder with `m.tflite`, an int8 file, and its report `r.json`; the result of the command that wrote them)."""
    folder = tmp_path_factory.mktemp("export")
    arguments = ["export", weights, "-o", folder / "m.tflite", "--precision", "int8", "--calibrate", photos]
    arguments += ["--output-type", "float32", "--report", folder / "r.json", "--layers"]
    with pytest.MonkeyPatch.context() as patch:
        convert_in_this_process(patch)
        result = CliRunner().invoke(command_line(), list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return folder, result
