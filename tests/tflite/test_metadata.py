"""Metadata: MediaPipe's own generated schema reads what we write, and we read what others wrote."""

import pytest

from mnv2_keras.export.metadata import add_labels, classifier_metadata, model_metadata
from mnv2_keras.export.report import inspect_litert
from mnv2_keras.tflite import Metadata, add_metadata, labels_in_file, read_metadata
from mnv2_keras.tflite.metadata import SCHEMA
from mnv2_keras.tflite.tables import pack_table, unpack_table


def test_mediapipes_schema_reads_our_tables():
    generated = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    about = classifier_metadata(["one", "two"], name="n").about
    packed = pack_table(SCHEMA, "ModelMetadata", about, b"M001")
    read = generated.ModelMetadataT.InitFromPackedBuf(bytearray(packed), 0)
    assert read.name == b"n"
    subgraph = read.subgraphMetadata[0]
    unit = subgraph.inputTensorMetadata[0].processUnits[0]
    assert unit.optionsType == generated.ProcessUnitOptions.NormalizationOptions
    assert unit.options.mean.tolist() == [127.5]
    assert subgraph.inputTensorMetadata[0].content.contentProperties.colorSpace == generated.ColorSpaceType.RGB
    file = subgraph.outputTensorMetadata[0].associatedFiles[0]
    assert (file.name, file.type) == (b"labels.txt", generated.AssociatedFileType.TENSOR_AXIS_LABELS)
    assert unpack_table(SCHEMA, "ModelMetadata", packed, b"M001") == about


def test_every_kind_of_field_comes_back():
    schema = {
        "Root": (
            ("flag", "bool"),
            ("small", "byte"),
            ("numbers", "[int]"),
            ("counts", "[uint]"),
            ("names", "[string]"),
            ("data", "[ubyte]"),
            ("either", ("A", "B")),
            ("many", "[A]"),
            ("one", "B"),
        ),
        "A": (("x", "float"),),
        "B": (("text", "string"),),
    }
    value = {
        "flag": True,
        "small": -3,
        "numbers": [1, -2, 3],
        "counts": [4_000_000_000],
        "names": ["a", "zwölf"],
        "data": bytes(range(33)),
        "either": ("B", {"text": "é"}),
        "many": [{"x": 0.5}, {}],
        "one": {"text": ""},
    }
    packed = pack_table(schema, "Root", value, b"TEST")
    assert unpack_table(schema, "Root", packed, b"TEST") == value
    assert unpack_table(schema, "Root", pack_table(schema, "Root", {}, b"TEST"), b"TEST") == {}
    with pytest.raises(ValueError, match="no field 'colour'"):
        pack_table(schema, "Root", {"colour": 1}, b"TEST")
    with pytest.raises(ValueError, match="expected b'ELSE'"):
        unpack_table(schema, "Root", packed, b"ELSE")
    with pytest.raises(ValueError, match="damaged"):
        unpack_table(schema, "Root", packed[:40], b"TEST")


def test_metadata_is_replaced_and_the_same_every_time(testdata):
    model = (testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    official = read_metadata(model)  # written by another program
    assert official.about["name"] == "ImageClassifier"
    assert official.labels[:2] == ["background", "tench, Tinca tinca"]
    assert official.normalization == (127.5, 127.5)
    once = add_metadata(model, classifier_metadata(["a"] * 1001))
    other = add_metadata(once, classifier_metadata(["b"] * 1001, name="other"))
    assert add_metadata(other, classifier_metadata(["a"] * 1001)) == once
    assert read_metadata(other).labels == ["b"] * 1001
    assert read_metadata(other).about["name"] == "other"
    assert inspect_litert(other).path is None


def test_labels_are_those_that_the_metadata_names(testdata):
    """Not simply the first file; without a name in the metadata, it is the first text file."""
    quantised = (testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    assert labels_in_file(quantised)[:2] == ("background", "tench, Tinca tinca")
    named = classifier_metadata(["a"] * 1001)
    extra = Metadata(named.about, {"about.txt": b"no labels", **named.files})
    assert labels_in_file(add_metadata(quantised, extra)) == ("a",) * 1001
    assert labels_in_file(add_metadata(quantised, Metadata({}, {"x.json": b"", "names.txt": b"b\nc\n"}))) == ("b", "c")
    with pytest.raises(ValueError, match=r"The associated file names\.txt is not UTF-8 text"):
        labels_in_file(add_metadata(quantised, Metadata({}, {"names.txt": b"\xff"})))
    two = Metadata({}, {"a.txt": b"a", "b.txt": b"b"})
    assert labels_in_file(add_metadata(quantised, two)) is None  # no metadata says which one holds the labels
    assert labels_in_file(add_metadata(quantised, Metadata({}))) is None


def test_labels_have_one_line_each():
    with pytest.raises(ValueError, match="line break"):
        add_labels({}, ["good", "bad\nlabel"])
    with pytest.raises(ValueError, match="line break"):
        add_labels({}, ["good", "bad\rlabel\n"])
    lines = ["one\n", "two\r\n", "", "four"]  # as readlines gives
    assert add_labels({}, lines) == {"labels.txt": b"one\ntwo\n\nfour\n"}
    metadata = model_metadata("n", "d", [], [], custom_metadata=[{"name": "MINE", "data": b"1234"}])
    assert metadata.about["subgraph_metadata"][0]["custom_metadata"] == [{"name": "MINE", "data": b"1234"}]
    assert metadata.labels is None
    assert metadata.normalization is None
    assert metadata.missing == []
