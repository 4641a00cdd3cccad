"""Keras to .tflite and back out of the file: the numbers, the operators, the ends, and failures that leave nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from mnv2_keras.atomic import write_bytes
from mnv2_keras.export.conversion import check_operators, convert_litert
from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.report import inspect_litert
from mnv2_keras.tflite import TfliteFile, read_metadata

SHAPE = (64, 64, 3)


@pytest.fixture(scope="module")
def model():
    """Small, with other weights than the initial ones in its batch norms."""
    import keras

    from mnv2_keras.networks.classifier import build_mobilenetv2

    keras.utils.set_random_seed(3)
    model = build_mobilenetv2(0.35, SHAPE, classes=11)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, gamma.shape),
                    rng.normal(0, 0.3, beta.shape),
                    rng.normal(0, 0.1, mean.shape),
                    rng.uniform(0.05, 0.2, variance.shape),
                ]
            )
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (6, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def float_file(model) -> bytes:
    return convert_litert(model)


def run(content: bytes, image: np.ndarray) -> np.ndarray:
    """Another reader than ours: the interpreter as anyone uses it."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = given["quantization"]
    if scale:
        info = np.iinfo(given["dtype"])
        image = np.clip(np.round(image / scale) + zero_point, info.min, info.max)
    interpreter.set_tensor(given["index"], image.astype(given["dtype"]))
    interpreter.invoke()
    output = interpreter.get_tensor(made["index"])
    scale, zero_point = made["quantization"]
    return (output.astype(np.float32) - zero_point) * scale if scale else output


def test_float_file_computes_what_keras_computes(model, float_file, images):
    for image in images[:3]:
        np.testing.assert_allclose(run(float_file, image[None]), model(image[None]), atol=2e-6)


def test_batch_norms_are_folded_and_nothing_pads(float_file):
    kinds = TfliteFile(float_file).kinds
    assert set(kinds) == {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "RESHAPE", "SOFTMAX"}
    assert kinds.count("CONV_2D") == 36
    assert kinds.count("DEPTHWISE_CONV_2D") == 17
    assert kinds.count("ADD") == 10


def test_batch_is_static_and_the_signature_is_named(float_file):
    interpreter = Interpreter(model_content=float_file)
    assert interpreter.get_input_details()[0]["shape_signature"].tolist() == [1, *SHAPE]
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["Predictions"]}}


def test_kernels_lie_where_the_format_wants_them(float_file):
    file = TfliteFile(float_file)
    written = file.to_bytes()
    for buffer in file.model.buffers:
        if buffer.data is not None and len(buffer.data) > 1000:
            assert written.index(bytes(buffer.data)) % 16 == 0


def test_an_edited_file_is_the_same_network(float_file, images):
    again = TfliteFile(TfliteFile(float_file).to_bytes()).to_bytes()
    np.testing.assert_array_equal(run(float_file, images[:1]), run(again, images[:1]))


def test_the_child_computes_what_this_process_would(model, float_file, images, tmp_path):
    import json

    from mnv2_keras.export import conversion

    model.save(tmp_path / "model.keras")
    (tmp_path / "job.json").write_text(json.dumps({"precision": "float32", "shape": [1, *SHAPE]}))
    conversion._convert_job(tmp_path)
    here = conversion.with_signature((tmp_path / "model.tflite").read_bytes(), ["Predictions"])
    assert json.loads((tmp_path / "outputs.json").read_text()) == ["Predictions"]
    for image in images:
        np.testing.assert_array_equal(run(here, image[None]), run(float_file, image[None]))


def test_dynamic_batch_on_request(model, tmp_path, images):
    path = tmp_path / "open.tflite"
    report = export_litert(model, path, batch=None)
    assert report.inputs[0].shape == (-1, *SHAPE)
    assert report.snr_db > 90
    interpreter = Interpreter(str(path))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (4, *SHAPE))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images[:4])
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, model(images[:4]), atol=2e-6)
    assert inspect_litert(path).arena is None


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_static_batch(model, tmp_path, images, precision):
    options = {"compare": False}
    if precision == "int8":
        options |= {"calibration": images, "refine": ("round",), "input_type": "float32"}
    report = export_litert(model, tmp_path / "four.tflite", precision, batch=4, **options)
    assert report.inputs[0].shape == (4, *SHAPE)
    made = run((tmp_path / "four.tflite").read_bytes(), images[:4])
    exact = np.asarray(model(images[:4]))
    assert made.shape == exact.shape
    np.testing.assert_allclose(made, exact, atol=2e-6 if precision == "float32" else 0.05)
    assert np.array_equal(made.argmax(1), exact.argmax(1))


