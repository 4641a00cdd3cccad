"""MobileNetV2 1.0 at 224 px in several engines, on one machine, in one run: `python benchmarks/peers.py WEIGHTS`.

Each round calls all candidates in a new random order, so that other load on the machine affects all of them and the
order has no effect. For each candidate there is first a pause, in which the threads of the previous candidate stop
spinning (OpenMP: a fifth of a second), then a call that wakes its own threads and loads its weights into the cache,
then three calls of which the median counts. The output is the median over the rounds, the quartiles, and the median of
the ratios to this package's `Classifier` within a round. Candidates whose packages are not installed are skipped and
named. All candidates have the same weights if possible: they are copied layer by layer to Keras Applications and to the
PyTorch network below, ONNX Runtime runs an export of that network, and OpenVINO and LiteRT read the file of this
package.

The lower limit is measured in the same rounds: a float32 product of large matrices shows how fast the machine
multiplies, and one image needs 0.60 GFLOP.
"""

import argparse
import csv
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from mnv2_keras.atomic import write_bytes
from mnv2_keras.inference.benchmark import prepared_file
from mnv2_keras.inference.classifier import Classifier

#: Floating-point operations of one image: twice the multiply-adds.
_GFLOP = 0.6016
#: Seconds.
_PAUSE = 0.25


