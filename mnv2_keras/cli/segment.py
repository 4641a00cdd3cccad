"""`mnv2 segment`: find the class of each pixel of photos."""

from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.checks import user_path
from mnv2_keras.cli.console import opening_weights, out, print_json
from mnv2_keras.cli.options import Json, numbers
from mnv2_keras.cli.photos import Photos, Weights, exit_with_skipped, write_results

Scales = Annotated[str, typer.Option(help="Average over the photo at these sizes: 0.75,1,1.25.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average over the mirrored photo too.")]
#: Ends of the names of this command's own files, which are not photos.
OUTPUT_STEMS = ("_mask", "_segments")
PASCAL = "deeplabv3_mnv2_pascal_train_aug_2018_01_29"


def segment(
    photos: Photos,
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

    folder = user_path(output).resolve()
    if any(photo.is_dir() and photo.resolve() == folder for photo in photos):
        raise ValueError(f"-o {output} is also a folder of photos, and masks would count as photos: choose another one.")

    def is_photo(path: Path) -> bool:
        return not (path.stem.endswith(OUTPUT_STEMS) and path.resolve().parent == folder)

    paths = list(filter(is_photo, find_images(photos)))
    if not paths:
        raise ValueError(f"There are only masks and pictures of an earlier run in {output}: give other photos.")
    factors = numbers(scales)
    with opening_weights("keras" if flip or factors != (1.0,) else engine) as on_message:
        from mnv2_keras.inference.segmenter import Segmenter

        segmenter = Segmenter(weights, engine, scales=factors, flip=flip, on_message=on_message)

    def save(result, stem: str) -> dict:
        mask = save_mask(result.labels, output / f"{stem}_mask.png")
        return {"mask": str(mask), "picture": str(save_picture(result.picture(), output / f"{stem}_segments.png"))}

    def save_rows(rows: list[dict]) -> None:
        write_text(output / "areas.json", json.dumps(rows, indent=1) + "\n")

    rows, errors = write_results(segmenter, paths, "segmenting", save, save_rows)
    if as_json:
        print_json(rows)
    else:
        _print_table(rows)
    exit_with_skipped(errors)


def _print_table(rows: list[dict]) -> None:
    from rich.table import Table

    table = Table("photo", "class", "share of the photo")
    for row in rows:
        last = len(row["areas"]) - 1
        for i, (name, share) in enumerate(row["areas"].items()):
            table.add_row("" if i else Path(row["photo"]).name, name, f"{share:.1%}", end_section=i == last)
    out.print(table)
