"""`mnv2 bench`: measure how fast a classifier is on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import err, out, print_json, working
from mnv2_keras.cli.options import Json


def bench(
    weights: Annotated[str, typer.Argument(help="Archive, checkpoint, Keras or .tflite file, or a name from `mnv2 list`.")],
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help="'ENGINE PRECISION', such as 'litert int8' or 'keras float32'; may be repeated."),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads; may be repeated. By default 1 and all cores.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each variant.")] = 50,
    cold: Annotated[bool, typer.Option(help="Measure cold starts and memory too.")] = True,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the table here, as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the latencies into this .png.")] = None,
    as_json: Json = False,
) -> None:
    """Measure latency, throughput, cold start and memory, in interleaved rounds.

    Example: mnv2 bench mobilenet_v2_1.0_224.tgz --variant "litert float32" --variant "litert int8" -o bench.csv
    """
    from dataclasses import asdict

    from rich.table import Table

    from mnv2_keras.atomic import write_bytes
    from mnv2_keras.figures import check_figure
    from mnv2_keras.inference import benchmark
    from mnv2_keras.inference.model_cache import path_of

    if path_of(weights).suffix != ".tflite":  # Keras needs TensorFlow in this process, and so does quantisation
        with working("importing TensorFlow"):
            pass
    if plot:
        check_figure(plot)
    measurements = benchmark.measure(weights, variants or None, threads or None, rounds, cold, on_message=err.print)
    if output:
        write_bytes(output, benchmark.to_csv(measurements).encode())
    if plot:
        benchmark.plot(measurements, plot)
    if as_json:
        print_json([asdict(measurement) for measurement in measurements])
        return
    table = Table("engine", "precision", "threads", "p50 ms", "p90 ms", "p99 ms", "images/s", "cold start s", "memory MB")
    for row in measurements:
        latencies = [f"{value:.2f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms)]
        start = "" if row.cold_start_s is None else f"{row.cold_start_s:.2f}"
        memory = "" if row.memory_mb is None else f"{row.memory_mb:.0f}"
        speed = f"{row.images_per_second:.0f}"
        table.add_row(row.engine, row.precision, str(row.threads), *latencies, speed, start, memory)
    out.print(table)
