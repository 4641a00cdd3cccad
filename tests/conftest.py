"""Fixtures of general use: the genuine data, a cache folder for each test, networks and files that tests share."""

import gc
import os
from pathlib import Path

import hypothesis
import pytest

# A shared machine may stall for a second at any moment. That is not a failure.
hypothesis.settings.register_profile("mnv2", deadline=None)
hypothesis.settings.load_profile("mnv2")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_collection_finish():
    """The garbage collector need not visit the objects of imported modules: they live to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Folder of genuine goldens, checkpoints and photos (`MNV2_TESTDATA`)."""
    folder = os.environ.get("MNV2_TESTDATA")
    if folder and Path(folder).is_dir():
        return Path(folder).resolve()
    reason = f"MNV2_TESTDATA is {folder!r}: set it to the folder that holds golden/, checkpoints/ and images/"
    if os.environ.get("MNV2_REQUIRE_TESTDATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def goldens(testdata, tmp_path_factory) -> Path:
    """The genuine detectors' and DeepLab's runs as goldens of the package's one format."""
    from genuine_goldens import write_goldens

    return write_goldens(testdata / "golden", tmp_path_factory.mktemp("goldens"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test reads or writes the user's cache or the network: `MNV2_HOME` is a new folder, no mirror is set."""
    home = tmp_path_factory.mktemp("mnv2_home")
    monkeypatch.setenv("MNV2_HOME", str(home))
    monkeypatch.delenv("MNV2_MIRROR", raising=False)
    monkeypatch.delenv("MNV2_OFFLINE", raising=False)
    return home


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder that all workers of this run share; whoever writes there must write atomically."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def shared_cache(shared_folder, monkeypatch) -> Path:
    """`MNV2_HOME` is one folder for all tests that ask for this: weights are converted once for the whole run."""
    monkeypatch.setenv("MNV2_HOME", str(shared_folder))
    return shared_folder


@pytest.fixture(scope="session")
def archive(testdata) -> Path:
    """The archive mobilenet_v2_1.0_224.tgz, with real ImageNet weights."""
    return testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz"


@pytest.fixture(scope="session")
def imagenet_model(archive):
    """`archive` as a Keras model. Tests leave its weights as they are."""
    from mnv2_keras import convert_checkpoint

    return convert_checkpoint(archive)


@pytest.fixture(scope="session")
def imagenet_file(archive, shared_folder) -> Path:
    """`archive` as a float32 .tflite, converted once for the whole run. Tests leave it as it is."""
    from mnv2_keras.atomic import write_bytes
    from mnv2_keras.inference.model_cache import litert_content

    path = shared_folder / "imagenet.tflite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV2_HOME", str(shared_folder))
        content = litert_content(archive, "float32", None)
    if not path.exists():
        write_bytes(path, content)
    return path


@pytest.fixture(scope="module")
def network():
    """A small network with the weights of the goldens, and the arrays of its checkpoint."""
    from small_checkpoints import filled

    return filled()


@pytest.fixture
def prefix(network, tmp_path):
    """`network` as a checkpoint: the prefix of its files."""
    from mnv2_keras.convert.sources.tf_slim import write_checkpoint

    return write_checkpoint(network[1], tmp_path / "mobilenet_v2_0.1_32.ckpt")


@pytest.fixture
def shapes_folder(tmp_path) -> Path:
    """A folder with photos/ and masks/ of three drawn pictures."""
    from PIL import Image

    from mnv2_keras.data.drawn_shapes import DrawnShapes
    from mnv2_keras.masks import save_mask

    (tmp_path / "photos").mkdir()
    for i, (photo, mask) in enumerate(DrawnShapes(3, 40)):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{i}.png")
        save_mask(mask, tmp_path / "masks" / f"{i}.png")
    return tmp_path


@pytest.fixture
def conversion_in_process(monkeypatch) -> None:
    """The converter's job runs in this process, which is faster: for tests of the files, not of the isolation."""
    from small_litert import convert_in_this_process

    convert_in_this_process(monkeypatch)


@pytest.fixture(scope="module")
def converted_here():
    """Weights are converted to LiteRT in this process, which has TensorFlow already, in place of a subprocess."""
    from types import SimpleNamespace

    from mnv2_keras.inference import model_cache

    def run_here(module, folder):
        model_cache._convert_job(folder)
        return SimpleNamespace(returncode=0, stderr="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_cache, "run_subprocess_job", run_here)
        yield


@pytest.fixture
def no_waiting(monkeypatch):
    """Fetching without waiting between attempts, without a proxy, and without checkpoints that other tests registered."""
    from mnv2_keras import download, registry

    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(download, "FIRST_WAIT", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    """A server of archives on this machine."""
    from archive_server import ArchiveServer

    with ArchiveServer.running() as running:
        yield running
