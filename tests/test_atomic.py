"""Files are written completely or not at all."""

import os

import pytest

from mnv2_keras.atomic import write_bytes


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mnv2_keras.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "model.tflite", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_rights_of_any_new_file(tmp_path):
    mask = os.umask(0o077)
    try:
        write_bytes(tmp_path / "mine", b"content")
        os.umask(0o002)
        write_bytes(tmp_path / "ours", b"content")
    finally:
        os.umask(mask)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("mine", "ours")] == [0o600, 0o664]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "ours"]
