"""Networks and converted files that the tests of inference share."""

from pathlib import Path

import pytest

from mnv2_keras.inference.classifier import Classifier


@pytest.fixture(scope="module", autouse=True)
def _shared_home(shared_folder):
    """Module fixtures convert into the cache of this run, never into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV2_HOME", str(shared_folder))
        yield


@pytest.fixture(scope="session")
def tiny(testdata) -> Path:
    """A checkpoint of alpha 0.1, 32 x 32 pixels and 5 classes."""
    return testdata / "checkpoints" / "v1_format" / "mobilenet_v2_0.1_32.ckpt"


@pytest.fixture(scope="session")
def tiny_conversion(tiny, testdata, tmp_path_factory):
    """The first use of `tiny`: (cache folder, messages, content of the file, prediction for cat.bmp)."""
    home, messages = tmp_path_factory.mktemp("home"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV2_HOME", str(home))
        with Classifier(tiny, on_message=messages.append) as classifier:
            return home, messages, classifier.content, classifier.predict(testdata / "images" / "cat.bmp")


@pytest.fixture(scope="session")
def tiny_file(tiny_conversion, tmp_path_factory) -> Path:
    """`tiny` as a .tflite."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.tflite"
    path.write_bytes(tiny_conversion[2])
    return path
