"""`mnv2 detect`: find the things on photos."""

from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import opening_weights, out, print_skipped, with_progress
from mnv2_keras.cli.options import Json, unique_stems

COCO = "ssdlite_mobilenet_v2_coco_2018_05_09"


def detect(
    photos: Annotated[list[Path], typer.Argument(help="Photos or folders of photos.", metavar="PHOTO...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures and detections.jsonl.")],
    weights: Annotated[
        str, typer.Option(help="Archive, folder, checkpoint, Keras or .tflite file, or a name from `mnv2 list`.")
    ] = COCO,
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

    from rich.table import Table

    from mnv2_keras.atomic import write_text
    from mnv2_keras.images import find_images
    from mnv2_keras.masks import save_picture

    paths = find_images(photos)
    with opening_weights(engine) as on_message:
        from mnv2_keras.inference.detector import Detector

        options = {"labels": labels, "score_threshold": score, "max_detections": top, "on_message": on_message}
        detector = Detector(weights, engine, **options)
    lines, errors = [], {}
    table = Table("photo", "label", "score", "left", "top", "width", "height")
    with detector:
        results = with_progress(detector.stream(paths, "skip"), len(paths), "detecting", "photos")
        for path, name, result in zip(paths, unique_stems(paths), results, strict=True):
            if result.error:
                errors[path] = result.error
                continue
            row = result.as_dict()
            row["picture"] = str(save_picture(result.picture(), output / f"{name}_detections.png"))
            lines.append(json.dumps(row))
            for i, thing in enumerate(row["detections"]):
                sides = (f"{side:.0f}" for side in thing["bbox"])
                last = i + 1 == len(row["detections"])
                table.add_row("" if i else path.name, thing["label"], f"{thing['score']:.3f}", *sides, end_section=last)
            if not row["detections"]:
                table.add_row(path.name, "nothing", *[""] * 5, end_section=True)
    write_text(output / "detections.jsonl", "".join(f"{line}\n" for line in lines))
    if as_json:
        typer.echo("\n".join(lines))
    else:
        out.print(table)
    print_skipped(errors)
    if errors:
        raise typer.Exit(1)
