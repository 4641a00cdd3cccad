"""A Keras model to a .tflite file by TensorFlow's converter, in a subprocess job.

The converter keeps memory at every call (tensorflow issue 122598), and a crash of its compiler ends its process. So the model
goes as a .keras file to a subprocess: `python -m mnv2_keras.export.conversion JOB` converts and ends.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mnv2_keras.checks import one_of
from mnv2_keras.subprocess_job import failure, follow_parent, run_subprocess_job
from mnv2_keras.tflite import TfliteFile

#: Precisions that the converter makes; int8 is made from the float32 file afterwards.
_CONVERTED = ("float32", "float16", "dynamic", "int16x8")

#: Builtin operators a file may hold: those that Android runtimes and GPU delegates of the last years support.
_BUILTIN = """
    ABS ADD ARG_MAX AVERAGE_POOL_2D CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV EXP EXPAND_DIMS FULLY_CONNECTED
    GATHER HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG PACK PAD PADV2 QUANTIZE REDUCE_MAX RELU RELU6
    RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SHAPE SOFTMAX SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE
    STRIDED_SLICE SUB SUM TANH TRANSPOSE ELU GELU BATCH_MATMUL BROADCAST_TO RELU_N1_TO_1 UNPACK SLICE
"""
ALLOWED = frozenset(_BUILTIN.split())
#: The one custom operator that LiteRT and MediaPipe include.
ALLOWED_CUSTOM = frozenset({"TFLite_Detection_PostProcess"})


def convert_litert(
    model,
    precision: str = "float32",
    batch: int | None = 1,
    resolution: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> TfliteFile:
    """A Keras model as a .tflite file: NHWC, batch norms folded, operators checked. See `convert_precisions`."""
    return convert_precisions(model, [precision], batch, resolution, calibration)[0]


def convert_precisions(
    model,
    precisions: Sequence[str],
    batch: int | None = 1,
    resolution: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> list[TfliteFile]:
    """A Keras model in several precisions, one file each, from one subprocess.

    Args:
        model: a functional model of one image input.
        precisions: any of "float32", "float16", "dynamic" (int8 kernels, float activations) and "int16x8".
        batch: images per call; None leaves it open.
        resolution: (height, width) for a model that takes any.
        calibration: for "int16x8": float32 arrays (1, H, W, C), as the model takes them.

    Raises:
        ValueError: the model cannot be converted, or the file has operators that Android does not support.
    """
    for precision in precisions:
        one_of("precision", precision, _CONVERTED)
    shape = [batch, *_image_shape(model, resolution)]
    with tempfile.TemporaryDirectory(prefix="mnv2-export-") as name:
        folder = Path(name)
        model.save(folder / "model.keras")
        if len(calibration):
            np.save(folder / "calibration.npy", np.concatenate(list(calibration)))
        (folder / "job.json").write_text(json.dumps({"precisions": list(precisions), "shape": shape}))
        done = run_subprocess_job(__name__, folder)
        if done.returncode or not (folder / "outputs.json").exists():
            how, last_lines = failure(done)
            raise ValueError(f"The conversion of {model.name!r} {how}; no file was written. {last_lines}")
        contents = [(folder / f"{i}.tflite").read_bytes() for i in range(len(precisions))]
        outputs = json.loads((folder / "outputs.json").read_text())
    return [_checked_file(content, outputs, model.name) for content in contents]


def convert_in_process(model, precision: str, shape: Sequence[int | None]) -> TfliteFile:
    """The same for one precision and an input shape (B, H, W, C), in this process. The model's dead channels become zeros."""
    contents, outputs = _convert(model, [precision], shape)
    return _checked_file(contents[0], outputs, model.name)


