"""The training loop under all three tasks: what a run leaves, and what survives a stop, a kill, other data and a lost worker."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from training_tasks import ROUND, STEPS, TASKS, examples, recipe, train_task

from mnv2_keras import train
from mnv2_keras.training.state import DivergedError, load_state

PROGRAMS = Path(__file__).parents[1] / "programs"


def program(name: str, *arguments, environment=()):
    """A process that runs a program of this folder, with the tests' shared modules."""
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROGRAMS.parent)}
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / name), *map(str, arguments)],
        env=os.environ | settings | dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


class Run:
    """A run that nothing interrupts."""

    def __init__(self, task, folder):
        self.task, self.folder, self.steps = task, folder, []
        self.model, self.rows = train_task(task, folder, progress=self.steps.append)
        self.weights = self.model.get_weights()


@pytest.fixture(scope="module", params=TASKS)
def run(request, tmp_path_factory):
    return Run(request.param, tmp_path_factory.mktemp(request.param))


def assert_equal_weights(weights, expected):
    for array, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_a_run_is_made_of_rounds(run):
    assert [row["step"] for row in run.rows] == [5, 10, 15]
    assert [at.done for at in run.steps if at.row is None] == list(range(1, STEPS + 1))
    assert [at.row for at in run.steps if at.row] == run.rows
    assert {(at.epochs, at.steps, at.total) for at in run.steps} == {(3, ROUND, STEPS)}
    assert all(at.images_per_second > 0 and np.isfinite(at.seconds_left) for at in run.steps)
    assert {"loss", "learning_rate", "images_per_second", "seconds"} <= run.rows[0].keys()
    losses = [at.loss for at in run.steps if at.row is None]
    assert run.rows[1]["loss"] == pytest.approx(np.mean(losses[5:10]), rel=1e-6)


def test_a_folder_holds_the_whole_run(run):
    names = {path.name for path in run.folder.iterdir()} - {"last.keras", "best.keras", "labels.txt"}
    assert names == {"state.npz", "history.csv", "curves.png", "tensorboard", "recipe.json"}
    arrays, about = load_state(run.folder / "state.npz")
    assert about["rows"] == run.rows
    assert {f"model/{v.path}" for v in run.model.trainable_variables} <= arrays.keys()
    assert (run.folder / "history.csv").read_text().count("\n") == 4
    assert json.loads((run.folder / "recipe.json").read_text())["batch"] > 0


def test_a_stopped_run_resumes_to_the_same_bits(run, tmp_path):
    """Order of the data, augmentation, dropout, statistics, optimiser and averages."""

    def stop(at):
        if at.done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_task(run.task, tmp_path, progress=stop)
    steps = []
    model, rows = train_task(run.task, tmp_path, resume=True, progress=steps.append)
    assert steps[0].done == ROUND + 1
    assert [row["loss"] for row in rows] == [row["loss"] for row in run.rows]
    assert_equal_weights(model.get_weights(), run.weights)


@pytest.mark.slow
@pytest.mark.parametrize("job", [{"kill_at": [2, 3]}, {"kill_in_save": 6}, {"kill_in_save": 9}, {"kill_in_save": 10}])
def test_a_killed_run_resumes_to_the_same_bits(run, tmp_path, job):
    """Within a round, and while models, state or history are written."""
    (tmp_path / "job.json").write_text(
        json.dumps(job | {"task": run.task, "folder": str(tmp_path / "run"), "weights": ""})
    )
    process = program("train_task.py", tmp_path / "job.json")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, errors
    assert len(load_state(tmp_path / "run" / "state.npz")[1]["rows"]) in (1, 2)
    model, rows = train_task(run.task, tmp_path / "run", resume=True)
    assert [row["step"] for row in rows] == [5, 10, 15]
    assert_equal_weights(model.get_weights(), run.weights)


def test_a_finished_run_is_not_trained_again(run):
    steps = []
    model, rows = train_task(run.task, run.folder, resume=True, progress=steps.append)
    assert (steps, rows) == ([], run.rows)
    assert_equal_weights(model.get_weights(), run.weights)


def test_another_run_is_neither_overwritten_nor_resumed(run):
    state = (run.folder / "state.npz").read_bytes()
    with pytest.raises(ValueError, match="holds a run already: resume it"):
        train_task(run.task, run.folder)
    with pytest.raises(ValueError, match="is of a run with other learning_rate: resume with the same recipe"):
        train_task(run.task, run.folder, resume=True, settings={"learning_rate": 0.02})
    assert (run.folder / "state.npz").read_bytes() == state


def test_a_diverged_run_says_where_and_what_to_do(run, tmp_path):
    settings = {"learning_rate": 1e30, "warmup": 0}
    with pytest.raises(DivergedError, match=r"NaN or infinite at .*step \d, learning rate \d.*Lower the learning rate"):
        train_task(run.task, tmp_path, settings=settings)
    assert not (tmp_path / "state.npz").exists()


