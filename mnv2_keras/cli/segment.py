"""`mnv2 segment`: what every pixel of the photos shows."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json, with_progress, working
from mnv2_keras.cli.options import Json, numbers, unique_stems

Weights = Annotated[
    str,
    typer.Option(help="Archive, folder, checkpoint, Keras or .tflite file, or a name from `mnv2 list`."),
]
Scales = Annotated[str, typer.Option(help="Look at each photo at these sizes, and average: 0.75,1,1.25.")]
Flip = Annotated[bool, typer.Option("--flip", help="Look at the mirrored photo too.")]
#: What the names of this command's own files end in: they are no photos.
MADE = ("_mask", "_segments")
PASCAL = "deeplabv3_mnv2_pascal_train_aug_2018_01_29"


def segment(
    photos: Annotated[list[Path], typer.Argument(help="Photos or folders of photos.", metavar="PHOTO...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the masks and pictures.")],
    weights: Weights = PASCAL,
    scales: Scales = "1",
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Segment photos of any size.

    For each, NAME_mask.png (indexed, the pixel is the label) and NAME_segments.png (photo, mask, mask over photo, legend);
    areas.json lists the share of each class. A photo that cannot be used is named and skipped; the exit code is then 1.

    Example: mnv2 segment holiday/ -o masks/ --scales 0.75,1,1.25 --flip
    """
    import json

    from mnv2_keras.atomic import write_text
    from mnv2_keras.images import find_images
    from mnv2_keras.masks import save_mask, save_picture

    if any(each.is_dir() and each.resolve() == output.resolve() for each in photos):
        raise ValueError(
            f"-o {output} is a folder of photos too, and masks would be taken for photos: choose another one."
        )
    made = output.expanduser().resolve()
    paths = [path for path in find_images(photos) if not (path.stem.endswith(MADE) and path.resolve().parent == made)]
    if not paths:
        raise ValueError(f"There are no photos but the masks and pictures of an earlier run in {output}: give others.")
    with working("converting"):
        from mnv2_keras.inference.segmenter import Segmenter

        segmenter = Segmenter(weights, scales=numbers(scales), flip=flip)
    found, broken, stems = [], [], unique_stems(paths)
    results = with_progress(segmenter.stream(paths, skip_broken=True), len(paths), "segmenting", "photos")
    try:
        for path, stem, result in zip(paths, stems, results, strict=True):
            if isinstance(result, Exception):
                broken.append(path)
                err.print(f"skipped {path}: {result}", highlight=False, soft_wrap=True)
                continue
            mask = save_mask(result.labels, output / f"{stem}_mask.png")
            picture = save_picture(result.picture(), output / f"{stem}_segments.png")
            found.append(result.as_dict() | {"mask": str(mask), "picture": str(picture)})
    finally:  # also of those before a Ctrl-C
        if found or broken:
            write_text(output / "areas.json", json.dumps(found, indent=1) + "\n")
    if as_json:
        print_json(found)
    else:
        table = Table("photo", "class", "share of the photo")
        for each in found:
            for i, (name, share) in enumerate(each["areas"].items()):
                table.add_row(
                    "" if i else Path(each["photo"]).name, name, f"{share:.1%}", end_section=i + 1 == len(each["areas"])
                )
        out.print(table)
    if broken:
        err.print(f"{len(broken)} of {len(paths)} photos could not be used.")
        raise typer.Exit(1)
