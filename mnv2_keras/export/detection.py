"""A detector to a .tflite file that ends in boxes: the network and `TFLite_Detection_PostProcess` in one."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from mnv2_keras.atomic import write_bytes
from mnv2_keras.boxes import CENTRE_SCALE, SIZE_SCALE, ssd_anchors
from mnv2_keras.export.conversion import check_operators, with_signature
from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.metadata import image_input, labels_file, model_metadata
from mnv2_keras.export.report import ExportReport, inspect_litert
from mnv2_keras.tflite import Metadata, TfliteFile, add_metadata
from mnv2_keras.tflite.metadata import TENSOR_VALUE_LABELS

_OPERATOR = b"TFLite_Detection_PostProcess"
#: The operator's outputs, in its order, and what MediaPipe looks for them by.
_OUTPUTS = (
    ("detection_boxes", "location", "Corners of each box, from 0 to 1: top, left, bottom, right."),
    ("detection_classes", "category", "Class of each box, from 0."),
    ("detection_scores", "score", "Score of each box."),
    ("num_detections", "number of detections", "How many boxes there are."),
)
#: On T threads LiteRT's operator forgets the class T where it goes class by class (seen with ai-edge-litert 2.3). So the real
#: classes begin behind as many empty ones as a phone has cores, and one.
_EMPTY_CLASSES = 9
#: `BoundingBoxProperties`: corners; left, top, right and bottom stand at these places; as parts of the image.
_BOUNDARIES, _RATIO, _CORNERS = 1, 0, [1, 0, 3, 2]


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
    **options,
) -> ExportReport:
    """Write a detector as a .tflite file that puts out boxes, as Android's MediaPipe `ObjectDetector` takes it.

    (`export_litert` writes the network alone, with its raw encodings and logits.)

    Args:
        model: of `build_ssdlite_mobilenetv2`, of a fixed input size.
        path: the file to write; it is complete or not there.
        precision: of the network, as in `export_litert`; the post-processing is float32 in any case.
        labels: one for each class, without the background.
        score_threshold, iou_threshold, max_per_class, max_total: as in `postprocess_detections`. A lower score threshold costs
            time where `every_class` is True.
        every_class: False as Google exports: each anchor stands for its likeliest class only, and boxes suppress each other
            whatever their class. True suppresses class by class, as `postprocess_detections` does (on up to 8 threads), which
            keeps things that overlap and can take several times as long as the network.
        metadata: whether the file tells labels, normalisation and licence; or metadata of your own.
        options: `calibration`, `input_type`, `photos`, `refine`, `compare`, `progress` of `export_litert`.

    Returns:
        The report; its comparison with the Keras model is of the network alone.

    Raises:
        ValueError: the model is no detector; an argument out of its range; see `export_litert`.
        OSError: the file cannot be written. In no case is there half a file.
    """
    import keras

    from mnv2_keras.networks.endpoints import takes_pixels

    path = Path(path).expanduser()
    names = {"box_encodings", "class_predictions_with_background"}
    output = getattr(model, "output", None)  # a Sequential model that was never called has none
    if not isinstance(output, dict) or set(output) != names or None in model.input_shape[1:]:
        raise ValueError(
            f"{model.name!r} is no detector of a fixed input size: build it with build_ssdlite_mobilenetv2."
        )
    classes = model.output["class_predictions_with_background"].shape[-1] - 1
    if labels is not None and len(labels) != classes:
        raise ValueError(
            f"{len(labels)} labels were given for {classes} classes: give one for each, without the background."
        )
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
            raise ValueError(f"{name} is {value!r}: expected a number above 0 and up to 1.")
    for name, value in (("max_per_class", max_per_class), ("max_total", max_total)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1.")
    for name in ("batch", "resolution", "output_type", "ranges"):
        if name in options:
            raise ValueError(
                f"{name} goes with export_litert: a detector with post-processing has batch 1 and float outputs."
            )

    logits = model.output["class_predictions_with_background"]
    scores = keras.layers.Activation("sigmoid", dtype="float32", name="scores")(logits)
    network = keras.Model(
        model.input, {"box_encodings": model.output["box_encodings"], "scores": scores}, name=model.name
    )
    if precision == "int8":
        options["output_type"] = "float32"
    with tempfile.TemporaryDirectory(prefix="mnv2-export-") as folder:
        draft = Path(folder, path.name)
        report = export_litert(network, draft, precision, metadata=False, **options)
        content = draft.read_bytes()
    settings = {
        "max_detections": int(max_total),
        "max_classes_per_detection": 1,
        "detections_per_class": int(max_per_class),
        "use_regular_nms": bool(every_class),
        "nms_score_threshold": float(score_threshold),
        "nms_iou_threshold": float(iou_threshold),
        "num_classes": classes,
        "y_scale": CENTRE_SCALE,
        "x_scale": CENTRE_SCALE,
        "h_scale": SIZE_SCALE,
        "w_scale": SIZE_SCALE,
    }
    content = add_postprocessing(content, ssd_anchors(model.input_shape[1:3]), settings)
    check_operators(content, model.name)
    if isinstance(metadata, bool) and metadata:
        image = image_input(mean=0.0, std=1.0) if takes_pixels(model) else image_input()
        metadata = detector_metadata(labels, model.name, image)
    if metadata:
        content = add_metadata(content, metadata)
    write_bytes(path, content)
    found = inspect_litert(content)
    return dataclasses.replace(
        report,
        path=str(path),
        size=found.size,
        operators=found.operators,
        inputs=found.inputs,
        outputs=found.outputs,
    )


def add_postprocessing(content: bytes, anchors: np.ndarray, settings: dict) -> bytes:
    """A .tflite file of box encodings and scores, the custom operator put behind them.

    Args:
        content: a file with two float32 outputs: encodings (1, A, 4) and scores (1, A, classes + 1), in this order.
        anchors: (A, 4) corners.
        settings: of the operator.
    """
    file = TfliteFile(content)
    centres = np.concatenate([(anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]], axis=1)
    place = file.add_tensor("anchors", centres.shape, np.float32, file.add_buffer(centres.astype(np.float32)))
    count = settings["max_detections"]
    shapes = ((1, count, 4), (1, count), (1, count), (1,))
    outputs = [file.add_tensor(name, shape, np.float32) for (name, *_), shape in zip(_OUTPUTS, shapes, strict=True)]
    encodings, scores = (int(each) for each in file.graph.outputs)
    if settings["use_regular_nms"]:
        scores = _behind_empty_classes(file, scores)
        settings = settings | {"num_classes": settings["num_classes"] + _EMPTY_CLASSES}
    custom = schema.BuiltinOperator.CUSTOM
    file.model.operatorCodes.append(
        schema.OperatorCodeT(deprecatedBuiltinCode=custom, builtinCode=custom, version=1, customCode=_OPERATOR)
    )
    operator = schema.OperatorT(
        opcodeIndex=len(file.model.operatorCodes) - 1,
        inputs=np.array([encodings, scores, place], np.int32),
        outputs=np.array(outputs, np.int32),
        customOptions=np.frombuffer(bytes(flexbuffers.Dumps(settings)), np.uint8),
    )
    file.graph.operators.append(operator)
    if settings["use_regular_nms"]:
        outputs[1] = _counted_from_the_first_real(file, outputs[1])
    outputs[0] = _cut_at_the_border(file, outputs[0])
    file.graph.outputs = np.array(outputs, np.int32)
    file.model.signatureDefs = []
    return with_signature(file.to_bytes(), [name for name, *_ in _OUTPUTS])


def _add(file: TfliteFile, kind: str, inputs: list[int], shape, options) -> int:
    """A builtin operator at the end of the graph; the tensor it computes, float32."""
    output = file.add_tensor(f"postprocess_{kind.lower()}", shape, np.float32)
    operator = schema.OperatorT(
        opcodeIndex=file.add_operator_code(kind, 1),
        inputs=np.array(inputs, np.int32),
        outputs=np.array([output], np.int32),
        builtinOptionsType=getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T")),
        builtinOptions=options,
    )
    file.graph.operators.append(operator)
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


def _counted_from_the_first_real(file: TfliteFile, classes: int) -> int:
    """Classes counted from the first one that is not empty; 0 where there is no box."""
    first = _constant(file, "first_class", np.array(_EMPTY_CLASSES, np.float32))
    options = schema.SubOptionsT(fusedActivationFunction=schema.ActivationFunctionType.RELU)
    return _add(file, "SUB", [classes, first], file.shape(classes), options)


def _cut_at_the_border(file: TfliteFile, boxes: int) -> int:
    """Boxes within 0 to 1: MediaPipe moves a corner that lies outside, and with it the whole box."""
    shape, limits = file.shape(boxes), schema.MaximumMinimumOptionsT
    above = _add(file, "MAXIMUM", [boxes, _constant(file, "top_left", np.array(0, np.float32))], shape, limits())
    return _add(file, "MINIMUM", [above, _constant(file, "bottom_right", np.array(1, np.float32))], shape, limits())


def detector_metadata(labels=None, name: str = "SSDLiteMobilenetV2", image: dict | None = None) -> Metadata:
    """What MediaPipe's ObjectDetector asks for: normalisation, what each output is, labels of the classes."""
    box = {"index": _CORNERS, "type": _BOUNDARIES, "coordinate_type": _RATIO}
    kinds = [("BoundingBoxProperties", box), *[("FeatureProperties", {})] * 3]
    outputs = [
        {"name": meaning, "description": words, "content": {"content_properties": kind}}
        for (_, meaning, words), kind in zip(_OUTPUTS, kinds, strict=True)
    ]
    for output in outputs[:3]:
        output["content"]["range"] = {"min": 2, "max": 2}
    files: dict[str, bytes] = {}
    if labels is not None:
        associated, files = labels_file(labels, TENSOR_VALUE_LABELS)
        outputs[1]["associated_files"] = [associated]
    made = model_metadata(
        name, "Finds things in an image, and where they are.", [image or image_input()], outputs, files
    )
    group = {"name": "detection_result", "tensor_names": [meaning for _, meaning, _ in _OUTPUTS[:3]]}
    made.about["subgraph_metadata"][0]["output_tensor_groups"] = [group]
    return made
