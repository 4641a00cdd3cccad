"""The operators that a frozen graph may hold: those of networks. None of them reads or writes files or runs other code."""

import math

#: What TF-Slim's, the Object Detection API's and DeepLab's exporters write, in all their versions.
_NETWORK = """
    Abs Add AddN AddV2 All Any ArgMax AvgPool BatchToSpaceND BiasAdd BroadcastTo Cast Ceil CheckNumerics Concat ConcatV2
    Const Conv2D DepthwiseConv2dNative Div Equal Exp ExpandDims Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2
    FusedBatchNormV3 Gather GatherNd GatherV2 Greater GreaterEqual Identity IdentityN Less LessEqual Log LogicalAnd
    LogicalNot LogicalOr MatMul Max MaxPool Maximum Mean Min Minimum MirrorPad Mul Neg NoOp NonMaxSuppression
    NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NotEqual OnesLike Pack Pad PadV2
    Placeholder PlaceholderWithDefault Pow Prod Range Rank RealDiv Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor
    Reverse ReverseV2 Round Rsqrt Select SelectV2 Shape ShapeN Sigmoid Size Slice Softmax SpaceToBatchND Split SplitV Sqrt
    Square SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tanh Tile TopK TopKV2 Transpose TruncateDiv Unpack
    Where ZerosLike
"""
#: Control flow of TensorFlow 1. A TensorArray is memory of the run itself.
_CONTROL_FLOW = """
    Assert Enter Exit LoopCond Merge NextIteration Switch TensorArrayGatherV3 TensorArrayReadV3 TensorArrayScatterV3
    TensorArraySizeV3 TensorArrayV3 TensorArrayWriteV3
"""
ALLOWED = frozenset((_NETWORK + _CONTROL_FLOW).split())

#: Numeric element types by their number in TensorFlow's `types.proto`: bytes of one element.
_ELEMENT_BYTES = {1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 9: 8, 10: 1, 14: 2, 17: 2, 19: 2, 22: 4, 23: 8}
#: Other element types, and the operators that may have them: texts are messages of an Assert; resources are TensorArrays, because
#: no other allowed operator makes a resource.
_TEXT, _RESOURCE = 7, 20
_OTHER_TYPES = {_TEXT: {"Assert", "Const"}, _RESOURCE: {"Enter", "Exit", "Identity", "Merge", "NextIteration", "Switch"}}
#: Bytes of one constant, and of all constants. The largest genuine network has 25 MB.
MAX_CONSTANT, MAX_CONSTANTS = 512 * 2**20, 2 * 2**30


def check_operators(definition, name: str) -> None:
    """Refuse a graph that could do anything but compute, or whose constants are too large for a network.

    No allowed operator calls a function, so the graph's library of functions cannot be reached.

    Args:
        definition: a `GraphDef`.
        name: of the file, for the message.

    Raises:
        ValueError: names the first node that is refused, its operator and the reason.
    """
    total = 0
    for node in definition.node:
        if node.op not in ALLOWED:
            raise _refusal(name, node, "is not an operator of a MobileNetV2 network")
        for key, value in node.attr.items():
            if value.WhichOneof("value") == "func" or value.list.func:
                raise _refusal(name, node, f"names a function in its attribute {key}")
            others = {value.type, *value.list.type} - {0, *_ELEMENT_BYTES}
            if any(node.op not in _OTHER_TYPES.get(element, ()) for element in others):
                raise _refusal(name, node, f"has an element type other than numbers in its attribute {key}")
        if node.op == "Const":
            total += _bytes_of(node, name)
    if total > MAX_CONSTANTS:
        raise ValueError(
            f"{name} has constants of {total / 2**30:.1f} GiB: expected at most {MAX_CONSTANTS // 2**30} GiB. Do not use this file."
        )


def _bytes_of(node, name: str) -> int:
    """Bytes of a constant's array; a file may state a large shape and hold a single value."""
    tensor = node.attr["value"].tensor
    sides = [side.size for side in tensor.tensor_shape.dim]
    size = math.prod(sides) * _ELEMENT_BYTES.get(tensor.dtype, 1)
    if tensor.dtype != node.attr["dtype"].type or min(sides, default=0) < 0 or size > MAX_CONSTANT:
        raise _refusal(
            name, node, f"has the shape {sides}: expected at most {MAX_CONSTANT // 2**20} MiB of its declared element type"
        )
    return size


def _refusal(name: str, node, reason: str) -> ValueError:
    return ValueError(f"{name}: node {node.name!r}, operator {node.op}, {reason}. Nothing was run; do not use this file.")
