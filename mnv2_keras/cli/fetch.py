"""`mnv2 fetch`: archives into the cache."""

from typing import Annotated

import typer

from mnv2_keras.cli.console import print_json
from mnv2_keras.cli.options import Json


def fetch(
    names: Annotated[list[str], typer.Argument(help="Names from `mnv2 list`.", metavar="NAME...")], as_json: Json = False
) -> None:
    """Download checkpoints, check their SHA-256, and print where they are.

    MNV2_HOME sets the cache folder, MNV2_MIRROR another place to download from (https://... or file:///...).

    Example: mnv2 fetch mobilenet_v2_1.0_224
    """
    from mnv2_keras.fetch import fetch_checkpoint

    paths = {name: str(fetch_checkpoint(name)) for name in names}
    if as_json:
        print_json(paths)
    else:
        typer.echo("\n".join(paths.values()))
