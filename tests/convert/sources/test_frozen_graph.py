"""A frozen graph as weights: its constants are the checkpoint's variables."""

import tarfile

import numpy as np
import pytest

from mnv2_keras import convert_checkpoint
from mnv2_keras.convert.sources import open_source


@pytest.fixture(scope="module")
def graph(archive, tmp_path_factory):
    """The frozen graph of mobilenet_v2_1.0_224, without its checkpoint."""
    folder = tmp_path_factory.mktemp("graph")
    with tarfile.open(archive) as tar:
        tar.extract("./mobilenet_v2_1.0_224_frozen.pb", folder, filter="data")
    return folder / "mobilenet_v2_1.0_224_frozen.pb"


def test_constants_are_the_variables(graph, imagenet_model):
    with open_source(graph) as source:
        assert source.resolution == 224
        assert len(source.shapes) == 262
        assert source.frozen_graph == graph
        assert list(source.sha256) == [graph.name]
    converted = convert_checkpoint(graph)
    for ours, genuine in zip(converted.weights, imagenet_model.weights, strict=True):
        np.testing.assert_array_equal(ours, genuine)


def test_a_missing_and_a_damaged_graph(graph, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pb does not exist: expected a frozen graph"):
        open_source(tmp_path / "nothing.pb")
    (tmp_path / "half.pb").write_bytes(graph.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"half\.pb is not a frozen TensorFlow graph"):
        open_source(tmp_path / "half.pb")
