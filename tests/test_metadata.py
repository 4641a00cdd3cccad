"""Metadata against MediaPipe: its own generated schema reads what we write, and its classifier runs our files as they are."""

import json

import numpy as np
import pytest
from PIL import Image

from mnv2_keras.export.calibration import load_photos
from mnv2_keras.export.check import Layer
from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.metadata import classifier_metadata, labels_file, model_metadata
from mnv2_keras.export.report import ExportReport, inspect_litert
from mnv2_keras.preprocessing import preprocess_image
from mnv2_keras.tflite import Metadata, add_metadata, labels_in_file, read_metadata
from mnv2_keras.tflite import metadata as ours
from mnv2_keras.tflite.tables import pack_table, unpack_table

PHOTOS = {
    "cat.bmp": "Egyptian cat",
    "bird.bmp": "chickadee",
    "hot_dog.jpg": "hotdog, hot dog, red hot",
    "grace_hopper.bmp": "military uniform",
    "dog_segmentation.bmp": "Samoyed, Samoyede",
}


@pytest.fixture(scope="module")
def real_model(testdata):
    from mnv2_keras.conversion import convert_checkpoint

    return convert_checkpoint(testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz")


@pytest.fixture(scope="module", params=["float32", "int8"])
def exported(request, real_model, testdata, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / f"{request.param}.tflite"
    photos = [testdata / "images" / name for name in PHOTOS]
    return path, export_litert(real_model, path, request.param, calibration=photos)


def test_mediapipe_names_the_photos(exported, testdata):
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    path, _ = exported
    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)), max_results=3)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for name, label in PHOTOS.items():
            pixels = np.array(Image.open(testdata / "images" / name).convert("RGB"))
            found = classifier.classify(mediapipe.Image(mediapipe.ImageFormat.SRGB, pixels))
            assert found.classifications[0].categories[0].category_name == label


def test_the_report_of_real_weights(exported, tmp_path):
    path, report = exported
    assert report.size == path.stat().st_size
    assert report.top1 == 1.0
    assert report.images == 5
    if report.precision == "float32":
        assert report.largest_difference < 1e-4
        assert report.snr_db > 90
        assert report.inputs[0].dtype == "float32"
        assert abs(report.size / 14_000_000 - 1) < 0.01
    else:
        assert report.inputs[0].dtype == "uint8"
        assert report.snr_db > 20
        assert report.size <= 0.29 * 14_029_324
        assert "Only 5 photos" in report.warnings[0]
        assert "%" in report.warnings[0]
        assert report.worst_layer in report.layers
        assert report.plot_layers(tmp_path / "layers.png").stat().st_size > 10_000
    assert json.loads(report.save(tmp_path / "report.json").read_text())["snr_db"] == report.snr_db


def test_inspection_reads_it_back(exported):
    path, report = exported
    found = inspect_litert(path)
    assert found.metadata.labels[286] == "Egyptian cat"
    assert found.metadata.normalization == (127.5, 127.5)
    assert "Apache" in found.metadata.about["license"]
    assert found.operators == report.operators
    assert found.arena > 1_000_000
    assert found.parameters < found.size
    about = json.loads(json.dumps(found.as_dict()))
    assert about["associated_files"]["labels.txt"] > 20_000


def test_mediapipes_schema_reads_our_tables():
    generated = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    about = classifier_metadata(["one", "two"], name="n").about
    packed = pack_table(ours.SCHEMA, "ModelMetadata", about, b"M001")
    read = generated.ModelMetadataT.InitFromPackedBuf(bytearray(packed), 0)
    assert read.name == b"n"
    subgraph = read.subgraphMetadata[0]
    unit = subgraph.inputTensorMetadata[0].processUnits[0]
    assert unit.optionsType == generated.ProcessUnitOptions.NormalizationOptions
    assert unit.options.mean.tolist() == [127.5]
    assert subgraph.inputTensorMetadata[0].content.contentProperties.colorSpace == generated.ColorSpaceType.RGB
    file = subgraph.outputTensorMetadata[0].associatedFiles[0]
    assert (file.name, file.type) == (b"labels.txt", generated.AssociatedFileType.TENSOR_AXIS_LABELS)
    assert unpack_table(ours.SCHEMA, "ModelMetadata", packed, b"M001") == about


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
    theirs = read_metadata(model)  # written by another program
    assert theirs.about["name"] == "ImageClassifier"
    assert theirs.labels[:2] == ["background", "tench, Tinca tinca"]
    assert theirs.normalization == (127.5, 127.5)
    once = add_metadata(model, classifier_metadata(["a"] * 1001))
    other = add_metadata(once, classifier_metadata(["b"] * 1001, name="other"))
    assert add_metadata(other, classifier_metadata(["a"] * 1001)) == once
    assert read_metadata(other).labels == ["b"] * 1001
    assert read_metadata(other).about["name"] == "other"
    assert inspect_litert(other).path is None


