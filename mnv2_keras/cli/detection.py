"""`mnv2 evaluate detection`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json, print_skipped, working
from mnv2_keras.cli.data_options import BoxData, Split
from mnv2_keras.cli.detect import COCO
from mnv2_keras.cli.options import Json, grouped_options


@grouped_options
def evaluate(
    source: BoxData,
    weights: Annotated[str, typer.Argument(help="Archive, checkpoint or Keras file, or a registered name.")] = COCO,
    split: Split = "validation",
    results: Annotated[
        Path | None, typer.Option(help="A COCO results file to judge in place of a detector; with --annotations.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --results: the first so many images by id.")] = None,
    as_json: Json = False,
) -> None:
    """COCO's twelve metrics, by pycocotools, of a detector or of a results file.

    Example: mnv2 evaluate detection --annotations instances_val2017.json --images val2017

    Example: mnv2 evaluate detection --annotations instances_val2014.json --results results.json
    """
    if results is not None:
        if source.annotations is None or source.tfds or source.shapes:
            raise ValueError("--results goes with --annotations FILE, the COCO JSON they belong to, and no other data.")
        from mnv2_keras.evaluation.coco import evaluate_coco

        metrics = evaluate_coco(source.annotations, results, limit=limit)
    else:
        if limit is not None:
            raise ValueError("--limit goes with --results FILE only: a detector is judged on all images of its data.")
        with working("converting"):
            from mnv2_keras.conversion import open_model
            from mnv2_keras.evaluation.detection import evaluate_detector

            model = open_model(weights)[0]
            data = source.read(split, model, held_out=True)
        from rich.progress import Progress

        with Progress(console=err, transient=True) as progress:
            total = len(data.examples)
            bar = progress.add_task("evaluating", total=total)
            metrics = evaluate_detector(model, data, progress=lambda done: progress.update(bar, completed=done))
        print_skipped(data.skipped)
    if as_json:
        print_json(metrics)
        return
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, "absent" if value < 0 else f"{value:.4f}")
    out.print(table)
