"""A segmenter to a .tflite file, with what MediaPipe's ImageSegmenter asks for, and how many pixels it still agrees on."""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from mnv2_keras.atomic import write_text
from mnv2_keras.export.calibration import LIMIT, evenly, tensorflow_dataset
from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.metadata import image_input, labels_file, model_metadata
from mnv2_keras.export.report import ExportReport
from mnv2_keras.export.statistics import to_stored
from mnv2_keras.images import ImageError, find_images, read_image
from mnv2_keras.labels import voc_labels
from mnv2_keras.layers import ArgMax
from mnv2_keras.masks import fit_photo, pad_photo
from mnv2_keras.networks.endpoints import check_input
from mnv2_keras.tflite import Metadata, open_interpreter
from mnv2_keras.tflite.tables import pack_table

OUTPUTS = ("logits", "labels")

#: MediaPipe's own table (`image_segmenter_metadata_schema.fbs`); it stands under this name among the custom metadata.
_OPTIONS = {"ImageSegmenterOptions": (("activation", "byte"), ("min_parser_version", "string"))}
_OPTIONS_NAME, _OPTIONS_IDENTIFIER = "SEGMENTER_METADATA", b"V001"
#: `Activation` of that schema: MediaPipe turns the logits into confidences itself.
_SOFTMAX = 2


@dataclass(frozen=True)
class SegmenterReport:
    """What was written, and how it agrees with the Keras model.

    Attributes:
        export: size, operators, ends, calibration.
        agreement: for each photo compared, the share of its pixels with the same label.
        skipped: files that are no photos, with the reason.
    """

    export: ExportReport
    agreement: dict[str, float]
    skipped: dict[str, str]

    def as_dict(self) -> dict:
        """The report as JSON holds it."""
        return {"export": self.export.as_dict(), "agreement": self.agreement, "skipped": self.skipped}

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report as JSON, all of it or nothing."""
        return write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")


def export_segmenter(
    model: keras.Model,
    path: str | os.PathLike,
    precision: str = "float32",
    *,
    output: str = "logits",
    calibration=None,
    photos=None,
    labels: Sequence[str] | None = None,
    resolution: tuple[int, int] | None = None,
    **options,
) -> SegmenterReport:
    """Write a segmenter as a .tflite file of batch 1, with metadata.

    Args:
        model: from `build_deeplabv3_mobilenetv2` or `convert_checkpoint`.
        path: the file to write; it is complete or not there.
        precision: "float32", "float16", "dynamic", "int8" or "int16x8" (see `export_litert`).
        output: "logits" (1, H, W, classes), which MediaPipe takes, or "labels" (1, H, W), int32, for apps that run LiteRT.
        calibration: for int8 and int16x8: photos (paths, folders, uint8 arrays or "tfds:NAME:SPLIT"), padded as the exporter
            does; of more than 128 as many, evenly spread (of TFDS the first ones).
        photos: to compare on, likewise; the calibration's when None.
        labels: one for each class; otherwise Pascal VOC's for 21 classes, "class N" for others.
        resolution: (height, width) for a model that takes any size.
        options: further ones of `export_litert`, such as `input_type` and `refine`.

    Returns:
        The report.

    Raises:
        ValueError: an argument out of its range, a model that takes 0 to 255, or no photo that can be read to calibrate on.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output is {output!r}: expected one of {', '.join(OUTPUTS)}.")
    for name in ("batch", "compare", "metadata"):
        if name in options:
            raise ValueError(f"{name} goes with export_litert: a segmenter's file has batch 1 and metadata of its own.")
    if len(model.output_shape) != 4:
        raise ValueError(
            f"{model.name!r} gives {model.output_shape}: expected a segmenter's logits (B, H, W, classes)."
        )
    check_input(model)
    own = model.input_shape[1:3]
    size = tuple(a or b for a, b in zip(own, resolution or (513, 513), strict=True))
    if resolution is not None and size != tuple(resolution):
        raise ValueError(
            f"{model.name!r} is built for {own[0]} x {own[1]} pixels, not {resolution[0]} x {resolution[1]}: leave resolution out, "
            "or build it with that input_shape."
        )
    skipped: dict[str, str] = {}
    known = _load(calibration, size, skipped) if calibration is not None else {}
    compared = _load(photos, size, skipped) if photos is not None else known
    if calibration is not None and not known:
        raise ValueError(f"no photo to calibrate on: none of {len(skipped)} files can be read.")
    classes = model.output_shape[3]
    labels = labels or (voc_labels() if classes == len(voc_labels()) else [f"class {i}" for i in range(classes)])
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for {classes} classes: give one for each.")
    exported = model if output == "logits" else _with_labels(model)
    report = export_litert(
        exported,
        path,
        precision,
        calibration=[pad_photo(photo, size) for photo in known.values()] if known else None,
        metadata=segmenter_metadata(labels, model.name, output),
        resolution=size,
        compare=False,
        **options,
    )
    return SegmenterReport(report, _agreement(model, Path(path).expanduser(), compared, size), skipped)


