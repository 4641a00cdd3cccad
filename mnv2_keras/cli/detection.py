"""`mnv2 train detection` and `mnv2 evaluate detection`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json, working
from mnv2_keras.cli.detect import COCO
from mnv2_keras.cli.options import Json
from mnv2_keras.cli.training import show_broken

Annotations = Annotated[
    Path | None, typer.Option(help="COCO JSON of boxes, or a folder of Pascal VOC XML files; with --images.")
]
Images = Annotated[Path | None, typer.Option(help="Folder of the images.")]
Tfds = Annotated[str | None, typer.Option(help="TFDS data set with boxes: coco/2017, voc/2012.")]
Shapes = Annotated[bool, typer.Option("--shapes", help="Drawn circles, squares and triangles: nothing to download.")]


def evaluate(
    weights: Annotated[str, typer.Argument(help="Archive, checkpoint or Keras file, or a registered name.")] = COCO,
    annotations: Annotations = None,
    images: Images = None,
    tfds: Tfds = None,
    split: Annotated[str, typer.Option(help="Split of the TFDS data set.")] = "validation",
    shapes: Shapes = False,
    results: Annotated[
        Path | None, typer.Option(help="A COCO results file to judge in place of a detector; with --annotations.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --results: the first so many images by id.")] = None,
    as_json: Json = False,
) -> None:
    """COCO's twelve metrics, by pycocotools, of a detector or of a results file.

    Example: mnv2 evaluate detection --annotations instances_val2017.json --images val2017

    Example: mnv2 evaluate detection --annotations instances_val2014.json --results results.json
    """
    if results is not None:
        if annotations is None or tfds or shapes:
            raise ValueError("--results goes with --annotations FILE, the COCO JSON they belong to, and no other data.")
        from mnv2_keras.evaluation.coco import evaluate_coco

        metrics = evaluate_coco(annotations, results, limit=limit)
    else:
        if limit is not None:
            raise ValueError("--limit goes with --results FILE only: a detector is judged on all images of its data.")
        with working("converting"):
            from mnv2_keras.conversion import open_model
            from mnv2_keras.evaluation.detection import evaluate_detector

            model = open_model(weights)[0]
            data = read_data(annotations, images, tfds, split, shapes, model, held_out=True)
        from rich.progress import Progress

        with Progress(console=err, transient=True) as progress:
            total = len(data.examples)
            bar = progress.add_task("evaluating", total=total)
            metrics = evaluate_detector(model, data, progress=lambda done: progress.update(bar, completed=done))
        tell_left_out(data.skipped)
    if as_json:
        print_json(metrics)
        return
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, "absent" if value < 0 else f"{value:.4f}")
    out.print(table)


def train(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for detector.keras, labels.txt and the curve.")
    ],
    annotations: Annotations = None,
    images: Images = None,
    tfds: Tfds = None,
    split: Annotated[str, typer.Option(help="Split of the TFDS data set.")] = "train",
    shapes: Shapes = False,
    recipe: Annotated[
        str | None,
        typer.Option(help="paper or shapes; shapes for --shapes, otherwise paper."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Start from: a detector, a classifier's backbone, imagenet; nothing for fresh.")
    ] = None,
    classic: Annotated[bool, typer.Option("--classic", help="The classic SSD in place of SSDLite.")] = False,
    alpha: Annotated[float | None, typer.Option(help="Width multiplier.")] = None,
    side: Annotated[int | None, typer.Option(min=33, help="Side of the network's input in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches in all.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images in a batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the start.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the images.")] = 0,
) -> None:
    """Train a detector with the published recipe, or on drawn shapes in minutes.

    Example: mnv2 train detection --annotations instances_train2017.json --images train2017 -o coco/ --weights imagenet

    Example: mnv2 train detection --shapes --weights imagenet -o shapes/
    """
    import dataclasses

    with working("building"):
        import keras

        from mnv2_keras.atomic import write_text
        from mnv2_keras.boxes import ssd_anchors
        from mnv2_keras.data.detection import detection_batches
        from mnv2_keras.evaluation.detection import evaluate_detector
        from mnv2_keras.networks.detector import build_ssdlite_mobilenetv2
        from mnv2_keras.training.curves import can_draw, plot_training
        from mnv2_keras.training.detection import RECIPES, train_detector
        from mnv2_keras.training.detection_augmentation import augmentation
        from mnv2_keras.weights import save_model

        recipe = recipe or ("shapes" if shapes else "paper")
        if recipe not in RECIPES:
            raise ValueError(f"--recipe is {recipe!r}: expected one of {', '.join(RECIPES)}.")
        wanted = {"alpha": alpha, "side": side, "steps": steps, "batch": batch, "learning_rate": learning_rate}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        followed = dataclasses.replace(RECIPES[recipe], **wanted)
        draws = can_draw(output / "training.png")
        size = (followed.side, followed.side)
        data = read_data(annotations, images, tfds, split, shapes, side=followed.side)
        keras.utils.set_random_seed(seed)
        model = build_ssdlite_mobilenetv2(
            followed.alpha,
            (*size, 3),
            classes=len(data.labels),
            weights=weights,
            separable=not classic,
            min_depth=followed.min_depth,
            batch_norm_momentum=followed.batch_norm_momentum,
            weight_decay=followed.weight_decay,
        )
    listed, broken = len(data.skipped), {}
    tell_left_out(data.skipped)
    augment = augmentation(followed.flip, followed.crop)
    batches = detection_batches(data.examples, size, followed.batch, augment=augment, seed=seed, broken=broken)
    held_out = read_data(None, None, None, split, True, side=followed.side, held_out=True) if shapes else None

    def judged():
        return evaluate_detector(model, held_out, score_threshold=0.01)

    from rich.progress import Progress

    try:
        with Progress(console=err, transient=True) as progress:
            bar = progress.add_task("training", total=followed.steps)

            def told(row):
                words = "".join(
                    f", {name} {row[name]:.3f}" for name in ("localization", "classification", "AP50") if name in row
                )
                progress.update(bar, completed=row["step"], description=f"training{words}")

            rows = train_detector(
                model,
                batches,
                followed,
                anchors=ssd_anchors(size),
                evaluate=judged if held_out else None,
                every=every,
                log=output / "training.csv",
                progress=told,
            )
    finally:
        tell_left_out(data.skipped[listed:])
        show_broken(dict(broken))
    path = save_model(model, output / "detector.keras")
    write_text(output / "labels.txt", "".join(f"{label or 'unused'}\n" for label in data.labels))
    curve = f", {plot_training(rows, output / 'training.png')}" if draws else ""
    ending = f", AP50 {rows[-1]['AP50']:.3f} on {len(held_out.examples)} held-out images" if held_out else ""
    out.print(f"{followed.steps} steps in {rows[-1]['seconds']:.0f} s{ending}; written: {path}{curve}", highlight=False)


def tell_left_out(reasons) -> None:
    """Name the boxes that were left out."""
    for reason in reasons:
        err.print(f"left out: {reason}", highlight=False, soft_wrap=True)


def read_data(annotations, images, tfds, split, shapes, model=None, *, side=96, held_out=False):
    """The labelled images that the options name: exactly one source. With a model, its classes decide COCO's categories."""
    if [bool(annotations or images), bool(tfds), shapes].count(True) != 1:
        raise ValueError(
            "Name one source of images with boxes: --annotations with --images, or --tfds NAME, or --shapes."
        )
    if shapes:
        from mnv2_keras.data.detection_shapes import drawn_shapes

        side = model.input_shape[1] if model is not None else side
        return drawn_shapes(300, side, held_out=True) if held_out else drawn_shapes(6000, side)
    from mnv2_keras.data import detection

    if tfds:
        return detection.read_tfds(tfds, split)
    if annotations is None:
        raise ValueError("--images needs --annotations: a COCO JSON, or a folder of Pascal VOC XML files.")
    if annotations.is_dir():
        return detection.read_voc(annotations, images)
    if images is None:
        raise ValueError("--annotations FILE needs --images, the folder that the COCO JSON names its images in.")
    classes = model.output["class_predictions_with_background"].shape[-1] - 1 if model is not None else None
    return detection.read_coco(annotations, images, detection.coco_categories()[1] if classes == 90 else None)
