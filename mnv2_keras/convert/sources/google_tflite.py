"""Google's quantised .tflite files back to TF-Slim's variables: dequantised kernels, folded biases in trivial batch norms.

The tensors keep the names of the training graph (`MobilenetV2/Conv/Relu6`, `aspp0/BatchNorm_Fold/bias`, ...): the scope of a
convolution is all but the last part of its output's name.
"""

import math
import os
from dataclasses import dataclass

import numpy as np

from mnv2_keras.tflite import TfliteFile

#: By what the batch norm of a scope is computed: epsilon, as the networks have it in Keras.
_EPSILON, _HEAD_EPSILON = 1e-3, 1e-5


@dataclass(frozen=True)
class QuantisedNetwork:
    """What a quantised file holds.

    Attributes:
        source: the file's name for messages.
        arrays: float32 by TF-Slim's variable name; each batch norm has gamma 1, mean 0 and variance 1 - epsilon.
        input_shape: (H, W, C).
        output_stride: pixels of the image to a step of the backbone's last map.
    """

    source: str
    arrays: dict[str, np.ndarray]
    input_shape: tuple[int, int, int]
    output_stride: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each variable."""
        return {name: array.shape for name, array in self.arrays.items()}


def read_quantised(path: str | os.PathLike) -> QuantisedNetwork:
    """Read a quantised (or float) .tflite made from TF-Slim's graph.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its tensors do not have TF-Slim's names.
    """
    file = TfliteFile(path)
    arrays: dict[str, np.ndarray] = {}
    strides = []
    for operator, kind in zip(file.graph.operators, file.kinds, strict=True):
        if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            continue
        scope = file.name(int(operator.outputs[0])).split(";")[0].rpartition("/")[0]
        kernel, bias = (file.constant(int(t)) for t in operator.inputs[1:3])
        if not scope or kernel is None or bias is None:
            raise ValueError(
                f"{file.source} has a convolution without TF-Slim's name ({file.name(int(operator.outputs[0]))!r}) or without "
                "constants: expected one of Google's quantised MobileNetV2 files."
            )
        if kind == "CONV_2D":
            arrays[f"{scope}/weights"] = np.ascontiguousarray(kernel.transpose(1, 2, 3, 0))
        else:
            arrays[f"{scope}/depthwise_weights"] = np.ascontiguousarray(kernel.transpose(1, 2, 3, 0))
        if scope.startswith("MobilenetV2/") and "/Logits/" not in scope:
            strides.append(operator.builtinOptions.strideH)
        if scope.startswith("logits/") or "/Logits/" in scope:
            arrays[f"{scope}/biases"] = bias
            continue
        epsilon = _EPSILON if scope.startswith("MobilenetV2/") else _HEAD_EPSILON
        arrays |= {
            f"{scope}/BatchNorm/gamma": np.ones_like(bias),
            f"{scope}/BatchNorm/beta": bias,
            f"{scope}/BatchNorm/moving_mean": np.zeros_like(bias),
            f"{scope}/BatchNorm/moving_variance": np.full_like(bias, 1 - epsilon),
        }
    _, *sides = file.shape(int(file.graph.inputs[0]))
    if "MobilenetV2/Conv/weights" not in arrays or len(sides) != 3:
        raise ValueError(
            f"{file.source} holds no MobileNetV2 with TF-Slim's names: expected MobilenetV2/Conv/..., and so on."
        )
    return QuantisedNetwork(file.source, arrays, tuple(sides), math.prod(strides))
