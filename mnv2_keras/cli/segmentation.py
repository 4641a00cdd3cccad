"""`mnv2 train segmentation` and `mnv2 evaluate segmentation`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mnv2_keras.cli.console import err, out, print_json, working
from mnv2_keras.cli.options import Json, numbers
from mnv2_keras.cli.segment import PASCAL, Flip, Scales
from mnv2_keras.cli.training import show_broken

Photos = Annotated[Path | None, typer.Option(help="Folder of photos.")]
Masks = Annotated[
    Path | None, typer.Option(help="Folder of masks, each named as its photo: indexed or grey PNG, 255 ignored.")
]
Listed = Annotated[
    Path | None,
    typer.Option(
        "--list", help="Text file with the names to take, one a line, such as VOC's ImageSets/Segmentation/train.txt."
    ),
]
Tfds = Annotated[str | None, typer.Option(help="TFDS data set with masks, such as scene_parse150.")]
Split = Annotated[str, typer.Option(help="Split of the TFDS data set.")]
Shapes = Annotated[bool, typer.Option("--shapes", help="Drawn circles, squares and triangles: nothing to download.")]


def evaluate(
    weights: Annotated[
        str, typer.Argument(help="Archive, checkpoint, Keras or .tflite file, or a registered name.")
    ] = PASCAL,
    photos: Photos = None,
    masks: Masks = None,
    listed: Listed = None,
    tfds: Tfds = None,
    split: Split = "validation",
    shapes: Shapes = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this PNG.")] = None,
    scales: Scales = "1",
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Mean intersection over union of a segmenter on photos with masks; label 255 is not judged.

    Example: mnv2 evaluate segmentation --photos JPEGImages --masks SegmentationClass --list val.txt --plot confusion.png
    """
    with working("converting"):
        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter

        segmenter = Segmenter(weights, scales=numbers(scales), flip=flip)
    classes = segmenter.classes or len(segmenter.names)
    pairs = _pairs(photos, masks, listed, tfds, split, shapes, classes, min(segmenter.size), held_out=True)
    names = segmenter.names
    if shapes:
        from mnv2_keras.data.segmentation_shapes import SHAPE_NAMES as names
    from rich.progress import Progress

    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(pairs))
        matrix = evaluate_segmenter(segmenter, pairs, lambda done: progress.update(bar, completed=done))
    if plot:
        matrix.plot(plot, names)
    result = matrix.as_dict(names)
    broken = getattr(pairs, "broken", {})
    show_broken(broken)
    count = len(pairs) - len(broken)
    if as_json:
        print_json({"photos": count, "broken": broken, **result})
        return
    table = Table("class", "IoU")
    for name, value in result["iou"].items():
        table.add_row(name, "absent" if value is None else f"{value:.4f}")
    out.print(table)
    mean, accuracy = result["mean_iou"], result["pixel_accuracy"]
    if mean is None:
        out.print("No pixel is judged: every one is ignored.")
    else:
        out.print(f"mean IoU {mean:.4f}, pixel accuracy {accuracy:.4f}, {count} photos.")


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write: .keras, .h5, .weights.h5 or .ckpt.")],
    photos: Photos = None,
    masks: Masks = None,
    listed: Listed = None,
    tfds: Tfds = None,
    split: Split = "train",
    shapes: Shapes = False,
    classes: Annotated[int, typer.Option(min=2, help="Classes of the masks, the background among them.")] = 21,
    weights: Annotated[
        str | None, typer.Option(help="Start from: a segmenter, a classifier's backbone, imagenet; nothing for fresh.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Width multiplier.")] = 1.0,
    output_stride: Annotated[int, typer.Option(help="8, 16 or 32.")] = 16,
    decoder: Annotated[bool, typer.Option("--decoder", help="Refine at stride 4.")] = False,
    crop: Annotated[int | None, typer.Option(min=33, help="Side of the training crop.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches in all.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Crops in a batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the start.")] = None,
    freeze_batch_norm: Annotated[bool, typer.Option("--freeze-batch-norm", help="Keep the batch norms.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the training into this PNG.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a stopped run with this output was last kept.")
    ] = False,
) -> None:
    """Train a segmenter with DeepLab's published recipe, or on drawn shapes in minutes.

    Example: mnv2 train segmentation --photos JPEGImages --masks SegmentationClass --list train.txt -o voc.keras --weights imagenet

    Example: mnv2 train segmentation --shapes --decoder --weights imagenet -o shapes.keras --plot curve.png

    Until the model is written, OUTPUT.state.npz holds what was last kept: the same command with --resume goes on from there.
    """
    import dataclasses

    from mnv2_keras.export.report import check_plot

    if plot:
        check_plot(plot)
    output = output.expanduser()
    state = output.with_name(f"{output.name}.state.npz")
    finished = output.exists() or Path(f"{output}.index").exists()  # of a checkpoint
    if resume and finished and not state.exists():
        out.print(f"{output} is finished: there is nothing to resume.", highlight=False)
        return
    chosen = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "crop": (crop, crop) if crop else None}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    classes = 4 if shapes else classes
    pairs = _pairs(photos, masks, listed, tfds, split, shapes, classes, side=crop or 65)
    with working("building"):
        import keras

        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter
        from mnv2_keras.networks.segmenter import build_deeplabv3_mobilenetv2
        from mnv2_keras.training.curves import plot_training
        from mnv2_keras.training.segmentation import SHAPES, SegmentationRecipe, train_segmenter
        from mnv2_keras.weights import check_name, save_model

        check_name(output)  # before hours are spent
        recipe = SHAPES if shapes else SegmentationRecipe()
        recipe = dataclasses.replace(recipe, **chosen, fine_tune_batch_norm=not freeze_batch_norm)
        keras.utils.set_random_seed(recipe.seed)
        model = build_deeplabv3_mobilenetv2(
            alpha,
            (*recipe.crop, 3),
            classes=classes,
            output_stride=output_stride,
            decoder=decoder,
            weights=weights,
            weight_decay=recipe.weight_decay,
        )
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    held_out = _pairs(None, None, None, None, split, True, classes, recipe.crop[0], held_out=True) if shapes else None
    judged = Segmenter(model)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=err, transient=True) as progress:
            bar = progress.add_task("looking at photos and masks", total=recipe.steps)

            def told(step, loss, row):
                progress.update(bar, completed=step, description=f"training, loss {loss:.3f}")
                if row:
                    words = "".join(f"  {name} {row[name]:.4f}" for name in ("loss", "mean_iou") if name in row)
                    err.print(f"step {step}/{recipe.steps}{words}", highlight=False)

            rows = train_segmenter(
                model,
                pairs,
                recipe,
                every=max(1, min(500, recipe.steps // 5)),
                state=state,
                resume=resume,
                evaluate=(lambda: {"mean_iou": evaluate_segmenter(judged, held_out).mean_iou}) if held_out else None,
                progress=told,
            )
    except KeyboardInterrupt:
        if state.exists():
            err.print(
                Text("stopped:", "bold"),
                "the same command with --resume goes on from the last step named.",
                soft_wrap=True,
            )
        raise
    finally:
        show_broken(getattr(pairs, "broken", {}))
    path = save_model(model, output)
    state.unlink(missing_ok=True)
    if plot:
        plot_training(rows, plot)
    ending = f"; mean IoU {rows[-1]['mean_iou']:.4f} on {len(held_out)} held-out pictures" if held_out else ""
    out.print(
        f"loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f} in {recipe.steps} steps{ending}; written: {path}",
        highlight=False,
    )


def _pairs(photos, masks, listed, tfds, split, shapes, classes, side=65, held_out=False):
    """The photos with masks that the options name: exactly one source."""
    if listed and not photos:
        raise ValueError("--list names photos of a folder: give --photos and --masks too.")
    if (bool(photos or masks), bool(tfds), shapes).count(True) != 1 or bool(photos) != bool(masks):
        raise ValueError(
            "Name one source of photos with masks: --photos FOLDER --masks FOLDER, or --tfds NAME, or --shapes."
        )
    if photos:
        from mnv2_keras.data.segmentation import photos_and_masks

        names = (
            None
            if listed is None
            else [line.strip() for line in listed.read_text("utf-8-sig").splitlines() if line.strip()]
        )
        return photos_and_masks(photos, masks, classes, names)
    if tfds:
        from mnv2_keras.data.segmentation import tfds_photos_and_masks

        return tfds_photos_and_masks(tfds, split, classes)
    from mnv2_keras.data.segmentation_shapes import DrawnShapes

    return DrawnShapes(300, side, seed=1) if held_out else DrawnShapes(100_000, side)
