"""Where output goes: results to stdout, everything else to stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console

#: A pipe or a log file has no width of its own; a table should not be cut to 80 columns there.
_WIDTH = None if sys.stdout.isatty() else 140

#: Names of files are printed as they are: `:cat:` is no picture of one, `[red]` no colour.
out = Console(width=_WIDTH, emoji=False, markup=False)
err = Console(stderr=True, emoji=False, markup=False)

#: `--json`, on every command that reads.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done while it is; import TensorFlow first, without its start-up chatter.

    TensorFlow writes a few lines to file descriptor 2 before any of its settings can stop it. What goes wrong while it is
    imported is raised all the same.
    """
    with err.status(what):
        if "tensorflow" not in sys.modules:
            sys.stderr.flush()
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            try:
                import tensorflow  # noqa: F401
            finally:
                os.dup2(kept, 2)
                os.close(kept)
                os.close(nowhere)
        yield


@contextlib.contextmanager
def while_it_lasts() -> Iterator[Callable[[str], None]]:
    """Something to say a sentence with; on a terminal a clock runs beside it until the block ends."""
    with contextlib.ExitStack() as stack:

        def say(sentence: str) -> None:
            if not err.is_terminal:
                err.print(sentence, soft_wrap=True)
                return
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
            stack.enter_context(Progress(*columns, console=err, transient=True)).add_task(sentence, total=None)

        yield say


def print_json(value) -> None:
    """One JSON document on stdout, as it is: no colours, no wrapping."""
    typer.echo(json.dumps(value, indent=1))


def _print_version(wanted: bool) -> None:
    if wanted:
        from mnv2_keras import __version__

        typer.echo(f"mnv2_keras {__version__}")
        raise typer.Exit


def version(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """MobileNetV2 in Keras 3: build it, convert TF-Slim's checkpoints, prove parity, use it."""
