"""The proof must hold for what is right, and fail for anything that is not."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras import convert_checkpoint, verify_checkpoint, verify_model
from mnv2_keras.convert.goldens import find_goldens
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.convert.sources.tf_slim import _frozen_graph, write_checkpoint

ENDPOINTS = 72


@pytest.fixture(scope="module")
def folder(testdata, tmp_path_factory):
    """The official archive, unpacked."""
    folder = tmp_path_factory.mktemp("mobilenet_v2_1.0_224")
    with tarfile.open(testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def variables(folder):
    """What the checkpoint serves: averages where there are any."""
    reader = tf.train.load_checkpoint(str(folder / "mobilenet_v2_1.0_224.ckpt"))
    shapes = reader.get_variable_to_shape_map()
    names = [name for name in shapes if name.rsplit("/", 1)[0] not in shapes and name != "global_step"]
    average = "{}/ExponentialMovingAverage".format
    return {name: reader.get_tensor(average(name) if average(name) in shapes else name) for name in names}


@pytest.fixture
def doctored(folder, variables, tmp_path):
    """A checkpoint of these variables with changes, beside the genuine frozen graph."""

    def make(**changes):
        write_checkpoint(variables | changes, tmp_path / "mobilenet_v2_1.0_224.ckpt")
        shutil.copy(folder / "mobilenet_v2_1.0_224_frozen.pb", tmp_path)
        return tmp_path

    return make


def test_passes(testdata, folder, tmp_path):
    archive = testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz"
    receipt = verify_checkpoint(archive)
    assert receipt.passed, receipt.failure
    assert len(receipt.endpoints) == ENDPOINTS
    assert (receipt.constants, receipt.different_constants) == (262, [])
    assert (receipt.top1, receipt.top5, receipt.images) == (1.0, 1.0, 2)
    assert receipt.worst.range_relative <= 1e-4
    names = [each.endpoint for each in receipt.endpoints]
    assert names[0] == "layer_1"
    assert names[-1] == "Predictions"

    saved = json.loads(receipt.save(tmp_path / "deep" / "receipt.json").read_text())
    assert saved["passed"] is True
    assert saved["versions"]["tensorflow"] == tf.__version__
    assert set(saved["sha256"]) == {
        archive.name,
        "mobilenet_v2_1.0_224.ckpt.index",
        "mobilenet_v2_1.0_224.ckpt.data-00000-of-00001",
        "mobilenet_v2_1.0_224_frozen.pb",
    }
    assert saved["endpoints"][0].keys() == {"endpoint", "max_abs", "range_relative", "passed"}


def test_on_photos(testdata, folder):
    photos = sorted((testdata / "images").glob("*.bmp"))[:2]
    receipt = verify_checkpoint(folder, images=photos)
    assert receipt.passed, receipt.failure
    assert receipt.images == 2
    assert verify_checkpoint(folder, images=photos[0]).images == 1
    batch = np.zeros((1, 224, 224, 3), "f4")
    assert verify_checkpoint(folder, images=batch).images == 1


def test_fails_on_raw_variables(folder):
    receipt = verify_checkpoint(folder, ema=False)
    assert not receipt.passed
    assert "158 of 262 variables are not the frozen graph's" in receipt.failure
    assert receipt.top1 == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "MobilenetV2/Conv/weights",
        "MobilenetV2/expanded_conv_7/depthwise/BatchNorm/gamma",
        "MobilenetV2/expanded_conv_16/project/BatchNorm/moving_variance",
        "MobilenetV2/Logits/Conv2d_1c_1x1/weights",
    ],
)
def test_fails_on_one_scaled_variable(doctored, variables, name):
    receipt = verify_checkpoint(doctored(**{name: variables[name] * np.float32(1.01)}))
    assert not receipt.passed
    assert receipt.different_constants == [name]
    assert name in receipt.failure


def test_fails_on_one_differing_value(doctored, variables):
    name = "MobilenetV2/expanded_conv_3/expand/weights"
    value = variables[name].copy()
    value[0, 0, 5, 7] = np.nextafter(value[0, 0, 5, 7], np.float32(np.inf))
    receipt = verify_checkpoint(doctored(**{name: value}))
    assert not receipt.passed
    assert receipt.different_constants == [name]


def test_names_the_first_endpoint_that_went_wrong(doctored, variables, tmp_path):
    """Where the graph does not keep the variables' names, the endpoints tell."""
    name = "MobilenetV2/expanded_conv_9/depthwise/depthwise_weights"
    path = doctored(**{name: variables[name] * np.float32(1.01)})
    file = path / "mobilenet_v2_1.0_224_frozen.pb"
    graph = tf.compat.v1.GraphDef.FromString(file.read_bytes())
    renamed = {node.name: f"{node.name}_folded" for node in graph.node if node.op == "Const"}
    for node in graph.node:
        node.name = renamed.get(node.name, node.name)
        node.input[:] = [renamed.get(each, each) for each in node.input]
        node.attr.pop("_class", None)  # colocation by the old names
    file.write_bytes(graph.SerializeToString())
    receipt = verify_checkpoint(path)
    assert receipt.constants == 0
    assert not receipt.passed
    first = next(each for each in receipt.endpoints if not each.passed)
    assert first.endpoint == "layer_11/depthwise_output"
    assert receipt.failure.startswith("layer_11/depthwise_output is off by")


