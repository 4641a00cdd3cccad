"""`mnv2 predict`: name the classes of photos."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import err, opening_weights, out, print_json, progress_bar, timed_message, with_progress
from mnv2_keras.cli.options import Json, grouped_options
from mnv2_keras.cli.photos import Weights, exit_with_skipped

#: A progress bar pays from this number of photos on.
_MANY = 20


@dataclass
class NetworkOptions:
    """How the network is run."""

    engine: Annotated[str, typer.Option(help="litert, openvino or keras.")] = "litert"
    precision: Annotated[str, typer.Option(help="float32, float16 or dynamic.")] = "float32"
    resolution: Annotated[int | None, typer.Option(min=1, help="Side of the network's input; by default the weights' own.")] = None
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default all cores.")] = None


@dataclass
class ClusterOptions:
    """Where the network is run."""

    engine_cluster: Annotated[
        str | None, typer.Option(help="ray: on the machines of a Ray cluster (RAY_ADDRESS), or on workers started here.")
    ] = None
    workers: Annotated[int | None, typer.Option(min=1, help="Workers on the cluster; by default one for each processor.")] = None


@grouped_options
def predict(
    photos: Annotated[list[str], typer.Argument(help="Photos or folders of photos; on a cluster also URIs.", metavar="PHOTO...")],
    network: NetworkOptions,
    cluster: ClusterOptions,
    weights: Weights = "mobilenet_v2_1.0_224",
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the results here: .jsonl, .csv or .parquet.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a broken photo; by default it is skipped.")] = False,
    as_json: Json = False,
) -> None:
    """Classify photos: JPEG, PNG, BMP or WebP, of any size, single files or folders.

    The first use of some weights converts them, which takes half a minute; later it takes half a second. Exits with 1
    when some of the photos could not be read, with 2 when none could.

    With --engine-cluster ray, the same command continues a run that was stopped.

    Example: mnv2 predict cat.jpg holiday/ --weights mobilenet_v2_1.0_224.tgz --top 3

    Example: mnv2 predict --engine-cluster ray s3://bucket/photos -o found.parquet
    """
    options = {"precision": network.precision, "resolution": network.resolution}
    if cluster.engine_cluster is not None:
        single = {"engine": network.engine != "litert", "threads": network.threads, "strict": strict, "json": as_json}
        if wrong := [name for name, value in single.items() if value]:
            raise ValueError(f"--{wrong[0]} is for a single process: leave it out, or leave out --engine-cluster.")
        _predict_on_cluster(photos, cluster, weights, top, output, options)
        return
    if cluster.workers:
        raise ValueError("--workers is for a cluster: add --engine-cluster ray, or choose --threads.")
    from mnv2_keras.images import find_images
    from mnv2_keras.inference.classifier import Classifier
    from mnv2_keras.inference.results import check_suffix, write_results

    if output:
        check_suffix(output)
    paths = find_images(photos)
    with opening_weights(network.engine) as on_message:
        classifier = Classifier(weights, network.engine, network.threads, **options, on_message=on_message)
    errors: list[str] = []

    def noted(results):
        for result in results:
            if result.error is not None:
                errors.append(str(result.error))
            yield result

    with classifier:
        results = noted(classifier.stream(paths, top, "raise" if strict else "skip"))
        if len(paths) >= _MANY:
            results = with_progress(results, len(paths), unit="photos")
        if output:
            write_results(results, output)
            err.print(f"{output}: {len(paths)} photos.", highlight=False)
        else:
            _print([result for result in results if result.error is None], as_json)
    exit_with_skipped(errors, len(paths))


def _predict_on_cluster(photos, cluster: ClusterOptions, weights, top: int, output, options: dict) -> None:
    if cluster.engine_cluster != "ray":
        raise ValueError(f"--engine-cluster is {cluster.engine_cluster!r}: expected ray.")
    if output is None:
        raise ValueError("--engine-cluster writes its results to a file: add -o found.parquet.")
    from mnv2_keras.inference.cluster import predict_on_cluster

    with timed_message() as on_message, progress_bar(unit="photos") as bar:
        options |= {"top": top, "workers": cluster.workers, "progress": bar.update, "on_message": on_message}
        run = predict_on_cluster(photos, output, weights, **options)
    resumed = f", {run.resumed} of {run.parts} parts from an earlier run" if run.resumed else ""
    err.print(f"{output}: {run.images} photos{resumed}.", highlight=False)
    exit_with_skipped(list(run.broken.values()), run.images)


def _print(results, as_json: bool) -> None:
    if as_json:
        print_json([result.as_dict() for result in results])
        return
    from rich.table import Table

    table = Table("photo", "index", "label", "probability")
    for result in results:
        last = len(result.predictions) - 1
        for i, (index, label, score) in enumerate(result.predictions):
            table.add_row("" if i else result.source.name, str(index), label, f"{score:.3f}", end_section=i == last)
    out.print(table)
