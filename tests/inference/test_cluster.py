"""Many photos on many workers: the rows of the single process, whatever is killed.

What needs no Ray is tested everywhere, with the actor at work in this process; the rest is marked `ray` (`make test-ray`).
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from command_line import mnv2
from pyarrow import parquet

from mnv2_keras.bundled import bundled_file
from mnv2_keras.images import ImageError, read_image
from mnv2_keras.inference import cluster
from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.inference.results import COLUMNS, rows_of

PROGRAM = Path(__file__).parents[1] / "programs" / "predict_on_cluster_and_die.py"


@pytest.fixture(scope="module")
def photos(testdata, tmp_path_factory):
    """Forty photos in two folders, one that is none, one that is empty."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("cluster") / "photos of a cluster"
    pixels = read_image(testdata / "images" / "cat.bmp")
    for i in range(40):
        path = folder / ("one", "two")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(pixels, 37 * i, 1)[i : i + 300, : 150 + 9 * i]).save(path, quality=90)
    (folder / "one" / "broken.jpg").write_bytes(b"no photo")
    (folder / "two" / "empty.png").write_bytes(b"")
    (folder / "two" / "notes.txt").write_text("no photo either")
    (folder / ".hidden.jpg").write_bytes(b"passed over")
    return folder


@pytest.fixture(scope="module")
def expected(photos):
    """The single process's rows."""
    with Classifier("digits") as classifier:
        return list(rows_of(classifier.stream(cluster.find_images(photos), 3)))


def rows(path):
    table = parquet.read_table(path)
    assert table.column_names == list(COLUMNS)
    return [tuple(row.values()) for row in table.to_pylist()]


class ClusterError(Exception):
    """In place of Ray's."""


@pytest.fixture
def here(monkeypatch):
    """No Ray: the actor works in this process, part by part. Returns the numbers of the parts that it computed."""
    numbers = []

    def computed(ray, missing, workers, work):
        actor = cluster._Worker(**work)
        for number, part in missing.items():
            numbers.append(number)
            table = pyarrow.table({"part": [number], "photos": [[photo._asdict() for photo in part]]})
            (row,) = actor(table).to_pylist()
            yield row["part"], row["content"]

    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=ClusterError), is_initialized=lambda: True)
    monkeypatch.setattr(cluster, "_ray", lambda: ray)
    monkeypatch.setattr(cluster, "_computed", computed)
    return numbers


