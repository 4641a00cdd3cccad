"""Where output goes: results to stdout, everything else to stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import typer
from rich.console import Console

#: A pipe or a log file has no width of its own. 140 columns keep a table there from being cut to 80.
_WIDTH = None if sys.stdout.isatty() else 140

#: Consoles print file names unchanged: without emoji (`:cat:`) and without markup (`[red]`).
out = Console(width=_WIDTH, emoji=False, markup=False)
err = Console(stderr=True, emoji=False, markup=False)


@contextlib.contextmanager
def working(description: str) -> Iterator[None]:
    """Show `description` beside a spinner until the block ends; import TensorFlow first, without its start-up messages.

    TensorFlow writes a few lines to file descriptor 2 before any of its settings can prevent it. An error during the import
    is raised as usual.
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
    """A function that prints a sentence on stderr; on a terminal a clock runs beside the sentence until the block ends."""
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
    """The time in which a command opens weights: `on_message` for a conversion, or a spinner while Keras reads them.

    Args:
        engine: the inference engine; only "keras" needs TensorFlow in this process.
    """
    with working("opening the weights") if engine == "keras" else timed_message() as on_message:
        yield on_message


class progress_bar:
    """A progress bar on stderr for the length of a `with` block.

    It shows a description, the bar, "done/total", a detail (by default the speed in `unit` per second) and the time left.

        with progress_bar("evaluating", total=len(photos), unit="photos") as bar:
            evaluate(photos, progress=bar.update)

    Args:
        description: what is being done.
        total: the number of steps; None until `update` tells it.
        unit: what one step is, such as "photos"; an empty string leaves the speed out.
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

    def update(
        self, done: int, total: int | None = None, *, description: str | None = None, detail: str | None = None
    ) -> None:
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
    """Name on stderr the images that were skipped, one line for each.

    Args:
        reasons: path to reason, or sentences that name the path themselves.
        most: lines to print; the rest is only counted. None prints all.
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