def test_fails_on_a_wrong_epsilon(folder):
    model = convert_checkpoint(folder)
    assert verify_model(model, folder).passed
    model.get_layer("expanded_conv_4-project-BatchNorm").epsilon = 1e-5
    receipt = verify_model(model, folder)
    assert not receipt.passed
    assert receipt.different_constants == []
    assert receipt.failure.startswith("layer_6/output is off by")


def test_a_model_of_another_size(folder):
    model = convert_checkpoint(folder, input_shape=(96, 96, 3))
    with pytest.raises(ValueError, match=r"takes images of \(224, 224, 3\), the model of \(96, 96, 3\): build it with"):
        verify_model(model, folder)
    free = convert_checkpoint(folder, input_shape=(None, None, 3))
    assert verify_model(free, folder).passed


def test_goldens_in_place_of_a_graph(testdata):
    archive = testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz"
    with pytest.raises(ValueError, match=r"has no frozen graph \(\*_frozen\.pb\).*nothing to compare with"):
        verify_checkpoint(archive)
    goldens = testdata / "golden" / "classification"
    receipt = verify_checkpoint(archive, goldens=goldens)
    assert receipt.passed, receipt.failure
    assert {each.endpoint.split(":")[0] for each in receipt.endpoints} == {
        "alpha0.35_96",
        "alpha0.35_97_odd",
        "alpha0.35_explicit_96",
        "alpha0.35_relu_96",
    }
    one = verify_checkpoint(archive, goldens=goldens / "alpha0.35_96.npz")
    assert one.passed
    assert one.worst.endpoint.startswith(("layer_", "Logits", "net"))
    with pytest.raises(ValueError, match="images and goldens exclude each other"):
        verify_checkpoint(archive, goldens=goldens, images=np.zeros((1, 96, 96, 3), "f4"))
    with pytest.raises(ValueError, match="holds no golden of this network.*found none"):
        verify_checkpoint(archive, goldens=testdata / "images")
    # Real weights are not what these goldens were made with.
    receipt = verify_checkpoint(testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz", goldens=goldens / "alpha1.0_224.json")
    assert not receipt.passed
    assert receipt.failure.startswith("layer_1 is off by")


def test_damaged_goldens(testdata, tmp_path):
    for suffix in (".json", ".npz"):
        shutil.copy(testdata / "golden" / "classification" / f"alpha0.35_96{suffix}", tmp_path)
    (golden,) = find_goldens(tmp_path, {name: tuple(shape) for name, shape in _variables(tmp_path / "alpha0.35_96.json")})
    (tmp_path / "alpha0.35_96.npz").write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(ValueError, match="cannot be read as a golden's arrays"):
        golden.outputs()
    (tmp_path / "alpha0.35_96.json").write_text("{}")
    (tmp_path / "notes.json").write_text("not JSON")
    (tmp_path / "notes.npz").touch()
    with pytest.raises(ValueError, match="found none"):
        find_goldens(tmp_path, {})


def _variables(path):
    return json.loads(path.read_text())["variables"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        (np.zeros((1, 96, 96, 3), "f4"), r"expected \(B, 224, 224, 3\)"),
        (np.zeros((224, 224, 3), "f8"), "uint8"),
    ],
)
def test_images_that_do_not_fit(folder, images, message):
    with pytest.raises(ValueError, match=message):
        verify_checkpoint(folder, images=images)


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan"), float("inf"), "1"])
def test_tolerance(folder, tolerance):
    with pytest.raises(ValueError, match="tolerance is"):
        verify_checkpoint(folder, tolerance=tolerance)