class Candidates:
    """Candidates by name. Each method returns a call that classifies one image.

    Args:
        weights: an archive or checkpoint of alpha 1.0 and 224 px.
        folder: for intermediate files.
        threads: for `Classifier` with LiteRT, LiteRT alone, PyTorch and ONNX Runtime. TensorFlow and OpenVINO
            choose their own number.
    """

    def __init__(self, weights: str, folder: Path, threads: int):
        self.weights, self.folder, self.threads = weights, folder, threads
        self.photo = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        self.image = (self.photo[None] / 127.5 - 1).astype(np.float32)
        self._model = None

    @property
    def model(self):
        """The converted Keras model."""
        if self._model is None:
            from mnv2_keras.conversion import convert_checkpoint

            self._model = convert_checkpoint(self.weights)
        return self._model

    def file(self, precision: str) -> str:
        """Path of the .tflite file of this package."""
        return prepared_file(self.weights, "litert", precision, self.folder, print)

    # This package

    def classifier(self) -> Callable:
        """`Classifier.predict` on a uint8 photo: preprocessing, LiteRT, top 5."""
        ours = Classifier(self.file("float32"), threads=self.threads)
        return lambda: ours.predict(self.photo)

    def classifier_int8(self) -> Callable:
        """The same with int8."""
        ours = Classifier(self.file("int8"), threads=self.threads)
        return lambda: ours.predict(self.photo)

    def classifier_openvino(self) -> Callable:
        """The same with OpenVINO."""
        ours = Classifier(self.file("float32"), engine="openvino", threads=None)
        return lambda: ours.predict(self.photo)

    # LiteRT alone

    def _interpreter(self, path: str) -> Callable:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(path, num_threads=self.threads)
        interpreter.allocate_tensors()
        details = interpreter.get_input_details()[0]
        values = self.image if details["dtype"] == np.float32 else self.photo[None].astype(details["dtype"])
        interpreter.set_tensor(details["index"], values)
        return interpreter.invoke

    def litert(self) -> Callable:
        """`invoke` on the float32 file of this package."""
        return self._interpreter(self.file("float32"))

    def litert_int8(self) -> Callable:
        """`invoke` on the int8 file of this package."""
        return self._interpreter(self.file("int8"))

    def litert_google_int8(self) -> Callable:
        """`invoke` on Google's quantised file (MNV2_TESTDATA)."""
        return self._interpreter(str(Path(os.environ["MNV2_TESTDATA"], "models", "mobilenet_v2_1.0_224_quant.tflite")))

    def litert_keras_applications(self) -> Callable:
        """`invoke` on the file that the converter makes from Keras Applications' model."""
        from mnv2_keras.export.conversion import convert_litert

        path = self.folder / "applications.tflite"
        write_bytes(path, convert_litert(self._applications()).to_bytes())
        return self._interpreter(str(path))

    # Keras

    def _applications(self):
        import keras

        reference = keras.applications.MobileNetV2(weights=None, classes=1001)
        layers = [[layer for layer in model.layers if layer.weights] for model in (self.model, reference)]
        # Both have the same layers in the same order; the classifier of Keras Applications is a dense layer.
        for source, target in zip(*layers, strict=True):
            values = zip(source.get_weights(), target.get_weights(), strict=True)
            target.set_weights([value.reshape(old.shape) for value, old in values])
        return reference

    def keras_predict(self) -> Callable:
        """Keras Applications' `predict`."""
        model = self._applications()
        return lambda: model.predict(self.image, verbose=0)

    def keras_function(self) -> Callable:
        """Keras Applications in a `tf.function`."""
        import tensorflow as tf

        model = self._applications()
        function = tf.function(lambda x: model(x, training=False))
        image = tf.constant(self.image)
        return lambda: function(image).numpy()

    def frozen_graph(self) -> Callable:
        """The converted model as a graph with constant weights."""
        import tensorflow as tf
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        function = tf.function(lambda x: self.model(x, training=False))
        frozen = convert_variables_to_constants_v2(function.get_concrete_function(tf.TensorSpec((1, 224, 224, 3))))
        image = tf.constant(self.image)
        return lambda: frozen(image)[0].numpy()

    # Others

    def torch_eager(self) -> Callable:
        """PyTorch in eager mode."""
        torch, model = self._torch()
        x = torch.from_numpy(self.image.transpose(0, 3, 1, 2).copy())

        def call():
            with torch.inference_mode():
                return model(x).numpy()

        return call

    def torch_frozen(self) -> Callable:
        """PyTorch, traced and frozen."""
        torch, model = self._torch()
        x = torch.from_numpy(self.image.transpose(0, 3, 1, 2).copy())
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, x)))

        def call():
            with torch.inference_mode():
                return frozen(x).numpy()

        return call

    def onnx_runtime(self) -> Callable:
        """ONNX Runtime on the folded network."""
        import onnxruntime

        path = self.folder / "model.onnx"
        if not path.exists():
            write_onnx(self.file("float32"), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        x = self.image.transpose(0, 3, 1, 2).copy()
        return lambda: session.run(None, {name: x})[0]

    def openvino(self) -> Callable:
        """OpenVINO on the float32 file of this package, with its settings for latency."""
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(self.file("float32"), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()
        return lambda: request.infer({0: self.image}, share_inputs=True)

    def openvino_int8(self) -> Callable:
        """OpenVINO on the int8 file of this package."""
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(self.file("int8"), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()
        return lambda: request.infer({0: self.photo[None]}, share_inputs=True)

    def machine(self) -> Callable:
        """The minimal time for 0.60 GFLOP on this machine, measured with a product of two 1536 x 1536 matrices in float32."""
        a = np.random.default_rng(0).normal(size=(1536, 1536)).astype(np.float32)

        def call():
            start = time.perf_counter()
            a @ a
            return (time.perf_counter() - start) * _GFLOP / (2 * 1536**3 / 1e9)

        return call

    def _torch(self):
        import torch

        torch.set_num_threads(self.threads)
        model = torch_network(torch).eval()
        fill_torch(torch, model, self.file("float32"))
        return torch, model


NAMES = [name for name in vars(Candidates) if not name.startswith("_") and name not in ("model", "file")]


#: The rows of Table 2 for PyTorch: t, c, n, s.
_ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def torch_network(torch):
    """MobileNetV2 1.0 in PyTorch with folded batch norms and TensorFlow's padding."""
    nn = torch.nn

    class Same(nn.Module):
        """A convolution padded at the end, as TensorFlow's SAME does for stride 2 on even sides."""

        def __init__(self, inputs, outputs, kernel, stride=1, groups=1, active=True):
            super().__init__()
            self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)
            self.extra, self.active = (0, 1, 0, 1) if stride == 2 else None, active

        def forward(self, x):
            x = self.convolution(nn.functional.pad(x, self.extra) if self.extra else x)
            return nn.functional.relu6(x) if self.active else x

    class Block(nn.Module):
        def __init__(self, inputs, outputs, t, stride):
            super().__init__()
            hidden = inputs * t
            expand = [Same(inputs, hidden, 1)] if t > 1 else []
            self.steps = nn.Sequential(*expand, Same(hidden, hidden, 3, stride, hidden), Same(hidden, outputs, 1, active=False))
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x):
            return x + self.steps(x) if self.residual else self.steps(x)

    blocks, inputs = [Same(3, 32, 3, 2)], 32
    for t, c, n, s in _ROWS:
        for i in range(n):
            blocks.append(Block(inputs, c, t, s if i == 0 else 1))
            inputs = c
    return nn.Sequential(*blocks, Same(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1001), nn.Softmax(-1))


def folded_layers(path: str) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """(kernel OIHW, bias, depthwise) of every convolution of a float .tflite, in order."""
    from mnv2_keras.tflite import TfliteFile

    file = TfliteFile(path)
    layers = []
    for operator, kind in zip(file.graph.operators, file.kinds, strict=True):
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            kernel, bias = file.constant(int(operator.inputs[1])), file.constant(int(operator.inputs[2]))
            depthwise = kind == "DEPTHWISE_CONV_2D"
            layers.append((kernel.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2)), bias, depthwise))
    return layers


def fill_torch(torch, model, path: str) -> None:
    """Copy the folded weights into the PyTorch network."""
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    for module, (kernel, bias, _) in zip(modules, folded_layers(path), strict=True):
        kernel = kernel.reshape(tuple(module.weight.shape))
        module.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
        module.bias.data = torch.from_numpy(np.ascontiguousarray(bias))


