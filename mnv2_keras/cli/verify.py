"""`mnv2 verify`: the proof, as a table and a receipt."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mnv2_keras.cli.console import out, print_json, working
from mnv2_keras.cli.options import Json


def verify(
    weights: Annotated[str, typer.Argument(help="Archive, folder or checkpoint, or a name from `mnv2 list`.")],
    images: Annotated[list[Path] | None, typer.Option(help="Photos or folders to compare on; random images otherwise.")] = None,
    goldens: Annotated[Path | None, typer.Option(help="Folder of TF-Slim's outputs, in place of the frozen graph.")] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference, relative to an endpoint's range.")] = 3e-4,
    ema: Annotated[bool, typer.Option("--ema/--raw", help="Moving averages where there are any, or the raw variables.")] = True,
    receipt: Annotated[Path | None, typer.Option("-o", "--output", help="Write the receipt here, as JSON.")] = None,
    full: Annotated[bool, typer.Option("--all", help="Show every endpoint, not only the layers' ends.")] = False,
    as_json: Json = False,
) -> None:
    """Prove that a converted checkpoint computes what TF-Slim's own graph computes, endpoint by endpoint.

    Exits with 1 when it does not.

    Example: mnv2 verify mobilenet_v2_1.0_224.tgz --images photos/ -o receipt.json
    """
    with working("converting, comparing"):
        from mnv2_keras.conversion import verify_checkpoint

        result = verify_checkpoint(weights, images=images, goldens=goldens, tolerance=tolerance, ema=ema)
        if receipt:
            result.save(receipt)
    if as_json:
        print_json(result.as_dict())
    else:
        table = Table("endpoint", "largest difference", "of its range", "", title=f"{result.checkpoint} against {result.reference}")
        for difference in result.endpoints:
            if full or not difference.passed or "/" not in difference.endpoint:
                mark = Text("equal", "green") if difference.passed else Text("differs", "bold red")
                table.add_row(difference.endpoint, f"{difference.max_abs:.2e}", f"{difference.range_relative:.1e}", mark)
        out.print(table)
        if result.constants:
            same = result.constants - len(result.different_constants)
            out.print(f"{same} of {result.constants} variables equal the frozen graph's constants bit for bit.")
        if result.top1 is not None:
            out.print(f"{result.images} images: top-1 agrees on {result.top1:.0%}, top-5 in order on {result.top5:.0%}.")
        if result.passed:
            worst = f"worst {result.worst.range_relative:.1e} at {result.worst.endpoint}"
            out.print(
                Text("passed:", "bold green"), f"{len(result.endpoints)} endpoints within {tolerance:g} of their range, {worst}."
            )
        else:
            out.print(Text("failed:", "bold red"), result.failure, highlight=False)
    if not result.passed:
        raise typer.Exit(1)
