"""The converter in its subprocess: it computes the same, and failures leave nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from small_litert import run

from mnv2_keras.export.conversion import check_operators, clear_dead_channels, convert_precisions
from mnv2_keras.export.litert import export_litert
from mnv2_keras.tflite import TfliteFile


def test_the_subprocess_job_computes_what_this_process_does(small_model, float_file, noise):
    (file,) = convert_precisions(small_model, ["float32"])
    assert file.name(int(file.graph.outputs[0])) == "Predictions"
    assert file.to_bytes() == float_file.to_bytes()
    for image in noise[:6]:
        np.testing.assert_array_equal(run(file, image[None]), run(float_file, image[None]))


def test_a_dead_channel_is_cleared(small_model):

    copy = keras.models.clone_model(small_model)
    copy.set_weights(small_model.get_weights())
    layer = copy.get_layer("Conv")
    kernel = np.array(layer.kernel)
    kernel[..., 3] = 1e-21
    layer.kernel.assign(kernel)
    clear_dead_channels(copy)
    cleared = np.asarray(layer.kernel)
    assert np.all(cleared[..., 3] == 0)
    np.testing.assert_array_equal(cleared[..., :3], kernel[..., :3])


def test_a_failed_conversion_leaves_no_file(tmp_path):

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.ops.fft2((image, image))[0], name="transformed")
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="no file was written"):
        export_litert(model, path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_conversion_leaves_no_file(small_model, tmp_path, monkeypatch):
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr("mnv2_keras.subprocess_job.sys.executable", str(killer))
    with pytest.raises(ValueError, match="ended by signal 9; no file was written"):
        export_litert(small_model, tmp_path / "model.tflite")
    assert [file.name for file in tmp_path.iterdir()] == ["python"]


def test_a_killed_export_leaves_neither_file_nor_process(tmp_path):
    """The parent gets SIGKILL while its subprocess converts: that ends too, and removes its folder."""
    program = Path(__file__).parents[1] / "programs" / "export_a_network.py"
    command = [sys.executable, program, tmp_path / "out" / "model.tflite"]
    folder = tmp_path / "temporary"
    folder.mkdir()
    parent = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)})

    def children():
        return [line for line in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split() if line]

    deadline = time.monotonic() + 120
    while not (list(folder.glob("mnv2-export-*/job.json")) and children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    (job,) = children()

    def alive():
        try:
            return Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    time.sleep(3)  # it has begun to import TensorFlow
    parent.kill()
    parent.wait()
    while list(folder.glob("mnv2-export-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(folder.glob("mnv2-export-*"))
    assert not (tmp_path / "out").exists()
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive()


def test_unsupported_operators_are_named(float_file, monkeypatch):
    monkeypatch.setattr(TfliteFile, "kinds", ["CONV_2D", "FlexErf"])
    with pytest.raises(ValueError, match="FlexErf"):
        check_operators(float_file, "mine")
