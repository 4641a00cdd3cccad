"""SSD and SSDLite on MobileNetV2, counted from the plan alone."""

from mnv2_keras.analysis.cost_model import CostModel, Shape, checked_integer, checked_shape
from mnv2_keras.analysis.network import Analysis, walk_backbone
from mnv2_keras.architecture import make_plan

#: Channels of the four extra feature maps at alpha = 1; `feature_map_layout` in the Object Detection API.
EXTRA_DEPTHS = (512, 256, 256, 128)
#: Anchors at each place of the first feature map (`reduce_boxes_in_lowest_layer`), and of all others.
ANCHORS_LOWEST, ANCHORS = 3, 6
MIN_DEPTH = 16


def analyze_ssdlite(
    alpha: float = 1.0,
    input_shape: Shape = (300, 300, 3),
    classes: int = 90,
    separable: bool = True,
    predictor_kernel: int | None = None,
    *,
    activation_bytes: int = 4,
) -> Analysis:
    """Count the detector, without post-processing: backbone, extra feature maps, box and class predictors.

    Source: Object Detection API, `ssdlite_mobilenet_v2_coco.config` and, for `separable=False`,
    `ssd_mobilenet_v2_coco.config`.

    Args:
        alpha: width multiplier of backbone and extra maps.
        input_shape: (height, width, channels).
        classes: classes without the background.
        separable: SSDLite; False for the classic SSD, with full convolutions in extra maps and predictors.
        predictor_kernel: side of the predictors' kernels, 3 for SSDLite. The classic SSD takes 1, as its shipped
            configuration does (the default), or 3, as in the paper's comparison.
        activation_bytes: of one number in an activation.

    Returns:
        The analysis; its stages are "backbone", "extras" and "predictors", `anchors` is the number of boxes,
        `output_shape` is (1, anchors, 4 codes and 1 + classes scores). The predictors run after all feature maps, which
        are kept in memory until then.

    Raises:
        ValueError: an argument is out of its range.
    """
    shape = checked_shape(input_shape)
    classes = checked_integer("classes", classes)
    kernel = (3 if separable else 1) if predictor_kernel is None else predictor_kernel
    if kernel not in ((3,) if separable else (1, 3)):
        expected = "3, the only one a separable predictor has" if separable else "1 or 3"
        raise ValueError(f"predictor_kernel is {predictor_kernel!r}: expected {expected}.")
    plan = make_plan(alpha, channels=shape[2], finegrain_classification_mode=False, min_depth=MIN_DEPTH)
    ledger = CostModel(activation_bytes)

    def layer(x, filters, name, stage, **options):
        ledger.begin(name, name, stage)
        return ledger.convolution(x, filters, name, **options)

    def depthwise(x, name, stage, **options):
        ledger.begin(name, name, stage)
        return ledger.depthwise(x, name, **options)

    taps = walk_backbone(ledger, ledger.tensor(shape), plan)
    # `layer_15/expansion_output`: what the last stride-2 block sees before it strides.
    strided = [block for block in plan.blocks if block.stride == 2][-1]
    maps = [taps[f"{strided.endpoint}/expansion_output"], taps[plan.last.endpoint]]
    for i, depth in enumerate(EXTRA_DEPTHS, start=2):
        narrow, wide = (max(int(d * alpha), MIN_DEPTH) for d in (depth // 2, depth))
        x = layer(maps[-1], narrow, f"{plan.last.endpoint}_1_Conv2d_{i}_1x1_{narrow}", "extras")
        name = f"{plan.last.endpoint}_2_Conv2d_{i}_3x3_s2_{wide}"
        if separable:
            x = layer(depthwise(x, f"{name}_depthwise", "extras", stride=2), wide, name, "extras")
        else:
            x = layer(x, wide, name, "extras", kernel=3, stride=2)
        maps.append(x)

    outputs, anchors = [], 0
    for i, x in enumerate(maps):
        boxes = ANCHORS if i else ANCHORS_LOWEST
        anchors += boxes * x.shape[0] * x.shape[1]
        for branch, codes in (("BoxEncodingPredictor", 4), ("ClassPredictor", classes + 1)):
            name = f"BoxPredictor_{i}/{branch}"
            y = depthwise(x, f"{name}_depthwise", "predictors") if separable else x
            options = {"kernel": 1 if separable else kernel, "bias": True, "normalization": None}
            outputs.append(layer(y, boxes * codes, name, "predictors", **options))
    return Analysis(plan, shape, (1, anchors, classes + 5), ledger.close(outputs), ledger.activation_bytes, anchors)
