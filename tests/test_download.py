"""Fetching when something breaks: the connection, the server, the content, the disk, the process."""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archive_server import ARCHIVE, OTHER, ArchiveServer

from mnv2_keras import download, fetch
from mnv2_keras.cache import CacheError, cache_folder
from mnv2_keras.fetch import fetch_checkpoint
from mnv2_keras.registry import CheckpointRecord, register_checkpoint

pytestmark = pytest.mark.usefixtures("no_waiting")

SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
HALF = len(ARCHIVE) // 2


def register(server: ArchiveServer, sha256: str | None = SHA256) -> None:
    register_checkpoint(CheckpointRecord(name="toy", task="classification", url=f"{server.url}/toy.tgz", sha256=sha256))


def fetched() -> bytes:
    return fetch_checkpoint("toy", progress=False).read_bytes()


def target() -> Path:
    return cache_folder() / "checkpoints" / "toy.tgz"


def part() -> Path:
    return target().with_name("toy.tgz.part")


def left_over(server: ArchiveServer, content: bytes, **notes) -> None:
    """What a fetch that was broken off leaves: some bytes, and what they are a part of."""
    part().parent.mkdir(exist_ok=True)
    part().write_bytes(content)
    notes = {"url": f"{server.url}/toy.tgz", "size": len(ARCHIVE), "validator": '"one"'} | notes
    part().with_name("toy.tgz.part.json").write_text(json.dumps(notes))


def ranges(server: ArchiveServer) -> list[str | None]:
    return [asked.range for asked in server.asked]


# The connection


def test_dropped_connections_are_taken_up_where_they_broke(server):
    register(server)
    server.faults += [("drop", 100_000), ("drop", 70_000), ("drop", 0)]
    assert fetched() == ARCHIVE
    assert ranges(server) == [None, "bytes=100000-", "bytes=170000-", "bytes=170000-"]
    assert [asked.if_range for asked in server.asked] == [None, '"one"', '"one"', '"one"']
    assert sorted(path.name for path in target().parent.iterdir() if path.suffix != ".lock") == ["toy.tgz"]


def test_a_connection_that_always_drops_is_given_up_and_the_next_fetch_goes_on(server):
    register(server)
    server.faults += [("drop", 50_000)] * 5
    with pytest.raises(
        ConnectionError, match=r"5 attempts, the last: broke off after 250,000 of .*What came so far is kept: try again"
    ):
        fetched()
    assert not target().exists()
    assert fetched() == ARCHIVE
    assert ranges(server)[-1] == "bytes=250000-"


