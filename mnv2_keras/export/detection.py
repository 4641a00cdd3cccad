"""A detector to a .tflite file that ends in boxes: the network and `TFLite_Detection_PostProcess` in one."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from mnv2_keras.boxes import CENTRE_SCALE, SIZE_SCALE, ssd_anchors
from mnv2_keras.checks import real_number, whole_number
from mnv2_keras.export.conversion import set_signature
from mnv2_keras.export.metadata import add_labels, image_input, model_metadata
from mnv2_keras.export.options import Quantization, check_options, old_quantization_keywords
from mnv2_keras.export.pipeline import Network, write_network
from mnv2_keras.export.report import ExportReport
from mnv2_keras.labels import class_labels
from mnv2_keras.networks.endpoints import takes_pixels
from mnv2_keras.tasks import DETECTION
from mnv2_keras.tflite import Metadata, TfliteFile
from mnv2_keras.tflite.metadata import TENSOR_VALUE_LABELS

_OPERATOR = b"TFLite_Detection_PostProcess"
#: The operator's outputs, in its order, and the names by which MediaPipe finds them.
_OUTPUTS = (
    ("detection_boxes", "location", "Corners of each box, from 0 to 1: top, left, bottom, right."),
    ("detection_classes", "category", "Class of each box, from 0."),
    ("detection_scores", "score", "Score of each box."),
    ("num_detections", "number of detections", "How many boxes there are."),
)
#: With one pass per class and T threads, LiteRT's operator forgets class T (seen with ai-edge-litert 2.3). So before the real
#: classes there are empty ones: one more than a phone has cores.
_EMPTY_CLASSES = 9
#: `BoundingBoxProperties`: corners; the places of left, top, right and bottom; relative to the image.
_BOUNDARIES, _RATIO, _CORNERS = 1, 0, [1, 0, 3, 2]


@old_quantization_keywords
def export_detector(
    model,
    path: str | os.PathLike,
    precision: str = "float32",
    *,
    labels: Sequence[str] | None = None,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.6,
    max_per_class: int = 100,
    max_total: int = 100,
    every_class: bool = False,
    metadata: bool | Metadata = True,
    quantization: Quantization | None = None,
    photos=None,
    compare: bool = True,
    progress=None,
    **options,
) -> ExportReport:
    """Write a detector as a .tflite file with boxes as outputs, as Android's MediaPipe `ObjectDetector` takes it.

    (`export_litert` writes the network alone, with its raw encodings and logits.)

    Args:
        model: of `build_ssdlite_mobilenetv2`, of a fixed input size.
        path: the file to write, atomically.
        precision: of the network, as in `export_litert`; the post-processing is always float32.
        labels: one for each class, without the background.
        score_threshold, iou_threshold, max_per_class, max_total: as in `postprocess_detections`. A lower score threshold costs
            time where `every_class` is True.
        every_class: False, as Google exports: for each anchor only the likeliest class counts, and boxes suppress each other
            across classes. True suppresses for each class separately, as `postprocess_detections` does (on up to 8 threads);
            this keeps things that overlap, and can take several times as long as the network.
        metadata: whether the file has labels, normalisation and licence; or your own metadata.
        quantization, photos, compare, progress: as in `export_litert`; outputs are always float32.

    Returns:
        The report; its comparison with the Keras model is of the network alone.

    Raises:
        ValueError: the model is not a detector; an argument out of its range; see `export_litert`.
        OSError: the file cannot be written.
    """
    import keras

    quantization = quantization or Quantization()
    unsuitable = [name for name in ("output_type", "ranges") if getattr(quantization, name) is not None]
    reason = "a detector with post-processing has batch 1 and float outputs"
    check_options([*options, *unsuitable], ("batch", "resolution", "output_type", "ranges"), reason)
    if not DETECTION.holds_model(model) or None in model.input_shape[1:]:
        raise ValueError(f"{model.name!r} is not a detector of a fixed input size: build it with build_ssdlite_mobilenetv2.")
    encodings, logits = (model.output[name] for name in ("box_encodings", "class_predictions_with_background"))
    classes = logits.shape[-1] - 1
    if labels is not None:
        labels = class_labels(labels, classes)  # without the background
    settings = {
        "max_detections": whole_number("max_total", max_total),
        "max_classes_per_detection": 1,
        "detections_per_class": whole_number("max_per_class", max_per_class),
        "use_regular_nms": bool(every_class),
        "nms_score_threshold": real_number("score_threshold", score_threshold, 0, 1, above=True),
        "nms_iou_threshold": real_number("iou_threshold", iou_threshold, 0, 1, above=True),
        "num_classes": classes,
    }
    settings |= dict.fromkeys(("y_scale", "x_scale"), CENTRE_SCALE) | dict.fromkeys(("h_scale", "w_scale"), SIZE_SCALE)
    if metadata is True:
        image = image_input(0.0, 1.0) if takes_pixels(model) else image_input()
        metadata = detector_metadata(labels, model.name, image)
    scores = keras.layers.Activation("sigmoid", dtype="float32", name="scores")(logits)
    network = Network(
        keras.Model(model.input, {"box_encodings": encodings, "scores": scores}, name=model.name),
        metadata or None,
        compare=compare,
        finish=lambda file: add_postprocessing(file, ssd_anchors(model.input_shape[1:3]), settings),
    )
    if precision == "int8":
        quantization = replace(quantization, output_type="float32")
    return write_network(network, path, precision, quantization, photos, progress)[0]


def add_postprocessing(file: TfliteFile, anchors: np.ndarray, settings: dict) -> None:
    """Add the custom operator behind a file's box encodings and scores.

    Args:
        file: with two float32 outputs: encodings (1, A, 4) and scores (1, A, classes + 1), in this order.
        anchors: (A, 4) corners.
        settings: of the operator.
    """
    centres = np.concatenate([(anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]], axis=1)
    centres = _constant(file, "anchors", centres.astype(np.float32))
    count = settings["max_detections"]
    shapes = ((1, count, 4), (1, count), (1, count), (1,))
    outputs = [file.add_tensor(name, shape, np.float32) for (name, *_), shape in zip(_OUTPUTS, shapes, strict=True)]
    encodings, scores = file.graph.outputs
    if settings["use_regular_nms"]:
        scores = _behind_empty_classes(file, scores)
        settings = settings | {"num_classes": settings["num_classes"] + _EMPTY_CLASSES}
    custom = schema.BuiltinOperator.CUSTOM
    file.model.operatorCodes.append(
        schema.OperatorCodeT(deprecatedBuiltinCode=custom, builtinCode=custom, version=1, customCode=_OPERATOR)
    )
    operator = schema.OperatorT(
        opcodeIndex=len(file.model.operatorCodes) - 1,
        inputs=[encodings, scores, centres],
        outputs=list(outputs),
        customOptions=np.frombuffer(bytes(flexbuffers.Dumps(settings)), np.uint8),
    )
    file.graph.operators.append(operator)
    if settings["use_regular_nms"]:  # count classes from the first real one; 0 without a box
        first = _constant(file, "first_class", np.array(_EMPTY_CLASSES, np.float32))
        relu = schema.SubOptionsT(fusedActivationFunction=schema.ActivationFunctionType.RELU)
        outputs[1] = _add(file, "SUB", [outputs[1], first], file.shape(outputs[1]), relu)
    # MediaPipe moves a corner outside of 0 to 1 together with the whole box, so boxes are clipped.
    for kind, name, limit in (("MAXIMUM", "top_left", 0), ("MINIMUM", "bottom_right", 1)):
        corner = _constant(file, name, np.array(limit, np.float32))
        outputs[0] = _add(file, kind, [outputs[0], corner], shapes[0], schema.MaximumMinimumOptionsT())
    file.graph.outputs = outputs
    set_signature(file, [name for name, *_ in _OUTPUTS])


def _add(file: TfliteFile, kind: str, inputs: list[int], shape, options) -> int:
    """Add a builtin operator at the end of the graph; return the tensor that it computes, float32."""
    output = file.add_tensor(f"postprocess_{kind.lower()}", shape, np.float32)
    file.graph.operators.append(file.new_operator(kind, 1, inputs, [output], options))
    return output


def _constant(file: TfliteFile, name: str, values: np.ndarray) -> int:
    return file.add_tensor(name, values.shape, values.dtype, file.add_buffer(values))


def _behind_empty_classes(file: TfliteFile, scores: int) -> int:
    """Background and classes to columns of zeros and the classes."""
    batch, anchors, columns = file.shape(scores)
    begin = _constant(file, "without_background", np.array([0, 0, 1], np.int32))
    size = _constant(file, "classes", np.array([batch, anchors, columns - 1], np.int32))
    real = _add(file, "SLICE", [scores, begin, size], (batch, anchors, columns - 1), schema.SliceOptionsT())
    rows = _constant(file, "empty_classes", np.array([[0, 0], [0, 0], [_EMPTY_CLASSES + 1, 0]], np.int32))
    return _add(file, "PAD", [real, rows], (batch, anchors, columns + _EMPTY_CLASSES), schema.PadOptionsT())


def detector_metadata(labels: Sequence[str] | None = None, name: str = "SSDLiteMobilenetV2", image: dict | None = None) -> Metadata:
    """What MediaPipe's ObjectDetector asks for: normalisation, the meaning of each output, labels of the classes."""
    box = {"index": _CORNERS, "type": _BOUNDARIES, "coordinate_type": _RATIO}
    kinds = [("BoundingBoxProperties", box), *[("FeatureProperties", {})] * 3]
    outputs = [
        {"name": meaning, "description": description, "content": {"content_properties": kind}}
        for (_, meaning, description), kind in zip(_OUTPUTS, kinds, strict=True)
    ]
    for output in outputs[:3]:
        output["content"]["range"] = {"min": 2, "max": 2}
    files = add_labels(outputs[1], labels, TENSOR_VALUE_LABELS)
    group = {"name": "detection_result", "tensor_names": [meaning for _, meaning, _ in _OUTPUTS[:3]]}
    description = "Finds things in an image, and where they are."
    return model_metadata(name, description, [image or image_input()], outputs, files, output_tensor_groups=[group])
