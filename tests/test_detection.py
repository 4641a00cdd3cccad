"""What surrounds the detector, against the Object Detection API: preprocessing and post-processing."""

import functools
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras import postprocess_detections, preprocess_detection_image, ssd_anchors
from mnv2_keras.boxes import decode_boxes
from mnv2_keras.detection import postprocess_arrays

ANCHORS = ssd_anchors((300, 300))


def synthetic(batch=2, classes=90):
    encodings = np.random.Generator(np.random.PCG64(1)).normal(0, 1, (2, 1917, 4)).astype(np.float32)
    logits = np.random.Generator(np.random.PCG64(2)).normal(-4, 1.5, (2, 1917, 91)).astype(np.float32)
    return encodings[:batch], logits[:batch, :, : classes + 1]


@pytest.fixture(params=[postprocess_detections, postprocess_arrays], ids=["tensorflow", "numpy"])
def postprocess(request):
    """Each version of the post-processing, with arrays as its result."""
    return lambda *args, **options: {name: np.asarray(x) for name, x in request.param(*args, **options).items()}


def assert_same_detections(result, genuine, boxes=1e-5):
    np.testing.assert_array_equal(result["classes"], genuine["detection_classes"])
    np.testing.assert_array_equal(result["num"], genuine["num_detections"])
    np.testing.assert_allclose(result["boxes"], genuine["detection_boxes"], rtol=0, atol=boxes)
    np.testing.assert_allclose(result["scores"], genuine["detection_scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prefix", "window"), [("detections", None), ("clipped_200x260", [[0, 0, 200 / 300, 260 / 300], [0, 0, 1, 1]])]
)
def test_equals_the_object_detection_api(postprocess, testdata, prefix, window):
    golden = np.load(testdata / "golden" / "detection" / "ssdlite_postprocess_loss_golden.npz")
    genuine = {key.removeprefix(f"{prefix}/"): golden[key] for key in golden.files if key.startswith(prefix)}
    assert_same_detections(postprocess(*synthetic(), ANCHORS, clip_window=window), genuine)


def test_equals_it_with_the_exact_ties_of_a_saturated_network(postprocess, testdata):
    golden = np.load(testdata / "golden" / "detection" / "ssdlite_golden.npz")
    genuine = {key.removeprefix("detections/"): golden[key] for key in golden.files if key.startswith("detections/")}
    outputs = golden["box_encodings"], golden["class_predictions_with_background"]
    assert_same_detections(postprocess(*outputs, golden["anchors"]), genuine)


@pytest.fixture(scope="module")
def exported(testdata):
    """The genuine exported graph, parsed."""
    definition = tf.compat.v1.GraphDef()
    with tarfile.open(testdata / "checkpoints" / "ssdlite_mobilenet_v2_coco_synthetic.tar.gz") as tar:
        member = next(member for member in tar if member.name.endswith("frozen_inference_graph.pb"))
        definition.ParseFromString(tar.extractfile(member).read())
    return definition


def run(definition, feed, names):
    """The values of nodes, by name."""
    settings = tf.compat.v1.ConfigProto()
    settings.graph_options.rewrite_options.disable_meta_optimizer = True  # it takes longer than the one run
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
        with tf.compat.v1.Session(graph=graph, config=settings) as session:
            values = session.run([f"{name}:0" for name in names], {f"{name}:0": value for name, value in feed.items()})
    return dict(zip(names, values, strict=True))


@pytest.fixture(scope="module")
def at_thresholds(exported):
    """From a score and an overlap to the graph's detections of `synthetic(1)`."""
    encodings, logits = synthetic(1)
    feed = {"Squeeze": encodings, "concat_1": logits, "image_tensor": np.zeros((1, 300, 300, 3), np.uint8)}
    nodes = {node.name: node for node in exported.node}

    @functools.cache
    def detections(score, iou):
        for node in exported.node:
            if node.op == "NonMaxSuppressionV5":
                for place, value in ((3, iou), (4, score)):
                    nodes[node.input[place]].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.float32(value)))
        return run(exported, feed, ("detection_boxes", "detection_scores", "detection_classes", "num_detections"))

    return detections


@pytest.mark.parametrize(("score", "iou"), [(0.5, 0.6), (0.9, 0.6), (0.99, 0.6), (0.2, 0.1)])
def test_equals_the_exported_graph_at_other_thresholds(postprocess, at_thresholds, score, iou):
    genuine = at_thresholds(score, iou).copy()
    real = np.arange(100) < genuine["num_detections"][:, None]
    # The exporter's 1 is added to the padding too.
    genuine["detection_classes"] = (genuine["detection_classes"] - 1) * real
    assert_same_detections(postprocess(*synthetic(1), ANCHORS, score_threshold=score, iou_threshold=iou), genuine)


def test_frozen_outputs_of_the_golden(testdata, exported):
    golden = np.load(testdata / "golden" / "detection" / "ssdlite_frozen_uint8_golden.npz")
    for height, width in ((300, 300), (240, 320)):
        image = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        (first,) = (node for node in exported.node if node.name == "FeatureExtractor/MobilenetV2/Conv/Conv2D")
        values = run(exported, {"image_tensor": image}, ("Squeeze", "concat_1", first.input[0]))
        encodings, logits, prepared = values.values()
        np.testing.assert_allclose(preprocess_detection_image(image[0]), prepared[0], rtol=0, atol=1e-6)
        raw = golden[f"{height}x{width}/raw_detection_boxes"]
        for to_library in (np.asarray, tf.constant):
            np.testing.assert_allclose(decode_boxes(to_library(encodings), ANCHORS), raw, rtol=0, atol=2e-3)
        detections = postprocess_detections(encodings, logits, ANCHORS)
        np.testing.assert_array_equal(detections["num"], golden[f"{height}x{width}/num_detections"])
        scores = golden[f"{height}x{width}/detection_scores"]
        np.testing.assert_allclose(detections["scores"], scores, rtol=0, atol=1e-5)


