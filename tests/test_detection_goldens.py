"""What the genuine detectors found, box for box: both networks, the exported graph, our network from the pixels on."""

import keras
import numpy as np
import pytest

from mnv2_keras import build_ssdlite_mobilenetv2, postprocess_detections, preprocess_detection_image, ssd_anchors
from mnv2_keras.boxes import decode_boxes
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables


@pytest.fixture(scope="module")
def folder(testdata):
    return testdata / "golden" / "detection"


def load(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", ["ssd_golden", "ssdlite_golden"])
def test_detections_of_the_networks_outputs(folder, name):
    golden = load(folder / f"{name}.npz")
    outputs = golden["box_encodings"], golden["class_predictions_with_background"]
    found = postprocess_detections(*outputs, golden["anchors"])
    genuine = {key.removeprefix("detections/"): value for key, value in golden.items() if key.startswith("detections/")}
    np.testing.assert_array_equal(found["num"], genuine["num_detections"])
    np.testing.assert_allclose(found["scores"], genuine["detection_scores"], rtol=0, atol=1e-5)
    for i in range(2):  # scores that are equal but for a last bit of the sigmoid stand in either order
        ours, theirs = (
            np.c_[boxes[i], classes[i], scores[i]]
            for boxes, classes, scores in (
                (found["boxes"], found["classes"], found["scores"]),
                (genuine["detection_boxes"], genuine["detection_classes"], genuine["detection_scores"]),
            )
        )
        distance = np.abs(ours[:, None] - theirs[None]).max(-1)
        assert distance.min(0).max() <= 1e-5
        assert distance.min(1).max() <= 1e-5
    # The genuine program names the anchor of each box it kept: its boxes are ours of those anchors, clipped.
    decoded = np.clip(decode_boxes(outputs[0], golden["anchors"]), 0, 1)
    kept = np.take_along_axis(decoded, golden["detections/detection_anchor_indices"][..., None], 1)
    real = np.arange(kept.shape[1]) < golden["detections/num_detections"][:, None]
    assert real.any()
    np.testing.assert_allclose(genuine["detection_boxes"][real], kept[real], rtol=0, atol=1e-5)


def test_boxes_before_suppression(folder):
    golden = load(folder / "ssdlite_golden.npz")
    decoded = decode_boxes(golden["box_encodings"], golden["anchors"])
    np.testing.assert_allclose(decoded, golden["detections/raw_detection_boxes"], rtol=0, atol=1e-5)
    golden = load(folder / "ssdlite_postprocess_loss_golden.npz")
    encodings = np.random.Generator(np.random.PCG64(1)).normal(0, 1, (2, 1917, 4)).astype(np.float32)
    decoded = decode_boxes(encodings, ssd_anchors((300, 300)))
    np.testing.assert_allclose(decoded, golden["detections/raw_detection_boxes"], rtol=1e-5, atol=1e-5)


def test_our_network_finds_what_the_exported_graph_finds(folder):
    golden = load(folder / "ssdlite_frozen_uint8_golden.npz")
    model = build_ssdlite_mobilenetv2()
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    anchors = ssd_anchors((300, 300))
    for height, width in ((300, 300), (240, 320)):
        genuine = {name.split("/")[1]: golden[name] for name in golden if name.startswith(f"{height}x{width}/")}
        image = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        outputs = model(preprocess_detection_image(image[0])[None])
        encodings, logits = (np.asarray(outputs[name]) for name in sorted(outputs))
        raw = decode_boxes(encodings, anchors)
        np.testing.assert_allclose(raw, genuine["raw_detection_boxes"], rtol=0, atol=2e-3)
        scores = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits[:, ::8]))
        np.testing.assert_allclose(scores, genuine["raw_detection_scores_every8"], rtol=0, atol=2e-3)
        found = {name: np.asarray(value)[0] for name, value in postprocess_detections(encodings, logits, anchors).items()}
        assert found["num"] == genuine["num_detections"][0]
        np.testing.assert_allclose(found["scores"], genuine["detection_scores"][0], rtol=0, atol=2e-3)
        # Scores that float32's noise can swap stand in either order: each box is looked for among all of them.
        theirs = np.c_[genuine["detection_boxes"][0], genuine["detection_classes"][0] - 1]
        ours = np.c_[found["boxes"], found["classes"]]
        distance = np.abs(ours[:, None] - theirs[None]).max(-1).min(1)
        assert np.mean(distance <= 2e-3) >= 0.95