def write_onnx(tflite: str, path: Path) -> None:
    """Write the folded network as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layers = iter(folded_layers(tflite))
    nodes, constants = [], []

    def constant(name, values):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    zero, six = constant("zero", np.float32(0)), constant("six", np.float32(6))

    def convolution(x, stride=1, active=True):
        kernel, bias, depthwise = next(layers)
        name = f"layer{len(nodes)}"
        size = kernel.shape[-1]
        # TensorFlow's SAME padding: at stride 2 and even sides all padding is at the end.
        pads = [0, 0, 0, 0] if size == 1 else [1, 1, 1, 1] if stride == 1 else [0, 0, 1, 1]
        names = [x, constant(f"{name}/kernel", kernel), constant(f"{name}/bias", bias)]
        options = {"strides": [stride] * 2, "pads": pads, "group": len(kernel) if depthwise else 1}
        nodes.append(helper.make_node("Conv", names, [name], kernel_shape=[size, size], **options))
        if active:
            nodes.append(helper.make_node("Clip", [name, zero, six], [f"{name}/relu6"]))
            return f"{name}/relu6"
        return name

    x = convolution("image", 2)
    inputs = 32
    for t, c, n, s in _ROWS:
        for i in range(n):
            stride = s if i == 0 else 1
            y = convolution(x) if t > 1 else x
            y = convolution(convolution(y, stride), active=False)
            if stride == 1 and inputs == c:
                nodes.append(helper.make_node("Add", [x, y], [f"{y}/add"]))
                y = f"{y}/add"
            x, inputs = y, c
    x = convolution(x)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    x = convolution("pooled", active=False)
    nodes.append(helper.make_node("Flatten", [x], ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "mobilenet_v2",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 1001])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    write_bytes(path, model.SerializeToString())


def run(calls: dict[str, Callable], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each call in each round."""
    for call in calls.values():
        for _ in range(3):
            call()
    taken = {name: np.empty(rounds) for name in calls}
    order = list(calls)
    random = np.random.default_rng(0)
    for i in range(rounds):
        random.shuffle(order)
        for name in order:
            call = calls[name]
            time.sleep(_PAUSE)
            call()
            spent = []
            for _ in range(3):
                start = time.perf_counter()
                result = call()
                spent.append(result if name == "machine" else time.perf_counter() - start)
            taken[name][i] = np.median(spent) * 1e3
    return taken


def draw(rows: list[tuple], path: Path) -> None:
    """Draw the medians as bars with their quartiles, the fastest on top."""
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: -row[1])
    names, medians, lows, highs = ([row[i] for row in rows] for i in range(4))
    figure = Figure((8, 0.32 * len(rows) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    colours = ["tab:orange" if name.startswith("classifier") else "tab:blue" for name in names]
    spread = np.abs(np.array([lows, highs]) - medians)
    axes.barh(names, medians, xerr=spread, color=colours, ecolor="black", capsize=2)
    axes.set(xscale="log", xlabel="milliseconds for one image, MobileNetV2 1.0 at 224 px")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if min(lows) / 2 < tick < 2 * max(highs)]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print a table, write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="archive or checkpoint of alpha 1.0, 224 px")
    parser.add_argument("--only", nargs="*", default=NAMES, help="candidates; default: all that are installed")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-o", "--output", type=Path, help="CSV file")
    parser.add_argument("--plot", type=Path, help="PNG file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        candidates = Candidates(arguments.weights, Path(folder), arguments.threads)
        calls = {}
        for name in arguments.only:
            try:
                calls[name] = getattr(candidates, name)()
            except (ImportError, KeyError, ValueError) as error:
                print(f"skipped: {name} ({error})", file=sys.stderr)
        taken = run(calls, arguments.rounds)
    base = taken.get("classifier")
    rows = []
    for name, times in taken.items():
        low, median, high = np.percentile(times, (25, 50, 75))
        ratio = float(np.median(times / base)) if base is not None else float("nan")
        rows.append((name, median, low, high, ratio))
        print(f"{name:28s} {median:8.2f} ms  ({low:.2f} to {high:.2f})  {ratio:6.2f} x Classifier")
    if arguments.plot:
        draw(rows, arguments.plot)
    if arguments.output:
        packages = ("numpy", "ai_edge_litert", "tensorflow", "keras", "torch", "onnxruntime", "openvino")
        versions = {name: importlib.metadata.version(name) for name in packages if name in sys.modules}
        with arguments.output.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("contender", "median_ms", "quarter_ms", "three_quarters_ms", "ratio_to_classifier"))
            writer.writerows((name, *(f"{value:.4g}" for value in values)) for name, *values in rows)
            writer.writerow((f"# {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions}",))


if __name__ == "__main__":
    main()
