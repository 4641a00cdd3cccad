"""Metadata that exported files carry: what Android's MediaPipe Tasks read to know labels, normalisation and licence."""

from mnv2_keras.tflite.metadata import GRAYSCALE, RGB, TENSOR_AXIS_LABELS, Metadata

#: The first parser that knows every field written here.
_MIN_PARSER_VERSION = "1.5.0"

_LICENSE = "Apache License. Version 2.0 http://www.apache.org/licenses/LICENSE-2.0."


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
