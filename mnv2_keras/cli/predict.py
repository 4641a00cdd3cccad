"""`mnv2 predict`: what is on the photos."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import err, out, print_json, timed_message
from mnv2_keras.cli.options import Json


def predict(
    photos: Annotated[
        list[str], typer.Argument(help="Photos or folders of photos; on a cluster also URIs.", metavar="PHOTO...")
    ],
    weights: Annotated[
        str, typer.Option(help="Archive, folder, checkpoint, Keras or .tflite file, or a name from `mnv2 list`.")
    ] = "mobilenet_v2_1.0_224",
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    engine: Annotated[str, typer.Option(help="litert, openvino or keras.")] = "litert",
    precision: Annotated[str, typer.Option(help="float32, float16 or dynamic.")] = "float32",
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Side of the network's input; the weights' own otherwise.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores otherwise.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the results here: .jsonl, .csv or .parquet.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a broken photo, in place of passing over it.")
    ] = False,
    engine_cluster: Annotated[
        str | None,
        typer.Option(help="ray: on the machines of a Ray cluster (RAY_ADDRESS), or on workers started here."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="On the cluster; one for each processor otherwise.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify photos: JPEG, PNG, BMP or WebP, of any size, one by one or by the folder.

    The first use of some weights converts them, which takes half a minute; from then on it takes half a second. Exits with 1
    when some of the photos could not be read, with 2 when none could.

    With --engine-cluster ray, a run that was stopped goes on when the same command is given again.

    Example: mnv2 predict cat.jpg holiday/ --weights mobilenet_v2_1.0_224.tgz --top 3

    Example: mnv2 predict --engine-cluster ray s3://bucket/photos -o found.parquet
    """
    if engine_cluster is not None:
        single = {"--engine": engine != "litert", "--threads": threads, "--strict": strict, "--json": as_json}
        if given := [name for name, value in single.items() if value]:
            raise ValueError(f"{given[0]} is for a single process: leave it out, or leave out --engine-cluster.")
        _predict_on_cluster(engine_cluster, photos, output, weights, top, precision, resolution, workers)
        return
    if workers:
        raise ValueError("--workers is for a cluster: add --engine-cluster ray, or choose --threads.")
    from mnv2_keras.images import find_images
    from mnv2_keras.inference.classifier import Classifier
    from mnv2_keras.inference.results import check_suffix, write_results

    if output:
        check_suffix(output)
    paths = find_images(photos)
    with timed_message() as on_message:
        classifier = Classifier(weights, engine, threads, precision=precision, resolution=resolution, say=on_message)
    errors: list[str] = []
    with classifier:
        results = _watched(classifier.stream(paths, top, "raise" if strict else "skip"), len(paths), errors)
        if output:
            write_results(results, output)
            err.print(f"{output}: {len(paths)} photos.", highlight=False)
        else:
            good = [each for each in results if each.error is None]
            if as_json:
                print_json([each.as_dict() for each in good])
            else:
                show(good)
    _report(errors, len(paths))


def _predict_on_cluster(name: str, photos, output, weights, top, precision, resolution, workers) -> None:
    if name != "ray":
        raise ValueError(f"--engine-cluster is {name!r}: expected ray.")
    if output is None:
        raise ValueError("--engine-cluster writes its results to a file: add -o found.parquet.")
    from mnv2_keras.inference.cluster import predict_on_cluster

    with _bar() as bar:
        task = bar.add_task("", total=None, speed="")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, speed=f"{bar.tasks[task].speed or 0:.0f}")

        run = predict_on_cluster(
            photos,
            output,
            weights,
            top=top,
            precision=precision,
            resolution=resolution,
            workers=workers,
            progress=progress,
            say=lambda sentence: err.print(sentence),
        )
    resumed = f", {run.resumed} of {run.parts} parts from an earlier run" if run.resumed else ""
    err.print(f"{output}: {run.images} photos{resumed}.", highlight=False)
    _report(list(run.broken.values()), run.images)


def _report(errors: list[str], total: int) -> None:
    """Name the photos that were passed over; some of them are one exit code, all of them another."""
    for each in errors:
        err.print(f"skipped: {each}", highlight=False, soft_wrap=True)
    if errors:
        raise typer.Exit(2 if len(errors) == total else 1)


def _bar():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]} photos/s"), TimeRemainingColumn()
    return Progress(*columns, console=err, transient=True)


def _watched(results, total: int, errors: list[str]):
    """The results, with a progress bar in photos per second while there are many; what went wrong is noted."""
    with _bar() if total >= 20 else contextlib.nullcontext() as bar:
        task = bar.add_task("", total=total, speed="") if bar else None
        for result in results:
            if bar:
                bar.update(task, advance=1)
                bar.update(task, speed=f"{bar.tasks[task].speed or 0:.0f}")
            if result.error is not None:
                errors.append(str(result.error))
            yield result


def show(results) -> None:
    """Predictions of each photo, as a table."""
    from rich.table import Table

    table = Table("photo", "index", "label", "probability")
    for result in results:
        for i, each in enumerate(best := result.predictions):
            name = "" if i else result.source.name
            table.add_row(name, str(each.index), each.label, f"{each.score:.3f}", end_section=i == len(best) - 1)
    out.print(table)  # names with brackets are no markup
