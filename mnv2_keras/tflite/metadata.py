"""Metadata in a .tflite file: what Android's MediaPipe Tasks read to know labels, normalisation and licence.

A file's metadata is a separate flatbuffer in the model's buffer `TFLITE_METADATA`; the label files are a zip archive that
is appended to the model. Source: TensorFlow Lite's `metadata_schema.fbs`, whose tables and field names are used here.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass, field

from ai_edge_litert import schema_py_generated as schema

from mnv2_keras.tflite.tables import pack_table, parse_schema, unpack_table

#: Name of the model's buffer that holds the table.
BUFFER = b"TFLITE_METADATA"
_IDENTIFIER = b"M001"
#: Bounds of the associated files; a list of a thousand labels has 20 kB.
MAX_FILES, MAX_BYTES = 1000, 64 * 2**20
#: The date of each file in the archive: the same model gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)

#: The tables and unions of `metadata_schema.fbs`.
SCHEMA = parse_schema("""
    union ContentProperties { FeatureProperties, ImageProperties, BoundingBoxProperties, AudioProperties }
    union ProcessUnitOptions { NormalizationOptions, ScoreCalibrationOptions, ScoreThresholdingOptions, BertTokenizerOptions,
        SentencePieceTokenizerOptions, RegexTokenizerOptions }
    table ModelMetadata { name:string; description:string; version:string; subgraph_metadata:[SubGraphMetadata]; author:string;
        license:string; associated_files:[AssociatedFile]; min_parser_version:string; }
    table SubGraphMetadata { name:string; description:string; input_tensor_metadata:[TensorMetadata];
        output_tensor_metadata:[TensorMetadata]; associated_files:[AssociatedFile]; input_process_units:[ProcessUnit];
        output_process_units:[ProcessUnit]; input_tensor_groups:[TensorGroup]; output_tensor_groups:[TensorGroup];
        custom_metadata:[CustomMetadata]; }
    table TensorMetadata { name:string; description:string; dimension_names:[string]; content:Content;
        process_units:[ProcessUnit]; stats:Stats; associated_files:[AssociatedFile]; }
    table AssociatedFile { name:string; description:string; type:byte; locale:string; version:string; }
    table Content { content_properties:ContentProperties; range:ValueRange; }
    table ValueRange { min:int; max:int; }
    table FeatureProperties { }
    table ImageProperties { color_space:byte; default_size:ImageSize; }
    table ImageSize { width:uint; height:uint; }
    table BoundingBoxProperties { index:[uint]; type:byte; coordinate_type:byte; }
    table AudioProperties { sample_rate:uint; channels:uint; }
    table ProcessUnit { options:ProcessUnitOptions; }
    table NormalizationOptions { mean:[float]; std:[float]; }
    table ScoreCalibrationOptions { score_transformation:byte; default_score:float; }
    table ScoreThresholdingOptions { global_score_threshold:float; }
    table BertTokenizerOptions { vocab_file:[AssociatedFile]; }
    table SentencePieceTokenizerOptions { sentencePiece_model:[AssociatedFile]; vocab_file:[AssociatedFile]; }
    table RegexTokenizerOptions { delim_regex_pattern:string; vocab_file:[AssociatedFile]; }
    table Stats { max:[float]; min:[float]; }
    table TensorGroup { name:string; tensor_names:[string]; }
    table CustomMetadata { name:string; data:[ubyte]; }
