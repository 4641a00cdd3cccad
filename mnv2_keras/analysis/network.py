"""The three networks, counted from their plans alone."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mnv2_keras.analysis.cost_model import CostModel, Counted, Layer, Operation, Shape, Tensor, known_shape
from mnv2_keras.architecture import Block, Convolution, Plan, classifier_logits, make_detector_plan, make_plan, make_segmenter_plan
from mnv2_keras.checks import whole_number


@dataclass(frozen=True)
class Analysis(Counted):
    """What a network holds, costs and keeps in memory, for one image.

    Activation memory is counted for an interpreter that runs one operation after the other and frees a tensor after its last
    use: while a convolution runs, its input and its output are alive, and whatever a later operation still reads, such as the
    input of a block with a residual. Normalisation, activation and addition work in place, concatenation copies nothing,
    padding and weights are not counted, and the image is freed after its last use like any other tensor.
    """

    plan: Plan  # of the backbone
    input_shape: Shape
    output_shape: Shape  # of the last layer; (1, 1, classes) for a classifier
    rows: tuple[Layer, ...]  # one for each convolution layer or block, in network order
    activation_bytes: int = 4  # of one number in an activation
    anchors: int | None = None  # number of a detector's anchor boxes

    def part(self, *stages: str) -> "Analysis":
        """The rows of some stages only, such as `part("extras", "predictors")` of a detector, with their sums.

        Raises:
            ValueError: a stage that the network does not have.
        """
        own = dict.fromkeys(row.stage for row in self.rows)
        for stage in stages:
            if stage not in own:
                raise ValueError(f"{stage!r} is not a stage of this network: expected one of {', '.join(own)}.")
        return replace(self, rows=tuple(row for row in self.rows if row.stage in stages))

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Of all rows, in order."""
        return tuple(operation for row in self.rows for operation in row.operations)

    @property
    def folded(self) -> int:
        """Parameters after the batch norms are folded into the convolutions: kernels and one bias for each channel."""
        return (self.parameters + self.trainable) // 2

    @property
    def peak_activation_memory(self) -> int:
        """Bytes alive during the operation that has most (see the class)."""
        return self.activation_memory

    @property
    def peak_at(self) -> str:
        """TF-Slim scope of that operation, such as `expanded_conv_1/expand`; the first of equals."""
        return max(self.operations, key=lambda operation: operation.memory).name

    @property
    def bottleneck_memory(self) -> int:
        """The largest sum of input and output in bytes with every block as one operation (the paper's equation 2)."""
        return max(row.bottleneck_memory for row in self.rows)

    @property
    def bottleneck_at(self) -> str:
        """TF-Slim scope of the row with that sum; the first of equals."""
        return max(self.rows, key=lambda row: row.bottleneck_memory).name

    def as_dict(self) -> dict:
        """All figures, ready for JSON: the totals, and `rows`."""
        shapes = ("input_shape", "output_shape", *(() if self.anchors is None else ("anchors",)))
        sums = ("parameters", "folded", "trainable", "non_trainable", "total", "variables", "multiply_adds")
        memory = ("activation_bytes", "peak_activation_memory", "peak_at", "bottleneck_memory", "bottleneck_at")
        figures = self.figures(*shapes, *sums, *memory)
        return {"alpha": self.plan.alpha} | figures | {"rows": [row.as_dict() for row in self.rows]}


def _inverted_residual(costs: CostModel, x: Tensor, block: Block) -> Iterator[tuple[str, Tensor]]:
    """A block's endpoints; what follows an endpoint is counted only when the next one is asked for."""
    y = x
    if block.expand:
        y = costs.convolution(x, *block.expand, name=f"{block.name}/expand")
        yield f"{block.endpoint}/expansion_output", y
    y = costs.convolution(y, block.depthwise)
    yield f"{block.endpoint}/depthwise_output", y
    y = costs.convolution(y, *block.project, name=f"{block.name}/project")
    if block.residual:
        y = costs.add(x, y, f"{block.name}/add")
    yield f"{block.endpoint}/output", y
    yield block.endpoint, y


def _backbone(costs: CostModel, shape: Shape, plan: Plan, final_endpoint: str | None = None) -> dict[str, Tensor]:
    """The endpoints of Table 2 from the first convolution to the last, or to `final_endpoint`, in network order."""
    x, end, endpoints = costs.tensor(shape), plan.end(final_endpoint), {}
    for layer in plan.layers:
        is_block = isinstance(layer, Block)
        costs.begin(layer.endpoint, layer.name, "backbone", layer.row if is_block else None)
        steps = _inverted_residual(costs, x, layer) if is_block else [(layer.endpoint, costs.convolution(x, layer))]
        for endpoint, x in steps:
            endpoints[endpoint] = x
            if endpoint == end:
                return endpoints
    raise AssertionError("unreachable: final_endpoint was checked against the plan")


def _sequence(costs: CostModel, x: Tensor, sequence: Sequence[Convolution], stage: str) -> Tensor:
    """Convolutions in sequence, a row for each one."""
    return functools.reduce(lambda y, layer: costs.row(y, layer, stage), sequence, x)


