"""`mnv2 predict`: what is on the photos."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.screen import Json, out, print_json, working


def predict(
    photos: Annotated[list[Path], typer.Argument(help="Photos or folders of photos.", metavar="PHOTO...")],
    weights: Annotated[
        str, typer.Option(help="Archive, folder, checkpoint, Keras file, or a name from `mnv2 list`.")
    ] = "mobilenet_v2_1.0_224",
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    as_json: Json = False,
) -> None:
    """Classify photos: JPEG, PNG, BMP or WebP, of any size, one by one or by the folder.

    Example: mnv2 predict cat.jpg holiday/ --weights mobilenet_v2_1.0_224.tgz --top 3
    """
    import numpy as np

    from mnv2_keras.images import find_images
    from mnv2_keras.labels import decode_predictions
    from mnv2_keras.preprocessing import preprocess_image

    paths = find_images(photos)
    images = np.stack([preprocess_image(path) for path in paths])
    with working("converting, classifying"):
        from mnv2_keras.models.conversion import convert_checkpoint

        found = decode_predictions(convert_checkpoint(weights)(images, training=False), top=top)
    show(dict(zip(paths, found, strict=True)), as_json)


def show(found: dict, as_json: bool) -> None:
    """Predictions of each photo, as a table or as JSON."""
    if as_json:
        print_json(
            [{"photo": str(path), "predictions": [each._asdict() for each in best]} for path, best in found.items()]
        )
        return
    table = Table("photo", "index", "label", "probability")
    for path, best in found.items():
        for i, each in enumerate(best):
            table.add_row(
                "" if i else path.name, str(each.index), each.label, f"{each.score:.3f}", end_section=i == len(best) - 1
            )
    out.print(table)
