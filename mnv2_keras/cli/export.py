"""`mnv2 export`: a .tflite file for phones, and its comparison with the Keras model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json, working
from mnv2_keras.cli.options import Json


def export(
    weights: Annotated[str, typer.Argument(help="Archive, folder, checkpoint, Keras file, or a name from `mnv2 list`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .tflite file to write.")],
    precision: Annotated[str, typer.Option(help="float32, float16, dynamic, int8 or int16x8.")] = "float32",
    calibrate: Annotated[
        str | None, typer.Option(help="Photos for int8: a folder, a file, or tfds:NAME:SPLIT.", metavar="FOLDER_OR_TFDS")
    ] = None,
    photos: Annotated[list[Path] | None, typer.Option(help="Photos or folders to compare on; default: the calibration's.")] = None,
    input_type: Annotated[str | None, typer.Option(help="Input type of int8 files: uint8, int8 or float32.")] = None,
    output_type: Annotated[str | None, typer.Option(help="Output type of int8 files; default: the input type.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with one label per line; default: ImageNet's.")] = None,
    metadata: Annotated[bool, typer.Option(help="Put labels, normalisation and licence into the file.")] = True,
    batch: Annotated[int, typer.Option(min=0, help="Images per call; 0 leaves it open.")] = 1,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Side of the input in pixels; default: that of the weights.")
    ] = None,
    layers: Annotated[bool, typer.Option(help="Print the comparison of each layer with float.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the layers' comparison into this .png.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Write a .tflite file for Android's MediaPipe Tasks, and print how it compares with the Keras model.

    A classifier, a detector (with its post-processing) or a segmenter: each as its MediaPipe task expects it.

    Example: mnv2 export mobilenet_v2_1.0_224.tgz -o model.tflite --precision int8 --calibrate photos/
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from mnv2_keras.export.options import Quantization
    from mnv2_keras.figures import check_figure

    asked = "--plot" if plot else "--layers" if layers else None
    if asked and (precision == "float32" or batch > 1):
        raise ValueError(
            f"{asked} compares layers with float32 ones, one image at a time: choose another --precision and leave --batch at 1, "
            f"or leave {asked} out."
        )
    if plot:
        check_figure(plot)
    quantization = Quantization(calibrate, input_type=input_type, output_type=output_type)
    quantization.check(precision)
    with working("converting the weights"):
        from mnv2_keras.conversion import open_model

        model, _ = open_model(weights, size=(resolution, resolution) if resolution else None)
        write = _exporter(model)
    if asked and write.__name__ == "export_segmenter":
        raise ValueError(f"{asked} is for classifiers and detectors, a segmenter is compared pixel by pixel: leave it out.")
    # Options at their default are left out: detectors and segmenters refuse some of them.
    options = {} if metadata else {"metadata": False}
    options |= {} if batch == 1 else {"batch": batch or None, "compare": batch < 2}
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err, transient=True) as bar:
        task = bar.add_task("", total=None)
        result = write(
            model,
            output,
            precision,
            quantization=quantization,
            photos=None if photos is None else list(photos),
            labels=labels,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
            **options,
        )
    written = getattr(result, "export", result)  # a segmenter's report has it inside
    if report:
        result.save(report)
    if plot:
        written.plot_layers(plot)
    if as_json:
        print_json(result.as_dict())
        return
    show(written, layers)
    if written is not result:
        show_agreement(result)


def _exporter(model):
    """The function that writes a file of the model's task."""
    import mnv2_keras
    from mnv2_keras.tasks import task_of_model

    names = {"classification": "export_litert", "detection": "export_detector", "segmentation": "export_segmenter"}
    return getattr(mnv2_keras, names[task_of_model(model).name])


def show_agreement(result) -> None:
    """A segmenter's equal labels as a table."""
    table = Table("photo", "same labels as Keras")
    for name, share in result.agreement.items():
        table.add_row(Path(name).name, f"{share:.2%}")
    if result.agreement:
        out.print(table)
    for name, reason in result.skipped.items():
        err.print(f"skipped: {name}: {reason}", highlight=False, soft_wrap=True)


def show(result, layers: bool = False) -> None:
    """The report as a table, and with `layers` a table of the layers."""
    rows = [("size", f"{result.size:,} bytes")]
    rows += [("operators", ", ".join(f"{count} {kind}" for kind, count in result.operators.items()))]
    rows += [("input", describe_end(end)) for end in result.inputs]
    rows += [("output", describe_end(end)) for end in result.outputs]
    if result.snr_db is not None:
        rows += [("compared on", f"{result.images} images: {result.compared}")]
        if result.top1 is not None:
            rows += [("same top 1, top 5", f"{result.top1:.1%}, {result.top5:.1%}")]
        ratio = f"{result.snr_db:.1f} dB, worst image {min(result.snr_db_each):.1f} dB"
        rows += [("logits' signal to noise", ratio)]
        rows += [("largest difference", f"{result.largest_difference:.2g} of the logits' range")]
    if worst := result.worst_layer:
        rows += [("layer that loses most", f"{worst.name} ({worst.snr_db:.1f} dB)")]
    if result.calibrated:
        rows += [("calibrated on", f"{result.calibration_images} images: {result.calibrated}")]
    table = Table(title=f"{result.path}: {result.precision}", show_header=False)
    for row in (*rows, ("time", f"{result.seconds:.1f} s")):
        table.add_row(*row)
    out.print(table)
    if layers and result.layers:
        table = Table("layer", "operator", "signal to noise")
        for layer in result.layers:
            table.add_row(layer.name, layer.kind, f"{layer.snr_db:.1f} dB")
        out.print(table)
    for kind, sentences in (("skipped", result.skipped), ("warning", result.warnings)):
        for sentence in sentences:
            err.print(f"{kind}: {sentence}", highlight=False, soft_wrap=True)


def describe_end(end) -> str:
    """An input or output of a file in one line: name, shape, type, and the real value of a stored one."""
    sides = " x ".join("any" if side < 0 else str(side) for side in end.shape)
    scale = "" if end.scale is None else f", real = {end.scale:.6g} * (stored - {end.zero_point})"
    return f"{end.name}: {sides}, {end.dtype}{scale}"
