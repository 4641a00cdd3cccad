"""One rule between the names of Keras weights and of TF-Slim variables, both ways; and the variables of a plan.

A layer is named after its TF-Slim scope with `-` for `/`; Keras' kernels keep TF-Slim's layouts, so this renaming is the
whole conversion.
"""

import itertools
import math
import re
from collections.abc import Iterable

from mnv2_keras.architecture import Convolution, DetectorPlan, Plan, SegmenterPlan, classifier_logits

CLASSIFIER = "MobilenetV2"
DETECTOR = "FeatureExtractor/MobilenetV2"
#: TF-Slim names of variables with their shapes, in the order in which TF-Slim creates them.
Shapes = dict[str, tuple[int, ...]]

_LEAVES = {
    "Conv2D": {"kernel": "weights", "bias": "biases"},
    "DepthwiseConv2D": {"kernel": "depthwise_weights"},
    "BatchNormalization": {name: name for name in ("gamma", "beta", "moving_mean", "moving_variance")},
    # TF-Slim creates these two the other way round than Keras does.
    "GroupNormalization": {name: name for name in ("beta", "gamma")},
}

#: Last part of the name of a variable's moving average.
AVERAGE = "ExponentialMovingAverage"


def is_variable(name: str) -> bool:
    """Whether a name is one of TF-Slim's variables of a network, by its last part."""
    return any(name.rpartition("/")[2] in leaves.values() for leaves in _LEAVES.values())


def is_network_variable(name: str) -> bool:
    """Whether a name is a variable of one of the three networks, in full: none of another layer inside their scopes."""
    return bool(_VARIABLE.fullmatch(name))


def root_scope(layer_names) -> str:
    """The scope of the backbone's variables: a detector's where there are box predictors."""
    return DETECTOR if any(name.startswith("BoxPredictor_") for name in layer_names) else CLASSIFIER


def variables(model) -> dict[str, object]:
    """TF-Slim name of every weight of a model, in TF-Slim's creation order, with the Keras variable.

    Raises:
        ValueError: a layer with weights that TF-Slim has no name for.
    """
    root = root_scope([layer.name for layer in model.layers])
    named = {}
    for layer in model.layers:
        if not layer.variables:
            continue
        leaves = _LEAVES.get(type(layer).__name__, {})
        own = {variable.name: variable for variable in layer.variables if variable.name != "seed_generator_state"}
        if set(own) - set(leaves):
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has weights without a TF-Slim name: {', '.join(sorted(own))}. "
                "Expected only layers built by mnv2_keras: convert the base without your own head."
            )
        scope = layer.name.replace("-", "/")
        prefix = scope if _head_place(f"{scope}/")[0] > _EXTRAS else f"{root}/{scope}"
        named |= {f"{prefix}/{leaf}": own[name] for name, leaf in leaves.items() if name in own}
    # Keras lists the layers of the groups of a split convolution alternately, TF-Slim group by group.
    return dict(sorted(named.items(), key=lambda item: depth(item[0])))


def layer_name(variable: str) -> str:
    """Name of the Keras layer that holds a TF-Slim variable: the rule the other way."""
    scope = variable.rsplit("/", 1)[0]
    for root in (DETECTOR, CLASSIFIER):
        scope = scope.removeprefix(f"{root}/")
    return scope.replace("/", "-")


def _shapes(layers: Iterable[Convolution], root: str = "", normalization: str = "batch_norm") -> Shapes:
    """Names and shapes of the variables of convolutions, in TF-Slim's order of creation."""
    norm = {"batch_norm": "BatchNorm", "group_norm": "GroupNorm"}[normalization]
    shapes: Shapes = {}
    for layer in layers:
        shapes[f"{root}{layer.name}/{'depthwise_weights' if layer.depthwise else 'weights'}"] = layer.kernel_shape
        leaves = ("biases",) if layer.bias else (f"{norm}/{leaf}" for leaf in _LEAVES[f"{norm}alization"].values())
        shapes.update({f"{root}{layer.name}/{leaf}": (layer.outputs,) for leaf in leaves})
    return shapes


def backbone_shapes(plan: Plan, normalization: str = "batch_norm", root: str = CLASSIFIER) -> Shapes:
    """Names and shapes of the variables TF-Slim creates for a plan, in its order, without building anything."""
    return _shapes(plan.convolutions, f"{root}/", normalization)


