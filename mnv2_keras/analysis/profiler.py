"""What TensorFlow 1's profiler counts in DeepLab's graphs: the way to the figures of the paper's Table 7."""

from collections.abc import Sequence

from mnv2_keras.analysis.network import Analysis

#: What is in the graph once, however many scales and flips there are.
_ONCE = ("argmax", "initializers", "regularizers")


def profiled_operations(analysis: Analysis) -> dict[str, int]:
    """Floating-point operations by their cause, as `tf.profiler` counts them on the genuine graph of `predict_labels`.

    A multiply-add counts as two. Convolutions with dilation run on padded input. Normalisation, ReLU6, resizing and the
    addition of residuals have no count in the profiler; the initialiser and the L2 term of every kernel have, being in
    the graph.

    Args:
        analysis: of `analyze_deeplab`.

    Returns:
        `convolutions`, `bias`, `pooling`, `preprocessing`, `argmax`, `softmax`, `initializers` and `regularizers`.
        Their sum is the profiler's `total_float_ops`.
    """
    operations = analysis.operations
    height, width, classes = analysis.output_shape
    logits = next(operation for operation in operations if operation.name == "logits/semantic")
    kernels = sum(operation.parameters for operation in operations) - classes
    depthwise = sum(operation.parameters for operation in operations if operation.kind == "depthwise")
    pooled = [operation.input_shape for operation in operations if operation.kind == "pool"]
    # The initialiser of a Glorot-uniform kernel computes the difference of its bounds as well.
    glorot = sum(operation.glorot for operation in operations)
    pixels = height * width
    return {
        "convolutions": 2 * analysis.padded_multiply_adds,
        "bias": logits.output_shape[0] * logits.output_shape[1] * classes,
        "pooling": sum(h * w * channels for h, w, channels in pooled),
        "preprocessing": 2 * pixels * analysis.input_shape[2],
        "argmax": pixels * (classes - 1),
        "softmax": 5 * pixels * classes,
        "initializers": kernels + glorot,
        # The profiler counts 3 n - 1 for the L2 norm of n weights, and 1 for its factor. Depthwise kernels have none.
        "regularizers": 3 * (kernels - depthwise),
    }


def profiled_multiply_adds(network: Analysis, passes: Sequence[Analysis] = ()) -> int:
    """Half of what the profiler counts in a graph that predicts labels, its softmax left out.

    Source: DeepLab's `predict_labels`, and `predict_labels_multi_scale` where there are `passes`.

    Args:
        network: of `analyze_deeplab`, at the size of the labels.
        passes: of the same network at every scale, once for each time that it runs; none means `network` alone.
    """
    causes = profiled_operations(network)
    operations = sum(causes[cause] for cause in _ONCE)
    for counts in map(profiled_operations, passes or [network]):
        operations += sum(n for cause, n in counts.items() if cause not in (*_ONCE, "softmax"))
    height, width, classes = network.output_shape
    return (operations + len(passes) * height * width * classes) // 2  # the mean over the passes
