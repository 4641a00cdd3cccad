"""`mnv2` itself: the commands it has, and what an error looks like.

TensorFlow takes seconds to import, so no module of this folder imports it at the top; `mnv2 --help` needs none.
"""

import os
import sys

import typer

from mnv2_keras.cli import (
    bench,
    convert,
    demo,
    detect,
    evaluate,
    export,
    fetch,
    finetune,
    inspect,
    list_checkpoints,
    predict,
    segment,
    summary,
    train,
    verify,
)
from mnv2_keras.cli.screen import err, version

app = typer.Typer(
    name="mnv2",
    help="MobileNetV2 in Keras 3: build it, convert TF-Slim's checkpoints, prove parity, use it.",
    epilog="Exit codes: 0 done, 1 the check failed, 2 bad use or bad input.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(version)
app.command("list")(list_checkpoints.list_)
app.command("fetch")(fetch.fetch)
app.command("convert")(convert.convert)
app.command("verify")(verify.verify)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("summary")(summary.summary)
app.command("demo")(demo.demo)
app.command("detect")(detect.detect)
app.command("segment")(segment.segment)
app.add_typer(train.app, name="train")
app.command("finetune")(finetune.finetune)
app.add_typer(evaluate.app, name="evaluate")


def main() -> None:
    """Run `mnv2`; an error a user can mend is one line on stderr and exit code 2."""
    # TensorFlow's start-up chatter is not for users; what goes wrong is raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except (ValueError, OSError) as error:
        err.print(f"[bold red]mnv2:[/] {_escape(error)}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _escape(error: Exception) -> str:
    from rich.markup import escape

    return escape(str(error))
