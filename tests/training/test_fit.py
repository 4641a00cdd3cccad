"""The training loop under all three tasks: what a run leaves, and what survives a stop, a kill, other data and a lost worker."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from training_tasks import ROUND, STEPS, TASKS, train_task

from mnv2_keras.training.state import DivergedError, load_state

PROGRAMS = Path(__file__).parents[1] / "programs"
#: Where a run is killed, and how many of its rounds are kept.
KILLS = {
    "within a round": ({"kill_at": [2, 2]}, 1),
    "while the state is written": ({"kill_while_writing": ["state.npz", 2]}, 1),
    "while the history is written": ({"kill_while_writing": ["history.csv", 2]}, 2),
    "while a model is written": ({"kill_while_writing": ["last.keras", 2]}, 1),
}
#: Detectors and segmenters are saved by the command, at the end.
MODEL = "while a model is written"
KILLED = [(task, kill) for task in TASKS for kill in KILLS if kill != MODEL or task == "classification"]


def run_program(name: str, *arguments) -> None:
    """Run a program of `programs/`, with the tests' shared modules."""
    settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROGRAMS.parent)}
    command = [sys.executable, str(PROGRAMS / name), *map(str, arguments)]
    result = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr


class Job(NamedTuple):
    """A training in a process of its own, when it has ended."""

    code: int  # of its exit
    errors: str  # what it wrote to the error stream
    home: Path  # its weights.npz and steps.json

    def weights(self) -> list[np.ndarray]:
        """Of a job that came to its end."""
        assert self.code == 0, self.errors
        with np.load(self.home / "weights.npz") as file:
            return [file[name] for name in file.files]


def run_jobs(folder: Path, chains: list, parallel: int) -> list:
    """Run chains of stages of jobs (see `programs/train_task.py`); each job as a `Job`."""
    for c, chain in enumerate(chains):
        for s, stage in enumerate(chain):
            for j, job in enumerate(stage):
                home = folder / f"{c}.{s}.{j}"
                home.mkdir()
                job |= {"home": str(home), "folder": str(folder / job.get("folder", f"run{c}"))}
    (folder / "chains.json").write_text(json.dumps(chains))
    run_program("train_task.py", folder / "chains.json", parallel)
    codes = json.loads((folder / "chains.codes.json").read_text())

    def ended(job, code) -> Job:
        return Job(code, (Path(job["home"]) / "errors.txt").read_text(), Path(job["home"]))

    return [
        [[ended(*pair) for pair in zip(*stages, strict=True)] for stages in zip(chain, numbers, strict=True)]
        for chain, numbers in zip(chains, codes, strict=True)
    ]


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
    assert [row["step"] for row in run.rows] == [ROUND, 2 * ROUND, STEPS]
    assert [at.done for at in run.steps if at.row is None] == list(range(1, STEPS + 1))
    assert [at.row for at in run.steps if at.row] == run.rows
    assert {(at.epochs, at.steps, at.total) for at in run.steps} == {(3, ROUND, STEPS)}
    assert all(at.images_per_second > 0 and np.isfinite(at.seconds_left) for at in run.steps)
    assert {"loss", "learning_rate", "images_per_second", "seconds"} <= run.rows[0].keys()
    losses = [at.loss for at in run.steps if at.row is None]
    assert run.rows[1]["loss"] == pytest.approx(np.mean(losses[ROUND : 2 * ROUND]), rel=1e-6)


def test_a_folder_holds_all_files_of_a_run(run):
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
        if at.done == ROUND + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_task(run.task, tmp_path, progress=stop)
    steps = []
    model, rows = train_task(run.task, tmp_path, resume=True, progress=steps.append)
    assert steps[0].done == ROUND + 1
    assert [row["loss"] for row in rows] == [row["loss"] for row in run.rows]
    assert_equal_weights(model.get_weights(), run.weights)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """By task and kill: the killed job, and the one that resumes it."""
    chains = [[[{"task": task} | KILLS[kill][0]], [{"task": task, "resume": True}]] for task, kill in KILLED]
    results = run_jobs(tmp_path_factory.mktemp("killed"), chains, parallel=2)
    return {case: (killed, resumed) for case, ((killed,), (resumed,)) in zip(KILLED, results, strict=True)}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(run, killed):
    for kill, (_, rounds) in KILLS.items():
        if (run.task, kill) not in KILLED:
            continue
        dead, resumed = killed[run.task, kill]
        assert dead.code == -signal.SIGKILL, (kill, dead.errors)
        assert_equal_weights(resumed.weights(), run.weights)
        assert json.loads((resumed.home / "steps.json").read_text())[0] == rounds * ROUND + 1, kill


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


