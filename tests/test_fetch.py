"""Fetching: the cache, mirrors, offline mode, trust on first use, and what the user sees."""

import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from archive_server import ARCHIVE, OTHER

from mnv2_keras import fetch
from mnv2_keras.cache import CacheError, cache_folder
from mnv2_keras.fetch import fetch_checkpoint
from mnv2_keras.registry import CheckpointRecord, register_checkpoint

pytestmark = pytest.mark.usefixtures("no_waiting")

SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def register(url: str, sha256: str | None = SHA256, name: str = "toy") -> None:
    register_checkpoint(CheckpointRecord(name=name, task="classification", url=f"{url}/toy.tgz", sha256=sha256))


def fetched(**options) -> bytes:
    return fetch_checkpoint("toy", progress=False, **options).read_bytes()


def ledger() -> Path:
    return cache_folder() / "checkpoints.lock.json"


def cached() -> list[str]:
    """Names in the cache, but for the lock files."""
    return sorted(path.name for path in cache_folder().rglob("*.*") if path.suffix != ".lock")


# The cache


def test_fetch_puts_the_archive_in_the_cache(server, own_cache):
    register(server.url)
    path = fetch_checkpoint("toy", progress=False)
    assert path == own_cache / "checkpoints" / "toy.tgz"
    assert path.read_bytes() == ARCHIVE
    assert cached() == ["toy.tgz"]


def test_the_second_fetch_asks_nobody(server):
    register(server.url)
    first = fetch_checkpoint("toy", progress=False)
    assert fetch_checkpoint("toy", progress=False) == first
    assert len(server.asked) == 1


def test_a_damaged_copy_in_the_cache_is_fetched_again(server):
    register(server.url)
    path = fetch_checkpoint("toy", progress=False)
    path.write_bytes(ARCHIVE[:-1] + b"?")
    assert fetched() == ARCHIVE
    assert len(server.asked) == 2


