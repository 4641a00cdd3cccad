"""The detector as a task: inferred from variables, built, filled, compared."""

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from mnv2_keras.architecture.detector import ANCHOR_SHAPES, EXTRA_DEPTHS, MIN_DEPTH, make_detector_plan
from mnv2_keras.boxes import ssd_anchors
from mnv2_keras.convert.checkpoint import Checkpoint, sha256_of
from mnv2_keras.convert.detection_goldens import find_detection_goldens
from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.names import DETECTOR, backbone_shapes, variables
from mnv2_keras.convert.receipt import Receipt
from mnv2_keras.convert.transfer import Transfer, network_shapes
from mnv2_keras.detection import postprocess_detections, preprocess_detection_image
from mnv2_keras.images import find_images, read_image
from mnv2_keras.networks.detector import build_ssdlite_mobilenetv2, fill_from_checkpoint
from mnv2_keras.networks.endpoints import endpoints

#: Of the published detectors, where nothing tells.
PUBLISHED_SIZE = (300, 300)


def holds(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these variables are a detector's."""
    return any(name.startswith("BoxPredictor_0/") for name in shapes)


def convert(checkpoint: Checkpoint, ema: bool, classes: int | None, options: dict) -> tuple[keras.Model, Transfer]:
    """Build the detector that a checkpoint holds, and fill it. See `convert_checkpoint`."""
    found = _recognised(network_shapes(checkpoint.shapes), checkpoint.source)
    channels = found.pop("channels")
    if classes is not None:
        found["classes"] = classes
    if "input_shape" not in options:
        found["input_shape"] = (*_resolution(checkpoint), channels)
    model = build_ssdlite_mobilenetv2(**(found | options))
    return model, fill_from_checkpoint(model, checkpoint, ema)


def _recognised(shapes: Mapping[str, tuple[int, ...]], source) -> dict:
    """Arguments of the builder, and `channels`, from names and shapes; the names of the extra maps tell alpha."""
    kernel, stem = shapes.get("BoxPredictor_1/ClassPredictor/weights"), shapes.get(f"{DETECTOR}/Conv/weights")
    wide = [int(m[1]) for name in shapes if (m := re.search(r"/layer_19_2_Conv2d_2_3x3_s2_(\d+)/weights$", name))]
    if kernel and stem and wide:
        # The published alphas, then every hundredth, then the one that is exactly this wide.
        alphas = (1.0, 1.4, 1.3, 0.75, 0.5, 0.35, *(i / 100 for i in range(1, 401)), wide[0] / EXTRA_DEPTHS[0])
        for min_depth, alpha in itertools.product((MIN_DEPTH, 8), alphas):
            if max(int(EXTRA_DEPTHS[0] * alpha), min_depth) != wide[0]:
                continue
            plan = make_detector_plan(alpha, channels=stem[2], min_depth=min_depth)
            expected = backbone_shapes(plan.backbone, root=DETECTOR)
            if all(shapes.get(name) == shape for name, shape in expected.items()):
                separable = "BoxPredictor_0/ClassPredictor_depthwise/depthwise_weights" in shapes
                return {
                    "alpha": alpha,
                    "classes": kernel[3] // len(ANCHOR_SHAPES[1]) - 1,
                    "separable": separable,
                    "predictor_kernel": None if separable else kernel[0],
                    "min_depth": min_depth,
                    "channels": stem[2],
                }
    raise ValueError(
        f"{source} holds a detector, but not SSD or SSDLite on MobileNetV2: expected {DETECTOR}/Conv/weights, "
        f"{DETECTOR}/layer_19_2_Conv2d_2_3x3_s2_512/weights, BoxPredictor_1/ClassPredictor/weights and so on, of one alpha."
    )


def _resolution(checkpoint: Checkpoint) -> tuple[int, int]:
    """(height, width) of the network's input: from pipeline.config, else the frozen graph, else as published."""
    config = checkpoint.prefix.parent / "pipeline.config"
    if config.is_file():
        resizer = re.search(r"fixed_shape_resizer\s*\{([^}]*)\}", config.read_text("utf-8", errors="replace"))
        sides = dict(re.findall(r"(height|width)\s*:\s*(\d+)", resizer[1])) if resizer else {}
        if len(sides) == 2:
            return int(sides["height"]), int(sides["width"])
    if checkpoint.frozen_graph:
        graph = FrozenGraph(checkpoint.frozen_graph)
        sizes = [graph.nodes[node.input[1]] for node in graph.definition.node if node.op == "ResizeBilinear"]
        if len(sizes) == 1 and sizes[0].op == "Const":
            return tuple(np.frombuffer(sizes[0].attr["value"].tensor.tensor_content, np.int32).tolist())
    return PUBLISHED_SIZE


def compare_with_goldens(receipt: Receipt, checkpoint: Checkpoint, ema: bool, path: Path) -> None:
    """Fill a receipt from every run of the Object Detection API in a folder whose network the checkpoint holds."""
    for golden in find_detection_goldens(path, network_shapes(checkpoint.shapes)):
        receipt.sha256[golden.path.name] = sha256_of(golden.path)
        batch = golden.input()
        model, _ = convert(checkpoint, ema, None, {"input_shape": batch.shape[1:]})
        values = _values(model, batch)
        for name, (genuine, cut, value_range) in golden.outputs().items():
            receipt.compare(f"{golden.tag}: {name}", cut(values[name]), genuine, value_range)
        receipt.images += len(batch)


def _values(model: keras.Model, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Anchors, every endpoint, and the outputs of a detector on a batch, in network order."""
    taps = {**endpoints(model), **model.output}
    values = keras.Model(model.input, taps)(batch, training=False)
    anchors = {"anchors": ssd_anchors(batch.shape[1:])}
    return anchors | {name: keras.ops.convert_to_numpy(values[name]) for name in taps}


def compare_with_graph(receipt: Receipt, model: keras.Model, graph: FrozenGraph, images=None) -> None:
    """Fill a detector's receipt: weights against the graph's constants, then each endpoint, and detections, on each photo.

    The detections compared are the genuine graph's and those `postprocess_detections` makes of the genuine encodings and
    logits: in exact arithmetic they are equal, ties apart.

    Args:
        images: photos (paths, uint8 arrays); or a float32 batch (B, H, W, 3) in [-1, 1] at the network's size; None for a seeded
            photo of random pixels.
    """
    ours = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(model).items()}
    receipt.compare_constants(ours, graph.constants())
    first = next((node.input[0] for node in graph.definition.node if node.op == "Conv2D"), None)
    if first is None or any(name not in graph.nodes for name in _GRAPH_NODES.values()):
        raise ValueError(
            f"{graph.path.name} is no frozen graph of an SSD: expected the nodes {', '.join(_GRAPH_NODES.values())}."
        )
    nodes = {"input": first} | graph.endpoint_nodes(endpoints(model), DETECTOR)
    for name in endpoints(model):
        for node in (f"{DETECTOR}/{name}/Relu6", f"{name}/Relu6", f"{name}/BiasAdd"):
            if node in graph.nodes:
                nodes.setdefault(name, node)
    nodes |= _GRAPH_NODES
    size = graph.run({graph.placeholder: np.zeros((1, 1, 1, 3), np.uint8)}, {"input": first})["input"].shape[1:3]
    pairs: dict[str, list] = {}
    for feed, batch in _feeds(images, size, graph.placeholder, first):
        genuine = graph.run(feed, nodes)
        values = _values(model, batch) | {"input": batch}
        kept = postprocess_detections(*(genuine[name] for name in _POSTPROCESSED))
        values |= {f"detection_{name}": kept[name].numpy() for name in ("boxes", "scores", "classes")}
        values |= {"num_detections": kept["num"].numpy()}
        genuine["detection_classes"] -= (
            np.arange(genuine["detection_classes"].shape[1]) < genuine["num_detections"][:, None]
        )
        for name in nodes:
            pairs.setdefault(name, []).append((values[name], genuine[name]))
        receipt.images += len(batch)
    for name, both in pairs.items():
        value_range = 1.0 if name.startswith(("detection", "num")) else None
        receipt.compare(name, *(np.concatenate(side) for side in zip(*both, strict=True)), value_range)


#: What an exported SSD graph calls its outputs, and what goes into them.
_GRAPH_NODES = {
    "anchors": "Concatenate/concat",
    "box_encodings": "Squeeze",
    "class_predictions_with_background": "concat_1",
    "detection_boxes": "detection_boxes",
    "detection_scores": "detection_scores",
    "detection_classes": "detection_classes",
    "num_detections": "num_detections",
}


#: What post-processing takes, in its order.
_POSTPROCESSED = ("box_encodings", "class_predictions_with_background", "anchors")


def _feeds(images, size: tuple[int, int], photo: str, network: str):
    """For each photo what to feed the graph, and the batch (1, H, W, 3) in [-1, 1] for the model."""
    if isinstance(images, np.ndarray) and images.dtype == np.float32:
        if images.ndim != 4 or images.shape[1:3] != size:
            raise ValueError(
                f"images is a float32 batch of shape {images.shape}: expected (B, {size[0]}, {size[1]}, 3)."
            )
        for image in images:
            yield {network: image[None], photo: np.zeros((1, *size, 3), np.uint8)}, image[None]
        return
    if images is None:
        images = [np.random.Generator(np.random.PCG64(0)).integers(0, 256, (240, 320, 3), np.uint8)]
    if isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    photos = []
    for image in images:
        photos += map(read_image, find_images([image])) if isinstance(image, str | os.PathLike) else [image]
    if not photos:
        raise ValueError("images is empty: pass at least one photo, or None for a seeded random one.")
    for image in photos:
        yield {photo: image[None]}, preprocess_detection_image(image, size)[None]
