"""`mnv2 list`: the published checkpoints."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mnv2_keras.cli.console import out, print_json
from mnv2_keras.cli.options import Json


def list_(
    task: Annotated[str | None, typer.Option(help="classification, detection or segmentation.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Width multiplier.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Side of the square input, in pixels.")] = None,
    as_json: Json = False,
) -> None:
    """List the checkpoints that have a name here, with their published figures.

    Example: mnv2 list --task classification --alpha 0.35
    """
    from mnv2_keras.registry import list_checkpoints

    records = list_checkpoints(task=task, alpha=alpha, resolution=resolution)
    if as_json:
        print_json([asdict(record) for record in records])
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("name", "task", "alpha", "pixels", "classes", "published", "M multiply-adds", "SHA-256"):
        table.add_column(name, no_wrap=name == "name")
    for record in records:
        figures = {"top-1": record.top_1, "top-5": record.top_5, "COCO AP": record.coco_ap, "mIoU": record.miou}
        size = record.resolution if isinstance(record.resolution, int) else " x ".join(map(str, record.resolution))
        table.add_row(
            record.name,
            record.task + (" (8 bit)" if record.quantized else ""),
            f"{record.alpha:g}",
            str(size),
            str(record.classes),
            ", ".join(f"{name} {value:g}" for name, value in figures.items() if value is not None) or "-",
            str(record.multiply_adds_m or "-"),
            record.sha256[:12] if record.sha256 else "on first use",
        )
    out.print(table)
