"""A run's history as files."""

import os

import pytest

from mnv2_keras.training.history import write_tensorboard


def test_scalars_for_tensorboard_are_written_atomically(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"mnv2 cannot be written \(No space left on device\)"):
        write_tensorboard(tmp_path, {"epoch": 1, "loss": 0.5})
    assert not list(tmp_path.iterdir())