def test_fewer_things_than_asked_for(postprocess):
    encodings, logits = synthetic(1)
    result = postprocess(encodings, logits, ANCHORS, score_threshold=0.9, max_total=7)
    count = int(result["num"][0])
    assert 0 < count < 7
    assert result["boxes"].shape == (1, 7, 4)
    assert not result["boxes"][0, count:].any()
    nothing = postprocess(encodings, np.full_like(logits, -100), ANCHORS)
    assert int(nothing["num"][0]) == 0
    assert not any(value.any() for value in nothing.values())


def test_more_asked_for_than_there_can_be(postprocess):
    encodings, logits = synthetic(1, classes=1)
    few = postprocess(encodings[:, :5], logits[:, :5], ANCHORS[:5], max_per_class=2, max_total=50)
    assert few["boxes"].shape == (1, 50, 4)
    assert 0 < int(few["num"][0]) <= 2


def test_boxes_outside_the_window_are_dropped_and_the_rest_is_relative_to_it(postprocess):
    anchors = np.float32([[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 0.8, 0.8], [0.9, 0.9, 1.3, 1.3]])
    logits = np.float32([[[0, 3], [0, 2], [0, 1]]])
    encodings = np.zeros((1, 3, 4), np.float32)
    window = [0.5, 0.5, 1.0, 1.0]
    result = postprocess(encodings, logits, anchors, clip_window=window)
    assert result["num"].tolist() == [2]
    np.testing.assert_allclose(result["boxes"][0, :2], [[0, 0, 0.6, 0.6], [0.8, 0.8, 1, 1]], atol=1e-6)
    assert result["classes"][0, :2].tolist() == [0, 0]


def test_nan_is_left_out(postprocess):
    encodings, logits = (outputs.copy() for outputs in synthetic(1))
    clean = postprocess(encodings[:, 5:], logits[:, 5:], ANCHORS[5:])
    encodings[0, :3, 2] = np.nan
    logits[0, 3:5] = np.nan
    result = postprocess(encodings, logits, ANCHORS)
    for name in result:
        np.testing.assert_allclose(result[name], clean[name], atol=1e-6)


def test_in_a_graph_of_unknown_batch():
    @tf.function(input_signature=[tf.TensorSpec((None, 1917, 4)), tf.TensorSpec((None, 1917, 91))])
    def run(encodings, logits):
        return postprocess_detections(encodings, logits, ANCHORS)

    result = run(*synthetic())
    for name, value in postprocess_detections(*synthetic(), ANCHORS).items():
        np.testing.assert_array_equal(result[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": ANCHORS[:5]}, "do not fit"),
        ({"box_encodings": np.zeros((1, 1917, 5))}, "do not fit"),
        ({"class_predictions_with_background": np.zeros((1, 1917, 1))}, "do not fit"),
        ({"class_predictions_with_background": np.zeros((2, 1917, 3))}, "do not fit"),
        ({"score_threshold": -0.1}, "score_threshold is -0.1"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5"),
        ({"max_per_class": 0}, "max_per_class is 0"),
        ({"max_total": 2.0}, "max_total is 2.0"),
        ({"clip_window": [0, 0, 0, 1]}, "ymin < ymax"),
        ({"clip_window": np.zeros((3, 4))}, r"expected \(4,\) or \(1, 4\)"),
    ],
)
def test_bad_arguments(postprocess, change, message):
    arguments = {"box_encodings": np.zeros((1, 1917, 4)), "class_predictions_with_background": np.zeros((1, 1917, 3))}
    with pytest.raises(ValueError, match=message):
        postprocess(**(arguments | {"anchors": ANCHORS} | change))


def test_preprocessing_equals_the_golden(testdata):
    golden = np.load(testdata / "golden" / "detection" / "ssdlite_extra_golden.npz")
    image = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (1, 240, 320, 3)).astype(np.float32)
    array, tensor = preprocess_detection_image(image), preprocess_detection_image(tf.constant(image), (300, 300))
    assert isinstance(array, np.ndarray)
    assert tf.is_tensor(tensor)
    for result in (array, tensor.numpy()):
        np.testing.assert_allclose(result[:, ::4, ::4], golden["resize_240x320/preprocessed_slice"], rtol=0, atol=1e-6)
    random = np.load(testdata / "golden" / "detection" / "ssdlite_golden.npz")
    image = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (2, 300, 300, 3)).astype(np.float32)
    probe = preprocess_detection_image(image, 300)[:, ::100, ::100]
    np.testing.assert_allclose(probe, random["preprocessed_probe"], rtol=0, atol=1e-6)


def test_photos_of_any_kind(testdata):
    photo = testdata / "images" / "cat.bmp"
    assert preprocess_detection_image(photo, (96, 128)).shape == (96, 128, 3)
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    for image in (grey, grey[..., None], np.stack([grey] * 3, -1)):
        np.testing.assert_array_equal(preprocess_detection_image(image, 20), preprocess_detection_image(grey, 20))
    colour = tf.constant(np.stack([grey] * 3, -1))
    np.testing.assert_allclose(preprocess_detection_image(colour, 20), preprocess_detection_image(grey, 20), atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "expected numbers from 0 to 255"),
        (np.zeros((5, 5, 4), np.uint8), "expected numbers from 0 to 255"),
        (np.full((5, 5, 3), np.nan), "NaN"),
        (tf.zeros((5, 5)), r"expected \(H, W, 3\)"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(ValueError, match=message):
        preprocess_detection_image(image)
