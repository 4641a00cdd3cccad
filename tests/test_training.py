"""The training loop: what it learns, what it leaves on the disk, what survives a kill, a full disk and a lost worker."""

import csv
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from training_worker import examples, frozen_model, recipe

from mnv2_keras.data.classification import Examples
from mnv2_keras.training import classification as loop
from mnv2_keras.training.distribution import cluster, expand_nodes
from mnv2_keras.training.history import write_tensorboard
from mnv2_keras.training.recipes import RECIPES, recipe_named
from mnv2_keras.training.schedule import Schedule
from mnv2_keras.training.state import DivergedError, load_state, save_state

WORKER = Path(__file__).with_name("training_worker.py")


def start_worker(home, environment=(), **job):
    """A process that trains as the job says."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "job.json").write_text(json.dumps(job | {"weights": str(home / "weights.npz")}))
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(home / "job.json")],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""} | dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    steps = []
    run = loop.train(examples(40, 0), examples(16, 1), recipe(), folder, progress=steps.append)
    return run, folder, steps


def test_a_run_learns_and_leaves_its_files(whole):
    run, folder, steps = whole
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert [len([s for s in steps if s.epoch == epoch and s.row is None]) for epoch in (1, 2, 3)] == [5, 5, 5]
    assert all(each.images_per_second > 0 and math.isfinite(each.seconds_left) for each in steps)
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["val_loss"]) == run.history[-1]["val_loss"]
    with Image.open(folder / "curves.png") as picture:
        assert picture.size == (1440, 420)
    assert (folder / "labels.txt").read_text().split() == ["dark", "bright"]
    assert json.loads((folder / "recipe.json").read_text())["network"]["table"] == [[1, 8, 1, 1], [6, 8, 1, 2]]
    assert {path.name for path in folder.iterdir()} == {
        "state.npz",
        "history.csv",
        "curves.png",
        "tensorboard",
        "recipe.json",
        "labels.txt",
        "last.keras",
        "best.keras",
    }


def test_the_saved_model_is_the_returned_one_with_averaged_weights(whole):
    run, folder, _ = whole
    loaded = keras.models.load_model(folder / "last.keras", compile=False)
    for ours, theirs in zip(run.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    arrays, about = load_state(folder / "state.npz")
    raw = arrays["model/Conv/kernel"]
    assert not np.array_equal(raw, loaded.get_weights()[0])
    assert about["rows"] == run.history


def test_tensorboard_reads_the_scalars(whole):
    run, folder, _ = whole
    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found["loss", 2] == pytest.approx(run.history[1]["loss"], rel=1e-6)
    assert len(found) == 3 * 7


def killed_and_resumed(folder, expected, **job):
    worker = start_worker(folder / "job", folder=str(folder / "run"), **job)
    _, errors = worker.communicate(timeout=600)
    assert worker.returncode == -signal.SIGKILL, errors
    finished = load_state(folder / "run" / "state.npz")[1]["rows"]
    run = loop.train(examples(40, 0), examples(16, 1), recipe(), folder / "run", resume=True)
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    for ours, theirs in zip(run.model.get_weights(), expected.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return finished


def test_a_run_killed_within_an_epoch_goes_on_to_the_same_bits(tmp_path, whole):
    finished = killed_and_resumed(tmp_path, whole[0], kill_at=[2, 3])
    assert len(finished) == 1


@pytest.mark.slow
@pytest.mark.parametrize("call", [8, 9, 10])
def test_a_run_killed_while_it_saves_goes_on_to_the_same_bits(tmp_path, whole, call):
    """The calls of fsync in the second epoch: the models, the state, the history."""
    assert len(killed_and_resumed(tmp_path, whole[0], kill_in_save=call)) in (1, 2)


def test_a_finished_run_is_not_trained_again(whole):
    run, folder, _ = whole
    steps = []
    again = loop.train(examples(40, 0), examples(16, 1), recipe(), folder, resume=True, progress=steps.append)
    assert steps == []
    for ours, theirs in zip(again.model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_a_kill_after_the_last_state_left_out_is_written_on_resume(whole, tmp_path):
    _, folder, _ = whole
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    last = sorted((again / "tensorboard").iterdir())[-1]
    for path in (again / "curves.png", last):
        path.unlink()
    rows = (again / "history.csv").read_text()
    (again / "history.csv").write_text("".join(rows.splitlines(True)[:-1]))
    loop.train(examples(40, 0), examples(16, 1), recipe(), again, resume=True)
    assert (again / "history.csv").read_text() == rows
    assert (again / "curves.png").stat().st_size > 1000
    assert last.is_file()


def test_a_model_that_takes_pixels_is_refused(tmp_path):
    base = recipe()
    chosen = base.changed(network={**base.network, "include_preprocessing": True})
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        loop.train(examples(16, 0), examples(8, 1), chosen, tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_devices_end_where_one_does(tmp_path):
    """MirroredStrategy on two halves of the processor, in a process that has them; a batch they cannot share is told."""
    base = recipe(epochs=1, augmentation="none")
    network = dict(base.network) | {"dropout_rate": 0.0}
    code = """
