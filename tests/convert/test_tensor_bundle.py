"""The index of a checkpoint is checked before C++ reads it."""

import random
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

from mnv2_keras import convert_checkpoint
from mnv2_keras.convert import tensor_bundle
from mnv2_keras.convert.sources import open_source
from mnv2_keras.convert.tensor_bundle import check_index


def index_of(prefix):
    return prefix.with_name(f"{prefix.name}.index")


def test_a_sound_index_passes(prefix, tmp_path):
    check_index(index_of(prefix))
    names = dict(tensor_bundle._entries(index_of(prefix).read_bytes()))
    assert {name.decode() for name in names} - {""} == set(dict(tf.train.list_variables(str(prefix))))


def test_the_reported_index_is_refused(testdata, prefix, tmp_path):
    shutil.copy(testdata / "reports" / "tf_abort_shape.index", tmp_path / "x.index")
    shutil.copy(f"{prefix}.data-00000-of-00001", tmp_path / "x.data-00000-of-00001")
    with pytest.raises(ValueError, match=r"is not a TensorFlow checkpoint \(x\.index states variable 'MobilenetV2/.*of shape \["):
        convert_checkpoint(tmp_path / "x.index")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": [-1, 3]}, r"of shape \[-1, 3\]"),
        ({"sides": [2**31, 2**31]}, r"of shape \[2147483648, 2147483648\]"),
        ({"sides": [1] * 300}, "of shape"),
        ({"sides": [3, 3, 3, 9]}, r"of shape \[3, 3, 3, 9\] and float32 in 864 bytes"),
        ({"shard_id": 1}, "in data file 1"),
        ({"shard_id": -1}, "in data file -1"),
        ({"offset": -4}, "in data file 0 at -4"),
        ({"offset": 2**40}, "up to byte 1,099,511,628,640 of a file"),
        ({"size": 2**62}, "of a file of"),
        ({"dtype": 99}, "99"),
    ],
)
def test_an_impossible_entry_is_named(change, message, prefix, monkeypatch):
    """What the parser gives is changed, so that the table itself stays valid."""
    entries = dict(tensor_bundle._entries(index_of(prefix).read_bytes()))
    entry = BundleEntryProto.FromString(entries[b"MobilenetV2/Conv/weights"])
    for field, value in change.items():
        if field == "sides":
            del entry.shape.dim[:]
            for side in value:
                entry.shape.dim.add().size = side
        else:
            setattr(entry, field, value)
    entries[b"MobilenetV2/Conv/weights"] = entry.SerializeToString()
    monkeypatch.setattr(tensor_bundle, "_entries", lambda content: entries.items())
    with pytest.raises(ValueError, match=message):
        check_index(index_of(prefix))


def test_any_mutated_index_is_read_or_refused(prefix, network):
    """Seeded mutations: no other error, no end of the process; what is read equals what was written."""
    content = index_of(prefix).read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(200):
        mutated = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        index_of(prefix).write_bytes(mutated[: draw.choice([len(mutated)] * 9 + [draw.randrange(len(mutated))])])
        try:
            with open_source(prefix) as source:
                for name, array in network[1].items():
                    if name in source.shapes:
                        np.testing.assert_array_equal(source.array(name), array)
        except (ValueError, FileNotFoundError):
            refused += 1
    assert refused > 100