def _image_shape(model, resolution: tuple[int, int] | None) -> tuple[int, int, int]:
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"{model.name!r} takes inputs of shapes {shapes}: expected one image, (B, H, W, C).")
    _, height, width, channels = shapes[0]
    size = resolution or (height, width)
    if None in size:
        raise ValueError(
            f"{model.name!r} takes images of any size, a .tflite takes one: pass resolution=(height, width), such as (224, 224)."
        )
    if any(own not in (None, side) for own, side in zip((height, width), size, strict=True)):
        raise ValueError(
            f"{model.name!r} is built for {height} x {width} pixels, not {size[0]} x {size[1]}: leave resolution out, or "
            "build it with that input_shape."
        )
    return int(size[0]), int(size[1]), int(channels)


def _checked_file(content: bytes, outputs: Sequence[str], name: str) -> TfliteFile:
    file = TfliteFile(content)
    set_signature(file, outputs)
    check_operators(file, name)
    return file


def set_signature(file: TfliteFile, outputs: Sequence[str]) -> None:
    """Name a file's input "image" and its outputs, and add the signature that Android's `runSignature` needs."""
    sides = []
    for names, tensors in ((["image"], file.graph.inputs), (outputs, file.graph.outputs)):
        sides.append([])
        for name, tensor in zip(names, tensors, strict=True):
            file.graph.tensors[tensor].name = name.encode()
            sides[-1].append(schema.TensorMapT(name=name.encode(), tensorIndex=tensor))
    signature = schema.SignatureDefT(inputs=sides[0], outputs=sides[1], signatureKey=b"serving_default")
    file.model.signatureDefs = [signature]


def check_operators(file: TfliteFile, name: str) -> None:
    """Raise ValueError when a file holds an operator that is not allowed, such as a Flex one."""
    if unknown := sorted(set(file.kinds) - ALLOWED - ALLOWED_CUSTOM):
        raise ValueError(
            f"{name!r} needs {', '.join(unknown)}, which a plain Android runtime does not have: no file was written. Take those "
            "layers out of the model and compute them in the app."
        )


def _convert_job(folder: Path) -> None:
    """In the subprocess: convert the model in the folder, and write the files there."""
    import keras

    import mnv2_keras.layers  # noqa: F401 (registers the layers that the model may hold)

    job = json.loads((folder / "job.json").read_text())
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    photos = folder / "calibration.npy"
    contents, outputs = _convert(model, job["precisions"], job["shape"], np.load(photos) if photos.exists() else None)
    for i, content in enumerate(contents):
        (folder / f"{i}.tflite").write_bytes(content)
    (folder / "outputs.json").write_text(json.dumps(outputs))


def _convert(model, precisions, shape, calibration=None) -> tuple[list[bytes], list[str]]:
    """(files, names of their outputs), converted in this process. The model's dead channels become zeros."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    clear_dead_channels(model)
    names = []

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="image")])
    def serve(image):
        outputs = model(image, training=False)
        names[:] = _output_names(model, outputs)
        return tf.nest.flatten(outputs)

    frozen = convert_variables_to_constants_v2(serve.get_concrete_function())
    contents = []
    for precision in precisions:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int16x8":
            converter.representative_dataset = lambda: ([np.stack([image] * (shape[0] or 1))] for image in calibration)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
        contents.append(converter.convert())
    return contents, names


def _output_names(model, outputs) -> list[str]:
    if isinstance(outputs, dict):
        return sorted(outputs)  # the order in which TensorFlow flattens
    names = [output._keras_history[0].name for output in model.outputs]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]


def clear_dead_channels(model) -> None:
    """Set kernels' channels below 1e-8 of the largest to zero: their scales would make integer biases overflow."""
    axes = {"Conv2D": 3, "DepthwiseConv2D": 2}  # of the output channels
    for layer in model.layers:
        axis = axes.get(type(layer).__name__)
        if axis is None:
            continue
        values = np.asarray(layer.kernel)
        largest = np.abs(values).max(axis=tuple(i for i in range(4) if i != axis), keepdims=True)
        dead = (largest > 0) & (largest < 1e-8 * largest.max())
        if dead.any():
            layer.kernel.assign(np.where(dead, 0, values))


if __name__ == "__main__":
    _convert_job(follow_parent(sys.argv[1:]))