def test_labels_are_those_that_the_metadata_names(testdata):
    """Not the file that comes first; without a name in the metadata, the first text file."""
    quantised = (testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    assert labels_in_file(quantised)[:2] == ("background", "tench, Tinca tinca")
    named = classifier_metadata(["a"] * 1001)
    extra = Metadata(named.about, {"about.txt": b"no labels", **named.files})
    assert labels_in_file(add_metadata(quantised, extra)) == ("a",) * 1001
    assert labels_in_file(add_metadata(quantised, Metadata({}, {"x.json": b"", "names.txt": b"b\nc\n"}))) == ("b", "c")
    assert labels_in_file(add_metadata(quantised, Metadata({}, {"names.txt": b"\xff"}))) is None
    assert labels_in_file(add_metadata(quantised, Metadata({}))) is None


def test_labels_have_one_line_each():
    with pytest.raises(ValueError, match="line break"):
        labels_file(["good", "bad\nlabel"])
    with pytest.raises(ValueError, match="line break"):
        labels_file(["good", "bad\rlabel\n"])
    assert labels_file(["one\n", "two\r\n", "", "four"])[1] == {
        "labels.txt": b"one\ntwo\n\nfour\n"
    }  # as readlines gives
    made = model_metadata("n", "d", [], [], custom=[("MINE", b"1234")])
    assert made.about["subgraph_metadata"][0]["custom_metadata"] == [{"name": "MINE", "data": b"1234"}]
    assert made.labels is None
    assert made.normalization is None
    assert made.missing == []


def test_a_report_is_json_whatever_the_numbers(tmp_path):
    """Equal outputs have an infinite ratio, which JSON has no word for."""
    infinite = float("inf")
    report = ExportReport("m.tflite", "float32", snr_db=infinite, snr_db_each=[infinite, 30.0])
    report.layers = [Layer("Conv", "CONV_2D", infinite)]
    about = json.loads(report.save(tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert (about["snr_db"], about["snr_db_each"], about["layers"][0]["snr_db"]) == (None, [None, 30.0], None)


def test_a_plot_that_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    report = ExportReport("m.tflite", "int8", layers=[Layer("Conv", "CONV_2D", 30.0)])
    assert report.plot_layers(tmp_path / "new" / "layers.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(ValueError, match=r"figures are drawn as \.png or \.svg"):
        report.plot_layers(tmp_path / "layers.doc")
    monkeypatch.setattr("mnv2_keras.figures.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        report.plot_layers(tmp_path / "layers.png")


def test_files_that_are_none(tmp_path, testdata):
    with pytest.raises(FileNotFoundError, match=r"no \.tflite file"):
        inspect_litert(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("hello, I am a text")
    with pytest.raises(ValueError, match=r"not a \.tflite"):
        inspect_litert(tmp_path / "text.tflite")
    whole = (testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite").read_bytes()
    (tmp_path / "half.tflite").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        inspect_litert(tmp_path / "half.tflite")


# Calibration


def test_calibration_skips_and_names_what_is_no_image(tmp_path, testdata):
    for name in ("cat.bmp", "bird.bmp"):
        (tmp_path / name).write_bytes((testdata / "images" / name).read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    found = load_photos(tmp_path, (64, 64))
    assert len(found.images) == 2
    assert found.images[0].shape == (1, 64, 64, 3)
    assert len(found.skipped) == 1
    assert "notes.txt" in found.skipped[0]


def test_calibration_takes_arrays_pairs_and_dicts():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    wanted = load_photos(photos, (16, 16)).images
    seen = []
    for form in (list(photos), [(photo, 1) for photo in photos], [{"image": photo, "label": 2} for photo in photos]):
        found = load_photos(iter(form), (16, 16), progress=lambda *step: seen.append(step)).images
        np.testing.assert_array_equal(found, wanted)
    assert seen[-1][1] == 3
    floats = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(load_photos(floats, (16, 16)).images), floats)
    scaled = load_photos(photos, (16, 16), (0.0, 255.0)).images[0]
    np.testing.assert_allclose(scaled, (wanted[0] + 1) * 127.5, atol=1e-4)
    assert len(load_photos(photos, (16, 16), limit=2).images) == 2


def test_calibration_in_grey():
    """Colours weighed as the Classifier weighs them; what has other channels is refused."""
    photos = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    found = load_photos(photos, (16, 16), channels=1).images
    grey = [np.asarray(Image.fromarray(photo).convert("L")) for photo in photos]
    for image, theirs in zip(found, grey, strict=True):
        assert image.shape == (1, 16, 16, 1)
        np.testing.assert_array_equal(image[0, ..., 0], preprocess_image(theirs, 16)[..., 0])
    with pytest.raises(ValueError, match="the model takes 16 x 16 x 1: give"):
        load_photos(np.zeros((1, 16, 16, 3), np.float32), (16, 16), channels=1)
    with pytest.raises(ValueError, match="takes 5 channels, a photo has 3"):
        load_photos(photos, (16, 16), channels=5)


def test_calibration_is_spread_over_the_folders(tmp_path):
    """Eight photos of eight folders with four each: one of each, or another where the one is broken."""
    for kind in range(8):
        (tmp_path / str(kind)).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (kind * 30, 0, 0)).save(tmp_path / str(kind) / f"{i}.png")
    found = load_photos(tmp_path, (8, 8), (0.0, 255.0), limit=8)
    assert [round(float(image[0, 0, 0, 0])) for image in found.images] == [kind * 30 for kind in range(8)]
    (tmp_path / "3" / "0.png").write_bytes(b"broken")
    found = load_photos(tmp_path, (8, 8), limit=8)
    assert len(found.images) == 8
    assert len(found.skipped) == 1


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros((16, 16, 3), np.float32), "expected a batch"),
        (np.zeros((1, 8, 8, 3), np.float32), "the model takes 16 x 16"),
        (np.full((1, 16, 16, 3), 9, np.float32), "reaches from 9"),
        (np.full((1, 16, 16, 3), np.nan, np.float32), "reaches from nan"),
        ([], "gives no photo"),
        (3, "expected a folder"),
        ("tfds:no_such_set:train", "cannot be read"),
    ],
)
def test_wrong_calibration(source, said):
    with pytest.raises(ValueError, match=said):
        load_photos(source, (16, 16))


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        load_photos(tmp_path, (16, 16))
    with pytest.raises(FileNotFoundError):
        load_photos(tmp_path / "none", (16, 16))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"gives no photo.*notes\.txt"):
        load_photos(tmp_path, (16, 16))