import json, sys
import numpy as np
import tensorflow as tf
halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
from training_worker import examples, frozen_model, recipe
from mnv2_keras.training import classification as loop
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
chosen = recipe(epochs=1, augmentation="none", network=json.loads(sys.argv[1]))
try:
    loop.train(examples(40, 0), examples(16, 1), chosen.changed(batch=7), sys.argv[2], strategy=strategy)
except ValueError as error:
    assert "A batch of 7 cannot be shared by 2 devices" in str(error), error
with strategy.scope():
    model = frozen_model(chosen)
run = loop.train(examples(40, 0), examples(16, 1), chosen, sys.argv[2], model=model, strategy=strategy)
np.savez(sys.argv[3], *run.model.get_weights())
"""
    command = [sys.executable, "-c", code, json.dumps(network), str(tmp_path / "two"), str(tmp_path / "two.npz")]
    done = subprocess.run(
        command,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(WORKER.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = base.changed(network=network)
    run = loop.train(examples(40, 0), examples(16, 1), alone, tmp_path / "alone", model=frozen_model(alone))
    with np.load(tmp_path / "two.npz") as theirs:
        for ours, name in zip(run.model.get_weights(), theirs.files, strict=True):
            np.testing.assert_allclose(theirs[name], ours, rtol=0, atol=1e-5)


def test_another_run_is_not_overwritten_nor_resumed(whole):
    _, folder, _ = whole
    with pytest.raises(ValueError, match="holds a run already"):
        loop.train(examples(40, 0), examples(16, 1), recipe(), folder)
    with pytest.raises(ValueError, match="a run with other learning_rate"):
        loop.train(examples(40, 0), examples(16, 1), recipe(learning_rate=0.02), folder, resume=True)
    with pytest.raises(ValueError, match="a run with other training"):
        loop.train(examples(40, 5), examples(16, 1), recipe(), folder, resume=True)


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tmp_path):
    with pytest.raises(DivergedError, match=r"epoch 1, step \d, learning rate 1e\+30; .*Lower the learning rate"):
        loop.train(examples(40, 0), examples(16, 1), recipe(learning_rate=1e30, average=None), tmp_path)
    assert not (tmp_path / "state.npz").exists()


@pytest.mark.parametrize(("rate", "cause"), [(1e30, "the weights are still numbers"), (math.nan, "no number is Conv/")])
def test_an_epoch_whose_last_step_breaks_the_weights_is_not_kept(tmp_path, rate, cause):
    """The loss of a step is that of the weights before it: with one step an epoch, nothing but the weights tells."""
    chosen = recipe(average=None, epochs=1, learning_rate=1e-3)
    loop.train(examples(8, 0), examples(8, 1), chosen, tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "rate", lambda *_: rate)
        if math.isnan(rate):  # the weights are looked at too
            patch.setattr(loop, "judge", lambda *_: (0.5, 0.5))
        with pytest.raises(DivergedError, match=rf"epoch 2, step 1, .*{cause}.* 1 epoch is kept in "):
            loop.train(examples(8, 0), examples(8, 1), chosen.changed(epochs=2), tmp_path, resume=True)
        with pytest.raises(DivergedError, match=r"epoch 1, step 1, "):
            loop.train(examples(8, 0), examples(8, 1), chosen, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"recipe.json", "labels.txt"}
    for name, content in kept.items():
        assert name == "recipe.json" or (tmp_path / name).read_bytes() == content, name
    run = loop.train(examples(8, 0), examples(8, 1), chosen.changed(epochs=2), tmp_path, resume=True)
    assert math.isfinite(run.history[1]["val_loss"])


def test_a_full_disk_leaves_the_state_before(tmp_path):
    path = tmp_path / "state.npz"
    save_state(path, {"weights": np.arange(3)}, {"rows": [1]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writes beyond it fail, as on a full disk
    try:
        with pytest.raises(OSError, match=r"cannot be written \(File too large\): what was there before is kept"):
            save_state(path, {"weights": np.random.default_rng(0).random(10_000)}, {"rows": [2]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    arrays, about = load_state(path)
    assert about == {"rows": [1]}
    assert arrays["weights"].tolist() == [0, 1, 2]
    assert [each.name for each in tmp_path.iterdir()] == ["state.npz"]


def test_scalars_for_tensorboard_are_whole_or_not_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"mnv2 cannot be written \(No space left on device\)"):
        write_tensorboard(tmp_path, {"epoch": 1, "loss": 0.5})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(ValueError, match="no state of a training run"):
        load_state(tmp_path / "state.npz")


def test_class_weights_and_smoothing_are_in_the_loss():
    chosen = recipe(label_smoothing=0.2, average=None)
    model = frozen_model(chosen)
    step = loop.ClassificationStep(model, chosen)
    step.optimizer.learning_rate = 0.0
    images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)
    labels, weights = np.array([0, 1, 1, 0], np.int32), np.array([1, 3, 0, 1], np.float32)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    loss, right, total = step((images, labels, weights), 1).numpy()
    probabilities = model(images, training=False).numpy()
    target = np.eye(2)[labels] * 0.8 + 0.1
    expected = (-(target * np.log(probabilities)).sum(1) * weights).sum() / 4 + float(sum(model.losses))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert total == 5
    assert right == ((probabilities.argmax(1) == labels) * weights).sum()


@pytest.mark.parametrize("key", ["dark", 2, -1, 0.5])
def test_class_weights_of_what_is_no_label_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=rf"class_weights has the key {key!r}: expected labels, from 0 \(dark\) to 1"):
        loop.train(examples(16, 0), examples(8, 1), recipe(), tmp_path, class_weights={0: 1.0, key: 9})
    assert not list(tmp_path.iterdir())


def test_class_weights_of_numpy(tmp_path):
    weights = {np.int64(1): np.float32(2)}
    loop.train(examples(8, 0), examples(8, 1), recipe(epochs=1), tmp_path, class_weights=weights)
    assert load_state(tmp_path / "state.npz")[1]["identity"]["class_weights"] == {"1": 2.0}


def test_a_class_of_broken_photos_only_stops_the_first_epoch(tmp_path):
    data = examples(8, 0)
    paths = []
    for i, image in enumerate(data.images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image[..., 0]).save(paths[-1])
        if i % 2:
            paths[-1].write_bytes(b"no picture")
    broken = Examples(paths, data.labels, data.class_names)
    with pytest.raises(ValueError, match="None of the 4 images of class 'bright' can be read"):
        loop.train(broken, data, recipe(), tmp_path / "run")
    assert not (tmp_path / "run" / "state.npz").exists()


def test_balanced_weights():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    weights = loop.balanced_weights(Examples(images, np.array([0, 0, 0, 1], np.int32), ("a", "b")))
    assert weights == {0: pytest.approx(4 / 6), 1: 2.0}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(tmp_path, precision):
    chosen = recipe(mixed_precision=precision, epochs=1, optimizer="adam", schedule="cosine", warmup=0.5)
    run = loop.train(examples(16, 0), examples(8, 1), chosen, tmp_path)
    assert math.isfinite(run.history[0]["loss"])
    assert run.model.get_layer("Conv").compute_dtype == precision
    assert run.model.get_layer("Conv").kernel.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_a_network_with_a_background_has_it_first(tmp_path):
    base = recipe(epochs=1)
    chosen = base.changed(network={**base.network, "classes": 3})
    run = loop.train(examples(16, 0), examples(8, 1), chosen, tmp_path)
    assert run.model.output_shape == (None, 3)
    assert (tmp_path / "labels.txt").read_text().split() == ["background", "dark", "bright"]
    with pytest.raises(ValueError, match="has 4 classes, the data 2"):
        loop.build(base.changed(network={**base.network, "classes": 4}), 2)


def test_recipes():
    paper = recipe_named("paper")
    assert paper.rate(0, 100) == 0.045
    assert paper.rate(99, 100) == 0.045
    assert paper.rate(250, 100) == pytest.approx(0.045 * 0.98**2)
    assert (paper.average, paper.network["weight_decay"], paper.augmentation) == (0.9999, 4e-5, "inception")
    digits = recipe_named("digits")
    rates = [digits.rate(step, 10) for step in range(10 * digits.epochs)]
    assert rates[0] < rates[5] < max(rates) <= digits.learning_rate
    assert rates[-1] < 0.01 * digits.learning_rate
    assert recipe(schedule="constant").rate(10**6, 1) == 0.01
    for each in RECIPES.values():
        assert json.loads(json.dumps(each.as_dict()))["epochs"] == each.epochs
    with pytest.raises(ValueError, match="expected one of paper, finetune, linear_probe, digits"):
        recipe_named("papre")
    for options in (
        {"optimizer": "sgd"},
        {"schedule": "linear"},
        {"mixed_precision": "int8"},
        {"augmentation": "mixup"},
        {"epochs": 0},
        {"batch": 0},
        {"label_smoothing": 1.0},
        {"learning_rate": math.nan},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            recipe(**options)


def test_who_takes_part():
    assert cluster({}) is None
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    assert cluster({"TF_CONFIG": json.dumps(config)}) == config
    alone = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    assert cluster({"TF_CONFIG": json.dumps(alone)}) is None
    one = {"cluster": {"worker": "host:1"}, "task": {"type": "worker", "index": 0}}
    for wrong in ("{", "{}", json.dumps(config | {"task": {"type": "worker", "index": 2}}), json.dumps(one)):
        with pytest.raises(ValueError, match="TF_CONFIG cannot be used"):
            cluster({"TF_CONFIG": wrong})
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NODELIST": "gpu[09-10]"}
    assert cluster(slurm) == {
        "cluster": {"worker": ["gpu09:12345", "gpu09:12346", "gpu10:12345", "gpu10:12346"]},
        "task": {"type": "worker", "index": 3},
    }
    hosts = ["gpu1:12345", "gpu1:12346", "gpu2:12345", "gpu3:12345"]
    block = slurm | {"SLURM_JOB_NODELIST": "gpu[1-3]"}
    for given in ({}, {"SLURM_TASKS_PER_NODE": "2,1(x2)"}):
        assert cluster(block | given)["cluster"]["worker"] == hosts
    assert cluster(block | {"SLURM_TASKS_PER_NODE": "1(x2),2"})["cluster"]["worker"][-1] == "gpu3:12346"
    for wrong in ("2,1", "2,1(x3)", "2,one,1"):
        with pytest.raises(ValueError, match="SLURM_TASKS_PER_NODE is '2,.* 4 tasks .* on 3 nodes"):
            cluster(block | {"SLURM_TASKS_PER_NODE": wrong})
    assert expand_nodes("gpu[01-03,7],login") == ["gpu01", "gpu02", "gpu03", "gpu7", "login"]
    with pytest.raises(ValueError, match="SLURM_JOB_NODELIST"):
        expand_nodes("gpu[01-")


def two_workers(folder, *jobs):
    """Two processes on this machine that make one cluster; their exit codes and what they wrote to the error stream."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second)]
    configs = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}} for i in range(2)]
    workers = [
        start_worker(folder / f"worker{i}", {"TF_CONFIG": json.dumps(config)}.items(), **job)
        for i, (config, job) in enumerate(zip(configs, jobs, strict=True))
    ]
    try:
        with ThreadPoolExecutor(2) as pool:  # both pipes are emptied
            errors = [said for _, said in pool.map(lambda worker: worker.communicate(timeout=600), workers)]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return [(worker.returncode, said) for worker, said in zip(workers, errors, strict=True)]