""")

#: `AssociatedFileType` and `ColorSpaceType` of the schema.
TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS = 2, 3
RGB, GRAYSCALE = 1, 2


@dataclass(frozen=True)
class Metadata:
    """Metadata of a .tflite file.

    Attributes:
        about: the `ModelMetadata` table as a dict; empty for a file without.
        files: the associated files by name, such as `{"labels.txt": b"..."}`.
    """

    about: dict
    files: dict[str, bytes] = field(default_factory=dict)

    def _tensors(self, side: str) -> list[dict]:
        """`TensorMetadata` of the "input" or "output" side, of all graphs."""
        subgraphs = self.about.get("subgraph_metadata", [])
        return [tensor for subgraph in subgraphs for tensor in subgraph.get(f"{side}_tensor_metadata", [])]

    @property
    def labels(self) -> list[str] | None:
        """The labels of the first output that has a file of them, in the order of its values; None without one."""
        for tensor in self._tensors("output"):
            for file in tensor.get("associated_files", []):
                if file.get("type") in (TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS) and file.get("name") in self.files:
                    return list(_lines(file["name"], self.files[file["name"]]))
        return None

    @property
    def missing(self) -> list[str]:
        """Label files that the table names and the file does not hold: its end was cut off, or lost in editing."""
        named = [file.get("name", "") for t in self._tensors("output") for file in t.get("associated_files", [])]
        return [name for name in named if name not in self.files]

    @property
    def normalization(self) -> tuple[float | tuple[float, ...], float | tuple[float, ...]] | None:
        """(mean, std) of the first input: it takes `(pixel - mean) / std`; None where the table does not say.

        Both are one number, or one for each channel where they differ.

        Raises:
            ValueError: one is missing, or a std is not above 0.
        """
        for unit in (unit for tensor in self._tensors("input")[:1] for unit in tensor.get("process_units", [])):
            kind, options = unit.get("options", (None, {}))
            if kind != "NormalizationOptions":
                continue
            mean, std = (tuple(options.get(name) or ()) for name in ("mean", "std"))
            if not mean or not std or min(std) <= 0:
                raise ValueError(
                    f"The metadata's normalisation has mean {list(mean)} and std {list(std)}: expected numbers for both, std "
                    "above 0. Write the metadata again."
                )
            return tuple(values[0] if len(set(values)) == 1 else values for values in (mean, std))
        return None

    def packed(self) -> bytes:
        """The table as the file's buffer holds it."""
        return pack_table(SCHEMA, "ModelMetadata", self.about, _IDENTIFIER)


def metadata_of(content: bytes, source: str) -> Metadata:
    """Metadata of a valid file's bytes, empty for a file without; the rest of the file is not parsed.

    Raises:
        ValueError: the table is damaged; `source` names the file in the message.
    """
    model, about = schema.Model.GetRootAs(content), {}
    for entry in (model.Metadata(i) for i in range(model.MetadataLength())):
        if entry.Name() == BUFFER:
            try:
                if not 0 < entry.Buffer() < model.BuffersLength() or not model.Buffers(entry.Buffer()).DataLength():
                    raise ValueError(f"ModelMetadata is in buffer {entry.Buffer()}, which holds nothing.")
                table = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
                about = unpack_table(SCHEMA, "ModelMetadata", table, _IDENTIFIER)
            except ValueError as error:
                raise ValueError(f"{source}: its metadata cannot be read. {error}") from error
    return Metadata(about, associated_files(content, source))


def labels_in_file(content: bytes, source: str = "the file") -> tuple[str, ...] | None:
    """The labels in a .tflite file's bytes; None without any. It takes less than a millisecond.

    They are in the associated file that the metadata names for an output. Without metadata they are in the only associated file
    whose name ends in .txt.

    Raises:
        ValueError: the metadata or an associated file is damaged, or the labels are not UTF-8; `source` is named.
    """
    metadata = metadata_of(content, source)
    if metadata.about:
        return metadata.labels and tuple(metadata.labels)
    texts = [name for name in metadata.files if name.endswith(".txt")]
    return _lines(texts[0], metadata.files[texts[0]]) if len(texts) == 1 else None


def _lines(name: str, content: bytes) -> tuple[str, ...]:
    """The labels in an associated file."""
    try:
        return tuple(content.decode("utf-8-sig").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"The associated file {name} is not UTF-8 text ({error}): write it as UTF-8.") from error


def associated_files(content: bytes, source: str = "the file") -> dict[str, bytes]:
    """The files appended to a model, by name; none for a model without.

    Raises:
        ValueError: one is damaged, encrypted or compressed in an unknown way, or they are too large or too many.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if len(members) > MAX_FILES or size > MAX_BYTES:
                raise ValueError(
                    f"{source} holds {len(members)} associated files of {size / 2**20:.0f} MiB: expected at most {MAX_FILES} of "
                    f"{MAX_BYTES // 2**20} MiB in total."
                )
            return {member.filename: archive.read(member) for member in members}
    except zipfile.BadZipFile as error:
        if "not a zip file" in str(error):
            return {}
        reason = error
    except (RuntimeError, zlib.error, OSError, EOFError) as error:  # encrypted, compressed in an unknown way, damaged
        reason = error
    raise ValueError(
        f"{source}: its associated files cannot be read ({str(reason)[:200]}): write them again without encryption, stored or "
        "deflated."
    ) from reason


def append_files(model: bytes, files: dict[str, bytes]) -> bytes:
    """A model with files appended as a zip archive, stored uncompressed, so that Android can map them into memory."""
    out = io.BytesIO(model)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return out.getvalue()
