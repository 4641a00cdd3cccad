"""`export_litert`: the numbers, the operators, inputs and outputs, and arguments."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from small_litert import SHAPE, run

from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.options import Quantization
from mnv2_keras.export.report import inspect_litert
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.tflite import TfliteFile, read_metadata

pytestmark = pytest.mark.usefixtures("shared_conversions")


def test_float_file_computes_what_keras_computes(small_model, float_file, noise):
    for image in noise[:3]:
        np.testing.assert_allclose(run(float_file, image[None]), small_model(image[None]), atol=2e-6)


def test_batch_norms_are_folded_and_nothing_pads(float_file):
    kinds = float_file.kinds
    assert set(kinds) == {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "RESHAPE", "SOFTMAX"}
    assert kinds.count("CONV_2D") == 36
    assert kinds.count("DEPTHWISE_CONV_2D") == 17
    assert kinds.count("ADD") == 10


def test_batch_is_static_and_the_signature_is_named(float_file):
    interpreter = Interpreter(model_content=float_file.to_bytes())
    assert interpreter.get_input_details()[0]["shape_signature"].tolist() == [1, *SHAPE]
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["Predictions"]}}


def test_dynamic_batch_on_request(small_model, tmp_path, noise):
    path = tmp_path / "open.tflite"
    report = export_litert(small_model, path, batch=None)
    assert report.inputs[0].shape == (-1, *SHAPE)
    assert report.snr_db > 90
    interpreter = Interpreter(str(path))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (4, *SHAPE))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], noise[:4])
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, small_model(noise[:4]), atol=2e-6)
    assert inspect_litert(path).arena is None


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_static_batch(small_model, tmp_path, noise, precision):
    options = {"compare": False}
    if precision == "int8":
        options["quantization"] = Quantization(noise, steps=("gptq",), input_type="float32")
    report = export_litert(small_model, tmp_path / "four.tflite", precision, batch=4, **options)
    assert report.inputs[0].shape == (4, *SHAPE)
    outputs = run(TfliteFile(tmp_path / "four.tflite"), noise[:4])
    exact = np.asarray(small_model(noise[:4]))
    assert outputs.shape == exact.shape
    np.testing.assert_allclose(outputs, exact, atol=2e-6 if precision == "float32" else 0.05)
    assert np.array_equal(outputs.argmax(1), exact.argmax(1))


@pytest.mark.parametrize(("precision", "least_db", "most_size"), [("float16", 40, 0.55), ("int16x8", 20, 0.5)])
def test_the_converters_other_precisions(small_model, tmp_path, float_file, noise, precision, least_db, most_size):
    path = tmp_path / "model.tflite"
    labels = [f"class {i}" for i in range(11)]
    report = export_litert(small_model, path, precision, quantization=Quantization(noise), labels=labels)
    assert report.snr_db > least_db
    assert precision != "float16" or report.largest_difference < 1e-2
    assert report.top1 == 1.0
    assert report.worst_layer.name in {layer.name for layer in report.layers}
    assert len(report.layers) == 64
    assert path.stat().st_size == report.size < most_size * len(float_file.to_bytes())
    assert read_metadata(path).labels[10] == "class 10"
    if precision == "float16":  # has no ranges: the photos were compared on, no more
        assert (report.calibrated, report.calibration_images, report.warnings) == (None, 0, [])
    else:
        assert (report.calibrated, report.calibration_images) == ("an array of 8 images", 8)
        assert "Only 8 photos to calibrate on" in report.warnings[0]


def test_a_model_of_any_size_asks_for_one(tmp_path):
    model = build_mobilenetv2(0.1, (None, None, 3), classes=3, table=((1, 8, 1, 2),))
    with pytest.raises(ValueError, match=r"resolution=\(height, width\)"):
        export_litert(model, tmp_path / "m.tflite")
    report = export_litert(model, tmp_path / "m.tflite", resolution=(64, 96))
    assert report.inputs[0].shape == (1, 64, 96, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"precision": "int8"}, "needs photos to calibrate on"),
        ({"quantization": Quantization(input_type="uint8")}, "goes with precision='int8'"),
        ({"labels": ["one"]}, "1 labels were given for"),
        ({"quantization": Quantization(ranges=[])}, "ranges go with"),
        ({"resolution": 32}, "is built for 64 x 64"),
        ({"batch": 4}, "compare=False"),
    ],
)
def test_wrong_arguments(small_model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_litert(small_model, tmp_path / "m.tflite", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_to_write(small_model, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        export_litert(small_model, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"), [({"input_type": "int32"}, "input_type is 'int32'"), ({"steps": ["polish"]}, "steps has 'polish'")]
)
def test_wrong_quantization(options, message):
    with pytest.raises(ValueError, match=message):
        Quantization(**options)


def test_old_keywords_of_quantization_warn_and_work(small_model, tmp_path):
    """`calibration`, `input_type`, `output_type`, `ranges` and `refine` of the release before, and the old names of the steps."""
    with pytest.warns(DeprecationWarning, match=r"the step '\w+' is called '\w+' now"):
        assert Quantization(steps=("round", "equalize", "correct")).steps == ("gptq", "cross_layer_equalization", "bias_correction")
    with (
        pytest.warns(DeprecationWarning, match=r"ranges of export_litert: pass quantization=Quantization\(ranges=...\)"),
        pytest.raises(ValueError, match="ranges has 1 layers, the network 64"),
    ):
        export_litert(small_model, tmp_path / "m.tflite", "int8", ranges={"image": (-1, 1), "Conv": (0, 6)})
    with (
        pytest.warns(DeprecationWarning, match=r"refine of export_litert: .*steps=\.\.\."),
        pytest.raises(ValueError, match="needs photos"),
    ):
        export_litert(small_model, tmp_path / "m.tflite", "int8", refine=())
    with pytest.raises(TypeError, match="both quantization and input_type"):
        export_litert(small_model, tmp_path / "m.tflite", "int8", input_type="int8", quantization=Quantization())
    assert list(tmp_path.iterdir()) == []
