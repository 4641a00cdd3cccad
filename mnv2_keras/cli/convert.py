"""`mnv2 convert`: a checkpoint into a Keras file, or back."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mnv2_keras.cli.console import out, print_json, working
from mnv2_keras.cli.options import Json, image_size


def convert(
    weights: Annotated[str, typer.Argument(help="Archive, folder, checkpoint, Keras file, or a name from `mnv2 list`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="FILE.keras, FILE.h5, FILE.weights.h5, or FILE.ckpt for a TF-Slim checkpoint.")
    ],
    classes: Annotated[int | None, typer.Option(help="1000 drops the background; another number starts a new head.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Pixels, or HEIGHTxWIDTH; from the file's name when left out.")] = None,
    ema: Annotated[bool, typer.Option("--ema/--raw", help="Moving averages where there are any, or the raw variables.")] = True,
    as_json: Json = False,
) -> None:
    """Turn a TF-Slim checkpoint into a Keras model, or a Keras model into a TF-Slim checkpoint.

    Example: mnv2 convert mobilenet_v2_1.0_224.tgz -o mobilenet.keras
    """
    with working("converting"):
        from mnv2_keras.conversion import open_model
        from mnv2_keras.weights import save_model

        model, transfer = open_model(weights, ema=ema, classes=classes, size=image_size(resolution))
        path = save_model(model, output)
    if as_json:
        print_json({"output": str(path), "parameters": model.count_params(), "transfer": transfer and transfer.as_dict()})
        return
    out.print(Text(f"{path}:", "bold"), f"{model.name}, input {model.input_shape}, {model.count_params():,} weights")
    if transfer:
        out.print(transfer.report(), highlight=False)
