"""Detectors as .tflite files: the fused post-processing against ours, and against MediaPipe's reading of the file."""

import keras
import numpy as np
import pytest

from mnv2_keras import build_ssdlite_mobilenetv2, postprocess_detections, preprocess_detection_image, ssd_anchors
from mnv2_keras.boxes import intersection_over_union
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.transfer import load_arrays
from mnv2_keras.data.drawn_shapes import draw_shapes
from mnv2_keras.export.detection import add_postprocessing, export_detector
from mnv2_keras.export.options import Quantization
from mnv2_keras.tflite import open_interpreter, read_metadata

CLASSES = 3
OPTIONS = {"score_threshold": 0.3, "iou_threshold": 0.5, "max_total": 20}
EVERY = {"every_class": True}

pytestmark = pytest.mark.usefixtures("shared_conversions")


@pytest.fixture(scope="module")
def model():
    """A detector whose values come from the name rule."""
    detector = build_ssdlite_mobilenetv2(0.1, (64, 64, 3), classes=CLASSES, min_depth=8)
    load_arrays(detector, {name: name_rule_value(name, v.shape) for name, v in variables(detector).items()})
    return detector


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "detector.tflite"
    report = export_detector(model, path, labels=["circle", "square", "triangle"], **OPTIONS, **EVERY)
    return path, report


def run(content, image, threads=None):
    interpreter = open_interpreter(content, threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return {details["name"]: interpreter.get_tensor(details["index"])[0] for details in interpreter.get_output_details()}


def image():
    return preprocess_detection_image(draw_shapes(0, 64).image, (64, 64))[None]


def test_the_file_detects_what_our_post_processing_detects(model, exported):
    path, report = exported
    assert report.operators["TFLite_Detection_PostProcess"] == 1
    assert report.size == path.stat().st_size
    assert report.largest_difference < 1e-4
    outputs = model(image())
    ours = postprocess_detections(
        outputs["box_encodings"], outputs["class_predictions_with_background"], ssd_anchors((64, 64)), **OPTIONS
    )
    count = int(ours["num"][0])
    assert count > 5
    for threads in (1, 2, 3, 4, 8):  # LiteRT by itself forgets a class on some of these
        outputs_of_file = run(path.read_bytes(), image(), threads)
        assert int(outputs_of_file["num_detections"]) >= count
        np.testing.assert_allclose(outputs_of_file["detection_scores"][:count], ours["scores"][0, :count], atol=1e-4)
        np.testing.assert_array_equal(outputs_of_file["detection_classes"][:count], ours["classes"][0, :count])
        np.testing.assert_allclose(outputs_of_file["detection_boxes"][:count], ours["boxes"][0, :count], atol=1e-4)


def test_metadata_names_labels_and_normalisation(exported):
    metadata = read_metadata(exported[0])
    assert metadata.labels == ["circle", "square", "triangle"]
    assert metadata.normalization == (127.5, 127.5)


def test_mediapipe_finds_the_same_boxes(model, exported):
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    photo = np.ascontiguousarray(draw_shapes(0, 64).image)
    outputs = model(image())
    ours = postprocess_detections(
        outputs["box_encodings"], outputs["class_predictions_with_background"], ssd_anchors((64, 64)), **OPTIONS
    )
    base = BaseOptions(model_asset_path=str(exported[0]))
    with vision.ObjectDetector.create_from_options(vision.ObjectDetectorOptions(base_options=base)) as detector:
        detections = detector.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=photo)).detections
    assert len(detections) >= 5
    names = ["circle", "square", "triangle"]
    for i, detection in enumerate(detections[:5]):
        # The same order; MediaPipe cuts corner and size to whole pixels, each by less than one.
        assert detection.categories[0].category_name == names[int(ours["classes"][0, i])]
        np.testing.assert_allclose(detection.categories[0].score, ours["scores"][0, i], atol=0.01)
        box = detection.bounding_box
        corners = [box.origin_y, box.origin_x, box.origin_y + box.height, box.origin_x + box.width]
        np.testing.assert_allclose(corners, np.asarray(ours["boxes"][0, i]) * 64, atol=2.0)


