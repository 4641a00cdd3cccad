"""What an export wrote, and how far it is from the model it was made from."""

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mnv2_keras.atomic import write_text
from mnv2_keras.export.check import Layer
from mnv2_keras.figures import check_figure, draw_layers
from mnv2_keras.tflite import Metadata, TfliteFile


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
    """What is in a .tflite file."""

    path: str | None  # None for bytes
    size: int  # in bytes
    inputs: list[End]
    outputs: list[End]
    operators: dict[str, int]  # how many of each kind
    tensors: int  # how many
    parameters: int  # bytes of constants
    arena: int | None  # least bytes of memory for the tensors between layers; None where a shape is open
    metadata: Metadata

    def as_dict(self) -> dict:
        """The inspection as JSON holds it; bytes within the metadata in base64."""
        metadata = json.dumps(self.metadata.about, default=lambda data: base64.b64encode(data).decode())
        files = {name: len(content) for name, content in self.metadata.files.items()}
        own = {"metadata": json.loads(metadata), "labels": self.metadata.labels, "associated_files": files}
        return asdict(self) | own


def inspect_litert(source: str | os.PathLike | bytes) -> Inspection:
    """What is in a .tflite file, given by its path or bytes: inputs, outputs, operators, sizes, metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a .tflite file, or a truncated or damaged one.
    """
    file = TfliteFile(source)
    return Inspection(
        path=None if isinstance(source, bytes | bytearray) else file.source,
        size=file.size,
        inputs=ends(file, file.graph.inputs),
        outputs=ends(file, file.graph.outputs),
        operators=operator_counts(file),
        tensors=len(file.graph.tensors),
        parameters=sum(0 if buffer.data is None else len(buffer.data) for buffer in file.model.buffers),
        arena=arena_size(file),
        metadata=file.metadata,
    )


def _signature(tensor) -> list[int]:
    """A tensor's shape with -1 for open sides; empty where the file does not have it."""
    return [] if tensor.shapeSignature is None else [int(side) for side in tensor.shapeSignature]


def ends(file: TfliteFile, tensors: Sequence[int]) -> list[End]:
    """Records of a file's inputs or outputs."""
    records = []
    for tensor in tensors:
        params, shape = file.quantization(tensor), tuple(_signature(file.graph.tensors[tensor])) or file.shape(tensor)
        scale = (None, None) if params is None or params.axis is not None else (params.scale, params.zero_point)
        records.append(End(file.name(tensor), shape, file.dtype(tensor).name, *scale))
    return records


def operator_counts(file: TfliteFile) -> dict[str, int]:
    """How many operators of each kind a file has, the most frequent first."""
    return dict(Counter(file.kinds).most_common())


def arena_size(file: TfliteFile) -> int | None:
    """Bytes that the tensors between layers need at once: the largest sum of tensors that are alive together.

    No memory plan can need less. None where a shape is open.
    """
    graph, count = file.graph, len(file.graph.operators)
    first = dict.fromkeys(graph.inputs, 0) | file.producer
    last = {t: max(file.consumers.get(t, [i])) for t, i in first.items()} | dict.fromkeys(graph.outputs, count)
    if any(side < 0 for t in first for side in _signature(graph.tensors[t])):
        return None
    sizes = {t: file.dtype(t).itemsize * math.prod(file.shape(t)) for t in first}
    return max((sum(sizes[t] for t in first if first[t] <= i <= last[t]) for i in range(count)), default=0)


@dataclass
class ExportReport:
    """What was written, and how it compares with the model. Without a comparison, its attributes are None or empty."""

    path: str
    precision: str
    size: int = 0  # of the file, in bytes
    operators: dict[str, int] = field(default_factory=dict)  # how many of each kind
    inputs: list[End] = field(default_factory=list)
    outputs: list[End] = field(default_factory=list)
    #: Source of the images that were compared on, and their number.
    compared: str | None = None
    images: int = 0
    #: Share of the images with the same best class as the Keras model; mean share of its best five in the file's best five.
    top1: float | None = None
    top5: float | None = None
    #: Signal-to-noise ratio of the logits (or outputs) against the Keras model in dB: mean over the images, and of each image.
    snr_db: float | None = None
    snr_db_each: list[float] = field(default_factory=list)
    #: Largest difference of the logits, relative to their range (max - min).
    largest_difference: float | None = None
    #: Signal-to-noise ratio of each layer against float32, in network order; empty for float32 itself.
    layers: list[Layer] = field(default_factory=list)
    #: Source of the calibration photos, None where none were needed; their number without the crops made of them.
    calibrated: str | None = None
    calibration_images: int = 0
    skipped: list[str] = field(default_factory=list)  # a reason for each file that is not an image
    warnings: list[str] = field(default_factory=list)  # what the user should know
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
        """The report as JSON holds it; an infinite ratio, of equal outputs, is None."""
        worst = self.worst_layer
        about = asdict(self) | {"worst_layer": worst and worst.name}
        return json.loads(json.dumps(about), parse_constant=lambda _: None)  # JSON has no infinity

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")

    def plot_layers(self, path: str | os.PathLike) -> Path:
        """Draw the signal-to-noise ratio of each layer, in network order, into a .png or .svg file.

        Raises:
            ValueError: the layers were not compared (`compare=False`, or a float32 file); see `check_figure`.
        """
        check_figure(path)
        if not self.layers:
            raise ValueError("The report has no layers: export in another precision than float32, with compare=True.")
        title = f"{Path(self.path).name}: {self.precision} against float, layer by layer"
        return draw_layers({layer.name: layer.snr_db for layer in self.layers}, title, path)
