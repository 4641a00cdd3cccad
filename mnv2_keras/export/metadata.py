"""Metadata in a .tflite file: what Android's MediaPipe Tasks read to know labels, normalisation and licence.

A file's metadata is a flatbuffer of its own in the model's buffer `TFLITE_METADATA`; the label files are a zip archive that
is appended to the model. Source: TensorFlow Lite's `metadata_schema.fbs`, whose tables and field names are used here.
"""

import io
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from ai_edge_litert import schema_py_generated

from mnv2_keras.export.tables import pack_table, unpack_table
from mnv2_keras.tflite import TfliteFile, read_tflite

_BUFFER = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
#: When a file was put into the archive says nothing about it: the same model gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)

_UNIT_OPTIONS = (
    "NormalizationOptions",
    "ScoreCalibrationOptions",
    "ScoreThresholdingOptions",
    "BertTokenizerOptions",
    "SentencePieceTokenizerOptions",
    "RegexTokenizerOptions",
)
_CONTENT = ("FeatureProperties", "ImageProperties", "BoundingBoxProperties", "AudioProperties")

#: The tables of `metadata_schema.fbs`.
SCHEMA = {
    "ModelMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("version", "string"),
        ("subgraph_metadata", "[SubGraphMetadata]"),
        ("author", "string"),
        ("license", "string"),
        ("associated_files", "[AssociatedFile]"),
        ("min_parser_version", "string"),
    ),
    "SubGraphMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("input_tensor_metadata", "[TensorMetadata]"),
        ("output_tensor_metadata", "[TensorMetadata]"),
        ("associated_files", "[AssociatedFile]"),
        ("input_process_units", "[ProcessUnit]"),
        ("output_process_units", "[ProcessUnit]"),
        ("input_tensor_groups", "[TensorGroup]"),
        ("output_tensor_groups", "[TensorGroup]"),
        ("custom_metadata", "[CustomMetadata]"),
    ),
    "TensorMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("dimension_names", "[string]"),
        ("content", "Content"),
        ("process_units", "[ProcessUnit]"),
        ("stats", "Stats"),
        ("associated_files", "[AssociatedFile]"),
    ),
    "AssociatedFile": (
        ("name", "string"),
        ("description", "string"),
        ("type", "byte"),
        ("locale", "string"),
        ("version", "string"),
    ),
    "Content": (("content_properties", _CONTENT), ("range", "ValueRange")),
    "ValueRange": (("min", "int"), ("max", "int")),
    "FeatureProperties": (),
    "ImageProperties": (("color_space", "byte"), ("default_size", "ImageSize")),
    "ImageSize": (("width", "uint"), ("height", "uint")),
    "BoundingBoxProperties": (("index", "[uint]"), ("type", "byte"), ("coordinate_type", "byte")),
    "AudioProperties": (("sample_rate", "uint"), ("channels", "uint")),
    "ProcessUnit": (("options", _UNIT_OPTIONS),),
    "NormalizationOptions": (("mean", "[float]"), ("std", "[float]")),
    "ScoreCalibrationOptions": (("score_transformation", "byte"), ("default_score", "float")),
    "ScoreThresholdingOptions": (("global_score_threshold", "float"),),
    "BertTokenizerOptions": (("vocab_file", "[AssociatedFile]"),),
    "SentencePieceTokenizerOptions": (
        ("sentencePiece_model", "[AssociatedFile]"),
        ("vocab_file", "[AssociatedFile]"),
    ),
    "RegexTokenizerOptions": (("delim_regex_pattern", "string"), ("vocab_file", "[AssociatedFile]")),
    "Stats": (("max", "[float]"), ("min", "[float]")),
    "TensorGroup": (("name", "string"), ("tensor_names", "[string]")),
    "CustomMetadata": (("name", "string"), ("data", "[ubyte]")),
}

#: `AssociatedFileType` and `ColorSpaceType` of the schema.
TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS = 2, 3
RGB, GRAYSCALE = 1, 2

