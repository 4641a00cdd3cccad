"""`mnv2 evaluate`: classifiers, and a sub-command for each other task."""

import typer

from mnv2_keras.cli import detection, evaluation, segmentation

app = typer.Typer(no_args_is_help=True)
app.callback(invoke_without_command=True)(evaluation.evaluate)
app.command("merge")(evaluation.merge)
app.command("detection")(detection.evaluate)
app.command("segmentation")(segmentation.evaluate)
