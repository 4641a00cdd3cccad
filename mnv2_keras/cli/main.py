"""`mnv2` itself: the commands it has, and what an error looks like.

TensorFlow takes seconds to import, so no module of this folder imports it at the top; `mnv2 --help` needs none.
"""

import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterable

import typer
from rich.text import Text

from mnv2_keras.cli.console import err, version

#: Command: module and function of this folder; an `app` has commands of its own.
COMMANDS = {
    "list": ("list_checkpoints", "list_"),
    "fetch": ("fetch", "fetch"),
    "convert": ("convert", "convert"),
    "verify": ("verify", "verify"),
    "predict": ("predict", "predict"),
    "export": ("export", "export"),
    "inspect": ("inspect", "inspect"),
    "bench": ("bench", "bench"),
    "summary": ("summary", "summary"),
    "demo": ("demo", "demo"),
    "detect": ("detect", "detect"),
    "segment": ("segment", "segment"),
    "train": ("train", "app"),
    "finetune": ("finetune", "finetune"),
    "evaluate": ("evaluate", "app"),
}


def command_line(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """`mnv2` with these commands."""
    made = typer.Typer(
        name="mnv2",
        help="MobileNetV2 in Keras 3: build it, convert TF-Slim's checkpoints, prove parity, use it.",
        epilog="Exit codes: 0 done, 1 the check failed, 2 bad use or bad input.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(version)
    for name in names:
        home, function = COMMANDS[name]
        command = getattr(importlib.import_module(f"mnv2_keras.cli.{home}"), function)
        if isinstance(command, typer.Typer):
            made.add_typer(command, name=name)
        else:
            made.command(name)(command)
    return made


def main() -> None:
    """Run `mnv2`; an error a user can mend is one line on stderr and exit code 2."""
    # TensorFlow's start-up chatter is not for users; what goes wrong is raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    # `kill` ends a program where it stands; so it leaves, taking along its drafts and children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A command that is named is the only one imported: those who classify a photo wait for half a second in all.
    named = sys.argv[1:2] if sys.argv[1:2] and sys.argv[1] in COMMANDS else COMMANDS
    gc.set_threshold(100_000)  # what imports make stays: looking through it again and again is a tenth of that time
    try:
        command_line(named)()
    except (ValueError, OSError) as error:
        err.print(Text("mnv2:", "bold red"), str(error), highlight=False, soft_wrap=True)
        sys.exit(2)
    finally:
        gc.freeze()  # nor does anything need to be looked through at the end
