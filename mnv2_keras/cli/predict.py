"""`mnv2 predict`: what is on the photos."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.screen import Json, err, out, print_json

#: Kinds of result files, by suffix.
_FORMATS = (".jsonl", ".csv", ".parquet")


def predict(
    photos: Annotated[list[Path], typer.Argument(help="Photos or folders of photos.", metavar="PHOTO...")],
    weights: Annotated[
        str, typer.Option(help="Archive, folder, checkpoint, Keras or .tflite file, or a name from `mnv2 list`.")
    ] = "mobilenet_v2_1.0_224",
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    engine: Annotated[str, typer.Option(help="litert, openvino or keras.")] = "litert",
    precision: Annotated[str, typer.Option(help="float32, float16 or dynamic.")] = "float32",
    resolution: Annotated[
        int | None, typer.Option(help="Side of the network's input; the weights' own otherwise.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores otherwise.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the results here: .jsonl, .csv or .parquet.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken photo, in place of passing over it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Classify photos: JPEG, PNG, BMP or WebP, of any size, one by one or by the folder.

    The first use of some weights converts them, which takes half a minute; from then on it takes half a second. Exits with 1
    when some of the photos could not be read, with 2 when none could.

    Example: mnv2 predict cat.jpg holiday/ --weights mobilenet_v2_1.0_224.tgz --top 3
    """
    from mnv2_keras.images import find_images
    from mnv2_keras.inference.classifier import Classifier

    if output and output.suffix not in _FORMATS:
        raise ValueError(f"{output}: results are written as {', '.join(_FORMATS)}; choose a name that ends so.")
    paths = find_images(photos)
    with Classifier(
        weights, engine, threads, precision=precision, resolution=resolution, say=lambda text: err.print(text)
    ) as classifier:
        results = list(_watched(classifier.stream(paths, top, "raise" if strict else "skip"), len(paths)))
    if output:
        write_results(results, output)
        err.print(f"{output}: {len(results)} photos.", highlight=False)
    elif as_json:
        print_json([each.as_dict() for each in results if each.error is None])
    else:
        show({each.source: each.predictions for each in results if each.error is None}, as_json)
    broken = [each for each in results if each.error is not None]
    for each in broken:
        err.print(f"skipped: {each.error}", highlight=False, markup=False, soft_wrap=True)
    if broken:
        raise typer.Exit(2 if len(broken) == len(results) else 1)


def _watched(results, total: int):
    """The results, with a progress bar in photos per second while there are many."""
    if total < 20:
        yield from results
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]} photos/s"), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=total, speed="")
        for result in results:
            bar.update(task, advance=1)
            bar.update(task, speed=f"{bar.tasks[task].speed or 0:.0f}")
            yield result


def write_results(results, path: Path) -> None:
    """Results as JSON lines (a line a photo), CSV or Parquet (a row a class), all of them or no file.

    Raises:
        ValueError: Parquet without pyarrow.
    """
    from mnv2_keras.export.litert import write_bytes

    if path.suffix == ".jsonl":
        write_bytes(path, "".join(json.dumps(each.as_dict()) + "\n" for each in results).encode())
        return
    names = ("photo", "rank", "index", "label", "score", "error")
    rows = []
    for each in results:
        if each.error is not None:
            rows.append((str(each.source), None, None, None, None, str(each.error)))
        rows += [(str(each.source), i, *found, None) for i, found in enumerate(each.predictions, 1)]
    if path.suffix == ".csv":
        import csv
        import io

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        write_bytes(path, text.getvalue().encode())
        return
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"{path} needs pyarrow: pip install 'mnv2-keras[parquet]', or write .csv or .jsonl."
        ) from error
    kinds = (pyarrow.string(), pyarrow.int32(), pyarrow.int32(), pyarrow.string(), pyarrow.float32(), pyarrow.string())
    columns = [pyarrow.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_arrays(columns, names=list(names)), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def show(found: dict, as_json: bool) -> None:
    """Predictions of each photo, as a table or as JSON."""
    if as_json:
        print_json(
            [{"photo": str(path), "predictions": [each._asdict() for each in best]} for path, best in found.items()]
        )
        return
    from rich.table import Table

    table = Table("photo", "index", "label", "probability")
    for path, best in found.items():
        for i, each in enumerate(best):
            table.add_row(
                "" if i else path.name, str(each.index), each.label, f"{each.score:.3f}", end_section=i == len(best) - 1
            )
    out.print(table)
