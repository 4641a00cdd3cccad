"""Real weights: MediaPipe's classifier runs our files as they are, and the report tells how they compare."""

import json

import numpy as np
import pytest
from PIL import Image

from mnv2_keras.export.check import Layer
from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.options import Quantization
from mnv2_keras.export.report import ExportReport, inspect_litert

PHOTOS = {
    "cat.bmp": "Egyptian cat",
    "bird.bmp": "chickadee",
    "hot_dog.jpg": "hotdog, hot dog, red hot",
    "grace_hopper.bmp": "military uniform",
    "dog_segmentation.bmp": "Samoyed, Samoyede",
}


@pytest.fixture(scope="module", params=["float32", "int8"])
def exported(request, imagenet_model, testdata, tmp_path_factory):
    """A file and its report."""
    path = tmp_path_factory.mktemp("export") / f"{request.param}.tflite"
    photos = [testdata / "images" / name for name in PHOTOS]
    return path, export_litert(imagenet_model, path, request.param, quantization=Quantization(photos, steps=("bias_correction",)))


def test_mediapipe_names_the_photos(exported, testdata):
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    path, _ = exported
    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)), max_results=3)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for name, label in PHOTOS.items():
            pixels = np.array(Image.open(testdata / "images" / name).convert("RGB"))
            result = classifier.classify(mediapipe.Image(mediapipe.ImageFormat.SRGB, pixels))
            assert result.classifications[0].categories[0].category_name == label


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
    inspection = inspect_litert(path)
    assert inspection.metadata.labels[286] == "Egyptian cat"
    assert inspection.metadata.normalization == (127.5, 127.5)
    assert "Apache" in inspection.metadata.about["license"]
    assert inspection.operators == report.operators
    assert inspection.arena > 1_000_000
    assert inspection.parameters < inspection.size
    about = json.loads(json.dumps(inspection.as_dict()))
    assert about["associated_files"]["labels.txt"] > 20_000


def test_a_report_is_json_whatever_the_numbers(tmp_path):
    """Equal outputs have an infinite ratio, which JSON cannot express."""
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
