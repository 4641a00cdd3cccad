"""What an export made, and how far it is from the model it was made from."""

import base64
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mnv2_keras.atomic import write_text
from mnv2_keras.export.check import Layer
from mnv2_keras.figures import check_figure, draw_layers
from mnv2_keras.tflite import Metadata, TfliteFile, open_interpreter, read_metadata, read_tflite


@dataclass(frozen=True)
class End:
    """One input or output of a file."""

    name: str
    shape: tuple[int, ...]  # -1 where it is open
    dtype: str
    scale: float | None  # real = scale * (stored - zero_point); None in float
    zero_point: int | None


@dataclass(frozen=True)
class Inspection:
    """What is in a .tflite file.

    Attributes:
        path: the file; None for bytes.
        size: bytes.
        inputs, outputs: its ends.
        operators: how many of each kind.
        tensors: number of tensors.
        parameters: bytes of constants.
        arena: bytes of memory LiteRT's plan keeps for what flows between the layers; None when it cannot be told.
        metadata: what the file says about itself.
    """

    path: str | None
    size: int
    inputs: list[End]
    outputs: list[End]
    operators: dict[str, int]
    tensors: int
    parameters: int
    arena: int | None
    metadata: Metadata

    def as_dict(self) -> dict:
        """The inspection as JSON holds it; bytes within the metadata in base64."""
        about = asdict(self)
        about["metadata"] = json.loads(
            json.dumps(self.metadata.about, default=lambda each: base64.b64encode(each).decode())
        )
        about["labels"] = self.metadata.labels
        about["associated_files"] = {name: len(content) for name, content in self.metadata.files.items()}
        return about


def _ends(details: list[dict]) -> list[End]:
    found = []
    for each in details:
        scale, zero_point = each["quantization"]
        shape = tuple(int(side) for side in each.get("shape_signature", each["shape"]))
        quantized = (float(scale), int(zero_point)) if scale else (None, None)
        found.append(End(each["name"], shape, each["dtype"].__name__, *quantized))
    return found


def inspect_litert(source: str | os.PathLike | bytes) -> Inspection:
    """What is in a .tflite file: ends, operators, sizes, metadata.

    Args:
        source: a path, or the bytes of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no .tflite file, or a truncated or damaged one.
    """
    name, content = read_tflite(source)
    metadata, file = read_metadata(content), TfliteFile(content)
    interpreter = open_interpreter(content)
    return Inspection(
        path=None if isinstance(source, bytes | bytearray) else name,
        size=len(content),
        inputs=_ends(interpreter.get_input_details()),
        outputs=_ends(interpreter.get_output_details()),
        operators=dict(Counter(file.kinds).most_common()),
        tensors=len(file.graph.tensors),
        parameters=sum(0 if buffer.data is None else len(buffer.data) for buffer in file.model.buffers),
        arena=arena_size(file),
        metadata=metadata,
    )


def arena_size(file: TfliteFile) -> int | None:
    """Bytes that must be kept at once for what flows between the layers: the largest sum of living tensors.

    The least any planner can do; None for an open shape.
    """
    graph = file.graph
    first = {int(t): 0 for t in graph.inputs} | file.producer
    last = {t: max(file.consumers.get(t, [i])) for t, i in first.items()}
    last |= {int(t): len(graph.operators) for t in graph.outputs}
    sizes = {}
    for t in first:
        signature = graph.tensors[t].shapeSignature
        if signature is not None and len(signature) and min(signature) < 0:
            return None
        bytes_each = file.dtype(t).itemsize
        for side in file.shape(t):
            bytes_each *= side
        sizes[t] = bytes_each
    return max(
        (sum(sizes[t] for t in first if first[t] <= i <= last[t]) for i in range(len(graph.operators))), default=0
    )


@dataclass
class ExportReport:
    """What was made, and how it came out. Attributes of the comparison are None or empty where nothing was compared.

    Attributes:
        path: the file.
        precision: as asked for.
        size: bytes.
        operators: how many of each kind.
        inputs, outputs: the file's ends.
        compared: what the comparison was made on.
        images: how many.
        top1: share of the images with the same best class as the Keras model.
        top5: mean share of the Keras model's best five classes that are among the file's.
        snr_db: signal-to-noise ratio of the logits (or the outputs) against the Keras model: mean over the images, in dB.
        snr_db_each: of each image.
        largest_difference: largest difference of the logits, relative to their range (max - min).
        layers: signal-to-noise of every layer against float32, in network order; none for float32 itself.
        calibrated: what the ranges come from; None where none were needed.
        calibration_images: photos looked at, without the crops made of them.
        skipped: files that were no images, each with the reason.
        warnings: what the user should know.
        seconds: time it took.
    """

    path: str
    precision: str
    size: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    inputs: list[End] = field(default_factory=list)
    outputs: list[End] = field(default_factory=list)
    compared: str | None = None
    images: int = 0
    top1: float | None = None
    top5: float | None = None
    snr_db: float | None = None
    snr_db_each: list[float] = field(default_factory=list)
    largest_difference: float | None = None
    layers: list[Layer] = field(default_factory=list)
    calibrated: str | None = None
    calibration_images: int = 0
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def worst_layer(self) -> Layer | None:
        """The layer that adds most noise: where the ratio falls most from the layer before."""
        before, worst, fall = float("inf"), None, 0.0
        for layer in self.layers:
            drop = 10 ** (-layer.snr_db / 10) - 10 ** (-before / 10)
            if drop > fall:
                worst, fall = layer, drop
            before = layer.snr_db
        return worst

    def as_dict(self) -> dict:
        """The report as JSON holds it; an infinite ratio, of outputs that are equal, is None."""
        worst = self.worst_layer
        about = asdict(self) | {"worst_layer": worst and worst.name}
        return json.loads(json.dumps(about), parse_constant=lambda _: None)  # JSON has no infinity

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON, all of it or nothing."""
        return write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")

    def plot_layers(self, path: str | os.PathLike) -> Path:
        """Draw the signal-to-noise ratio of every layer, in network order, into a .png or .svg file.

        Raises:
            ValueError: the layers were not compared (`compare=False`, or a float32 file); see `check_figure`.
        """
        check_figure(path)
        if not self.layers:
            raise ValueError("The report has no layers: export in another precision than float32, with compare=True.")
        title = f"{Path(self.path).name}: {self.precision} against float, layer by layer"
        return draw_layers({layer.name: layer.snr_db for layer in self.layers}, title, path)
