"""`mnv2` itself: its commands, and how an error is printed.

TensorFlow takes seconds to import, so no module of this folder imports it at the top; `mnv2 --help` does without it.
"""

import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.text import Text

from mnv2_keras.cli.console import err

COMMANDS = (
    *("list", "fetch", "convert", "verify", "predict", "export", "inspect", "bench", "summary", "demo"),
    *("detect", "segment", "train", "finetune", "evaluate"),
)
#: Module and function of the commands whose function has another name; an `app` is a group of subcommands.
FUNCTIONS = {"list": ("list_checkpoints", "list_"), "train": ("train", "app"), "evaluate": ("evaluate", "app")}
ABOUT = "MobileNetV2 in Keras 3: build it, convert TF-Slim's checkpoints, prove parity, use it."


def command_line(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """`mnv2` with the named commands."""
    app = typer.Typer(
        name="mnv2",
        help=ABOUT,
        epilog="Exit codes: 0 success, 1 a check failed, 2 wrong usage or wrong input.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=ABOUT)(_options)
    for name in names:
        module, function = FUNCTIONS.get(name, (name, name))
        command = getattr(importlib.import_module(f"mnv2_keras.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _print_version(show: bool) -> None:
    if show:
        from mnv2_keras import __version__

        typer.echo(f"mnv2_keras {__version__}")
        raise typer.Exit


def _options(
    _: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """The options of `mnv2` without a command."""


def main() -> None:
    """Run `mnv2`. An error that the user can correct is one line on stderr, with exit code 2."""
    # TensorFlow's start-up messages say nothing to users; its errors are raised in any case.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may contain bytes that are not valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    # By default `kill` ends a process at once. As an exit, it removes temporary files and ends subprocesses first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Only the command in use is imported: `mnv2 predict` takes half a second in total.
    names = sys.argv[1:2] if sys.argv[1:2] and sys.argv[1] in COMMANDS else COMMANDS
    gc.set_threshold(100_000)  # objects made by imports stay alive: collecting less often saves a tenth of that time
    try:
        command_line(names)()
    except (ValueError, OSError) as error:
        err.print(Text("mnv2:", "bold red"), str(error), highlight=False, soft_wrap=True)
        sys.exit(2)
    finally:
        gc.freeze()  # the exit needs no collection either