def test_an_archive_put_into_the_cache_by_hand_is_taken(own_cache):
    (own_cache / "checkpoints").mkdir()
    (own_cache / "checkpoints" / "toy.tgz").write_bytes(ARCHIVE)
    register(NOWHERE)
    assert fetched() == ARCHIVE


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == Path(fetch.os.environ["MNV2_HOME"])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MNV2_HOME", "~/models")
    assert cache_folder() == tmp_path / "models"
    monkeypatch.setenv("MNV2_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mnv2_keras"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "mnv2_keras"


def test_no_home_folder_at_all(monkeypatch):
    monkeypatch.delenv("MNV2_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(CacheError, match=r"no home folder .*: set MNV2_HOME"):
        cache_folder()


# Mirrors


def test_a_mirror_comes_before_the_publisher(server, monkeypatch, tmp_path):
    (tmp_path / "a mirror").mkdir()
    (tmp_path / "a mirror" / "toy.tgz").write_bytes(ARCHIVE)
    monkeypatch.setenv("MNV2_MIRROR", (tmp_path / "a mirror").as_uri() + "/")
    register(server.url)
    assert fetched() == ARCHIVE
    assert server.asked == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_mirror_that_lacks_the_archive_passes_on(server, monkeypatch, tmp_path, status):
    """An empty folder, then a server that refuses (storage servers say 403 for what they do not have), then the next."""
    monkeypatch.setenv("MNV2_MIRROR", f"{tmp_path.as_uri()}, {server.url}/mirror , {server.url}")
    server.faults.append(("status", status))
    register(NOWHERE)
    assert fetched() == ARCHIVE
    assert [asked.path for asked in server.asked] == ["/mirror/toy.tgz", "/toy.tgz"]


def test_the_publisher_is_asked_when_no_mirror_has_it(server, monkeypatch):
    monkeypatch.setenv("MNV2_MIRROR", f"{server.url}/mirror")
    register(server.url)
    assert fetched() == ARCHIVE
    assert [asked.path for asked in server.asked] == ["/mirror/toy.tgz", "/toy.tgz"]


def test_a_mirror_that_is_down_passes_on_to_mirrors_only(server, monkeypatch):
    monkeypatch.setenv("MNV2_MIRROR", NOWHERE)
    register(server.url)
    with pytest.raises(ConnectionError, match=rf"toy could not be fetched: {NOWHERE}/toy\.tgz \(5 attempts, the last: "):
        fetched()
    assert server.asked == []
    monkeypatch.setenv("MNV2_MIRROR", f"{NOWHERE},{server.url}")
    assert fetched() == ARCHIVE


def test_a_mirror_with_wrong_content_ends_the_fetch(server, monkeypatch, tmp_path):
    (tmp_path / "toy.tgz").write_bytes(OTHER)
    monkeypatch.setenv("MNV2_MIRROR", tmp_path.as_uri())
    register(server.url)
    with pytest.raises(ValueError, match=f"SHA-256 {hashlib.sha256(OTHER).hexdigest()}, expected {SHA256}"):
        fetched()
    assert server.asked == []
    assert cached() == []


@pytest.mark.parametrize("mirror", ["/data/mirror", "ftp://example.org/x", "https://", "file://host/x"])
def test_a_mirror_must_be_a_folder_url(monkeypatch, mirror):
    monkeypatch.setenv("MNV2_MIRROR", mirror)
    register(NOWHERE)
    with pytest.raises(ValueError, match=r"MNV2_MIRROR has .*give the URL of a folder, https://"):
        fetched()


def test_a_mirror_that_cannot_be_read_says_why(monkeypatch, tmp_path):
    (tmp_path / "toy.tgz").mkdir()
    monkeypatch.setenv("MNV2_MIRROR", tmp_path.as_uri())
    register(NOWHERE)
    with pytest.raises(ConnectionError, match=r"1 attempt, the last: .*Is a directory"):
        fetched()


def test_a_mirror_serves_the_shipped_records_and_their_hashes_hold(monkeypatch, tmp_path):
    (tmp_path / "mobilenet_v2_0.35_96.tgz").write_bytes(ARCHIVE)
    monkeypatch.setenv("MNV2_MIRROR", tmp_path.as_uri())
    with pytest.raises(ValueError, match=r"expected 282996bca7d7[0-9a-f]{52} \(the registry's\)"):
        fetch_checkpoint("mobilenet_v2_0.35_96", progress=False)
    assert cached() == []


def test_nobody_has_it(server):
    register(f"{server.url}/gone")
    with pytest.raises(FileNotFoundError) as error:
        fetched()
    assert f"{server.url}/gone/toy.tgz (HTTP 404 Not Found)" in str(error.value)
    assert "Set MNV2_MIRROR to the URL of a folder that has toy.tgz, or pass the path of a local" in str(error.value)
    assert len(server.asked) == 1  # a refusal is not asked for twice


def test_unknown_name():
    with pytest.raises(ValueError, match="no checkpoint 'nothing'"):
        fetch_checkpoint("nothing")


# Offline


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is a failure of the test, also where an error would be swallowed."""
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    yield
    assert tried == []


@pytest.mark.parametrize("how", [{"offline": True}, {"offline": None}])
def test_offline_says_what_is_missing(no_network, monkeypatch, how):
    if how["offline"] is None:
        monkeypatch.setenv("MNV2_OFFLINE", "1")
    monkeypatch.setenv("MNV2_MIRROR", "https://mirror.example.org")
    register("https://example.org")
    with pytest.raises(FileNotFoundError, match=r"toy\.tgz is not in the cache and offline mode is on: .*file:///"):
        fetched(**how)


def test_offline_takes_the_cache(server, monkeypatch):
    register(server.url)
    path = fetch_checkpoint("toy", progress=False)
    monkeypatch.setenv("MNV2_OFFLINE", "1")
    assert fetched() == ARCHIVE
    path.write_bytes(OTHER)
    with pytest.raises(FileNotFoundError, match=r"toy\.tgz has a wrong SHA-256 and offline mode is on"):
        fetched()
    assert path.read_bytes() == OTHER
    assert len(server.asked) == 1
    assert fetched(offline=False) == ARCHIVE  # the argument wins


@pytest.mark.parametrize("off", ["", "0", "false", "no"])
def test_offline_switched_off(server, monkeypatch, off):
    monkeypatch.setenv("MNV2_OFFLINE", off)
    register(server.url)
    assert fetched() == ARCHIVE


def test_offline_takes_a_local_mirror(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("MNV2_MIRROR", f"https://example.org,{tmp_path.as_uri()}")
    register("https://example.org")
    with pytest.raises(FileNotFoundError, match=r"offline mode is on \(file:///\S*/toy\.tgz \(no such file\)\)"):
        fetched(offline=True)
    (tmp_path / "toy.tgz").write_bytes(ARCHIVE)
    assert fetched(offline=True) == ARCHIVE


# Trust on first use


def test_first_use_is_recorded_and_held_to(server):
    register(server.url, sha256=None)
    path = fetch_checkpoint("toy", progress=False)
    assert json.loads(ledger().read_text()) == {"toy": {"sha256": SHA256, "url": f"{server.url}/toy.tgz"}}
    recorded = ledger().read_bytes()
    path.unlink()
    server.files["/toy.tgz"] = OTHER
    with pytest.raises(ValueError, match=r"recorded on first use in \S*checkpoints\.lock\.json") as error:
        fetched()
    assert SHA256 in str(error.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(error.value)
    assert cached() == ["checkpoints.lock.json"]
    server.files["/toy.tgz"] = ARCHIVE
    assert fetched() == ARCHIVE
    assert ledger().read_bytes() == recorded


def test_first_use_guards_the_cached_copy_too(server):
    register(server.url, sha256=None)
    fetch_checkpoint("toy", progress=False).write_bytes(OTHER)
    assert fetched() == ARCHIVE


def test_first_use_of_a_file_put_there_by_hand(own_cache):
    register(NOWHERE, sha256=None)
    path = own_cache / "checkpoints" / "toy.tgz"
    path.parent.mkdir()
    path.write_bytes(ARCHIVE[:1000])
    with pytest.raises(ValueError, match="not a complete gzip archive"):
        fetched()
    path.write_bytes(ARCHIVE)
    assert fetched() == ARCHIVE
    assert json.loads(ledger().read_text())["toy"]["sha256"] == SHA256


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", ARCHIVE[:-9], ARCHIVE[:50_000] + b"??" * 100_000])
def test_first_use_trusts_whole_archives_only(server, content):
    """A page of a hotel's network, a cut and a garbled file."""
    register(server.url, sha256=None)
    server.files["/toy.tgz"] = content
    with pytest.raises(ValueError, match="not a complete gzip archive"):
        fetched()
    assert cached() == []


def test_first_uses_of_several_records_are_kept(server):
    for name in ("toy", "bear"):
        register(server.url, sha256=None, name=name)
        fetch_checkpoint(name, progress=False)
    assert set(json.loads(ledger().read_text())) == {"toy", "bear"}
    assert cached() == ["bear.tgz", "checkpoints.lock.json", "toy.tgz"]


@pytest.mark.parametrize("text", ["", "[]", '{"toy": 1}', '{"toy": {"sha256": "x"}}', '{"toy": {"sha256": null}}'])
def test_a_spoilt_record_of_first_uses_is_never_ignored(server, own_cache, text):
    register(server.url, sha256=None)
    ledger().write_text(text)
    with pytest.raises(ValueError, match=r"checkpoints\.lock\.json is not what was written there.*restore it, or delete"):
        fetched()
    assert ledger().read_text() == text
    assert server.asked == []


# What the user sees


def test_progress_on_standard_error(server, capsys):
    register(server.url)
    fetch_checkpoint("toy")
    out, err = capsys.readouterr()
    assert out == ""
    assert "toy.tgz" in err
    assert "kB" in err
    fetch_checkpoint("toy")
    assert capsys.readouterr() == ("", "")  # nothing to do, nothing to show


def test_no_progress(server, capsys):
    register(server.url)
    fetched()
    assert capsys.readouterr() == ("", "")


def test_progress_without_a_known_length(server, capsys):
    register(server.url)
    server.faults.append(("headers", {"Content-Length": None}))
    assert fetch_checkpoint("toy").read_bytes() == ARCHIVE
    assert "toy.tgz" in capsys.readouterr().err


def test_needs_neither_tensorflow_nor_keras():
    code = (
        "import sys; from mnv2_keras import fetch\n"
        "assert not {'tensorflow', 'keras', 'numpy', 'rich', 'requests'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(fetch.__file__).parents[1])


def test_a_cache_folder_of_an_unknown_user(monkeypatch):
    monkeypatch.setenv("MNV2_HOME", "~nobody.such/cache")
    with pytest.raises(CacheError, match=r"MNV2_HOME is '~nobody\.such/cache'.*there is no user"):
        cache_folder()
