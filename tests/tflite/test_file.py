"""One parsed .tflite file: what it writes, and what is refused."""

import numpy as np
import pytest
from small_litert import run

from mnv2_keras.bundled import bundled_file
from mnv2_keras.export.report import inspect_litert
from mnv2_keras.tflite import TfliteFile


@pytest.fixture
def file() -> TfliteFile:
    return TfliteFile(bundled_file("digits_int8.tflite"))


def test_kernels_are_aligned(file):
    written = file.to_bytes()
    large = [bytes(buffer.data) for buffer in file.model.buffers if buffer.data is not None and len(buffer.data) > 500]
    assert len(large) > 5
    assert all(written.index(data) % 16 == 0 for data in large)


def test_an_edited_file_is_the_same_network(file):
    again = TfliteFile(TfliteFile(file.to_bytes()).to_bytes())
    image = np.random.default_rng(0).uniform(-1, 1, (1, 28, 28, 1))
    np.testing.assert_array_equal(run(file, image), run(again, image))


def test_a_copy_is_edited_alone(file):
    content, copy = file.to_bytes(), file.copy()
    kernel = next(int(o.inputs[1]) for o, kind in zip(copy.graph.operators, copy.kinds, strict=True) if kind == "CONV_2D")
    copy.store(kernel, np.zeros_like(copy.stored(kernel)))
    copy.add_tensor("more", (1,), np.float32)
    assert not copy.stored(kernel).any()
    assert file.to_bytes() == content


def test_files_that_are_not_tflite_are_refused(tmp_path, testdata):
    with pytest.raises(FileNotFoundError, match=r"no \.tflite file"):
        inspect_litert(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("hello, I am a text")
    with pytest.raises(ValueError, match=r"not a \.tflite"):
        inspect_litert(tmp_path / "text.tflite")
    content = (testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    (tmp_path / "half.tflite").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        inspect_litert(tmp_path / "half.tflite")