def test_arguments_are_checked_first(here, photos, tmp_path):
    output = tmp_path / "out.parquet"
    for options in ({"top": 0}, {"workers": 0}, {"part": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is .*: expected a whole number of at least 1"):
            cluster.predict_on_cluster(photos, output, "digits", **options)
    with pytest.raises(ValueError, match="2 labels were given for 10 classes"):
        cluster.predict_on_cluster(photos, output, "digits", labels=["a", "b"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cluster.predict_on_cluster(tmp_path / "nowhere", output, "digits")
    with pytest.raises(ValueError, match="There are no photos"):
        cluster.predict_on_cluster([], output, "digits")
    assert not here


def test_the_rows_are_those_of_the_single_process(here, photos, expected, tmp_path):
    seen = []
    run = cluster.predict_on_cluster(photos, tmp_path / "out.parquet", "digits", top=3, progress=lambda *at: seen.append(at))
    assert rows(tmp_path / "out.parquet") == expected
    assert (run.images, run.parts, run.resumed) == (42, 3, 0)
    assert seen == [(16, 42), (32, 42), (42, 42)]
    assert {Path(path).name: reason.split(": ")[0][-40:] for path, reason in run.broken.items()}.keys() == {
        "broken.jpg",
        "empty.png",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_workers_know_the_labels_beside_the_weights(here, photos, tmp_path, monkeypatch):
    """They get the converted file alone; a second run goes on from the first one's parts."""
    from mnv2_keras.export.metadata import model_metadata
    from mnv2_keras.tflite import add_metadata

    bare = add_metadata(bundled_file("digits_int8.tflite").read_bytes(), model_metadata("n", "d", [], []))
    monkeypatch.setattr("mnv2_keras.inference.model_cache._converted", lambda *_: bare)
    (tmp_path / "model.keras").write_bytes(b"weights")
    (tmp_path / "labels.txt").write_text("".join(f"number {i}\n" for i in range(10)))
    monkeypatch.setattr(cluster, "shutil", SimpleNamespace(rmtree=lambda _: None))
    for resumed in (0, 3):
        run = cluster.predict_on_cluster(photos, tmp_path / "out.parquet", tmp_path / "model.keras", top=1)
        assert run.resumed == resumed
    assert {label for _, _, _, label, _, error in rows(tmp_path / "out.parquet") if not error} <= {f"number {i}" for i in range(10)}


def test_finished_parts_are_not_computed_again(here, photos, expected, tmp_path):
    output, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"

    def stop(done, total):
        if done == 20:
            raise KeyboardInterrupt

    options = {"top": 3, "part": 10}
    with pytest.raises(KeyboardInterrupt):
        cluster.predict_on_cluster(photos, output, "digits", **options, progress=stop)
    assert {path.name for path in parts.iterdir()} == {"about.json", "000000.parquet", "000001.parquet"}
    assert not output.exists()
    (parts / "000001.parquet").write_bytes(b"PAR1 cut")  # a damaged part is no part
    (parts / "about.json").with_suffix(".copy").write_bytes((parts / "about.json").read_bytes())
    here.clear()
    for other in ({"top": 2}, {"part": 11}, {"labels": list("abcdefghij")}):
        with pytest.raises(ValueError, match=f"holds parts of a run with other {next(iter(other))}: choose"):
            cluster.predict_on_cluster(photos, output, "digits", **(options | other))
    with pytest.raises(ValueError, match="with other photos"):
        cluster.predict_on_cluster(photos / "one", output, "digits", **options)
    (parts / "about.json").write_text("no JSON")
    with pytest.raises(ValueError, match="with other photos, weights"):
        cluster.predict_on_cluster(photos, output, "digits", **options)
    assert not here
    (parts / "about.copy").replace(parts / "about.json")
    run = cluster.predict_on_cluster(photos, output, "digits", **options)
    assert here == [1, 2, 3, 4]
    assert (run.parts, run.resumed) == (5, 1)
    assert rows(output) == expected


def test_uris_are_what_pyarrow_opens(here, photos, expected, tmp_path, monkeypatch):
    cluster.predict_on_cluster(photos.as_uri(), tmp_path / "out.parquet", "digits", top=3)
    table = rows(tmp_path / "out.parquet")
    assert [row[1:5] for row in table] == [row[1:5] for row in expected]
    assert [row[0] for row in table] == [Path(row[0]).as_uri() for row in expected]
    assert [row[5] is None for row in table] == [row[5] is None for row in expected]
    one = (photos / "one" / "02.jpg").as_uri()
    assert cluster._find([one])[0].name == one
    with pytest.raises(FileNotFoundError, match="check the address"):
        cluster._find((tmp_path / "nowhere").as_uri())
    with pytest.raises(ValueError, match="none://a/b cannot be opened"):
        cluster._find("none://a/b")
    with pytest.raises(ImageError, match="holds no images"):
        cluster._find(tmp_path.as_uri())
    # A photo that cannot be read any more when its turn comes is named, and the others go on.
    copies = tmp_path / "copies"
    shutil.copytree(photos / "one", copies)
    listed = cluster._find(copies.as_uri())
    (copies / "04.jpg").unlink()
    monkeypatch.setattr(cluster, "_find", lambda _: listed)
    run = cluster.predict_on_cluster(copies.as_uri(), tmp_path / "again.parquet", "digits")
    assert {Path(name).name for name in run.broken} == {"04.jpg", "broken.jpg"}
    assert any("04.jpg" in reason for reason in run.broken.values())


def test_a_failure_of_the_cluster_is_one_sentence(here, photos, tmp_path, monkeypatch):
    def failing(*_):
        raise ClusterError("many lines\nno machine is left")
        yield

    monkeypatch.setattr(cluster, "_computed", failing)
    with pytest.raises(OSError, match=r"Ray stopped \(no machine is left\): finished parts are kept in .*out.parquet.parts"):
        cluster.predict_on_cluster(photos, tmp_path / "out.parquet", "digits")


def test_no_room_for_the_result_leaves_the_parts(here, photos, tmp_path):
    output = tmp_path / "out.parquet"
    output.mkdir()  # nothing can be renamed to a folder
    with pytest.raises(OSError, match=r"out.parquet cannot be written .*: its parts are kept in"):
        cluster.predict_on_cluster(photos, output, "digits", top=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.parquet.parts"]


def test_the_command(here, photos, expected, tmp_path, monkeypatch, capsys):
    options = ["--weights", "digits", "--engine-cluster", "ray", "--workers", "2", "--top", "3"]
    code, out, err = mnv2(capsys, monkeypatch, "predict", photos, *options, "-o", tmp_path / "out.parquet")
    assert code == 1  # two are broken
    assert "42 photos." in " ".join(err.split())
    assert err.count("skipped: ") == 2
    assert rows(tmp_path / "out.parquet") == expected
    code, *_ = mnv2(capsys, monkeypatch, "predict", photos, "--weights", "digits", "--top", "3", "-o", tmp_path / "b.parquet")
    assert code == 1
    assert rows(tmp_path / "b.parquet") == expected


@pytest.fixture(scope="module")
def heavy(testdata, tmp_path_factory):
    """A hundred and twenty photos that take a while to decode."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("heavy")
    picture = Image.fromarray(read_image(testdata / "images" / "cat.bmp")).resize((2400, 1800))
    picture.save(folder / "000.jpg", quality=95)
    for i in range(1, 120):
        os.link(folder / "000.jpg", folder / f"{i:03d}.jpg")
    with Classifier("digits") as classifier:
        return folder, list(rows_of(classifier.stream(cluster.find_images(folder), 3)))


def actors():
    """The processes of this one's actors."""
    import psutil

    return [child for child in psutil.Process().children(recursive=True) if "_Worker" in " ".join(child.cmdline()[:1])]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_of_ray(photos, expected, tmp_path):
    run = cluster.predict_on_cluster(photos, tmp_path / "out.parquet", "digits", top=3, workers=2, part=5)
    assert (run.images, run.parts, len(run.broken)) == (42, 9, 2)
    assert rows(tmp_path / "out.parquet") == expected


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_loses_nothing(heavy, tmp_path):
    folder, expected = heavy
    killed = []

    def kill(done, total):
        if not killed:
            victim = actors()[0]
            victim.send_signal(signal.SIGKILL)
            killed.append(total - done)

    run = cluster.predict_on_cluster(folder, tmp_path / "out.parquet", "digits", top=3, workers=2, part=10, progress=kill)
    assert killed[0] >= 90
    assert run.images == 120
    assert rows(tmp_path / "out.parquet") == expected


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_killed_driver_loses_no_finished_part(heavy, tmp_path):
    folder, expected = heavy
    output = tmp_path / "out.parquet"
    done = subprocess.run(
        [sys.executable, PROGRAM, folder, output], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    run = cluster.predict_on_cluster(folder, output, "digits", top=3, workers=2, part=10)
    assert run.resumed >= 3
    assert run.parts == 12
    assert rows(output) == expected


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_the_caller_s_own_connection_is_used_and_left(photos, expected, tmp_path):
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=cluster.OBJECT_STORE, log_to_driver=False)
    try:
        cluster.predict_on_cluster(photos, tmp_path / "out.parquet", bundled_file("digits_int8.tflite"), top=3)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert rows(tmp_path / "out.parquet") == expected
