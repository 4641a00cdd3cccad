"""Google's quantised .tflite files as TF-Slim's variables: dequantised kernels, folded biases in trivial batch norms.

The tensors keep the names of the training graph (`MobilenetV2/Conv/Relu6`, `aspp0/BatchNorm_Fold/bias`, ...): the scope of a
convolution is all but the last part of its output's name.
"""

import math
from pathlib import Path

import numpy as np

from mnv2_keras.convert.source import Source, sha256_of
from mnv2_keras.tflite import TfliteFile, labels_in_file

#: Epsilon of the batch norms of the backbone, and of the heads.
_EPSILON, _HEAD_EPSILON = 1e-3, 1e-5


def read(tflite: Path, path: Path) -> Source:
    """Read a quantised or float .tflite file made from TF-Slim's graph; batch norms get gamma 1, mean 0, variance 1 - epsilon.

    Args:
        tflite: the file.
        path: the same file, or the archive that holds it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its tensors do not have TF-Slim's names.
    """
    file = TfliteFile(tflite)
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
        leaf = "weights" if kind == "CONV_2D" else "depthwise_weights"
        arrays[f"{scope}/{leaf}"] = np.ascontiguousarray(kernel.transpose(1, 2, 3, 0))
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
        raise ValueError(f"{file.source} holds no MobileNetV2 with TF-Slim's names: expected MobilenetV2/Conv/... and so on.")
    labels = labels_in_file(tflite.read_bytes(), tflite.name)
    facts = {"input_shape": tuple(sides), "output_stride": math.prod(strides)}
    hashes = {tflite.name: sha256_of(tflite)}
    return Source.of_arrays(path, arrays, file=tflite, facts=facts, sha256=hashes, labels=labels, folded=True)
