"""`mnv2 train`: classifiers, and a sub-command for each other task."""

import typer

from mnv2_keras.cli import detection, segmentation, training

app = typer.Typer(no_args_is_help=True)
app.callback(invoke_without_command=True)(training.train)
app.command("detection")(detection.train)
app.command("segmentation")(segmentation.train)
