"""The custom layers: files that hold them load in a fresh process, and under the names of earlier releases."""

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from mnv2_keras import build_deeplabv3_mobilenetv2, build_mobilenetv2, quantization_aware
from mnv2_keras.convert.sources.keras_file import load_keras_file
from mnv2_keras.layers import ArgMax

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def segmenter():
    return build_deeplabv3_mobilenetv2(0.1, (32, 32, 3), classes=3)


def test_a_saved_segmenter_gives_its_backbone_in_a_fresh_process(segmenter, tmp_path):
    segmenter.save(tmp_path / "segmenter.keras")
    program = PROGRAMS / "base_of_a_segmenter.py"
    done = subprocess.run([sys.executable, program, tmp_path / "segmenter.keras"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def to_snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def rename_in_file(path, renamed: dict[str, str]) -> None:
    """Write other class names into a `.keras` file, as an earlier release would have written them."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    config = members["config.json"].decode()
    for new, old in renamed.items():
        assert f'"mnv2_keras>{new}"' in config
        config = config.replace(f'"{new}"', f'"{old}"').replace(f'"mnv2_keras>{new}"', f'"mnv2_keras>{old}"')
    assert json.loads(config)
    with h5py.File(weights := io.BytesIO(members["model.weights.h5"]), "r+") as file:
        for group in list(file["layers"]):  # weights lie in groups named after the classes
            for new, old in renamed.items():
                if group.startswith(to_snake_case(new)):
                    file["layers"].move(group, group.replace(to_snake_case(new), to_snake_case(old)))
    members["model.weights.h5"] = weights.getvalue()
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (members | {"config.json": config}).items():
            file.writestr(name, data)


def test_files_of_the_release_before_hold_the_old_name_of_argmax(segmenter, tmp_path):
    model = keras.Model(segmenter.input, ArgMax(name="labels")(segmenter.output))
    model.save(tmp_path / "labels.keras")
    rename_in_file(tmp_path / "labels.keras", {"ArgMax": "LargestClass"})
    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(load_keras_file(tmp_path / "labels.keras")(image), model(image))


def test_files_of_the_release_before_hold_the_old_names_of_fake_quantised_layers(tmp_path):
    table = ((1, 16, 1, 1), (6, 24, 2, 2))
    model = quantization_aware(build_mobilenetv2(0.1, (32, 32, 3), classes=4, table=table))
    model.save(tmp_path / "aware.keras")
    kinds = ("Image", "Add", "Mean", "Convolution")
    rename_in_file(tmp_path / "aware.keras", {f"FakeQuant{kind}": f"Simulated{kind}" for kind in kinds})
    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(load_keras_file(tmp_path / "aware.keras")(image), model(image))