#: The first parser that knows every field written here.
_MIN_PARSER_VERSION = "1.5.0"

_LICENSE = "Apache License. Version 2.0 http://www.apache.org/licenses/LICENSE-2.0."


@dataclass(frozen=True)
class Metadata:
    """What a file says about itself.

    Attributes:
        about: the `ModelMetadata` table as a dict; empty for a file without.
        files: the associated files by name, such as `{"labels.txt": b"..."}`.
    """

    about: dict
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def labels(self) -> list[str] | None:
        """The labels of the first output that has a file of them, in the order of its values; None without one."""
        for subgraph in self.about.get("subgraph_metadata", []):
            for tensor in subgraph.get("output_tensor_metadata", []):
                for file in tensor.get("associated_files", []):
                    kinds = (TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS)
                    if file.get("type") in kinds and file.get("name") in self.files:
                        return self.files[file["name"]].decode().splitlines()
        return None

    @property
    def missing(self) -> list[str]:
        """Label files that the table names and the file does not hold: its end was cut off, or lost in editing."""
        subgraphs = self.about.get("subgraph_metadata", [])
        tensors = [tensor for subgraph in subgraphs for tensor in subgraph.get("output_tensor_metadata", [])]
        named = [file.get("name", "") for tensor in tensors for file in tensor.get("associated_files", [])]
        return [name for name in named if name not in self.files]

    @property
    def normalization(self) -> tuple[float | tuple[float, ...], float | tuple[float, ...]] | None:
        """(mean, std) of the first input: it takes `(pixel - mean) / std`; None where nothing is said.

        Each is one number, or one for each channel where they differ.

        Raises:
            ValueError: one is missing, or a std is not above 0.
        """
        for subgraph in self.about.get("subgraph_metadata", []):
            for tensor in subgraph.get("input_tensor_metadata", [])[:1]:
                for unit in tensor.get("process_units", []):
                    kind, options = unit.get("options", (None, {}))
                    if kind == "NormalizationOptions":
                        mean, std = (tuple(options.get(name) or ()) for name in ("mean", "std"))
                        if not mean or not std or min(std) <= 0:
                            raise ValueError(
                                f"The metadata's normalisation has mean {list(mean)} and std {list(std)}: expected numbers for "
                                "both, std above 0. Write the metadata anew."
                            )
                        return tuple(each[0] if len(set(each)) == 1 else each for each in (mean, std))
        return None


def image_input(name: str = "image", mean: float = 127.5, std: float = 127.5, channels: int = 3) -> dict:
    """`TensorMetadata` of an input in RGB, or in grey for one channel, that takes `(pixel - mean) / std`.

    A uint8 input takes the pixels themselves, its own scale does the rest; the same numbers stand there too, since MediaPipe
    reads them for float inputs only.
    """
    colours, space = ("Grey", GRAYSCALE) if channels == 1 else ("RGB", RGB)
    return {
        "name": name,
        "description": f"{colours} image, TF-Slim's preprocessing: central crop, bilinear resize, [-1, 1].",
        "content": {"content_properties": ("ImageProperties", {"color_space": space})},
        "process_units": [{"options": ("NormalizationOptions", {"mean": [mean], "std": [std]})}],
        "stats": {"max": [(255 - mean) / std], "min": [-mean / std]},
    }


def labels_file(labels, kind: int = TENSOR_AXIS_LABELS, name: str = "labels.txt") -> tuple[dict, dict[str, bytes]]:
    """(`AssociatedFile`, its content by name) of a list of labels.

    Raises:
        ValueError: a label with a line break: the file has one label a line. (The one at its end, which `readlines` leaves, is
            dropped.)
    """
    lines = [str(label).splitlines() or [""] for label in labels]
    if broken := [label for label, parts in zip(labels, lines, strict=True) if len(parts) > 1]:
        raise ValueError(f"The label {broken[0]!r} has a line break: labels are kept one a line, write it without.")
    about = {"name": name, "description": "One label a line, in the order of the outputs.", "type": kind}
    return about, {name: "".join(f"{line}\n" for [line] in lines).encode()}


