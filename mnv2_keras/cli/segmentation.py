"""`mnv2 evaluate segmentation`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json, print_skipped, working
from mnv2_keras.cli.data_options import MaskData, Split
from mnv2_keras.cli.options import Json, grouped_options, numbers
from mnv2_keras.cli.segment import PASCAL, Flip, Scales


@grouped_options
def evaluate(
    source: MaskData,
    weights: Annotated[
        str, typer.Argument(help="Archive, checkpoint, Keras or .tflite file, or a registered name.")
    ] = PASCAL,
    split: Split = "validation",
    plot: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this PNG.")] = None,
    scales: Scales = "1",
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Mean intersection over union of a segmenter on photos with masks; label 255 is not judged.

    Example: mnv2 evaluate segmentation --photos JPEGImages --masks SegmentationClass --list val.txt --plot confusion.png
    """
    with working("converting"):
        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter

        segmenter = Segmenter(weights, scales=numbers(scales), flip=flip)
    classes = segmenter.classes or len(segmenter.names)
    pairs = source.read(split, classes, side=min(segmenter.size), held_out=True)
    names = segmenter.names
    if source.shapes:
        from mnv2_keras.data.drawn_shapes import SHAPE_NAMES as names
    from rich.progress import Progress

    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(pairs))
        matrix = evaluate_segmenter(segmenter, pairs, lambda done: progress.update(bar, completed=done))
    if plot:
        matrix.plot(plot, names)
    result = matrix.as_dict(names)
    broken = getattr(pairs, "broken", {})
    print_skipped(broken, most=20)
    count = len(pairs) - len(broken)
    if as_json:
        print_json({"photos": count, "broken": broken, **result})
        return
    table = Table("class", "IoU")
    for name, value in result["iou"].items():
        table.add_row(name, "absent" if value is None else f"{value:.4f}")
    out.print(table)
    mean, accuracy = result["mean_iou"], result["pixel_accuracy"]
    if mean is None:
        out.print("No pixel is judged: every one is ignored.")
    else:
        out.print(f"mean IoU {mean:.4f}, pixel accuracy {accuracy:.4f}, {count} photos.")
