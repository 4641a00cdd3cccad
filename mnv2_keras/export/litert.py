"""Export: a Keras model to a .tflite file for Android, with a report of how it compares with the model."""

import os
from collections.abc import Sequence

from mnv2_keras.export.calibration import Progress
from mnv2_keras.export.metadata import classifier_metadata, image_input
from mnv2_keras.export.options import Quantization, old_quantization_keywords
from mnv2_keras.export.pipeline import Network, is_quantization_aware, write_network
from mnv2_keras.export.report import ExportReport
from mnv2_keras.labels import class_labels, imagenet_labels
from mnv2_keras.networks.endpoints import takes_pixels
from mnv2_keras.tflite import Metadata


@old_quantization_keywords
def export_litert(
    model,
    path: str | os.PathLike,
    precision: str = "float32",
    *,
    quantization: Quantization | None = None,
    photos=None,
    labels: Sequence[str] | None = None,
    metadata: bool | Metadata = True,
    batch: int | None = 1,
    resolution: int | tuple[int, int] | None = None,
    compare: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a Keras model as a .tflite file.

    Args:
        model: a functional model of one image input, such as this package builds; or one from `quantization_aware`, which goes to
            int8 with the ranges it learned and needs no calibration.
        path: the file to write, atomically.
        precision: "float32"; "float16" (weights in half precision); "dynamic" (kernels in int8, activations in float);
            "int8" (all in int8, kernels with one scale per channel); "int16x8" (activations in int16).
        quantization: calibration photos and options of "int8" and "int16x8".
        photos: to compare on, in the forms of `Quantization.calibration`; None for those photos, or seeded noise without them.
        labels: one for each class; None for ImageNet's where there are 1000 or 1001 classes.
        metadata: whether the file has labels, normalisation and licence; or your own metadata.
        batch: images per call; None leaves it open (which GPU delegates refuse).
        resolution: a side or (height, width), for a model that takes any.
        compare: whether to compare with the Keras model and, in other precisions than float32, each layer with float32.
        progress: called with (step, done, total or None).

    Returns:
        The report.

    Raises:
        ValueError: an argument out of its range, no photo to calibrate on, or a model that cannot be converted.
        OSError: the file cannot be written.
    """
    if batch not in (1, None) and compare:
        raise ValueError(f"batch is {batch}: a file of batch 1 or an open one can be compared; pass compare=False.")
    if metadata is True:
        metadata = _metadata(model, labels)
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    network = Network(model, metadata or None, batch, size, compare)
    return write_network(network, path, precision, quantization, photos, progress)[0]


def _metadata(model, labels: Sequence[str] | None) -> Metadata:
    shape = model.output_shape
    is_classifier = isinstance(shape, tuple) and len(shape) == 2
    if labels is None and is_classifier and shape[-1] in (1000, 1001):
        labels = imagenet_labels(shape[-1])
    if labels is not None and not is_classifier:
        raise ValueError(f"labels go with a classifier, whose output has the shape (B, classes), not {shape}: leave labels out.")
    labels = labels if labels is None else class_labels(labels, shape[-1])
    mean, std = (0.0, 1.0) if takes_pixels(model) else (127.5, 127.5)
    image = image_input(mean, std, model.input_shape[-1])
    name = model.name.removesuffix("-int8") if is_quantization_aware(model) else model.name
    others = [{"name": f"output_{i}"} for i in range(1, len(model.outputs))]
    return classifier_metadata(labels, name, image, others)