@pytest.mark.parametrize("task", [pytest.param(task, marks=[pytest.mark.slow] * (task != TASKS[0])) for task in TASKS])
def test_a_diverged_run_says_where_and_what_to_do(task, tmp_path):
    settings = {"learning_rate": 1e30, "warmup": 0}
    with pytest.raises(DivergedError, match=r"NaN or infinite at .*step \d, learning rate \d.*Lower the learning rate"):
        train_task(task, tmp_path, settings=settings)
    assert not (tmp_path / "state.npz").exists()


@pytest.mark.parametrize(
    ("task", "precision"),
    [
        ("classification", "float16"),
        ("classification", "bfloat16"),
        # Not bfloat16: with oneDNN on CPUs, TensorFlow's gradients of 3 x 3 kernels on maps of 2 x 2 pixels are not defined.
        pytest.param("detection", "float16", marks=pytest.mark.slow),
        ("segmentation", "bfloat16"),
    ],
)
def test_mixed_precision_and_averages(tmp_path, task, precision):
    settings = {"mixed_precision": precision, "average": 0.5}
    if task == "classification":
        settings |= {"epochs": 1, "optimizer": "adam", "schedule": "cosine", "warmup": 0.5}
    else:
        settings |= {"steps": 4}  # with float16 the first ones only find the scale of the loss
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
    steps, repeated = [], {"evaluate": lambda: {"mean_iou": 0.7}}
    _, rows = train_task("segmentation", tmp_path, resume=True, progress=steps.append, **repeated)
    assert steps == []
    assert [row["mean_iou"] for row in rows] == [0.5, 0.6, 0.7]


@pytest.mark.parametrize("tasks", [TASKS[:1], pytest.param(TASKS[1:], marks=pytest.mark.slow)], ids=["classification", "others"])
def test_two_devices_end_where_one_does(tmp_path, tasks):
    """MirroredStrategy on two halves of the processor, in a process that has them; a batch they cannot share is refused."""
    run_program("train_on_two_devices.py", tmp_path, *tasks)
    assert {path.name for path in tmp_path.iterdir()} >= {f"{task}-{devices}" for task in tasks for devices in ("", "two")}


def pair(first: dict, second: dict) -> list[dict]:
    """Two jobs on this machine that make one cluster."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{place.getsockname()[1]}" for place in (one, two)]
    configs = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}} for i in range(2)]
    environments = [{"environment": {"TF_CONFIG": json.dumps(config)}} for config in configs]
    return [first | environments[0], second | environments[1]]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Runs of two workers, by name."""
    classifier, resumed = {"task": "classification"}, {"task": "classification", "resume": True}
    lost = classifier | {"kill_at": [2, 2]}
    chains = {task: [pair(*[{"task": task, "freeze": True}] * 2)] for task in TASKS}
    chains |= {
        "uninterrupted": [pair(classifier, classifier)],
        "first lost": [pair(lost, classifier), pair(resumed, resumed)],
        "second lost": [pair(classifier, lost), pair(resumed, resumed)],
        "not the same run": [
            [classifier | {"folder": "own", "settings": {"epochs": 1}}],
            pair(resumed | {"folder": "own"}, resumed | {"folder": "other"}),
        ],
    }
    results = run_jobs(tmp_path_factory.mktemp("workers"), list(chains.values()), parallel=1)
    return dict(zip(chains, results, strict=True))


def weights_of_both(jobs):
    """The weights of the first worker; the second one has the same, moving statistics included."""
    first, second = (job.weights() for job in jobs)
    assert_equal_weights(first, second)
    return first


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_workers_end_where_one_does(tmp_path, workers, task):
    weights = weights_of_both(workers[task][0])
    expected = train_task(task, tmp_path / "single", freeze=True).model.get_weights()
    for array, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_workers_that_do_not_see_the_same_run_are_refused(workers):
    for job in workers["not the same run"][1]:
        assert job.code == 1
        start = f"ValueError: The workers have {ROUND}, 0 finished steps: all of them have to see the same"
        assert start in job.errors


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_worker_stops_the_other_and_the_run_is_resumed_to_the_same_bits(workers, lost):
    stopped, resumed = workers[("first lost", "second lost")[lost]]
    assert stopped[lost].code == -signal.SIGKILL
    assert stopped[1 - lost].code == 1
    text = stopped[1 - lost].errors
    assert text.splitlines()[-1].startswith("WorkerLostError: Another worker does not answer any more (epoch 2, step ")
    assert "Start the same command with --resume on all of them. 1 epoch is kept in " in text
    assert json.loads((resumed[0].home / "steps.json").read_text())[0] == ROUND + 1
    assert_equal_weights(weights_of_both(resumed), weights_of_both(workers["uninterrupted"][0]))
