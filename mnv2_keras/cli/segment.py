"""`mnv2 segment`: find the class of each pixel of photos."""

from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import opening_weights, out, print_json, print_skipped, with_progress
from mnv2_keras.cli.options import Json, numbers, unique_stems

Weights = Annotated[
    str,
    typer.Option(help="Archive, folder, checkpoint, Keras or .tflite file, or a name from `mnv2 list`."),
]
Scales = Annotated[str, typer.Option(help="Average over the photo at these sizes: 0.75,1,1.25.")]
Flip = Annotated[bool, typer.Option("--flip", help="Look at the mirrored photo too.")]
#: Ends of the names of this command's own files, which are no photos.
OUTPUT_STEMS = ("_mask", "_segments")
PASCAL = "deeplabv3_mnv2_pascal_train_aug_2018_01_29"


def segment(
    photos: Annotated[list[Path], typer.Argument(help="Photos or folders of photos.", metavar="PHOTO...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the masks and pictures.")],
    weights: Weights = PASCAL,
    engine: Annotated[
        str | None, typer.Option(help="litert, openvino or keras; by default litert, with --scales or --flip keras.")
    ] = None,
    scales: Scales = "1",
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Segment photos of any size, single files or folders.

    For each, NAME_mask.png (indexed, the pixel is the label) and NAME_segments.png (photo, mask, mask over photo, legend);
    areas.json lists the share of each class. A photo that cannot be used is named and skipped; the exit code is then 1.

    The first use of some weights converts them, which takes half a minute.

    Example: mnv2 segment holiday/ -o masks/ --scales 0.75,1,1.25 --flip
    """
    import json

    from mnv2_keras.atomic import write_text
    from mnv2_keras.images import find_images
    from mnv2_keras.masks import save_mask, save_picture

    folder = output.expanduser().resolve()
    if any(photo.is_dir() and photo.resolve() == folder for photo in photos):
        raise ValueError(
            f"-o {output} is a folder of photos too, and masks would be taken for photos: choose another one."
        )
    paths = [
        path
        for path in find_images(photos)
        if not (path.stem.endswith(OUTPUT_STEMS) and path.resolve().parent == folder)
    ]
    if not paths:
        raise ValueError(f"There are no photos but the masks and pictures of an earlier run in {output}: give others.")
    factors = numbers(scales)
    with opening_weights("keras" if flip or factors != (1.0,) else engine) as on_message:
        from mnv2_keras.inference.segmenter import Segmenter

        segmenter = Segmenter(weights, engine, scales=factors, flip=flip, on_message=on_message)
    rows, errors, stems = [], {}, unique_stems(paths)
    with segmenter:
        results = with_progress(segmenter.stream(paths, "skip"), len(paths), "segmenting", "photos")
        try:
            for path, stem, result in zip(paths, stems, results, strict=True):
                if result.error:
                    errors[path] = result.error
                    continue
                mask = save_mask(result.labels, output / f"{stem}_mask.png")
                picture = save_picture(result.picture(), output / f"{stem}_segments.png")
                rows.append(result.as_dict() | {"mask": str(mask), "picture": str(picture)})
        finally:  # also of those before a Ctrl-C
            if rows or errors:
                write_text(output / "areas.json", json.dumps(rows, indent=1) + "\n")
    if as_json:
        print_json(rows)
    else:
        _print_table(rows)
    print_skipped(errors)
    if errors:
        raise typer.Exit(1)


def _print_table(rows: list[dict]) -> None:
    """Print the areas of each photo."""
    from rich.table import Table

    table = Table("photo", "class", "share of the photo")
    for row in rows:
        last = len(row["areas"]) - 1
        for i, (name, share) in enumerate(row["areas"].items()):
            table.add_row("" if i else Path(row["photo"]).name, name, f"{share:.1%}", end_section=i == last)
    out.print(table)
