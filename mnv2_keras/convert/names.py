"""One rule between the names of Keras weights and of TF-Slim variables, both ways; and the names a plan must have.

A layer is named after its TF-Slim scope with `-` for `/`; Keras' kernels keep TF-Slim's layouts, so this renaming is the
whole conversion.
"""

import re

from mnv2_keras.architecture import Block, Plan

CLASSIFIER = "MobilenetV2"
DETECTOR = "FeatureExtractor/MobilenetV2"

#: Scopes that stand at the top of a checkpoint, beside the backbone's.
_TOP = re.compile(r"(BoxPredictor_\d+|image_pooling|aspp\d.*|concat_projection|decoder|logits)(?:-|/|$)")

_LEAVES = {
    "Conv2D": {"kernel": "weights", "bias": "biases"},
    "DepthwiseConv2D": {"kernel": "depthwise_weights"},
    "BatchNormalization": {name: name for name in ("gamma", "beta", "moving_mean", "moving_variance")},
    # TF-Slim creates these two the other way round than Keras does.
    "GroupNormalization": {name: name for name in ("beta", "gamma")},
}

#: What an optimiser or an average keeps beside a variable, under its name.
AVERAGE = "ExponentialMovingAverage"


def root_scope(layer_names) -> str:
    """The scope of the backbone's variables, told by the heads that stand beside it."""
    return DETECTOR if any(name.startswith("BoxPredictor_") for name in layer_names) else CLASSIFIER


def variables(model) -> dict[str, object]:
    """TF-Slim name of every weight of a model, in TF-Slim's creation order, with the Keras variable.

    Raises:
        ValueError: a layer with weights that TF-Slim has no name for.
    """
    root = root_scope([layer.name for layer in model.layers])
    found = {}
    for layer in model.layers:
        if not layer.variables:
            continue
        leaves = _LEAVES.get(type(layer).__name__, {})
        own = {variable.name: variable for variable in layer.variables if variable.name != "seed_generator_state"}
        if set(own) - set(leaves):
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has weights without a TF-Slim name: {', '.join(sorted(own))}. "
                "Expected only layers built by mnv2_keras; convert its base, or keep your own head apart."
            )
        scope = layer.name.replace("-", "/")
        prefix = scope if _TOP.match(layer.name) else f"{root}/{scope}"
        found |= {f"{prefix}/{leaf}": own[name] for name, leaf in leaves.items() if name in own}
    # Keras lists the parts of a split convolution side by side, TF-Slim one after the other.
    return dict(sorted(found.items(), key=lambda item: depth(item[0])))


def layer_name(variable: str) -> str:
    """Name of the Keras layer that holds a TF-Slim variable: the rule the other way."""
    scope = variable.rsplit("/", 1)[0]
    for root in (DETECTOR, CLASSIFIER):
        scope = scope.removeprefix(f"{root}/")
    return scope.replace("/", "-")


def backbone_shapes(
    plan: Plan, normalization: str = "batch_norm", root: str = CLASSIFIER
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables TF-Slim creates for a plan, in its order, without building anything."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(scope: str, leaf: str, kernel: tuple[int, ...], channels: int) -> None:
        shapes[f"{root}/{scope}/{leaf}"] = kernel
        norm = {"batch_norm": "BatchNorm", "group_norm": "GroupNorm"}[normalization]
        leaves = _LEAVES[f"{norm}alization"].values()
        shapes.update({f"{root}/{scope}/{norm}/{each}": (channels,) for each in leaves})

    for layer in plan.layers:
        if isinstance(layer, Block):
            for part in layer.expand:
                add(f"{layer.name}/{part.name}", "weights", (1, 1, part.inputs, part.outputs), part.outputs)
            add(f"{layer.name}/depthwise", "depthwise_weights", (3, 3, layer.hidden, 1), layer.hidden)
            for part in layer.project:
                add(f"{layer.name}/{part.name}", "weights", (1, 1, part.inputs, part.outputs), part.outputs)
        else:
            kernel = (layer.kernel, layer.kernel, layer.inputs, layer.outputs)
            add(layer.name, "weights", kernel, layer.outputs)
    return shapes


def classifier_shapes(plan: Plan, classes: int, normalization: str = "batch_norm") -> dict[str, tuple[int, ...]]:
    """The same for a whole classifier: 262 variables for Table 2."""
    logits = f"{CLASSIFIER}/Logits/Conv2d_1c_1x1"
    return backbone_shapes(plan, normalization) | {
        f"{logits}/weights": (1, 1, plan.last.outputs, classes),
        f"{logits}/biases": (classes,),
    }


_SCOPE = re.compile(
    r"(?:FeatureExtractor/)?MobilenetV2/(?:(Conv|Conv_1|Logits)|expanded_conv(?:_(\d+))?/([a-z]+)(?:_part_(\d+))?)/"
)
_STAGES = {"expand": 0, "depthwise": 1, "project": 2}
#: The detector's extra maps, each a narrow 1x1 and a wide one with or without a depthwise; then its predictors, map by map.
_EXTRA = re.compile(rf"{DETECTOR}/layer_\d+_([12])_Conv2d_(\d+)_\w+?(_depthwise)?/")
_PREDICTOR = re.compile(r"BoxPredictor_(\d+)/(BoxEncoding|Class)Predictor(_depthwise)?/")
#: DeepLab's head in the order it is created in, branch after branch.
_SEGMENTER = re.compile(
    r"(image_pooling)|aspp(\d+)(?:_(depthwise|pointwise))?|(concat_projection)|"
    r"decoder/(?:feature_projection\d+|decoder_conv(\d+)_(depthwise|pointwise))|logits"
)


def depth(variable: str) -> tuple[float, int, int]:
    """Where a variable stands in the network: sorts as TF-Slim runs. Heads other than the classifier's come last."""
    match = _SCOPE.match(variable)
    if not match:
        return (float("inf"), *(_detector_depth(variable) or _segmenter_depth(variable)))
    if match[1]:
        return {"Conv": (-1.0, 0, 0), "Conv_1": (1e6, 0, 0), "Logits": (1e6, 1, 0)}[match[1]]
    return (float(match[2] or 0), _STAGES.get(match[3], 3), int(match[4] or 0))


def _detector_depth(variable: str) -> tuple[int, int] | None:
    """The same within the detector's head: (map, layer of the map); None for other heads."""
    if match := _EXTRA.match(variable):
        return int(match[2]), 0 if match[1] == "1" else 2 - bool(match[3])
    if match := _PREDICTOR.match(variable):
        return 1000 + int(match[1]), 2 * (match[2] == "Class") + (not match[3])
    return None


def _segmenter_depth(variable: str) -> tuple[int, int]:
    """The same within DeepLab's head: (branch, layer of the branch)."""
    match = _SEGMENTER.match(variable)
    if not match or match[1]:
        return 0, 0
    if match[2]:
        return 1 + int(match[2]), match[3] == "pointwise"
    if match[4]:
        return 1000, 0
    if variable.startswith("decoder"):
        return 1001, 2 * int(match[5]) + 1 + (match[6] == "pointwise") if match[5] else 0
    return 1002, 0
