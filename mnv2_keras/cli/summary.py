"""`mnv2 summary`: Table 2 with shapes and costs, computed from the plan."""

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mnv2_keras.cli.console import out, print_json
from mnv2_keras.cli.options import Json, image_size


def summary(
    alpha: Annotated[float, typer.Option(help="Width multiplier.")] = 1.0,
    resolution: Annotated[str, typer.Option(help="Input size in pixels, or HEIGHTxWIDTH.")] = "224",
    channels: Annotated[int, typer.Option(help="Channels of the input image.")] = 3,
    classes: Annotated[int, typer.Option(help="Number of classes; 0 for pooled features.")] = 1001,
    output_stride: Annotated[int | None, typer.Option(help="From this stride on, dilate instead of striding.")] = None,
    finegrain: Annotated[bool, typer.Option(help="For alpha below 1, keep 1280 channels in the last layer.")] = True,
    paper: Annotated[bool, typer.Option("--paper", help="Compare the paper's tables with computed values.")] = False,
    as_json: Json = False,
) -> None:
    """Show Table 2 of the paper with shapes, parameters and multiply-adds of each row, without TensorFlow.

    Example: mnv2 summary --alpha 0.75 --resolution 160
    """
    if paper:
        _paper(as_json)
        return
    from mnv2_keras.analysis import analyze, summary_table

    size = image_size(resolution)
    options = {"output_stride": output_stride, "finegrain_classification_mode": finegrain}
    rows = summary_table(analyze(alpha, (*size, channels), classes=classes, **options))
    if as_json:
        print_json({"alpha": alpha, "input_shape": [*size, channels], "classes": classes, "rows": rows})
        return
    table = Table(title=f"MobileNetV2, alpha {alpha:g}, {size[0]} x {size[1]} pixels", box=SIMPLE_HEAD)
    for name in ("input", "operator", "t", "c", "n", "s", "parameters", "multiply-adds", "memory, KB"):
        table.add_column(name, justify="left" if name in ("input", "operator") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            " x ".join(map(str, row["input_shape"])),
            row["operator"],
            *("-" if row.get(key) is None else str(row[key]) for key in "tcns"),
            f"{row['parameters']:,}",
            f"{row['multiply_adds']:,}",
            f"{row['activation_memory'] / 1000:,.0f}",
            end_section=row is rows[-2],
            style="bold" if row is rows[-1] else None,
        )
    out.print(table)
    out.print(
        "Parameters are kernels and biases, as in published tables. Memory is the largest total size of the tensors that exist at "
        "the same time, in float32.",
        style="dim",
    )


def _paper(as_json: bool) -> None:
    from mnv2_keras.analysis import table_3, table_5, table_6_row, table_7_rows

    rows = [*table_3(), *table_5(), table_6_row(), *table_7_rows()]
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    table = Table("table", "row", "published", "computed", "explanation", title="arXiv:1801.04381", show_lines=True)
    for row in rows:
        published = "\n".join(f"{key} {value}" for key, value in row.published.items())
        computed = "\n".join(f"{key} {value:,}" for key, value in row.computed.items())
        table.add_row(str(row.table), row.row, published, computed, row.explanation)
    out.print(table)