@pytest.mark.parametrize(
    ("task", "precision"),
    [
        ("classification", "float16"),
        ("classification", "bfloat16"),
        ("detection", "bfloat16"),
        ("segmentation", "float16"),
    ],
)
def test_mixed_precision_and_averages(tmp_path, task, precision):
    settings = {"mixed_precision": precision, "average": 0.5}
    if task == "classification":
        settings |= {"epochs": 1, "optimizer": "adam", "schedule": "cosine", "warmup": 0.5}
    else:
        settings |= {"steps": 3}
    model, rows = train_task(task, tmp_path, settings=settings)
    assert np.isfinite(rows[0]["loss"])
    convolution = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    assert (convolution.compute_dtype, convolution.kernel.dtype) == (precision, "float32")
    assert keras.config.dtype_policy().name == "float32"
    arrays, _ = load_state(tmp_path / "state.npz")
    path = convolution.kernel.path
    np.testing.assert_array_equal(convolution.kernel, arrays[f"average/{path}"])
    assert not np.array_equal(arrays[f"average/{path}"], arrays[f"model/{path}"])


def test_an_interrupted_evaluation_is_repeated(tmp_path):
    results = iter([{"mean_iou": 0.5}, {"mean_iou": 0.6}])
    with pytest.raises(StopIteration):
        train_task("segmentation", tmp_path, evaluate=lambda: next(results))
    steps = []
    _, rows = train_task(
        "segmentation", tmp_path, resume=True, progress=steps.append, evaluate=lambda: {"mean_iou": 0.7}
    )
    assert steps == []
    assert [row["mean_iou"] for row in rows] == [0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    "tasks", [TASKS[:1], pytest.param(TASKS[1:], marks=pytest.mark.slow)], ids=["classification", "others"]
)
def test_two_devices_end_where_one_does(tmp_path, tasks):
    """MirroredStrategy on two halves of the processor, in a process that has them; a batch they cannot share is refused."""
    process = program("train_on_two_devices.py", tmp_path, *tasks)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def two_workers(folder, *jobs):
    """Two processes on this machine that make one cluster; their exit codes and what they wrote to the error stream."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{place.getsockname()[1]}" for place in (first, second)]
    workers = []
    for i, job in enumerate(jobs):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}}
        home = folder / f"worker{i}"
        home.mkdir(parents=True)
        (home / "job.json").write_text(json.dumps(job | {"weights": str(home / "weights.npz")}))
        workers.append(
            program("train_task.py", home / "job.json", environment={"TF_CONFIG": json.dumps(config)}.items())
        )
    try:
        with ThreadPoolExecutor(2) as pool:  # both pipes are emptied
            errors = [text for _, text in pool.map(lambda worker: worker.communicate(timeout=600), workers)]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return [(worker.returncode, text) for worker, text in zip(workers, errors, strict=True)]


def weights_of_both(folder, ended):
    """The weights of the first worker, when both came to the end with the same."""
    assert [code for code, _ in ended] == [0, 0], ended
    with np.load(folder / "worker0" / "weights.npz") as first, np.load(folder / "worker1" / "weights.npz") as second:
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])
        return [first[name] for name in first.files]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_workers_end_where_one_does(tmp_path, task):
    job = {"task": task, "freeze": True, "folder": str(tmp_path / "run")}
    weights = weights_of_both(tmp_path, two_workers(tmp_path, job, job))
    expected = train_task(task, tmp_path / "single", freeze=True).model.get_weights()
    for array, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """The weights after a run of two workers that nothing interrupts: the same on both, moving statistics included."""
    folder = tmp_path_factory.mktemp("run_of_two")
    job = {"task": "classification", "folder": str(folder / "run")}
    return weights_of_both(folder, two_workers(folder, job, job))


@pytest.mark.slow
def test_workers_that_do_not_see_the_same_run_are_refused(tmp_path):
    train(examples(40, 0), examples(16, 1), recipe(epochs=1), tmp_path / "own")
    jobs = [{"task": "classification", "folder": str(tmp_path / name), "resume": True} for name in ("own", "other")]
    for code, text in two_workers(tmp_path, *jobs):
        assert code == 1
        assert "ValueError: The workers have 5, 0 finished steps: all of them have to see the same" in text


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_worker_stops_the_other_and_the_run_is_resumed_to_the_same_bits(tmp_path, run_of_two, lost):
    jobs = [{"task": "classification", "folder": str(tmp_path / "run")} for _ in range(2)]
    jobs[lost]["kill_at"] = [2, 2]
    ended = two_workers(tmp_path, *jobs)
    assert ended[lost][0] == -signal.SIGKILL
    code, text = ended[1 - lost]
    assert code == 1
    assert text.splitlines()[-1].startswith("WorkerLostError: Another worker does not answer any more (epoch 2, step ")
    assert "Start the same command with --resume on all of them. 1 epoch is kept in " in text
    assert len(load_state(tmp_path / "run" / "state.npz")[1]["rows"]) == 1
    again = [{"task": "classification", "folder": str(tmp_path / "run"), "resume": True}] * 2
    resumed = weights_of_both(tmp_path / "again", two_workers(tmp_path / "again", *again))
    assert_equal_weights(resumed, run_of_two)
