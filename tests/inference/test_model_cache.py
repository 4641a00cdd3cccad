"""The cache of converted files: made once, found again, and allowed to be damaged, full or read-only."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.inference.model_cache import litert_content

PROGRAM = Path(__file__).parents[1] / "programs" / "predict_without_tensorflow.py"


def test_converted_once_then_without_tensorflow(tiny, tiny_conversion, testdata, monkeypatch):
    home, messages, _, first = tiny_conversion
    assert messages == [f"Converting {tiny} to LiteRT (float32); this is done once and kept in the cache."]
    assert len(list(home.glob("litert/*.tflite"))) == 1
    monkeypatch.setenv("MNV2_HOME", str(home))
    command = [sys.executable, PROGRAM, tiny, testdata / "images" / "cat.bmp"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    predictions, imported = json.loads(done.stdout)
    assert imported == []
    assert [tuple(prediction) for prediction in predictions[0]] == [tuple(prediction) for prediction in first[0]]


def test_a_corrupt_or_unwritable_cache_only_costs_time(tiny, tiny_file, own_cache, monkeypatch, caplog):
    conversions = []

    def conversion(*arguments):
        conversions.append(arguments)
        return tiny_file.read_bytes()

    monkeypatch.setattr("mnv2_keras.inference.model_cache._converted", conversion)
    Classifier(tiny).close()
    cached = next(own_cache.glob("litert/*.tflite"))
    Classifier(tiny).close()
    assert len(conversions) == 1
    damaged = bytearray(cached.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    cached.write_bytes(damaged)
    Classifier(tiny).close()
    assert len(conversions) == 2
    assert "damaged" in caplog.text
    cached.with_suffix(".json").write_text("[]")
    Classifier(tiny).close()
    assert len(conversions) == 3
    small = (resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    cached.unlink()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(*small)  # what a full disk is to a writer: it fails in the middle of the file
    try:
        Classifier(tiny).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(conversions) == 4
    assert "cannot keep" in caplog.text
    assert not cached.exists()
    assert not list(cached.parent.glob(".*"))
    caplog.clear()
    monkeypatch.setenv("MNV2_HOME", "/proc/nowhere")
    Classifier(tiny).close()
    assert len(conversions) == 5
    assert "cannot keep" in caplog.text


def test_other_settings_are_other_files(tiny, tiny_file, monkeypatch):
    conversions = []
    monkeypatch.setattr(
        "mnv2_keras.inference.model_cache._converted", lambda *a: conversions.append(a[1:3]) or tiny_file.read_bytes()
    )
    for settings in ({}, {"precision": "float16"}, {"resolution": 64}, {}):
        Classifier(tiny, **settings).close()
    assert conversions == [("float32", None), ("float16", None), ("float32", 64)]


def test_the_key_of_a_folder_covers_all_files_that_are_read(tmp_path, monkeypatch):
    """A checkpoint may lie one folder deeper: two such folders are two networks, two copies are one."""
    names = []
    monkeypatch.setattr("mnv2_keras.inference.model_cache._converted", lambda *a: names.append(a[0].name) or b"file")
    for name, content in (("one", b"1"), ("two", b"2"), ("copy", b"1")):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "model.ckpt").write_bytes(content)
        litert_content(tmp_path / name, "float32", None)
    assert names == ["one", "two"]


def test_what_cannot_be_converted_says_why(tmp_path):
    """The subprocess's sentence reaches the user; a model without classes is refused before a conversion."""
    import keras

    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"bad\.tgz"):
        Classifier(tmp_path / "bad.tgz")
    image = keras.Input((8, 8, 3))
    for engine in ("litert", "keras"):
        with pytest.raises(ValueError, match="expected a classifier"):
            Classifier(keras.Model(image, keras.layers.ReLU()(image)), engine)
    with pytest.raises(ValueError, match="precision is 'int8'"):
        Classifier(keras.Model(image, keras.layers.ReLU()(image)), precision="int8")


def test_a_keras_model_is_converted_as_it_is_and_keeps_its_weights(tiny, tiny_file, testdata):
    """A conversion clears channels that are as good as zero, in the subprocess: not the user's."""
    from mnv2_keras.conversion import convert_checkpoint

    photo = testdata / "images" / "cat.bmp"
    model = convert_checkpoint(tiny)
    before = model.get_weights()
    with Classifier(model) as classifier, Classifier(tiny_file) as other:
        assert classifier.predict(photo) == other.predict(photo)
    for after, earlier in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(after, earlier)
    with pytest.raises(ValueError, match="its own resolution"):
        Classifier(model, resolution=64)