def weights_of_both(folder, ended):
    """The weights of the first worker, when both came to the end with the same."""
    assert [code for code, _ in ended] == [0, 0], ended
    with np.load(folder / "worker0" / "weights.npz") as first, np.load(folder / "worker1" / "weights.npz") as second:
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])
        return [first[name] for name in first.files]


#: Twenty steps in all, no augmentation, no dropout.
SHARED = {"epochs": 4, "augmentation": "none"}


@pytest.mark.slow
def test_two_workers_end_where_one_does(tmp_path):
    base = recipe(**SHARED)
    network = dict(base.network) | {"dropout_rate": 0.0}
    job = {"recipe": SHARED | {"network": network}, "frozen": True, "folder": str(tmp_path / "run")}
    ended = two_workers(tmp_path, job, job)
    alone = base.changed(network=network)
    run = loop.train(examples(40, 0), examples(16, 1), alone, tmp_path / "alone", model=frozen_model(alone))
    for ours, theirs in zip(weights_of_both(tmp_path, ended), run.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def whole_by_two(tmp_path_factory):
    """The weights after a run of two workers that nothing interrupts: the same on both, moving statistics included."""
    folder = tmp_path_factory.mktemp("whole_by_two")
    job = {"folder": str(folder / "run")}
    return weights_of_both(folder, two_workers(folder, job, job))


@pytest.mark.slow
def test_workers_that_do_not_see_the_same_run_are_refused(tmp_path):
    loop.train(examples(40, 0), examples(16, 1), recipe(epochs=1), tmp_path / "own")
    jobs = [{"folder": str(tmp_path / name), "resume": True} for name in ("own", "other")]
    for code, said in two_workers(tmp_path, *jobs):
        assert code == 1
        assert "ValueError: The workers have 5, 0 finished steps: all of them have to see the same" in said


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_worker_stops_the_other_and_the_run_is_resumed_to_the_same_bits(tmp_path, whole_by_two, lost):
    jobs = [{"folder": str(tmp_path / "run")}, {"folder": str(tmp_path / "run")}]
    jobs[lost]["kill_at"] = [2, 2]
    ended = two_workers(tmp_path, *jobs)
    assert ended[lost][0] == -signal.SIGKILL
    code, said = ended[1 - lost]
    assert code == 1
    assert said.splitlines()[-1].startswith("WorkerLostError: Another worker does not answer any more (epoch 2, step ")
    assert "Start the same command with --resume on all of them. 1 epoch is kept in " in said
    assert len(load_state(tmp_path / "run" / "state.npz")[1]["rows"]) == 1
    again = [{"folder": str(tmp_path / "run"), "resume": True}] * 2
    resumed = weights_of_both(tmp_path / "again", two_workers(tmp_path / "again", *again))
    for ours, theirs in zip(resumed, whole_by_two, strict=True):
        np.testing.assert_array_equal(ours, theirs)
