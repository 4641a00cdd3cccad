"""A Keras model to a .tflite file by TensorFlow's converter, in a process of its own.

The converter keeps memory at every call (tensorflow issue 122598) and a crash of its compiler takes its process along: so
the model goes as a .keras file to a child, which converts and ends. `python -m mnv2_keras.export.conversion JOB` is the child.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mnv2_keras.subprocess_job import follow_parent, run_child
from mnv2_keras.tflite import TfliteFile

#: What the converter itself is asked for; int8 is made from the float32 file afterwards.
_CONVERTED = ("float32", "float16", "dynamic", "int16x8")

#: Builtin operators a file may hold: those that every Android runtime and GPU delegate of the last years knows.
_BUILTIN = """
    ABS ADD ARG_MAX AVERAGE_POOL_2D CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV EXP EXPAND_DIMS FULLY_CONNECTED
    GATHER HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG PACK PAD PADV2 QUANTIZE REDUCE_MAX RELU RELU6
    RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SHAPE SOFTMAX SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE
    STRIDED_SLICE SUB SUM TANH TRANSPOSE ELU GELU BATCH_MATMUL BROADCAST_TO RELU_N1_TO_1 UNPACK SLICE
"""
ALLOWED = frozenset(_BUILTIN.split())
#: The one custom operator that LiteRT and MediaPipe bring along.
ALLOWED_CUSTOM = frozenset({"TFLite_Detection_PostProcess"})

#: Lines of the child's last words that go into an error.
_LAST_LINES = 6


def convert_litert(
    model,
    precision: str = "float32",
    batch: int | None = 1,
    resolution: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> bytes:
    """A Keras model as a .tflite file, NHWC, batch norms folded, operators checked.

    Args:
        model: a functional model of one image input.
        precision: "float32", "float16", "dynamic" (int8 kernels, float activations) or "int16x8".
        batch: images at once; None leaves it open.
        resolution: (height, width) for a model that takes any.
        calibration: for "int16x8": float32 arrays (1, H, W, C), as the model takes them.

    Raises:
        ValueError: the model cannot be converted, or the file has operators that Android does not know.
    """
    if precision not in _CONVERTED:
        raise ValueError(f"precision is {precision!r}: the converter makes {', '.join(_CONVERTED)}.")
    shape = [batch, *_sides(model, resolution)]
    with tempfile.TemporaryDirectory(prefix="mnv2-export-") as folder:
        job = {"precision": precision, "shape": shape}
        model.save(Path(folder, "model.keras"))
        if len(calibration):
            np.save(Path(folder, "calibration.npy"), np.concatenate(list(calibration)))
        Path(folder, "job.json").write_text(json.dumps(job))
        _run_child(Path(folder), model.name)
        content = Path(folder, "model.tflite").read_bytes()
        names = json.loads(Path(folder, "outputs.json").read_text())
    content = with_signature(content, names)
    check_operators(content, model.name)
    return content


def _sides(model, resolution) -> list[int]:
    shapes = [tuple(each.shape) for each in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"{model.name!r} takes inputs of shapes {shapes}: expected one image, (B, H, W, C).")
    _, height, width, channels = shapes[0]
    given = resolution or (height, width)
    if None in given:
        raise ValueError(
            f"{model.name!r} takes images of any size, a .tflite takes one: pass resolution=(height, width), such as (224, 224)."
        )
    for own, wanted in zip((height, width), given, strict=True):
        if own not in (None, wanted):
            raise ValueError(
                f"{model.name!r} is built for {height} x {width} pixels, not {given[0]} x {given[1]}: leave resolution out, or "
                "build it with that input_shape."
            )
    return [int(given[0]), int(given[1]), int(channels)]


def _run_child(folder: Path, name: str) -> None:
    done = run_child(__name__, folder)
    if done.returncode or not Path(folder, "outputs.json").exists():
        said = [line for line in done.stderr.splitlines() if line.strip()][-_LAST_LINES:]
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
        raise ValueError(f"The conversion of {name!r} {how}; no file was written. " + " | ".join(said))


def with_signature(content: bytes, names: list[str]) -> bytes:
    """Names that mean something, and a signature, so that `runSignature` works on Android too."""
    file = TfliteFile(content)
    tensors, graph = file.graph.tensors, file.graph
    ends = []
    for given, indices in ((["image"], graph.inputs), (names, graph.outputs)):
        for name, index in zip(given, indices, strict=True):
            tensors[int(index)].name = name.encode()
        ends.append(
            [
                schema.TensorMapT(name=name.encode(), tensorIndex=int(index))
                for name, index in zip(given, indices, strict=True)
            ]
        )
    file.model.signatureDefs = [schema.SignatureDefT(inputs=ends[0], outputs=ends[1], signatureKey=b"serving_default")]
    return file.to_bytes()


def check_operators(content: bytes, name: str) -> None:
    """Raise ValueError when a file holds an operator outside the allow-list, Flex ones among them."""
    strangers = sorted(set(TfliteFile(content).kinds) - ALLOWED - ALLOWED_CUSTOM)
    if strangers:
        raise ValueError(
            f"{name!r} needs {', '.join(strangers)}, which a plain Android runtime does not have: no file was written. Take those "
            "layers out of the model and compute them in the app."
        )


# The child


def _convert_job(folder: Path) -> None:
    """Convert what lies in the folder, and leave the file there."""
    import keras

    import mnv2_keras.layers  # noqa: F401 - Keras then knows the layers that the file may hold

    job = json.loads(Path(folder, "job.json").read_text())
    model = keras.saving.load_model(Path(folder, "model.keras"), compile=False)
    photos = Path(folder, "calibration.npy")
    content, names = convert_here(model, job["precision"], job["shape"], np.load(photos) if photos.exists() else None)
    Path(folder, "model.tflite").write_bytes(content)
    Path(folder, "outputs.json").write_text(json.dumps(names))


def convert_here(model, precision: str, shape: list[int | None], calibration=None) -> tuple[bytes, list[str]]:
    """(file, names of its outputs), converted in this very process. The model's dead channels become zeros."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    clear_dead_channels(model)
    spec = tf.TensorSpec(shape, tf.float32, name="image")
    structure = {}

    @tf.function(input_signature=[spec])
    def serve(image):
        outputs = model(image, training=False)
        structure["names"] = _output_names(model, outputs)
        return tf.nest.flatten(outputs)

    frozen = convert_variables_to_constants_v2(serve.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int16x8":
        converter.representative_dataset = lambda: ([np.stack([image] * (shape[0] or 1))] for image in calibration)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    return converter.convert(), structure["names"]


def _output_names(model, outputs) -> list[str]:
    if isinstance(outputs, dict):
        return sorted(outputs)  # the order in which TensorFlow flattens
    names = [each._keras_history[0].name for each in model.outputs]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]


def clear_dead_channels(model) -> None:
    """Set kernels' channels that are zero but for 1e-8 of the largest to zero: their scales would upset integer biases."""
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is None or type(layer).__name__ not in ("Conv2D", "DepthwiseConv2D"):
            continue
        values = np.asarray(kernel)
        axis = 2 if type(layer).__name__ == "DepthwiseConv2D" else 3
        largest = np.abs(values).max(axis=tuple(i for i in range(4) if i != axis), keepdims=True)
        dead = (largest > 0) & (largest < 1e-8 * largest.max())
        if dead.any():
            kernel.assign(np.where(dead, 0, values))


if __name__ == "__main__":
    _convert_job(follow_parent(sys.argv[1:]))