def classifier_shapes(plan: Plan, classes: int, normalization: str = "batch_norm") -> Shapes:
    """The same for a classifier: 262 variables for Table 2."""
    logits = classifier_logits(plan.last.outputs, classes)
    return backbone_shapes(plan, normalization) | _shapes([logits], f"{CLASSIFIER}/")


def detector_shapes(plan: DetectorPlan) -> Shapes:
    """The same for a detector: 404 variables for SSDLite."""
    extras = itertools.chain(*plan.extra_maps)
    predictors = itertools.chain(*((*predictor.boxes, *predictor.classes) for predictor in plan.predictors))
    return backbone_shapes(plan.backbone, root=DETECTOR) | _shapes(extras, f"{DETECTOR}/") | _shapes(predictors)


def segmenter_shapes(plan: SegmenterPlan) -> Shapes:
    """The same for a segmenter: 272 variables for the paper's mobile network."""
    without_last = (layer for layer in plan.backbone.convolutions if layer is not plan.backbone.last)
    return _shapes(without_last, f"{CLASSIFIER}/") | _shapes(plan.head)


_SCOPE = re.compile(
    r"(?:FeatureExtractor/)?MobilenetV2/(?:(Conv|Conv_1|Logits)|expanded_conv(?:_(\d+))?/([a-z]+)(?:_part_(\d+))?)/"
)
_STAGES = {"expand": 0, "depthwise": 1, "project": 2}
#: Scopes of the heads in TF-Slim's order of creation. `#` is a number: a group with several scopes repeats them for each one.
_HEADS = (
    (r"layer_\d+_1_Conv2d_#_\w+?/", r"layer_\d+_2_Conv2d_#_\w+?_depthwise/", r"layer_\d+_2_Conv2d_#_\w+?/"),
    tuple(f"BoxPredictor_#/{of}Predictor{step}/" for of in ("BoxEncoding", "Class") for step in ("_depthwise", "")),
    ("image_pooling/",),
    ("aspp#/", "aspp#_depthwise/", "aspp#_pointwise/"),
    ("concat_projection/",),
    ("decoder/feature_projection#/",),
    ("decoder/decoder_conv#_depthwise/", "decoder/decoder_conv#_pointwise/"),
    ("logits/",),
)
#: Index of the detector's extra maps; only their scopes are inside the backbone's scope.
_EXTRAS = 0
_HEAD_SCOPES = [
    (group, step, re.compile(f"(?:{DETECTOR}/)?" + scope.replace("#", r"(\d+)")))
    for group, scopes in enumerate(_HEADS)
    for step, scope in enumerate(scopes)
]


_VARIABLE = re.compile(
    rf"(?:(?:FeatureExtractor/)?MobilenetV2/(?:Conv|Conv_1|Logits/Conv2d_1c_1x1"
    rf"|expanded_conv(?:_\d+)?/(?:{'|'.join(_STAGES)})(?:_part_\d+)?)/|"
    + "|".join(scope.pattern for _, _, scope in _HEAD_SCOPES).replace("logits/", "logits/semantic/")
    + rf")(?:(?:BatchNorm|GroupNorm)/)?(?:{'|'.join(sorted({leaf for leaves in _LEAVES.values() for leaf in leaves.values()}))})"
)


def _head_place(variable: str) -> tuple[int, int, int]:
    """(group, number, step) of a variable in `_HEADS`; (-1, 0, 0) for other variables."""
    for group, step, scope in _HEAD_SCOPES:
        if match := scope.match(variable):
            return group, int(match[1]) if match.groups() else 0, step
    return -1, 0, 0


def depth(variable: str) -> tuple[float, ...]:
    """The place of a variable in the network, as a key for sorting in TF-Slim's order.

    Returns:
        The number of the block (-1 for the first convolution, 1e6 for the last one and the classifier, infinity for other heads)
        and the place inside it.
    """
    match = _SCOPE.match(variable)
    if not match:
        return math.inf, *_head_place(variable)
    if match[1]:
        return {"Conv": (-1.0, 0, 0), "Conv_1": (1e6, 0, 0), "Logits": (1e6, 1, 0)}[match[1]]
    return float(match[2] or 0), _STAGES.get(match[3], 3), int(match[4] or 0)
