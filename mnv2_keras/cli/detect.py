"""`mnv2 detect`: what is on the photos, and where."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, with_progress, working
from mnv2_keras.cli.options import Json, unique_stems

COCO = "ssdlite_mobilenet_v2_coco_2018_05_09"


def detect(
    photos: Annotated[list[Path], typer.Argument(help="Photos or folders of photos.", metavar="PHOTO...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures and detections.jsonl.")],
    weights: Annotated[
        str, typer.Option(help="Archive, folder, checkpoint, Keras file, or a name from `mnv2 list`.")
    ] = COCO,
    labels: Annotated[Path | None, typer.Option(help="File with the name of a class in each line.")] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Show what is likelier than this.")] = 0.3,
    top: Annotated[int, typer.Option(min=1, help="Most things to show on a photo.")] = 100,
    as_json: Json = False,
) -> None:
    """Find things on photos of any size, one by one or by the folder.

    For each photo NAME_detections.png has boxes, labels and scores; detections.jsonl has a line for each photo, boxes as x, y,
    width, height in pixels. A photo that cannot be used is named and skipped; the exit code is then 1.

    Example: mnv2 detect street.jpg holiday/ -o found/ --score 0.5
    """
    import json

    from mnv2_keras.atomic import write_text
    from mnv2_keras.images import find_images
    from mnv2_keras.masks import save_picture

    paths = find_images(photos)
    with working("converting"):
        from mnv2_keras.inference.detector import Detector

        detector = Detector(weights, labels=labels, score_threshold=score, max_detections=top)
    lines, broken = [], 0
    table = Table("photo", "label", "score", "left", "top", "width", "height")
    results = with_progress(detector.stream(paths, skip_broken=True), len(paths), "detecting", "photos")
    for path, name, result in zip(paths, unique_stems(paths), results, strict=True):
        if isinstance(result, Exception):
            broken += 1
            err.print(f"skipped {path}: {result}", highlight=False, soft_wrap=True)
            continue
        found = result.as_dict()
        found["picture"] = str(save_picture(result.picture(), output / f"{name}_detections.png"))
        lines.append(json.dumps(found))
        for i, each in enumerate(found["detections"]):
            sides = (f"{side:.0f}" for side in each["bbox"])
            last = i + 1 == len(found["detections"])
            table.add_row("" if i else path.name, each["label"], f"{each['score']:.3f}", *sides, end_section=last)
        if not found["detections"]:
            table.add_row(path.name, "nothing", *[""] * 5, end_section=True)
    write_text(output / "detections.jsonl", "".join(f"{line}\n" for line in lines))
    if as_json:
        typer.echo("\n".join(lines))
    else:
        out.print(table)
    if broken:
        err.print(f"{broken} of {len(paths)} photos could not be used.")
        raise typer.Exit(1)
