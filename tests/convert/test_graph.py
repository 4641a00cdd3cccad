"""Frozen graphs: only networks run, in a process of their own, within bounds."""

import contextlib
import random

import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras.convert import graph_job
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.graph_operators import MAX_CONSTANT

tf1 = tf.compat.v1


@pytest.fixture
def save(tmp_path):
    """Writes what a function builds on a placeholder as a frozen graph, and gives its path."""

    def write(build, edit=lambda definition: None):
        with tf.Graph().as_default() as graph:
            build(tf1.placeholder(tf.float32, (None,), name="input"))
        definition = graph.as_graph_def()
        edit(definition)
        path = tmp_path / "x_frozen.pb"
        path.write_bytes(definition.SerializeToString())
        return path

    return write


@tf.function
def write_within(x):
    tf.io.write_file("stolen", "text")
    return x


@tf.custom_gradient
def with_gradient(x):
    return tf.identity(x), lambda upstream: upstream


def named(tensor):
    return tf.identity(tensor, name="output")


HARMFUL = {
    "WriteFile": lambda x: tf.io.write_file("stolen", "text"),
    "ReadFile": lambda x: tf.io.read_file("/etc/hostname"),
    "MatchingFiles": lambda x: tf.io.matching_files("/etc/*"),
    "PrintV2": lambda x: tf.raw_ops.PrintV2(input="text", output_stream="file://stolen"),
    "Print": lambda x: tf1.Print(x, [x], "text"),
    "SaveV2": lambda x: tf.raw_ops.SaveV2(prefix="stolen", tensor_names=["x"], shape_and_slices=[""], tensors=[x]),
    "SaveSlices": lambda x: tf.raw_ops.SaveSlices(filename="stolen", tensor_names=["x"], shapes_and_slices=[""], data=[x]),
    "RestoreV2": lambda x: tf.raw_ops.RestoreV2(prefix="p", tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]),
    "SummaryWriter": lambda x: tf.raw_ops.SummaryWriter(shared_name="", container=""),
    "DebugNumericSummaryV2": lambda x: tf.raw_ops.DebugNumericSummaryV2(input=x, tensor_debug_mode=2),
    "DebugIdentity": lambda x: tf.raw_ops.DebugIdentity(input=x, debug_urls=["file:///tmp/stolen"]),
    "EagerPyFunc": lambda x: tf.py_function(print, [x], tf.float32),
    "PyFunc": lambda x: tf1.py_func(print, [x], tf.float32),
    "StatefulPartitionedCall": write_within,
    "VarHandleOp": lambda x: tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=(1,), shared_name="v", container=""),
    "HashTableV2": lambda x: tf.raw_ops.HashTableV2(key_dtype=tf.int64, value_dtype=tf.int64),
    "PartitionedCall": lambda x: tf.function(lambda i: tf.while_loop(lambda i: i < 5, lambda i: i + 1, [i]))(x[0]),
    "StringJoin": lambda x: tf.strings.join(["a", "b"]),
    "IdentityN": with_gradient,
}


@pytest.mark.parametrize("operator", HARMFUL)
def test_a_graph_of_other_operators_is_refused(operator, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(HARMFUL[operator])
    if operator == "IdentityN":  # its attribute names a Python gradient, which no run looks up
        FrozenGraph(path)
        return
    with pytest.raises(ValueError, match=rf"x_frozen\.pb: node '.*', operator {operator}, is not an operator of a MobileNetV2"):
        FrozenGraph(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x_frozen.pb"]


def test_a_text_outside_of_an_assert_is_refused(save):
    with pytest.raises(ValueError, match="operator Identity, has an element type other than numbers in its attribute T"):
        FrozenGraph(save(lambda x: tf.identity(tf.constant("text"))))


def test_functions_of_the_graphs_library_cannot_be_called(save):
    """The library of functions is dropped before the graph is imported."""

    def edit(definition):
        with tf.Graph().as_default() as graph:
            write_within(tf.zeros(1))
        definition.library.CopyFrom(graph.as_graph_def().library)
        definition.library.function[0].signature.name = "Harmless"

    graph = FrozenGraph(save(lambda x: named(x + 1), edit))
    np.testing.assert_array_equal(graph.run({"input": np.ones(2, "f4")}, {"y": "output"})["y"], [2, 2])

    def call(definition):
        edit(definition)
        definition.node[-1].op = "Harmless"

    with pytest.raises(ValueError, match="operator Harmless, is not an operator"):
        FrozenGraph(save(lambda x: named(x + 1), call))


def test_an_attribute_that_names_a_function_is_refused(save):
    def edit(definition):
        definition.node[-1].attr["f"].func.name = "any"

    with pytest.raises(ValueError, match="names a function in its attribute f"):
        FrozenGraph(save(named, edit))


@pytest.mark.parametrize("sides", [[2**20, 2**20], [-1, 3], [MAX_CONSTANT]])
def test_a_constant_of_gigabytes_is_refused_before_it_is_written_out(sides, save):
    def edit(definition):
        shape = next(node for node in definition.node if node.op == "Const").attr["value"].tensor.tensor_shape
        del shape.dim[:]
        for side in sides:
            shape.dim.add().size = side

    with pytest.raises(ValueError, match=r"operator Const, has the shape \["):
        FrozenGraph(save(lambda x: tf.constant(1.0), edit))


def test_a_loop_without_end_is_stopped(save, monkeypatch):
    def build(x):
        with tf1.control_dependencies([x]):
            tf1.disable_control_flow_v2()
            try:
                named(tf1.while_loop(lambda i: i < 1, lambda i: i * 0, [tf.constant(0.0)]))
            finally:
                tf1.enable_control_flow_v2()

    graph = FrozenGraph(save(build))
    monkeypatch.setattr(graph_job, "RUN_SECONDS", 12)
    with pytest.raises(ValueError, match=r"x_frozen\.pb was stopped: a run may take 12 s"):
        graph.run({"input": np.zeros(1, "f4")}, {"y": "output"})


@pytest.mark.parametrize("build", [lambda x: tf.fill((2**34,), x[0]), lambda x: tf.tile(x, [2**34])], ids=["Fill", "Tile"])
def test_memory_of_a_run_is_bounded(build, save):
    graph = FrozenGraph(save(lambda x: named(build(x))))
    with pytest.raises(ValueError, match=r"x_frozen\.pb (was stopped|cannot be run)"):
        graph.run({"input": np.zeros(1, "f4")}, {"y": "output"})
    # The next graph runs in a new process where the last one ended it.
    graph = FrozenGraph(save(lambda x: named(x * 2)))
    np.testing.assert_array_equal(graph.run({"input": np.ones(1, "f4")}, {"y": "output"})["y"], [2])


def test_any_mutated_graph_is_read_or_refused(save):
    path = save(lambda x: named(tf.nn.relu6(tf.matmul(x[None], tf.constant(np.ones((3, 4), "f4"), name="weights")) + 1)))
    content, draw = path.read_bytes(), random.Random(0)
    read = 0
    for _ in range(300):
        mutated = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        path.write_bytes(mutated[: draw.choice([len(mutated)] * 9 + [draw.randrange(len(mutated))])])
        with contextlib.suppress(ValueError):
            graph = FrozenGraph(path)
            assert graph.constants() is not None
            assert graph.input_shape
            read += 1
    assert read > 20
