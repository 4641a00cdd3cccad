"""GPTQ: round kernels so that their outputs, rather than their weights, stay close.

Weights are rounded one input after the other. The weights still to be rounded compensate each rounding error, as far as the
inputs are correlated: a second-order method (optimal brain quantisation, arXiv:2208.11580; in one order for all outputs,
arXiv:2210.17323). The mean error that remains is subtracted from the bias (bias correction, arXiv:1906.04721).
"""

from collections.abc import Mapping

import numpy as np

from mnv2_keras.export.quantization import Kernel, kernel_scale
from mnv2_keras.export.statistics import Statistics
from mnv2_keras.quant_params import QuantParams
from mnv2_keras.tflite import TfliteFile

#: Added to the inputs' second moments, relative to their mean: few photos do not show all inputs.
_DAMPING = 0.01
_BLOCK = 64


def gptq(
    file: TfliteFile, statistics: Statistics, scheme: Mapping[int, QuantParams], compensate: bool = True, correct_bias: bool = True
) -> dict[int, Kernel]:
    """Kernels in int8 for every convolution of a float file, by the index of the kernel's tensor.

    Args:
        file: the float32 file.
        statistics: with the inputs of its kernels.
        scheme: quantisation of its activations, by tensor index.
        compensate: whether errors are compensated; False rounds each weight to the nearest.
        correct_bias: whether biases are corrected.
    """
    kernels = {}
    for i, (operator, kind) in enumerate(file.operators):
        if i not in statistics.inputs or len(file.consumers[operator.inputs[1]]) > 1:
            continue
        inputs, source = statistics.inputs[i], operator.inputs[1]
        values, bias = file.kernel_and_bias(operator)
        axis = 0 if kind == "CONV_2D" else 3
        if kind == "CONV_2D" and values.reshape(len(values), -1).shape[1] != inputs.gram.shape[0]:
            continue  # a grouped convolution
        if kind == "DEPTHWISE_CONV_2D" and values.shape[-1] != len(inputs.gram):
            continue  # more outputs than inputs
        scale = kernel_scale(values, axis, scheme[operator.inputs[0]].scale, bias)
        # Rows are outputs, columns what each multiplies.
        rows = values.reshape(len(values), -1) if axis == 0 else values.reshape(-1, values.shape[-1]).T
        gram, mean = inputs.gram / inputs.rows, inputs.mean / inputs.rows
        if not compensate:
            stored = np.clip(np.rint(rows / scale[:, None]), -127, 127)
        else:
            compensated = _compensated if axis == 0 else _compensated_depthwise
            stored = compensated(rows.astype(np.float64), gram, scale.astype(np.float64))
        if correct_bias and bias is not None:
            error = stored * scale[:, None] - rows
            bias = bias - (error @ mean if axis == 0 else np.sum(error * mean, axis=1))
        shaped = stored.reshape(values.shape) if axis == 0 else stored.T.reshape(values.shape)
        kernels[source] = Kernel(shaped.astype(np.int8), scale, None if bias is None else bias.astype(np.float32))
    return kernels


def _inverse_factor(gram: np.ndarray) -> np.ndarray:
    """Upper Cholesky factor of the inverse of the damped second moments; (..., K, K)."""
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    ridge = np.maximum(_DAMPING * diagonal.mean(axis=-1), 1e-8)
    inverse = np.linalg.inv(gram + ridge[..., None, None] * np.eye(gram.shape[-1]))
    return np.linalg.cholesky((inverse + np.swapaxes(inverse, -1, -2)) / 2).swapaxes(-1, -2)


def _compensated(rows: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(O, K) stored numbers; all outputs have the same inputs, of second moments `gram` (K, K)."""
    # The strongest inputs are rounded first, while the most weights are left to compensate their errors.
    order = np.argsort(-np.diagonal(gram), kind="stable")
    upper = _inverse_factor(gram[np.ix_(order, order)])
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


def _compensated_depthwise(rows: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(C, K) stored numbers of a depthwise kernel: each channel has its own inputs, of second moments `gram` (C, K, K)."""
    upper = _inverse_factor(gram)
    rest = rows.copy()
    stored = np.empty_like(rest)
    for k in range(rest.shape[1]):
        stored[:, k] = np.clip(np.rint(rest[:, k] / scale), -127, 127)
        error = (rest[:, k] - stored[:, k] * scale) / upper[:, k, k]
        rest[:, k + 1 :] -= error[:, None] * upper[:, k, k + 1 :]
    return stored
