"""What every test may ask for: the genuine data, and a cache of its own."""

import os
from pathlib import Path

import hypothesis
import pytest

# A shared machine may stall for a second at any moment; that is no failure.
hypothesis.settings.register_profile("mnv2", deadline=None)
hypothesis.settings.load_profile("mnv2")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test reads or writes the user's cache or the network: `MNV2_HOME` is a fresh folder, no mirror is set."""
    home = tmp_path_factory.mktemp("mnv2_home")
    monkeypatch.setenv("MNV2_HOME", str(home))
    monkeypatch.delenv("MNV2_MIRROR", raising=False)
    monkeypatch.delenv("MNV2_OFFLINE", raising=False)
    return home


@pytest.fixture(scope="module")
def network():
    """A small network with the goldens' weights, and its checkpoint's arrays."""
    from small_checkpoints import filled

    return filled()


@pytest.fixture
def prefix(network, tmp_path):
    """The same as a checkpoint."""
    from mnv2_keras.convert.checkpoint import write_checkpoint

    return write_checkpoint(network[1], tmp_path / "mobilenet_v2_0.1_32.ckpt")


@pytest.fixture
def shapes_folder(tmp_path) -> Path:
    """Three drawn pictures as photos and masks."""
    from PIL import Image

    from mnv2_keras.data.segmentation_shapes import DrawnShapes
    from mnv2_keras.masks import save_mask

    (tmp_path / "photos").mkdir()
    for i, (photo, mask) in enumerate(DrawnShapes(3, 40)):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{i}.png")
        save_mask(mask, tmp_path / "masks" / f"{i}.png")
    return tmp_path
