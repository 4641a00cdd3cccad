"""`mnv2 inspect`: what is in a .tflite file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json
from mnv2_keras.cli.options import Json


def inspect(file: Annotated[Path, typer.Argument(help="A .tflite file.", metavar="MODEL.tflite")], as_json: Json = False) -> None:
    """Print a .tflite file's inputs, outputs, operators, memory and metadata. TensorFlow is not needed.

    Example: mnv2 inspect model.tflite
    """
    from mnv2_keras.cli.export import describe_end
    from mnv2_keras.export.report import inspect_litert

    inspection = inspect_litert(file)
    metadata, about = inspection.metadata, inspection.metadata.about
    if metadata.missing:
        err.print(
            f"warning: the metadata names {', '.join(metadata.missing)}, which the file does not hold: its end was cut off.",
            highlight=False,
            soft_wrap=True,
        )
    if as_json:
        print_json(inspection.as_dict())
        return
    table = Table(title=str(file), show_header=False)
    table.add_row("size", f"{inspection.size:,} bytes, {inspection.parameters:,} of constants")
    for kind, ends in (("input", inspection.inputs), ("output", inspection.outputs)):
        for end in ends:
            table.add_row(kind, describe_end(end))
    table.add_row("operators", ", ".join(f"{count} {kind}" for kind, count in inspection.operators.items()))
    table.add_row("tensors", str(inspection.tensors))
    arena = "open shape" if inspection.arena is None else f"{inspection.arena:,} bytes at least"
    table.add_row("memory between layers", arena)
    if about:
        table.add_row("name", f"{about.get('name', '')}: {about.get('description', '')}")
        table.add_row("licence", about.get("license", ""))
    if metadata.normalization:
        mean, std = (
            f"{values:g}" if isinstance(values, float) else f"({', '.join(f'{value:g}' for value in values)})"
            for values in metadata.normalization
        )
        table.add_row("normalisation", f"(pixel - {mean}) / {std}")
    if metadata.labels:
        table.add_row("labels", f"{len(metadata.labels)}: {', '.join(metadata.labels[:3])}, ...")
    if not about:
        table.add_row("metadata", "none")
    out.print(table)