def analyze(
    alpha: float = 1.0,
    input_shape: Shape = (224, 224, 3),
    *,
    classes: int | None = 1001,
    include_top: bool = True,
    normalization: str = "batch_norm",
    explicit_padding: bool = False,
    activation_bytes: int = 4,
    final_endpoint: str | None = None,
    **plan_options,
) -> Analysis:
    """Count the network that `build_mobilenetv2` builds from the arguments of the same names, without building it.

    Args:
        input_shape: (height, width, channels) of the image, all known.
        classes: number of classes; 0 or None for the pooled features.
        include_top: False for the base.
        explicit_padding: makes no difference to any figure: the sizes are the same, and padding is not counted.
        activation_bytes: of one number in an activation: 4 for float32, 2 for the paper's 16-bit floats, 1 for int8.
        plan_options: those of `make_plan`.

    Returns:
        The analysis: a row for each layer, and totals. `analyze().multiply_adds` is 300,775,552, `.parameters`
        3,472,041.

    Raises:
        ValueError: an argument is out of its range.
    """
    shape = known_shape(input_shape)
    classes = whole_number("classes", classes or 0, 0)
    plan = make_plan(alpha, channels=shape[2], **plan_options)
    costs = CostModel(activation_bytes, normalization)
    *_, x = _backbone(costs, shape, plan, final_endpoint).values()
    if include_top:
        costs.begin("global_pool", "global_pool", "classifier")
        x = costs.pool(x, "global_pool")
        if classes:
            x = costs.row(x, classifier_logits(x.shape[2], classes), "classifier")
    return Analysis(plan, shape, x.shape, costs.close([x]), costs.activation_bytes)


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

    Args:
        alpha, classes, separable, predictor_kernel: as in `make_detector_plan`.
        input_shape: (height, width, channels).
        activation_bytes: of one number in an activation.

    Returns:
        The analysis; its stages are "backbone", "extras" and "predictors", `anchors` is the number of boxes,
        `output_shape` is (1, anchors, 4 codes and 1 + classes scores). The predictors run after all feature maps, which
        are kept in memory until then.

    Raises:
        ValueError: an argument is out of its range.
    """
    shape = known_shape(input_shape)
    options = {"classes": classes, "separable": separable, "predictor_kernel": predictor_kernel}
    plan = make_detector_plan(alpha, channels=shape[2], **options)
    costs = CostModel(activation_bytes)
    endpoints = _backbone(costs, shape, plan.backbone)
    maps = [endpoints[name] for name in plan.feature_maps]
    for sequence in plan.extra_maps:
        maps.append(_sequence(costs, maps[-1], sequence, "extras"))
    outputs, anchors = [], 0
    for x, predictor in zip(maps, plan.predictors, strict=True):
        anchors += predictor.anchors * x.shape[0] * x.shape[1]
        outputs += [_sequence(costs, x, branch, "predictors") for branch in (predictor.boxes, predictor.classes)]
    rows = costs.close(outputs)
    return Analysis(plan.backbone, shape, (1, anchors, plan.classes + 5), rows, costs.activation_bytes, anchors)


def analyze_deeplab(
    alpha: float = 1.0,
    input_shape: Shape = (513, 513, 3),
    classes: int = 21,
    output_stride: int = 16,
    aspp_rates: Sequence[int] = (),
    decoder: bool = False,
    *,
    aspp_separable: bool = True,
    head: bool = True,
    activation_bytes: int = 4,
) -> Analysis:
    """Count the segmenter, up to logits at the size of the image.

    Args:
        alpha, classes, output_stride, aspp_rates, decoder: as in `make_segmenter_plan`.
        aspp_separable: the same; False in the paper's Table 7.
        head: the same.
        input_shape: (height, width, channels).
        activation_bytes: of one number in an activation.

    Returns:
        The analysis; its stages are "backbone" and "head".

    Raises:
        ValueError: an argument is out of its range.
    """
    shape = known_shape(input_shape)
    options = {"classes": classes, "output_stride": output_stride, "aspp_rates": aspp_rates, "decoder": decoder}
    plan = make_segmenter_plan(alpha, channels=shape[2], head=head, aspp_separable=aspp_separable, **options)
    costs = CostModel(activation_bytes)

    def resize(x, size, name):
        costs.begin(name, name, "head")
        return costs.resize(x, size, name)

    endpoints = _backbone(costs, shape, plan.backbone, plan.features)
    x = features = endpoints[plan.features]
    if plan.aspp:
        costs.begin("image_pooling", "image_pooling", "head")
        pooled = costs.convolution(costs.pool(features, "image_pooling/AvgPool"), plan.aspp.pooling)
        branches = [resize(pooled, features.shape[:2], "image_pooling/resize")]
        branches += [_sequence(costs, features, branch, "head") for branch in plan.aspp.branches]
        x = costs.row(costs.concatenate(branches), plan.aspp.projection, "head")
    if plan.decoder:
        early = costs.row(endpoints[plan.decoder.endpoint], plan.decoder.skip, "head")
        x = costs.concatenate([resize(x, early.shape[:2], "decoder/resize"), early])
        x = _sequence(costs, x, plan.decoder.filters, "head")
    x = costs.row(x, plan.logits, "head")
    x = resize(x, shape[:2], "logits/resize")
    return Analysis(plan.backbone, shape, x.shape, costs.close([x]), costs.activation_bytes)