def test_a_silent_connection_counts_as_dropped(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    register(server)
    server.faults.append(("stall", HALF))
    assert fetched() == ARCHIVE
    assert ranges(server) == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_asked_again(server, status):
    register(server)
    server.faults += [("status", status)] * 2
    assert fetched() == ARCHIVE
    assert len(server.asked) == 3


def test_waits_grow(server, monkeypatch):
    waits = []
    monkeypatch.setattr(download, "FIRST_WAIT", 0.5)
    monkeypatch.setattr(download.time, "sleep", waits.append)
    register(server)
    server.faults += [("status", 503)] * 5
    with pytest.raises(ConnectionError, match=r"HTTP Error 503"):
        fetched()
    assert waits == [0.5, 1, 2, 4]


# The server


def test_a_server_that_ignores_range_starts_afresh(server):
    register(server)
    server.ranges = False
    server.faults.append(("drop", 100_000))
    assert fetched() == ARCHIVE
    assert ranges(server) == [None, "bytes=100000-"]
    assert [asked.status for asked in server.asked] == [200, 200]


def test_a_file_that_changed_starts_afresh(server):
    register(server)
    left_over(server, OTHER[:HALF], validator='"zero"')
    assert fetched() == ARCHIVE
    assert [asked.status for asked in server.asked] == [200]


@pytest.mark.parametrize("content_range", ["bytes 7-9/10", f"bytes {HALF}-{HALF + 9}/{HALF + 10}", "nonsense", None])
def test_a_part_of_something_else_is_refused(server, content_range):
    """The server has another file of another size, or sends another part than it was asked for."""
    register(server)
    left_over(server, ARCHIVE[:HALF])
    server.faults.append(("headers", {"Content-Range": content_range}))
    assert fetched() == ARCHIVE
    assert [asked.status for asked in server.asked] == [206, 200]


@pytest.mark.parametrize(
    ("headers", "if_range"),
    [
        ({"ETag": '"strong"', "Last-Modified": "yesterday"}, '"strong"'),
        ({"ETag": 'W/"weak"', "Last-Modified": "yesterday"}, "yesterday"),
        ({"Last-Modified": "yesterday"}, "yesterday"),
        ({}, None),
    ],
)
def test_if_range_has_what_the_server_knows_its_file_by(server, headers, if_range):
    register(server)
    server.headers = headers
    server.faults.append(("drop", HALF))
    assert fetched() == ARCHIVE
    assert (server.asked[1].range, server.asked[1].if_range) == (f"bytes={HALF}-", if_range)


def test_first_use_never_pieces_together_what_may_have_changed(server):
    """No hash to check against, no ETag or date: only a whole download is sure to be of one file."""
    register(server, sha256=None)
    server.headers = {}
    server.faults.append(("drop", HALF))
    assert fetched() == ARCHIVE
    assert ranges(server) == [None, None]


def test_first_use_takes_up_what_the_server_vouches_for(server):
    register(server, sha256=None)
    server.faults.append(("drop", HALF))
    assert fetched() == ARCHIVE
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_file_cut_short_without_a_length_is_found_by_its_hash(server):
    register(server)
    server.files["/toy.tgz"] = ARCHIVE[:HALF]
    server.faults.append(("headers", {"Content-Length": None}))
    with pytest.raises(ValueError, match=f"expected {SHA256}"):
        fetched()


# The content


def test_a_wrong_hash_installs_nothing_and_spoils_nothing(server):
    register(server)
    server.files["/toy.tgz"] = OTHER
    with pytest.raises(ValueError, match=r"SHA-256 .*Nothing was installed and nothing in the cache was changed") as error:
        fetched()
    assert SHA256 in str(error.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(error.value)
    assert [path.name for path in target().parent.iterdir()] == ["toy.tgz.lock"]
    server.files["/toy.tgz"] = ARCHIVE
    assert fetched() == ARCHIVE


def test_a_wrong_hash_keeps_the_earlier_file(server):
    """A record was given a new hash; what the server has is neither that nor the file of before."""
    register(server)
    assert fetched() == ARCHIVE
    register(server, sha256="0" * 64)
    server.files["/toy.tgz"] = OTHER
    with pytest.raises(ValueError, match=f"expected {'0' * 64}"):
        fetched()
    assert target().read_bytes() == ARCHIVE
    register(server)
    assert fetched() == ARCHIVE
    assert len(server.asked) == 2


@pytest.mark.parametrize("content", [OTHER[:HALF], b"?", b"?" * len(ARCHIVE)])
def test_spoilt_bytes_of_an_earlier_fetch_are_fetched_again(server, content):
    """After a power cut, say: the notes are right, the bytes are not."""
    register(server)
    left_over(server, content)
    assert fetched() == ARCHIVE
    assert ranges(server)[-1] is None


@pytest.mark.parametrize("content", [ARCHIVE + b"more", ARCHIVE * 2])
def test_a_part_larger_than_the_whole_starts_afresh(server, content):
    register(server)
    left_over(server, content)
    assert fetched() == ARCHIVE
    assert ranges(server) == [None]


def test_a_part_larger_than_an_unknown_whole_starts_afresh(server):
    register(server)
    left_over(server, ARCHIVE + b"more", size=None)
    assert fetched() == ARCHIVE
    assert [asked.status for asked in server.asked] == [416, 200]


def test_the_part_of_another_source_starts_afresh(server):
    register(server)
    left_over(server, ARCHIVE[:HALF], url="https://example.org/toy.tgz")
    assert fetched() == ARCHIVE
    assert ranges(server) == [None]


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"url": 1, "size": "x", "validator": 2}'])
def test_spoilt_notes_start_afresh(server, notes):
    register(server)
    left_over(server, ARCHIVE[:HALF])
    part().with_name("toy.tgz.part.json").write_text(notes)
    assert fetched() == ARCHIVE
    assert ranges(server) == [None]


def test_a_part_without_notes_starts_afresh(server):
    register(server)
    part().parent.mkdir()
    part().write_bytes(ARCHIVE[:HALF])
    assert fetched() == ARCHIVE
    assert ranges(server) == [None]


@pytest.mark.parametrize("seed", range(12))
def test_any_mixture_of_faults(server, seed):
    """Whatever happens in whatever order: the right archive or none, and the next fetch gets it."""
    choice = random.Random(seed)
    faults = [("drop", 0), ("drop", 7), ("drop", HALF), ("status", 503), ("headers", {"ETag": None})]
    faults += [("headers", {"Content-Length": None}), ("headers", {"Content-Range": "bytes 1-2/3"}), ("status", 404)]
    register(server)
    for _ in range(3):
        server.ranges = choice.random() < 0.7
        server.headers = choice.choice([{"ETag": '"one"'}, {"ETag": 'W/"one"'}, {}])
        server.files["/toy.tgz"] = choice.choice([ARCHIVE, ARCHIVE, OTHER])
        server.faults.extend(choice.choices(faults, k=choice.randrange(7)))
        with contextlib.suppress(ConnectionError, FileNotFoundError, ValueError):
            assert fetched() == ARCHIVE
        assert not target().exists() or target().read_bytes() == ARCHIVE
    server.faults.clear()
    server.files["/toy.tgz"] = ARCHIVE
    assert fetched() == ARCHIVE


# The disk


def test_a_full_disk(server, monkeypatch):
    def full(file, chunk):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    register(server)
    with monkeypatch.context() as patch:
        patch.setattr(download, "_append", full)
        with pytest.raises(CacheError) as error:
            fetched()
    assert re.search(r"\(No space left on device; the file needs 300,\d{3} bytes\): make room", str(error.value))
    assert str(cache_folder()) in str(error.value)
    assert len(server.asked) == 1  # a full disk is no reason to ask again
    assert not target().exists()
    assert fetched() == ARCHIVE


def test_the_cache_folder_is_a_file(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MNV2_HOME", str(tmp_path / "file"))
    register(server)
    with pytest.raises(CacheError, match=r"The cache folder \S+/file cannot hold or give toy\.tgz .*set MNV2_HOME"):
        fetched()


def test_two_threads_at_once(server, monkeypatch):
    waits = threading.Event()
    monkeypatch.setattr(fetch, "print", lambda *_, **__: waits.set(), raising=False)
    register(server)
    server.faults.append(("stall", HALF))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch_checkpoint, "toy", progress=False)
        assert server.stalled.wait(60)
        second = pool.submit(fetch_checkpoint, "toy", progress=True)
        assert waits.wait(60)
        server.gate.set()
        assert first.result() == second.result() == target()
    assert len(server.asked) == 1


# Processes. Each child imports the package afresh, and neither TensorFlow nor Keras with it.

CHILD = """
import os, sys
from mnv2_keras import download, fetch, registry
url, sha256 = sys.argv[1:3]
registry.register_checkpoint(
    registry.CheckpointRecord(name="toy", task="classification", url=url, sha256=sha256 or None)
)
{before}
try:
    print(fetch.fetch_checkpoint("toy", progress={progress}))
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
assert not {{"tensorflow", "keras"}} & set(sys.modules)
"""


def child(server: ArchiveServer, before: str = "", progress: bool = False, home: Path | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(before=before, progress=progress), f"{server.url}/toy.tgz", SHA256],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(fetch.__file__).parents[1],
        env=os.environ | {"MNV2_HOME": str(home or cache_folder()), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def outcome(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err.strip()


def test_two_processes_at_once(server):
    server.faults.append(("stall", HALF))
    first = child(server)
    assert server.stalled.wait(60)
    second = child(server, progress=True)
    assert second.stderr.readline() == "Another process is fetching toy.tgz: waiting for it.\n"
    server.gate.set()
    assert outcome(first) == outcome(second) == (0, str(target()), "")
    assert len(server.asked) == 1
    assert target().read_bytes() == ARCHIVE


def test_a_kill_in_the_middle(server):
    """The child tells when half is on the disk, is killed, and leaves nothing the next fetch would trip over."""
    announce = """
append = download._append
download._append = lambda file, chunk: (append(file, chunk), print(file.tell(), flush=True))
"""
    server.faults.append(("stall", HALF))
    process = child(server, announce)
    while int(process.stdout.readline()) < HALF:
        pass
    process.kill()
    assert outcome(process)[0] == -signal.SIGKILL
    assert not target().exists()
    register(server)
    assert fetched() == ARCHIVE
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_kill_between_the_last_byte_and_the_final_name(server):
    process = child(server, "import signal; fetch._checked = lambda *_: os.kill(os.getpid(), signal.SIGKILL)")
    assert outcome(process)[0] == -signal.SIGKILL
    assert part().read_bytes() == ARCHIVE
    assert not target().exists()
    register(server)
    assert fetched() == ARCHIVE
    assert len(server.asked) == 1
    assert not part().exists()


def test_a_disk_quota(server):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    code, out, err = outcome(child(server, limit))
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"CacheError: The cache folder {cache_folder()} cannot hold or give toy\.tgz\.part \(File too large; the "
        rf"file needs {len(ARCHIVE):,} bytes\): make room there .*set MNV2_HOME to another folder\.",
        err,
    )
    assert not target().exists()
    register(server)
    assert fetched() == ARCHIVE
    assert ranges(server) == [None, "bytes=100000-"]


# Root may write anywhere: the child becomes nobody. Its modules are all imported before, as its files may be root's.
BECOME_NOBODY = """
import filelock, tempfile
with tempfile.TemporaryDirectory() as folder, filelock.FileLock(folder + "/warm"):
    pass
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.fixture
def folder():
    """A folder that others can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for path in sorted(Path(name).rglob("*")):
            path.chmod(0o755)


def test_a_read_only_cache_says_so(server, folder):
    home = folder / "cache"
    home.mkdir(mode=0o555)
    code, out, err = outcome(child(server, BECOME_NOBODY, home=home))
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"CacheError: The cache folder {home} cannot hold or give toy\.tgz \(Permission denied\): .*"
        r"set MNV2_HOME to another folder\.",
        err,
    )
    assert server.asked == []


def test_a_read_only_cache_serves_what_it_has(server, folder):
    checkpoints = folder / "cache" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "toy.tgz").write_bytes(ARCHIVE)
    (checkpoints / "toy.tgz").chmod(0o444)
    checkpoints.chmod(0o555)
    assert outcome(child(server, BECOME_NOBODY, home=folder / "cache")) == (0, str(checkpoints / "toy.tgz"), "")
    assert server.asked == []


@pytest.mark.parametrize("closed", ["cache", "cache/checkpoints", "cache/checkpoints/toy.tgz"])
def test_no_permission_to_read_the_cache(server, folder, closed):
    checkpoints = folder / "cache" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "toy.tgz").write_bytes(ARCHIVE)
    (folder / closed).chmod(0)
    code, out, err = outcome(child(server, BECOME_NOBODY, home=folder / "cache"))
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"CacheError: The cache folder {folder}/cache cannot hold or give toy\.tgz \(Permission denied\): .*MNV2_HOME.*", err
    )
    assert server.asked == []