def classifier_metadata(
    labels=None, name: str = "MobileNetV2", description: str = "", image: dict | None = None
) -> Metadata:
    """What MediaPipe's ImageClassifier asks for: normalisation of the input, labels of the output."""
    output = {"name": "probability", "description": "Score of each class.", "content": _features()}
    files: dict[str, bytes] = {}
    if labels is not None:
        associated, files = labels_file(labels)
        output["associated_files"] = [associated]
    return model_metadata(name, description or "Names what is in an image.", [image or image_input()], [output], files)


def _features() -> dict:
    return {"content_properties": ("FeatureProperties", {})}


def model_metadata(
    name: str, description: str, inputs: list[dict], outputs: list[dict], files=None, custom=()
) -> Metadata:
    """Metadata of one graph.

    Args:
        name, description: of the model.
        inputs, outputs: `TensorMetadata`, in the graph's own order.
        files: associated files by name.
        custom: `(name, content)` of custom metadata, such as MediaPipe's own tables.
    """
    subgraph = {"input_tensor_metadata": inputs, "output_tensor_metadata": outputs}
    if custom:
        subgraph["custom_metadata"] = [{"name": each, "data": content} for each, content in custom]
    about = {
        "name": name,
        "description": description,
        "version": "1",
        "subgraph_metadata": [subgraph],
        "license": _LICENSE,
        "min_parser_version": _MIN_PARSER_VERSION,
    }
    return Metadata(about, dict(files or {}))


def add_metadata(model: bytes, metadata: Metadata) -> bytes:
    """A .tflite file with metadata in place of what it may have had.

    Put it on last: what changes the file afterwards loses the label files.
    """
    content = model[: _archive_start(model)]
    file = TfliteFile(content)
    packed = pack_table(SCHEMA, "ModelMetadata", metadata.about, _IDENTIFIER)
    entries = [entry for entry in file.model.metadata or [] if entry.name != _BUFFER.encode()]
    entries.append(schema_py_generated.MetadataT(name=_BUFFER.encode(), buffer=file.add_buffer(_as_array(packed))))
    file.model.metadata = entries
    content = file.to_bytes()
    return _with_archive(content, metadata.files) if metadata.files else content


def _as_array(content: bytes):
    import numpy as np

    return np.frombuffer(content, np.uint8)


def _with_archive(model: bytes, files: dict[str, bytes]) -> bytes:
    """The files appended as a zip archive, stored as they are, so that Android can map them into memory."""
    out = io.BytesIO(model)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return out.getvalue()


def _archive_start(model: bytes) -> int:
    """Where the appended archive begins; the length of the file without one."""
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            return min((info.header_offset for info in archive.infolist()), default=len(model))
    except zipfile.BadZipFile:
        return len(model)


def associated_files(content: bytes) -> dict[str, bytes]:
    """The files appended to a model, by name; none for a model without."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist() if info.file_size < 1 << 24}
    except zipfile.BadZipFile:
        return {}


def read_metadata(source: str | os.PathLike | bytes) -> Metadata:
    """What a .tflite file says about itself.

    Args:
        source: a path, or the bytes of the file.

    Returns:
        Its metadata; empty for a file without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no .tflite file, or a damaged one.
    """
    name, content = read_tflite(source)
    file = TfliteFile(content)
    for entry in file.model.metadata or []:
        if entry.name == _BUFFER.encode():
            data = file.model.buffers[entry.buffer].data
            try:
                about = unpack_table(SCHEMA, "ModelMetadata", bytes(data), _IDENTIFIER)
            except ValueError as error:
                raise ValueError(f"{Path(name).name}: its metadata cannot be read. {error}") from error
            return Metadata(about, associated_files(content))
    return Metadata({}, associated_files(content))
