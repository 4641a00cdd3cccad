"""Where output goes: results to stdout, everything else to stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import typer
from rich.console import Console

#: A pipe or a log file has no width; with 140 columns tables fit there.
_WIDTH = None if sys.stdout.isatty() else 140

#: Consoles print file names unchanged: without emoji (`:cat:`) and without markup (`[red]`).
out = Console(width=_WIDTH, emoji=False, markup=False)
err = Console(stderr=True, emoji=False, markup=False)


@contextlib.contextmanager
def working(description: str) -> Iterator[None]:
    """Show `description` with a spinner until the block ends; import TensorFlow first, without its start-up messages.

    TensorFlow writes a few lines to file descriptor 2 before any of its settings can prevent it.
    """
    with err.status(description):
        if "tensorflow" not in sys.modules:
            sys.stderr.flush()
            stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            try:
                import tensorflow  # noqa: F401
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
                os.close(null)
        yield


@contextlib.contextmanager
def timed_message() -> Iterator[Callable[[str], None]]:
    """A function that prints a sentence on stderr, on a terminal with the elapsed time until the block ends."""
    with contextlib.ExitStack() as stack:

        def on_message(sentence: str) -> None:
            if not err.is_terminal:
                err.print(sentence, soft_wrap=True)
                return
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
            stack.enter_context(Progress(*columns, console=err, transient=True)).add_task(sentence, total=None)

        yield on_message


@contextlib.contextmanager
def opening_weights(engine: str | None) -> Iterator[Callable[[str], None] | None]:
    """A spinner while the Keras engine reads weights; for other engines `on_message`, without TensorFlow."""
    with working("opening the weights") if engine == "keras" else timed_message() as on_message:
        yield on_message


class progress_bar:
    """A progress bar on stderr for the length of a `with` block: description, bar, "done/total", detail and the time left.

        with progress_bar("evaluating", total=len(photos), unit="photos") as bar:
            evaluate(photos, progress=bar.update)

    The default detail is the speed in `unit` per second; an empty `unit` leaves it out. `total` is None until `update` has it.
    """

    def __init__(self, description: str = "", total: int | None = None, unit: str = ""):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        texts = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[detail]}", markup=False)
        columns = texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeRemainingColumn()
        self._unit = unit
        self._progress = Progress(*columns, console=err, transient=True)
        self._task = self._progress.add_task(description, total=total, detail="")

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def update(self, done: int, total: int | None = None, *, description: str | None = None, detail: str | None = None) -> None:
        """Show that `done` of `total` steps are finished; what is None stays as it was."""
        self._progress.update(self._task, completed=done, total=total, description=description)
        if detail is None and self._unit:
            detail = f"{self._progress.tasks[0].speed or 0:.0f} {self._unit}/s"
        if detail is not None:
            self._progress.update(self._task, detail=detail)


def with_progress(items: Iterable, total: int, description: str = "", unit: str = "") -> Iterator:
    """Yield `items` with a progress bar on stderr."""
    with progress_bar(description, total, unit) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update(done)


def print_skipped(reasons: Mapping[object, object] | Iterable[object], most: int | None = None) -> None:
    """Print a line on stderr for each skipped image: path to reason, or a sentence that names the path.

    After `most` lines the rest is only counted; None prints all.
    """
    if isinstance(reasons, Mapping):
        reasons = [reason if str(path) in str(reason) else f"{path}: {reason}" for path, reason in reasons.items()]
    reasons = list(reasons)
    for reason in reasons[:most]:
        err.print(f"skipped: {reason}", highlight=False, soft_wrap=True)
    if len(reasons) > len(reasons[:most]):
        err.print(f"skipped: {len(reasons) - most} more")


def print_warnings(warnings: Iterable[str]) -> None:
    """Print each warning on a line of stderr."""
    for warning in warnings:
        err.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def print_json(value) -> None:
    """Print one JSON document on stdout, without colours and without wrapping."""
    typer.echo(json.dumps(value, indent=1))
