"""Metadata that exported files carry: what Android's MediaPipe Tasks read to know labels, normalisation and licence."""

from collections.abc import Sequence

from mnv2_keras.tflite.metadata import GRAYSCALE, RGB, TENSOR_AXIS_LABELS, Metadata

#: The first parser that knows all fields written here.
_MIN_PARSER_VERSION = "1.5.0"

_LICENSE = "Apache License. Version 2.0 http://www.apache.org/licenses/LICENSE-2.0."


def image_input(mean: float = 127.5, std: float = 127.5, channels: int = 3) -> dict:
    """`TensorMetadata` of an input in RGB, or in grey for one channel, that takes `(pixel - mean) / std`.

    A uint8 input takes the pixels themselves, because its scale contains the normalisation; MediaPipe reads these numbers for
    float inputs only.
    """
    colours, space = ("Grey", GRAYSCALE) if channels == 1 else ("RGB", RGB)
    return {
        "name": "image",
        "description": f"{colours} image, TF-Slim's preprocessing: central crop, bilinear resize, [-1, 1].",
        "content": {"content_properties": ("ImageProperties", {"color_space": space})},
        "process_units": [{"options": ("NormalizationOptions", {"mean": [mean], "std": [std]})}],
        "stats": {"max": [(255 - mean) / std], "min": [-mean / std]},
    }


def add_labels(tensor: dict, labels: Sequence[str] | None, kind: int = TENSOR_AXIS_LABELS) -> dict[str, bytes]:
    """Name a file of labels in an output's `TensorMetadata`; return its content by name. Without labels, do nothing.

    Raises:
        ValueError: a label contains a line break: the file has one label per line. (One at the end, which `readlines` leaves,
            is dropped.)
    """
    if labels is None:
        return {}
    lines = [str(label).splitlines() or [""] for label in labels]
    if broken := [label for label, parts in zip(labels, lines, strict=True) if len(parts) > 1]:
        raise ValueError(f"The label {broken[0]!r} has a line break: the file has one label per line, so remove it.")
    description = "One label a line, in the order of the outputs."
    tensor["associated_files"] = [{"name": "labels.txt", "description": description, "type": kind}]
    return {"labels.txt": "".join(f"{line}\n" for [line] in lines).encode()}


def classifier_metadata(
    labels: Sequence[str] | None = None, name: str = "MobileNetV2", image: dict | None = None, others: Sequence[dict] = ()
) -> Metadata:
    """What MediaPipe's ImageClassifier asks for: normalisation of the input, labels of the first output.

    Args:
        labels: one per class.
        name: of the model.
        image: `TensorMetadata` of the input; None for `image_input()`.
        others: of the outputs after the first.
    """
    features = {"content_properties": ("FeatureProperties", {})}
    probability = {"name": "probability", "description": "Score of each class.", "content": features}
    files = add_labels(probability, labels)
    return model_metadata(name, "Names what is in an image.", [image or image_input()], [probability, *others], files)


def model_metadata(name: str, description: str, inputs: list[dict], outputs: list[dict], files=None, **subgraph) -> Metadata:
    """Metadata of one graph.

    Args:
        name, description: of the model.
        inputs, outputs: `TensorMetadata`, in the order of the graph.
        files: associated files by name.
        subgraph: other fields of `SubGraphMetadata`, such as MediaPipe's own tables in `custom_metadata`.
    """
    tensors = {"input_tensor_metadata": inputs, "output_tensor_metadata": outputs}
    about = {
        "name": name,
        "description": description,
        "version": "1",
        "subgraph_metadata": [tensors | subgraph],
        "license": _LICENSE,
        "min_parser_version": _MIN_PARSER_VERSION,
    }
    return Metadata(about, dict(files or {}))
