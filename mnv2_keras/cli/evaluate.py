"""`mnv2 evaluate`: a subcommand for each task, and `merge` for the shards of a classifier."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv2_keras.cli.console import err, out, print_json, print_skipped, progress_bar, working
from mnv2_keras.cli.data_options import BoxData, Data, MaskData, Split
from mnv2_keras.cli.detect import COCO
from mnv2_keras.cli.options import Json, grouped_options, numbers
from mnv2_keras.cli.segment import PASCAL, Flip, Scales

app = typer.Typer(no_args_is_help=True)

Plot = Annotated[Path | None, typer.Option("--plot", "--picture", help="Draw the confusion matrix into this .png or .svg file.")]
Weights = Annotated[str, typer.Argument(help="Archive, checkpoint, Keras or .tflite file, or a registered name.")]


@dataclass(frozen=True)
class Report:
    """Where the results of a classifier go."""

    receipt: Annotated[Path | None, typer.Option("-o", "--output", help="Write the receipt here, as JSON.")] = None
    plot: Plot = None
    as_json: Json = False

    def write(self, result) -> None:
        """Write the receipt and the figure, print the metrics."""
        if self.receipt:
            result.save(self.receipt)
        if self.plot:
            result.plot(self.plot)
        print_skipped(result.counts.broken, most=20)
        if self.as_json:
            print_json({name: value for name, value in result.as_dict().items() if name != "counts"})
            return
        low, high = result.interval
        worst = sorted(result.per_class().items(), key=lambda item: item[1]["top1"])[:5]
        rows = {
            "measure": "value",
            "images": f"{result.images:,}",
            "top-1": f"{result.top1:.2%}  (95 % interval {low:.2%} to {high:.2%})",
            "top-5": f"{result.top5:.2%}",
            "calibration error": f"{result.calibration_error:.4f}",
            "cross-entropy": f"{result.cross_entropy:.4f}",
            "hardest classes": ", ".join(f"{name} {values['top1']:.1%}" for name, values in worst),
        }
        _print_table(rows, f"{result.about['weights']} ({result.about['engine']}) on {result.about['data']}")
        if result.shards != [(1, 1)]:
            err.print("This is a shard: put all of them together with `mnv2 evaluate merge`.")


@dataclass(frozen=True)
class Part:
    """A part of an evaluation."""

    shard: Annotated[str, typer.Option(help="Evaluate only a part, such as 3/16.")] = "1/1"
    parts: Annotated[Path | None, typer.Option(help="Folder of finished parts, to continue after a stop.")] = None


@app.callback(invoke_without_command=True)
@app.command("classification")
@grouped_options
def evaluate(
    context: typer.Context,
    *,
    data: Data = "",
    weights: Annotated[
        str, typer.Option(help="Archive, checkpoint, Keras file, .tflite, or a name from `mnv2 list`.")
    ] = "mobilenet_v2_1.0_224",
    engine: Annotated[str, typer.Option(help="keras or litert; a .tflite always runs on LiteRT.")] = "keras",
    split: Annotated[str | None, typer.Option(help="Part of the data. Default: validation, if it has parts.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with a label for each output.")] = None,
    central_fraction: Annotated[float, typer.Option(help="Part of each photo that is used.")] = 0.875,
    part: Part,
    report: Report,
) -> None:
    """Evaluate a classifier as TF-Slim does: top-1, top-5, per class, calibration, confusions.

    Example: mnv2 evaluate --data imagenet2012 --weights mobilenet_v2_1.0_224 --shard 3/16 -o part3.json
    """
    if context.invoked_subcommand:
        return
    if not data:
        raise ValueError("--data is missing: expected a folder of class folders, a CSV file or a TFDS name.")
    _check_plot(report.plot)
    from mnv2_keras.evaluation import classification

    piece = classification.parse_shard(part.shard)
    with working("reading the data, evaluating"):
        from mnv2_keras.data.classification import read_examples

        name = data if split is None else f"{data} ({split})"
        result = classification.evaluate(
            weights,
            replace(read_examples(data, split), name=name),
            engine=engine,
            labels=labels,
            shard=piece,
            central_fraction=central_fraction,
            folder=part.parts,
        )
    report.write(result)


@app.command()
@grouped_options
def merge(receipts: Annotated[list[Path], typer.Argument(help="The receipts of the shards.")], report: Report) -> None:
    """Merge the shards of one evaluation of a classifier.

    Example: mnv2 evaluate merge part*.json -o receipt.json
    """
    _check_plot(report.plot)
    from mnv2_keras.evaluation import classification

    report.write(classification.merge(receipts))


@app.command()
@grouped_options
def detection(
    source: BoxData,
    weights: Weights = COCO,
    split: Split = "validation",
    results: Annotated[Path | None, typer.Option(help="A COCO results file in place of a detector; with --annotations.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --results: only the first images by id.")] = None,
    as_json: Json = False,
) -> None:
    """COCO's twelve metrics, by pycocotools, of a detector or of a results file.

    Example: mnv2 evaluate detection --annotations instances_val2017.json --images val2017

    Example: mnv2 evaluate detection --annotations instances_val2014.json --results results.json
    """
    if results is not None:
        if source.annotations is None or source.tfds or source.shapes:
            raise ValueError("--results goes with --annotations FILE, the COCO JSON they belong to, and no other data.")
        from mnv2_keras.evaluation.coco import evaluate_coco

        metrics = evaluate_coco(source.annotations, results, limit=limit)
    else:
        if limit is not None:
            raise ValueError("--limit goes with --results FILE only: a detector is evaluated on all images of its data.")
        with working("converting"):
            from mnv2_keras.conversion import open_model
            from mnv2_keras.evaluation.detection import evaluate_detector
            from mnv2_keras.inference.task_networks import task_network

            model = open_model(weights)[0]
            network, size = task_network(model, "detection", weights)
            data = source.read(split, network.outputs[1].shape[-1] - 1, side=size[0], held_out=True)
        with progress_bar("evaluating", len(data.examples), "images") as bar:
            metrics = evaluate_detector(model, data, progress=bar.update)
        print_skipped(data.skipped)
        print_skipped(data.broken, most=20)
    if as_json:
        print_json(metrics)
    else:
        _print_table({"metric": "value"} | {name: _figure(None if x < 0 else x) for name, x in metrics.items()})


@app.command()
@grouped_options
def segmentation(
    source: MaskData,
    weights: Weights = PASCAL,
    split: Split = "validation",
    plot: Plot = None,
    scales: Scales = "1",
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Mean intersection over union of a segmenter on photos with masks; label 255 is ignored.

    Example: mnv2 evaluate segmentation --photos JPEGImages --masks SegmentationClass --list val.txt --plot confusion.png
    """
    _check_plot(plot)
    with working("converting"):
        from mnv2_keras.evaluation.segmentation import evaluate_segmenter
        from mnv2_keras.inference.segmenter import Segmenter

        segmenter = Segmenter(weights, scales=numbers(scales), flip=flip)
    names, classes = segmenter.names, segmenter.classes or len(segmenter.names)
    pairs = source.read(split, classes, side=min(segmenter.size), held_out=True)
    if source.shapes:
        from mnv2_keras.data.drawn_shapes import SHAPE_NAMES as names
    with progress_bar("evaluating", len(pairs), "photos") as bar:
        matrix = evaluate_segmenter(segmenter, pairs, bar.update)
    if plot:
        matrix.plot(plot, names)
    result, broken = matrix.as_dict(names), getattr(pairs, "broken", {})
    print_skipped(broken, most=20)
    count = len(pairs) - len(broken)
    if as_json:
        print_json({"photos": count, "broken": broken, **result})
        return
    _print_table({"class": "IoU"} | {name: _figure(value) for name, value in result["iou"].items()})
    if result["mean_iou"] is None:
        out.print("No pixel is counted: all of them are ignored.")
    else:
        out.print(f"mean IoU {result['mean_iou']:.4f}, pixel accuracy {result['pixel_accuracy']:.4f}, {count} photos.")


def _check_plot(plot: Path | None) -> None:
    if plot:
        from mnv2_keras.figures import check_figure

        check_figure(plot)


def _figure(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def _print_table(rows: dict[str, str], title: str | None = None) -> None:
    """Print a table of two columns; the first row is its head."""
    head, *body = rows.items()
    table = Table(*head, title=title)
    for row in body:
        table.add_row(*row)
    out.print(table)