def test_graphs_that_are_none(tmp_path):
    file = tmp_path / "a_frozen.pb"
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="is not a frozen TensorFlow graph"):
        FrozenGraph(file)
    with tf.Graph().as_default() as graph:
        tf.io.write_file("x", "y")
        file.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ValueError, match="operator WriteFile, is not an operator of a MobileNetV2 network"):
        FrozenGraph(file)
    with tf.Graph().as_default() as graph:
        tf.constant(1.0)
        file.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ValueError, match=r"has 0 inputs \(none\)"):
        _ = FrozenGraph(file).placeholder


def test_a_graph_that_cannot_run(tmp_path):
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, None, name="input")
        tf.reshape(image, (5,), name="five")
        (tmp_path / "a_frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ValueError, match=r"a_frozen\.pb cannot be run"):
        FrozenGraph(tmp_path / "a_frozen.pb").run({"input": np.zeros(3, "f4")}, {"five": "five"})


def test_the_graph_of_the_same_name_is_taken(tmp_path):
    for name in ("a", "mobilenet_v2_1.0_224", "z"):
        (tmp_path / f"{name}_frozen.pb").touch()
    assert _frozen_graph(tmp_path, tmp_path / "mobilenet_v2_1.0_224.ckpt").name == "mobilenet_v2_1.0_224_frozen.pb"
    assert _frozen_graph(tmp_path, tmp_path / "other.ckpt-5").name == "a_frozen.pb"


def test_a_receipt_of_other_shapes_is_json(tmp_path):
    receipt = Receipt("a", "b", 3e-4, {})
    receipt.compare("layer_1", np.zeros((1, 2)), np.zeros((1, 3)))
    assert json.loads(receipt.save(tmp_path / "receipt.json").read_text())["endpoints"][0]["max_abs"] is None


def test_another_networks_graph(folder, tmp_path):
    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder(tf.float32, (1, 224, 224, 3), name="input")
        (tmp_path / "x_frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    for file in folder.glob("*.ckpt.*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match="no node of MobileNetV2"):
        verify_checkpoint(tmp_path)


def test_a_receipt_without_comparisons_does_not_pass():
    receipt = Receipt("a", "b", 1e-3, {})
    assert not receipt.passed
    receipt.compare("x", np.zeros(3), np.arange(3.0))
    assert receipt.failure.startswith("x is off by 2, 1 of its range")
    receipt.compare("y", np.zeros(3), np.zeros(4))
    assert receipt.failure.startswith("x is off by 2"), "the first failure stays"
    nan = Receipt("a", "b", 1e-3, {})
    nan.compare("x", np.full(3, np.nan), np.arange(3.0))
    assert not nan.passed
