"""Round kernels so that their outputs, rather than their weights, stay close.

Weights are rounded one input after the other, and each rounding's error is made good by the weights that are still to come,
as far as the inputs vary together: a second-order method (optimal brain quantisation, arXiv:2208.11580; in this order for all
outputs at once, arXiv:2210.17323). What mean error is left goes into the bias (bias correction, arXiv:1906.04721).
"""

from collections.abc import Mapping

import numpy as np

from mnv2_keras.export.quantization import Kernel, QuantParams, kernel_scale
from mnv2_keras.export.statistics import Statistics
from mnv2_keras.tflite import TfliteFile

#: Added to the inputs' own second moments, relative to their mean: few photos show only some of what inputs can do.
_DAMPING = 0.01
_BLOCK = 64


def gptq(
    content: bytes,
    statistics: Statistics,
    scheme: Mapping[int, QuantParams],
    damping: float = _DAMPING,
    compensate: bool = True,
    correct_bias: bool = True,
) -> dict[int, Kernel]:
    """Kernels in int8 for every convolution of a float file, by the index of the kernel's tensor.

    Args:
        content: the float32 .tflite file.
        statistics: with the inputs of its kernels.
        scheme: the meaning of its activations in int8.
        damping: share of the mean second moment added to all.
        compensate: False rounds to the nearest.
        correct_bias: whether mean errors go into the biases.
    """
    file = TfliteFile(content)
    chosen = {}
    for i, (operator, kind) in enumerate(zip(file.graph.operators, file.kinds, strict=True)):
        source = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
        if i not in statistics.inputs or len(file.consumers[source]) > 1:
            continue
        inputs = statistics.inputs[i]
        values = file.constant(source)
        bias = file.constant(int(operator.inputs[2])) if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None
        axis = 0 if kind == "CONV_2D" else 3
        if kind == "CONV_2D" and values.reshape(len(values), -1).shape[1] != inputs.gram.shape[0]:
            continue  # a grouped convolution
        if kind == "DEPTHWISE_CONV_2D" and values.shape[-1] != len(inputs.gram):
            continue  # more outputs than inputs
        scale = kernel_scale(values, axis, scheme[int(operator.inputs[0])].scale, bias)
        # Rows are outputs, columns what each multiplies.
        rows = values.reshape(len(values), -1) if axis == 0 else values.reshape(-1, values.shape[-1]).T
        gram, mean = inputs.gram / inputs.rows, inputs.mean / inputs.rows
        if not compensate:
            stored = np.clip(np.rint(rows / scale[:, None]), -127, 127)
        elif axis == 0:
            stored = _compensated(rows.astype(np.float64), gram, scale.astype(np.float64), damping)
        else:
            stored = _compensated_each(rows.astype(np.float64), gram, scale.astype(np.float64), damping)
        if correct_bias and bias is not None:
            error = stored * scale[:, None] - rows
            bias = bias - (error @ mean if axis == 0 else np.sum(error * mean, axis=1))
        shaped = stored.reshape(values.shape) if axis == 0 else stored.T.reshape(values.shape)
        chosen[source] = Kernel(shaped.astype(np.int8), scale, None if bias is None else bias.astype(np.float32))
    return chosen


def _inverse_factor(gram: np.ndarray, damping: float) -> np.ndarray:
    """Upper Cholesky factor of the inverse of the damped second moments; (..., K, K)."""
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    ridge = np.maximum(damping * diagonal.mean(axis=-1), 1e-8)
    inverse = np.linalg.inv(gram + ridge[..., None, None] * np.eye(gram.shape[-1]))
    return np.linalg.cholesky((inverse + np.swapaxes(inverse, -1, -2)) / 2).swapaxes(-1, -2)


def _compensated(rows: np.ndarray, gram: np.ndarray, scale: np.ndarray, damping: float) -> np.ndarray:
    """(O, K) stored numbers; all outputs see the same inputs, whose second moments are `gram` (K, K)."""
    # The strongest inputs are rounded first, while there are most others to make their errors good.
    order = np.argsort(-np.diagonal(gram), kind="stable")
    upper = _inverse_factor(gram[np.ix_(order, order)], damping)
    rest = rows[:, order].copy()
    stored = np.empty_like(rest)
    for start in range(0, rest.shape[1], _BLOCK):
        end = min(start + _BLOCK, rest.shape[1])
        errors = np.empty((len(rest), end - start))
        for k in range(start, end):
            stored[:, k] = np.clip(np.rint(rest[:, k] / scale), -127, 127)
            errors[:, k - start] = (rest[:, k] - stored[:, k] * scale) / upper[k, k]
            rest[:, k + 1 : end] -= np.outer(errors[:, k - start], upper[k, k + 1 : end])
        rest[:, end:] -= errors @ upper[start:end, end:]
    result = np.empty_like(stored)
    result[:, order] = stored
    return result


def _compensated_each(rows: np.ndarray, gram: np.ndarray, scale: np.ndarray, damping: float) -> np.ndarray:
    """(C, K) stored numbers of a depthwise kernel: every channel has inputs of its own, `gram` (C, K, K)."""
    upper = _inverse_factor(gram, damping)
    rest = rows.copy()
    stored = np.empty_like(rest)
    for k in range(rest.shape[1]):
        stored[:, k] = np.clip(np.rint(rest[:, k] / scale), -127, 127)
        error = (rest[:, k] - stored[:, k] * scale) / upper[:, k, k]
        rest[:, k + 1 :] -= error[:, None] * upper[:, k, k + 1 :]
    return stored