def segmenter_metadata(labels: Sequence[str] | None, name: str, output: str = "logits") -> Metadata:
    """What MediaPipe's ImageSegmenter asks for: normalisation, labels, and that softmax is still to be taken."""
    about = {
        "name": output,
        "description": "Logits of each class." if output == "logits" else "Class of each pixel.",
        "content": {"content_properties": ("ImageProperties", {"color_space": 0})},
    }
    files: dict[str, bytes] = {}
    if labels is not None:
        associated, files = labels_file(labels)
        about["associated_files"] = [associated]
    image = image_input() | {"description": "RGB image, padded right and below with grey."}
    activation = {"activation": _SOFTMAX if output == "logits" else 0, "min_parser_version": "1.0.0"}
    custom = [(_OPTIONS_NAME, pack_table(_OPTIONS, "ImageSegmenterOptions", activation, _OPTIONS_IDENTIFIER))]
    return model_metadata(name, "Tells what every pixel shows.", [image], [about], files, custom)


def _with_labels(model: keras.Model) -> keras.Model:
    return keras.Model(model.input, ArgMax(name="labels")(model.output), name=model.name)


def _load(photos, size: tuple[int, int], skipped: dict[str, str]) -> dict[str, np.ndarray]:
    """At most `LIMIT` photos by name, fitted into the network's input; what cannot be read is noted and left out."""
    if isinstance(photos, str) and photos.startswith("tfds:"):
        photos = [each["image"] for each in itertools.islice(tensorflow_dataset(photos), LIMIT)]
    if isinstance(photos, str | os.PathLike) or (isinstance(photos, np.ndarray) and photos.ndim == 3):
        photos = [photos]
    given = []
    for i, each in enumerate(photos):
        array = isinstance(each, np.ndarray)
        given += [(f"array {i}", each)] if array else [(str(file), file) for file in find_images(each)]
    found: dict[str, np.ndarray] = {}
    for name, each in evenly(given, LIMIT):
        if len(found) == LIMIT:
            break
        try:
            found[name] = fit_photo(each if isinstance(each, np.ndarray) else read_image(each), size)
        except ImageError as error:
            skipped[name] = str(error)
    return found


def _agreement(model, path: Path, photos: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, float]:
    """Share of equal labels on each photo, its padding left out."""
    if not photos:
        return {}
    interpreter = open_interpreter(path.read_bytes())
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = {}
    for name, photo in photos.items():
        batch = pad_photo(photo, size)[None]
        exact = keras.ops.convert_to_numpy(model(batch, training=False))[0].argmax(-1)
        interpreter.set_tensor(source["index"], to_stored(batch, source))
        interpreter.invoke()
        made = interpreter.get_tensor(target["index"])[0]
        made = made.argmax(-1) if made.ndim == 3 else made
        height, width = photo.shape[:2]
        found[name] = float(np.mean(exact[:height, :width] == made[:height, :width]))
    return found
