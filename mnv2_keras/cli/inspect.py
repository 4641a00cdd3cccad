"""`mnv2 inspect`: what is in a .tflite file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json
from mnv2_keras.cli.options import Json


def inspect(
    file: Annotated[Path, typer.Argument(help="A .tflite file.", metavar="MODEL.tflite")],
    as_json: Json = False,
) -> None:
    """Print a .tflite file's inputs, outputs, operators, memory and metadata. TensorFlow is not needed.

    Example: mnv2 inspect model.tflite
    """
    from mnv2_keras.cli.export import describe_end
    from mnv2_keras.export.report import inspect_litert

    found = inspect_litert(file)
    if found.metadata.missing:
        err.print(
            f"warning: the metadata names {', '.join(found.metadata.missing)}, which the file does not hold: its end was cut off.",
            highlight=False,
            soft_wrap=True,
        )
    if as_json:
        print_json(found.as_dict())
        return
    table = Table(title=str(file), show_header=False)
    table.add_row("size", f"{found.size:,} bytes, {found.parameters:,} of constants")
    for kind, ends in (("input", found.inputs), ("output", found.outputs)):
        for end in ends:
            table.add_row(kind, describe_end(end))
    table.add_row("operators", ", ".join(f"{count} {kind}" for kind, count in found.operators.items()))
    table.add_row("tensors", str(found.tensors))
    arena = "open shape" if found.arena is None else f"{found.arena:,} bytes at least"
    table.add_row("memory between layers", arena)
    about, labels = found.metadata.about, found.metadata.labels
    if about:
        table.add_row("name", f"{about.get('name', '')}: {about.get('description', '')}")
        table.add_row("licence", about.get("license", ""))
    if found.metadata.normalization:
        mean, std = (
            f"{each:g}" if isinstance(each, float) else f"({', '.join(f'{value:g}' for value in each)})"
            for each in found.metadata.normalization
        )
        table.add_row("normalisation", f"(pixel - {mean}) / {std}")
    if labels:
        table.add_row("labels", f"{len(labels)}: {', '.join(labels[:3])}, ...")
    if not about:
        table.add_row("metadata", "none")
    out.print(table)
