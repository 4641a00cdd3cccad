"""What a user installs: a wheel with its data, and manifests that tell the truth."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mnv2_keras import list_checkpoints, make_plan
from mnv2_keras.convert.names import classifier_shapes

ROOT = Path(__file__).parent.parent
MANIFESTS = sorted((ROOT / "weights" / "manifests").glob("*.json"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ("--quiet", "--no-deps", "--no-build-isolation", "-w", folder)
    command = [sys.executable, "-m", "pip", "wheel", *options, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_has_its_data(wheel):
    installed = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    package = ROOT / "mnv2_keras"
    listed = subprocess.run(["git", "ls-files", "mnv2_keras"], cwd=ROOT, capture_output=True, text=True, check=True)
    missing = {name for name in listed.stdout.split() if (ROOT / name).is_file()} - installed
    assert not missing
    assert (package / "py.typed").is_file()
    assert not {name for name in installed if name.startswith("tests/")}


@pytest.mark.slow
def test_demo_runs_from_the_wheel(wheel, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "programs" / "demo_of_an_installed_package.py", wheel],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel), "MNV2_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "verified against the genuine TF-Slim program" in done.stdout


def test_there_is_a_manifest_for_every_float_classifier():
    records = {record.name for record in list_checkpoints(task="classification") if not record.quantized}
    assert len(records) == 22
    assert {path.stem for path in MANIFESTS} == records


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest(path):
    manifest = json.loads(path.read_text())
    (record,) = [record for record in list_checkpoints() if record.name == path.stem]
    assert (manifest["alpha"], manifest["resolution"], manifest["classes"], manifest["sha256"]) == (
        record.alpha,
        record.resolution,
        record.classes,
        record.sha256,
    )
    shapes = {name: tuple(shape) for name, shape in manifest["variables"].items()}
    assert list(shapes.items()) == list(classifier_shapes(make_plan(record.alpha), record.classes).items())
    assert len(shapes) == 262


@pytest.mark.parametrize(("alpha", "tag"), [("0.35", "alpha0.35_96"), ("1.0", "alpha1.0_224"), ("1.4", "alpha1.4_224")])
def test_manifests_are_tf_slims(testdata, alpha, tag):
    genuine = json.loads((testdata / "golden" / "classification" / f"{tag}.json").read_text())["variables"]
    for path in MANIFESTS:
        if f"_{alpha}_" in path.stem:
            assert list(json.loads(path.read_text())["variables"].items()) == [(name, shape) for name, shape in genuine]
