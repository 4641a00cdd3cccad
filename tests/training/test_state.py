"""A run's state on disk: atomic, stored by name, refused in one sentence where it does not fit."""

import os
import resource
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest

from mnv2_keras.training.state import RunFolder, load_state, save_state, write_tensorboard


def test_a_full_disk_leaves_the_state_before(tmp_path):
    path = tmp_path / "state.npz"
    save_state(path, {"a/b": np.arange(3)}, {"rows": [1]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writes beyond it fail, as on a full disk
    try:
        with pytest.raises(OSError, match=r"cannot be written \(File too large\): what was there before is kept"):
            save_state(path, {"a/b": np.random.default_rng(0).random(10_000)}, {"rows": [2]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    arrays, about = load_state(path)
    assert about == {"rows": [1]}
    assert {name: array.tolist() for name, array in arrays.items()} == {"a/b": [0, 1, 2]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a training state"):
        load_state(tmp_path / "state.npz")


def test_variables_are_found_by_name_whatever_their_order(tmp_path):
    RunFolder(tmp_path, {"seed": 0}).save({"b": np.ones(2), "a": np.zeros(2)}, [{"step": 5}])
    variables = {"a": keras.Variable(np.full(2, 7.0)), "b": keras.Variable(np.full(2, 7.0))}
    rows, evaluated = RunFolder(tmp_path, {"seed": 0}, resume=True).restore(variables)
    assert (rows, evaluated) == ([{"step": 5}], True)
    assert [variable.numpy().tolist() for variable in variables.values()] == [[0, 0], [1, 1]]


def test_a_state_of_another_run_or_network_is_refused(tmp_path):
    RunFolder(tmp_path, {"seed": 0, "data": [1]}).save({"a": np.zeros(2)}, [])
    with pytest.raises(ValueError, match="is of a run with other data: resume with the same"):
        RunFolder(tmp_path, {"seed": 0, "data": [2]}, resume=True).restore({})
    same = {"seed": 0, "data": [1]}
    with pytest.raises(ValueError, match=r"another network \(b has the shape None, expected \(3,\)\)"):
        RunFolder(tmp_path, same, resume=True).restore({"b": np.zeros(3), "a": np.zeros(2)})
    with pytest.raises(ValueError, match="holds a run already"):
        RunFolder(tmp_path, same)


def test_a_state_of_the_release_before_is_refused_with_what_to_do(tmp_path):
    """mnv2_keras 0.1.0 wrote this file; it stored variables by position: `a0`, `a1`, ... next to the JSON document."""
    shutil.copy(Path(__file__).parents[1] / "golden" / "training_state_0.1.0.npz", tmp_path / "state.npz")
    with pytest.raises(ValueError, match="written by an earlier release, .* or start again in another folder"):
        RunFolder(tmp_path, {"seed": 0}, resume=True).restore({})


def test_scalars_for_tensorboard_are_written_atomically(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"mnv2 cannot be written \(No space left on device\)"):
        write_tensorboard(tmp_path, {"epoch": 1, "loss": 0.5})
    assert not list(tmp_path.iterdir())
