"""A segmenter to a .tflite file, with what MediaPipe's ImageSegmenter asks for, and the share of pixels on which both agree."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from mnv2_keras.atomic import write_text
from mnv2_keras.checks import one_of
from mnv2_keras.export.calibration import Photos, image_of, read_photos
from mnv2_keras.export.metadata import add_labels, image_input, model_metadata
from mnv2_keras.export.options import Quantization, check_options, old_quantization_keywords
from mnv2_keras.export.pipeline import Network, write_network
from mnv2_keras.export.report import ExportReport
from mnv2_keras.export.runner import GraphRunner
from mnv2_keras.images import read_image
from mnv2_keras.labels import class_labels, published_labels
from mnv2_keras.layers import ArgMax
from mnv2_keras.masks import fit_photo, pad_photo
from mnv2_keras.networks.endpoints import check_input
from mnv2_keras.tasks.segmentation import PUBLISHED_SIZE
from mnv2_keras.tflite import Metadata, TfliteFile
from mnv2_keras.tflite.tables import pack_table

OUTPUTS = ("logits", "labels")

#: MediaPipe's own table (`image_segmenter_metadata_schema.fbs`), and its name among the custom metadata.
_OPTIONS = {"ImageSegmenterOptions": (("activation", "byte"), ("min_parser_version", "string"))}
_OPTIONS_NAME, _OPTIONS_IDENTIFIER = "SEGMENTER_METADATA", b"V001"
#: `Activation` of that schema: MediaPipe computes the confidences from the logits.
_SOFTMAX = 2


@dataclass(frozen=True)
class SegmenterReport:
    """What was written, and how it agrees with the Keras model."""

    export: ExportReport  # size, operators, inputs, outputs, calibration
    agreement: dict[str, float]  # for each photo compared: the share of its pixels with the same label
    skipped: dict[str, str]  # name to reason, for each file that is not a photo

    def as_dict(self) -> dict:
        """The report as JSON holds it."""
        return {"export": self.export.as_dict(), "agreement": self.agreement, "skipped": self.skipped}

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")


@old_quantization_keywords
def export_segmenter(
    model: keras.Model,
    path: str | os.PathLike,
    precision: str = "float32",
    *,
    output: str = "logits",
    quantization: Quantization | None = None,
    photos=None,
    labels: Sequence[str] | None = None,
    resolution: tuple[int, int] | None = None,
    progress=None,
    **options,
) -> SegmenterReport:
    """Write a segmenter as a .tflite file of batch 1, with metadata.

    Args:
        model: from `build_deeplabv3_mobilenetv2` or `convert_checkpoint`.
        path: the file to write, atomically.
        precision: "float32", "float16", "dynamic", "int8" or "int16x8" (see `export_litert`).
        output: "logits" (1, H, W, classes), which MediaPipe takes, or "labels" (1, H, W), int32, for apps that run LiteRT.
        quantization: as in `export_litert`; its photos are padded as DeepLab's exporter does. At most 128 are used, evenly
            spaced (of TFDS the first ones).
        photos: to compare on, likewise; the calibration's when None.
        labels: one for each class; otherwise Pascal VOC's for 21 classes, "class N" for others.
        resolution: (height, width), for a model that takes any size.
        progress: as in `export_litert`.

    Returns:
        The report.

    Raises:
        ValueError: an argument out of its range, a model that takes 0 to 255, or no photo that can be read to calibrate on.
    """
    one_of("output", output, OUTPUTS)
    reason = "a segmenter's file has batch 1 and its own metadata"
    check_options(options, ("batch", "compare", "metadata"), reason)
    if len(model.output_shape) != 4:
        raise ValueError(f"{model.name!r} gives {model.output_shape}: expected a segmenter's logits (B, H, W, classes).")
    check_input(model)
    size = tuple(a or b for a, b in zip(model.input_shape[1:3], resolution or PUBLISHED_SIZE, strict=True))
    classes = model.output_shape[3]
    if labels is None:
        labels = published_labels("segmentation", classes) or [f"class {i}" for i in range(classes)]
    labels = class_labels(labels, classes)
    quantization, compared, skipped = quantization or Quantization(), Photos([], ""), {}
    if quantization.calibration is not None:
        compared = _photos(quantization.calibration, size, skipped, progress)
        if not compared.images:
            raise ValueError(f"no photo to calibrate on: none of {len(skipped)} files can be read.")
        padded = [pad_photo(photo, size)[None] for photo in compared.images]
        quantization = replace(quantization, calibration=Photos(padded, compared.source))
    if photos is not None:
        compared = _photos(photos, size, skipped, progress)
    outputs = model.output if output == "logits" else ArgMax(name="labels")(model.output)
    converted = keras.Model(model.input, outputs, name=model.name)
    network = Network(converted, segmenter_metadata(labels, model.name, output), resolution=resolution or size, compare=False)
    report, file = write_network(network, path, precision, quantization, progress=progress)
    return SegmenterReport(report, _agreement(model, file, compared, size), skipped)


def segmenter_metadata(labels: Sequence[str] | None, name: str, output: str = "logits") -> Metadata:
    """What MediaPipe's ImageSegmenter asks for: normalisation, labels, and whether it has to compute the softmax."""
    tensor = {
        "name": output,
        "description": "Logits of each class." if output == "logits" else "Class of each pixel.",
        "content": {"content_properties": ("ImageProperties", {"color_space": 0})},
    }
    files = add_labels(tensor, labels)
    image = image_input() | {"description": "RGB image, padded right and below with grey."}
    activation = {"activation": _SOFTMAX if output == "logits" else 0, "min_parser_version": "1.0.0"}
    custom = {"name": _OPTIONS_NAME, "data": pack_table(_OPTIONS, "ImageSegmenterOptions", activation, _OPTIONS_IDENTIFIER)}
    return model_metadata(name, "Tells what every pixel shows.", [image], [tensor], files, custom_metadata=[custom])


def _photos(source, size: tuple[int, int], skipped: dict[str, str], progress) -> Photos:
    """Photos that fit into the network's input, uint8 (h, w, 3); what cannot be read is added to `skipped`."""

    def fitted(item) -> np.ndarray:
        photo = image_of(item)
        return fit_photo(read_image(photo) if isinstance(photo, str | os.PathLike) else np.asarray(photo), size)

    is_photo = isinstance(source, np.ndarray) and source.ndim == 3
    photos = read_photos([source] if is_photo else source, fitted, progress=progress)
    skipped.update(photos.skipped)
    return photos


def _agreement(model: keras.Model, file: TfliteFile, photos: Photos, size: tuple[int, int]) -> dict[str, float]:
    """The share of equal labels on each photo, without its padding."""
    runner, shares = None, {}
    for name, photo in zip(photos.names, photos.images, strict=True):
        runner = runner or GraphRunner(file, every_tensor=False)
        batch, (height, width) = pad_photo(photo, size)[None], photo.shape[:2]
        genuine = keras.ops.convert_to_numpy(model(batch, training=False))[0].argmax(-1)
        labels = runner.run(batch).stored(file.graph.outputs[0])[0]
        labels = labels.argmax(-1) if labels.ndim == 3 else labels
        shares[name] = float(np.mean(genuine[:height, :width] == labels[:height, :width]))
    return shares