def test_int8_keeps_the_boxes(model, tmp_path):
    photos = [draw_shapes(seed, 64).image for seed in range(4)]
    path = tmp_path / "int8.tflite"
    report = export_detector(model, path, "int8", quantization=Quantization(photos, steps=()), compare=False, **OPTIONS)
    assert [end.dtype for end in report.inputs] == ["uint8"]
    assert {end.dtype for end in report.outputs} == {"float32"}
    detections = run(path.read_bytes(), photos[0][None])
    assert int(detections["num_detections"]) > 0
    assert report.size < 0.6 * 1872492


def test_one_class_per_anchor_by_default(model, tmp_path):
    path = tmp_path / "fast.tflite"
    export_detector(model, path, compare=False, **OPTIONS)
    detections = run(path.read_bytes(), image())
    boxes = detections["detection_boxes"][: int(detections["num_detections"])]
    overlaps = np.asarray(intersection_over_union(boxes, boxes)) - np.eye(len(boxes))
    assert overlaps.max() <= OPTIONS["iou_threshold"] + 1e-5, "no two boxes overlap, whatever their classes"
    assert read_metadata(path).labels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["one"]}, "1 labels were given for 3 classes"),
        ({"score_threshold": 0}, "score_threshold is 0"),
        ({"max_total": 0}, "max_total is 0"),
        ({"batch": 2}, "batch goes with export_litert"),
        ({"quantization": Quantization(output_type="int8")}, "output_type goes with export_litert"),
    ],
)
def test_bad_arguments(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_detector(model, tmp_path / "x.tflite", **options)
    assert not list(tmp_path.iterdir())


def test_old_keywords_warn(model, tmp_path):
    with (
        pytest.warns(DeprecationWarning, match="pass quantization=Quantization"),
        pytest.raises(ValueError, match="output_type goes with export_litert"),
    ):
        export_detector(model, tmp_path / "x.tflite", "int8", output_type="int8")
    with pytest.raises(TypeError, match="'colour' is not a keyword"):
        export_detector(model, tmp_path / "x.tflite", colour="red")


def test_other_models_are_refused(tmp_path):
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(1, 1)], name="other")
    with pytest.raises(ValueError, match="'other' is not a detector"):
        export_detector(other, tmp_path / "x.tflite")


def test_the_operator_alone_equals_ours_on_many_classes(tmp_path):
    """The network only passes its input on, so that any scores can be tested: 90 classes on 4 threads."""
    from mnv2_keras.export.conversion import convert_in_process

    anchors = ssd_anchors((64, 64))
    image = keras.Input((len(anchors), 1, 95))
    flat = keras.layers.Reshape((len(anchors), 95))(image)
    wired = keras.Model(image, {"box_encodings": flat[..., :4], "scores": flat[..., 4:]})
    file = convert_in_process(wired, "float32", [1, len(anchors), 1, 95])
    assert [file.shape(int(tensor))[-1] for tensor in file.graph.outputs] == [4, 91]
    settings = {"max_detections": 50, "max_classes_per_detection": 1, "detections_per_class": 100, "use_regular_nms": True}
    settings |= {"nms_score_threshold": 0.1, "nms_iou_threshold": 0.6, "num_classes": 90}
    settings |= {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
    add_postprocessing(file, anchors, settings)
    content = file.to_bytes()
    rng = np.random.default_rng(0)
    encodings = rng.normal(0, 1, (1, len(anchors), 4)).astype(np.float32)
    logits = rng.normal(-2, 1.5, (1, len(anchors), 91)).astype(np.float32)
    ours = postprocess_detections(encodings, logits, anchors, score_threshold=0.1, max_total=50)
    inputs = np.concatenate([encodings, 1 / (1 + np.exp(-logits))], -1)[:, :, None]
    for threads in (1, 4):
        detections = run(content, inputs, threads)
        np.testing.assert_array_equal(detections["detection_classes"], ours["classes"][0])
        np.testing.assert_allclose(detections["detection_scores"], ours["scores"][0], atol=1e-5)