@pytest.mark.parametrize(("precision", "least_db", "most_size"), [("float16", 40, 0.55), ("int16x8", 20, 0.5)])
def test_the_converters_other_precisions(model, tmp_path, float_file, images, precision, least_db, most_size):
    path = tmp_path / "model.tflite"
    report = export_litert(model, path, precision, calibration=images, labels=[f"class {i}" for i in range(11)])
    assert report.snr_db > least_db
    assert precision != "float16" or report.largest_difference < 1e-2
    assert report.top1 == 1.0
    assert report.worst_layer.name in {layer.name for layer in report.layers}
    assert len(report.layers) == 64
    assert path.stat().st_size == report.size < most_size * len(float_file)
    assert read_metadata(path).labels[10] == "class 10"
    if precision == "float16":  # has no ranges: the photos were compared on, no more
        assert (report.calibrated, report.calibration_images, report.warnings) == (None, 0, [])
    else:
        assert (report.calibrated, report.calibration_images) == ("an array of 6 images", 6)
        assert "Only 6 photos to calibrate on" in report.warnings[0]


def test_a_dead_channel_is_cleared(model):
    import keras

    from mnv2_keras.export.conversion import clear_dead_channels

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    layer = copy.get_layer("Conv")
    kernel = np.array(layer.kernel)
    kernel[..., 3] = 1e-21
    layer.kernel.assign(kernel)
    clear_dead_channels(copy)
    cleared = np.asarray(layer.kernel)
    assert np.all(cleared[..., 3] == 0)
    np.testing.assert_array_equal(cleared[..., :3], kernel[..., :3])


def test_a_failed_conversion_leaves_no_file(tmp_path):
    import keras

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.ops.fft2((image, image))[0], name="transformed")
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="no file was written"):
        export_litert(model, path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_conversion_leaves_no_file(model, tmp_path, monkeypatch):
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr("mnv2_keras.subprocess_job.sys.executable", str(killer))
    with pytest.raises(ValueError, match="ended by signal 9; no file was written"):
        export_litert(model, tmp_path / "model.tflite")
    assert [each.name for each in tmp_path.iterdir()] == ["python"]


def test_a_killed_export_leaves_neither_file_nor_process(tmp_path):
    """The parent gets SIGKILL while its child converts: the child ends too, and takes its folder along."""
    code = (
        "from mnv2_keras import build_mobilenetv2\n"
        "from mnv2_keras.export.litert import export_litert\n"
        f"export_litert(build_mobilenetv2(0.35, (96, 96, 3)), {str(tmp_path / 'out' / 'model.tflite')!r})\n"
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(folder)})

    def children():
        return [line for line in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split() if line]

    deadline = time.monotonic() + 120
    while not (list(folder.glob("mnv2-export-*/job.json")) and children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = children()

    def alive():
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    time.sleep(3)  # it has begun to import TensorFlow
    parent.kill()
    parent.wait()
    while list(folder.glob("mnv2-export-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(folder.glob("mnv2-export-*"))
    assert not (tmp_path / "out").exists()
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive()


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mnv2_keras.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "model.tflite", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_rights_of_any_new_file(tmp_path):
    kept = os.umask(0o077)
    try:
        write_bytes(tmp_path / "mine", b"content")
        os.umask(0o002)
        write_bytes(tmp_path / "ours", b"content")
    finally:
        os.umask(kept)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("mine", "ours")] == [0o600, 0o664]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine", "ours"]


def test_strange_operators_are_named(float_file, monkeypatch):
    monkeypatch.setattr(TfliteFile, "kinds", ["CONV_2D", "FlexErf"])
    with pytest.raises(ValueError, match="FlexErf"):
        check_operators(float_file, "mine")


def test_a_model_of_any_size_asks_for_one(tmp_path):
    from mnv2_keras.networks.classifier import build_mobilenetv2

    model = build_mobilenetv2(0.35, (None, None, 3), classes=3)
    with pytest.raises(ValueError, match=r"resolution=\(height, width\)"):
        export_litert(model, tmp_path / "m.tflite")
    report = export_litert(model, tmp_path / "m.tflite", resolution=(64, 96))
    assert report.inputs[0].shape == (1, 64, 96, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"precision": "int8"}, "needs photos to calibrate on"),
        ({"input_type": "int32"}, "input_type is 'int32'"),
        ({"input_type": "uint8"}, "goes with precision='int8'"),
        ({"precision": "int8", "refine": ["polish"]}, "refine has 'polish'"),
        ({"labels": ["one"]}, "1 labels for outputs"),
        ({"ranges": {}}, "ranges go with"),
        ({"resolution": 32}, "is built for 64 x 64"),
        ({"batch": 4}, "compare=False"),
    ],
)
def test_wrong_arguments(model, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        export_litert(model, tmp_path / "m.tflite", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_to_write(model, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        export_litert(model, tmp_path)
