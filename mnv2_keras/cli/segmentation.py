"""`mnv2 train segmentation` and `mnv2 evaluate segmentation`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.screen import Json, err, out, print_json, working
from mnv2_keras.cli.segment import PASCAL, Flip, Scales, numbers

Photos = Annotated[Path | None, typer.Option(help="Folder of photos.")]
Masks = Annotated[
    Path | None, typer.Option(help="Folder of masks, each named as its photo: indexed or grey PNG, 255 ignored.")
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
    tfds: Tfds = None,
    split: Split = "validation",
    shapes: Shapes = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this PNG.")] = None,
    scales: Scales = "1",
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Mean intersection over union of a segmenter on photos with masks; label 255 is not judged.

    Example: mnv2 evaluate segmentation --photos JPEGImages --masks SegmentationClass --plot confusion.png
    """
    with working("converting"):
        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter

        segmenter = Segmenter(weights, scales=numbers(scales), flip=flip)
    classes = segmenter.classes or len(segmenter.names)
    pairs = _pairs(photos, masks, tfds, split, shapes, classes, min(segmenter.size), held_out=True)
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
    if as_json:
        print_json({"photos": len(pairs), **result})
        return
    table = Table("class", "IoU")
    for name, value in result["iou"].items():
        table.add_row(name, "absent" if value is None else f"{value:.4f}")
    out.print(table)
    mean, accuracy = result["mean_iou"], result["pixel_accuracy"]
    if mean is None:
        out.print("No pixel is judged: every one is ignored.")
    else:
        out.print(f"mean IoU {mean:.4f}, pixel accuracy {accuracy:.4f}, {len(pairs)} photos.")


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write: .keras, .h5, .weights.h5 or .ckpt.")],
    photos: Photos = None,
    masks: Masks = None,
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
) -> None:
    """Train a segmenter with DeepLab's published recipe, or on drawn shapes in minutes.

    Example: mnv2 train segmentation --photos JPEGImages --masks SegmentationClass -o voc.keras --weights imagenet

    Example: mnv2 train segmentation --shapes --decoder --weights imagenet -o shapes.keras --plot curve.png
    """
    import dataclasses

    chosen = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "crop": (crop, crop) if crop else None}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    classes = 4 if shapes else classes
    pairs = _pairs(photos, masks, tfds, split, shapes, classes, side=crop or 65)
    with working("building"):
        import keras

        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter
        from mnv2_keras.models.deeplab import build_deeplabv3_mobilenetv2
        from mnv2_keras.training.curves import plot_training
        from mnv2_keras.training.segmentation import SHAPES, SegmentationRecipe, train_segmenter, whole_rounds
        from mnv2_keras.weights import save_model

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
    from rich.progress import Progress

    rounds, rows = whole_rounds(recipe.steps, 5), []
    held_out = _pairs(None, None, None, split, True, classes, recipe.crop[0], held_out=True) if shapes else None
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("training", total=rounds)

        judged = Segmenter(model)

        def told(epoch, logs):
            row = {"step": (epoch + 1) * (recipe.steps // rounds), "loss": logs["loss"]}
            if held_out:
                row["mean_iou"] = evaluate_segmenter(judged, held_out).mean_iou
            rows.append(row)
            words = "".join(f", {name} {value:.3f}" for name, value in row.items() if name != "step")
            progress.update(bar, completed=epoch + 1, description=f"training{words}")

        callback = keras.callbacks.LambdaCallback(on_epoch_end=told)
        train_segmenter(model, pairs, recipe, callbacks=[callback], rounds=rounds)
    path = save_model(model, output)
    if plot:
        plot_training(rows, plot)
    ending = f"; mean IoU {rows[-1]['mean_iou']:.4f} on {len(held_out)} held-out pictures" if held_out else ""
    out.print(
        f"loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f} in {recipe.steps} steps{ending}; written: {path}",
        highlight=False,
    )


def _pairs(photos, masks, tfds, split, shapes, classes, side=65, held_out=False):
    """The photos with masks that the options name: exactly one source."""
    if (bool(photos or masks), bool(tfds), shapes).count(True) != 1 or bool(photos) != bool(masks):
        raise ValueError(
            "Name one source of photos with masks: --photos FOLDER --masks FOLDER, or --tfds NAME, or --shapes."
        )
    if photos:
        from mnv2_keras.data.segmentation import photos_and_masks

        return photos_and_masks(photos, masks, classes)
    if tfds:
        from mnv2_keras.data.segmentation import tfds_photos_and_masks

        return tfds_photos_and_masks(tfds, split, classes)
    from mnv2_keras.data.segmentation_shapes import DrawnShapes

    return DrawnShapes(300, side, seed=1) if held_out else DrawnShapes(100_000, side)
