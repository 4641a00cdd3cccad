"""`mnv2 detect`: find the things on photos."""

from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import opening_weights, out
from mnv2_keras.cli.options import Json
from mnv2_keras.cli.photos import Photos, Weights, exit_with_skipped, write_results

COCO = "ssdlite_mobilenet_v2_coco_2018_05_09"


def detect(
    photos: Photos,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures and detections.jsonl.")],
    weights: Weights = COCO,
    engine: Annotated[str, typer.Option(help="litert, openvino or keras.")] = "litert",
    labels: Annotated[Path | None, typer.Option(help="File with the name of a class in each line.")] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Show things with a higher score.")] = 0.3,
    top: Annotated[int, typer.Option(min=1, help="Most things to show on a photo.")] = 100,
    as_json: Json = False,
) -> None:
    """Find things on photos of any size, single files or folders.

    For each photo NAME_detections.png has boxes, labels and scores; detections.jsonl has a line for each photo, boxes as x, y,
    width, height in pixels. A photo that cannot be used is named and skipped; the exit code is then 1.

    The first use of some weights converts them, which takes half a minute.

    Example: mnv2 detect street.jpg holiday/ -o found/ --score 0.5
    """
    import json

    from mnv2_keras.atomic import write_text
    from mnv2_keras.images import find_images
    from mnv2_keras.masks import save_picture

    paths = find_images(photos)
    with opening_weights(engine) as on_message:
        from mnv2_keras.inference.detector import Detector

        options = {"labels": labels, "score_threshold": score, "max_detections": top, "on_message": on_message}
        detector = Detector(weights, engine, **options)

    def save(result, stem: str) -> dict:
        return {"picture": str(save_picture(result.picture(), output / f"{stem}_detections.png"))}

    def save_rows(rows: list[dict]) -> None:
        write_text(output / "detections.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    rows, errors = write_results(detector, paths, "detecting", save, save_rows)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        _print_table(rows)
    exit_with_skipped(errors)


def _print_table(rows: list[dict]) -> None:
    from rich.table import Table

    table = Table("photo", "label", "score", "left", "top", "width", "height")
    for row in rows:
        name, last = Path(row["photo"]).name, len(row["detections"]) - 1
        for i, thing in enumerate(row["detections"]):
            sides = (f"{side:.0f}" for side in thing["bbox"])
            table.add_row("" if i else name, thing["label"], f"{thing['score']:.3f}", *sides, end_section=i == last)
        if not row["detections"]:
            table.add_row(name, "nothing", *[""] * 5, end_section=True)
    out.print(table)
