"""Hostile .tflite files: an error in one sentence, soon, and never the end of the process."""

import random
import subprocess

import numpy as np
import pytest

from mnv2_keras import Classifier, inspect_litert, read_metadata
from mnv2_keras.bundled import bundled_file
from mnv2_keras.tflite import Metadata, add_metadata, trial
from mnv2_keras.tflite.metadata import MAX_BYTES


@pytest.fixture(scope="module")
def digits():
    return bundled_file("digits_int8.tflite").read_bytes()


@pytest.mark.parametrize("name", ["crash_021_8", "crash_121_4"])
def test_a_file_that_ends_the_process_is_refused(name, testdata):
    with pytest.raises(ValueError, match=rf"{name}\.tflite is damaged, or made to harm: the process that ran it was ended by"):
        Classifier(testdata / "reports" / f"{name}.tflite")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("laughs1000", "its parts refer to each other"),
        ("encrypted", "is encrypted"),
        ("metabuffer0", "is in buffer 0, which holds nothing"),
        ("method99", "compression method is not supported"),
    ],
)
@pytest.mark.parametrize("read", [Classifier, inspect_litert, read_metadata])
def test_metadata_that_cannot_be_read_is_named(read, name, message, testdata):
    with pytest.raises(ValueError, match=rf"{name}\.tflite: its .*{message}"):
        read(testdata / "reports" / f"{name}.tflite")


def test_labels_are_those_that_the_metadata_names(testdata):
    """`othertxt.tflite` holds another text file before that of the labels."""
    with Classifier(testdata / "reports" / "othertxt.tflite") as classifier:
        assert classifier.labels == tuple(read_metadata(testdata / "reports" / "othertxt.tflite").labels)


def test_associated_files_are_bounded(digits, tmp_path):
    large = Metadata({}, {f"{i}.txt": bytes(2**24) for i in range(5)})
    (tmp_path / "large.tflite").write_bytes(add_metadata(digits, large))
    with pytest.raises(ValueError, match=rf"holds 5 associated files of 80 MiB: expected at most .* of {MAX_BYTES // 2**20} MiB"):
        inspect_litert(tmp_path / "large.tflite")
    many = Metadata({}, {f"{i}.txt": b"" for i in range(1001)})
    (tmp_path / "many.tflite").write_bytes(add_metadata(digits, many))
    with pytest.raises(ValueError, match="holds 1001 associated files"):
        inspect_litert(tmp_path / "many.tflite")


def test_a_file_is_tried_once(digits, tmp_path, monkeypatch):
    runs = []
    run = trial.run_subprocess_job
    monkeypatch.setattr(trial, "run_subprocess_job", lambda *arguments: runs.append(1) or run(*arguments))
    (tmp_path / "digits.tflite").write_bytes(digits)
    for _ in range(2):
        with Classifier(tmp_path / "digits.tflite") as classifier:
            assert classifier.predict(np.zeros((28, 28, 1), np.uint8))
    assert len(runs) == 1


def test_a_run_that_does_not_end_is_stopped(digits, monkeypatch):
    stopped = subprocess.CompletedProcess([], -14, "", "")
    monkeypatch.setattr(trial, "run_subprocess_job", lambda *arguments: stopped)
    with pytest.raises(ValueError, match="was ended by signal 14, after 60 s"):
        trial.check_runs(digits, "endless.tflite")


def mutations(content: bytes, count: int):
    draw = random.Random(0)
    for _ in range(count):
        mutated = bytearray(content)
        for _ in range(draw.choice([1, 2, 4, 8, 32])):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        yield bytes(mutated[: draw.choice([len(mutated)] * 9 + [draw.randrange(len(mutated))])])


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_any_mutated_file_is_run_or_refused(count, digits, tmp_path):
    for i, content in enumerate(mutations(digits, count)):
        path = tmp_path / f"{i}.tflite"
        path.write_bytes(content)
        try:
            with Classifier(path) as classifier:
                classifier.predict(np.zeros((28, 28, 1), np.uint8))
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017 (both ways are right)


def test_any_mutated_metadata_is_read_or_refused(digits, tmp_path):
    about = {"name": "digits", "subgraph_metadata": [{"output_tensor_metadata": [{"name": "x", "stats": {"max": [1.0]}}]}]}
    content = add_metadata(digits, Metadata(about, {"labels.txt": b"a\nb"}))
    start = content.find(b"M001") - 4
    for mutated in mutations(content[start:], 200):
        try:
            read_metadata(content[:start] + mutated)
        except ValueError as error:
            assert str(error)  # noqa: PT017
