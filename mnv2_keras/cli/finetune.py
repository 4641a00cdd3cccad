"""`mnv2 finetune`: a folder of photos to a model for the phone."""

from pathlib import Path
from typing import Annotated

import typer

from mnv2_keras.cli.console import out, print_skipped, working
from mnv2_keras.cli.data_options import Data
from mnv2_keras.cli.train import Resume, training_bar


def finetune(
    data: Data,
    weights: Annotated[str, typer.Option(help="Archive, checkpoint, Keras file, or a name from `mnv2 list`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("runs/finetune"),
    unfreeze: Annotated[str, typer.Option(help="First block to train after the head, as `mnv2 summary` names it.")] = "layer_15",
    probe: Annotated[bool, typer.Option("--probe", help="Train the head only: seconds, on stored features.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the blocks; with --probe, of the head.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the blocks; with --probe, of the head.")] = None,
    precision: Annotated[str, typer.Option(help="Of the .tflite: float32, float16, dynamic or int8.")] = "float32",
    resume: Resume = False,
) -> None:
    """Teach published weights new classes: a folder of photos for each. The head first, then the last blocks.

    Writes model.keras, model.tflite with labels, a confusion matrix and a report.

    Example: mnv2 finetune --data flowers/ --weights mobilenet_v2_1.0_224 -o runs/flowers
    """
    with working("importing TensorFlow"):
        from mnv2_keras.training import finetune as stages
        from mnv2_keras.training.recipes import FINETUNE, LINEAR_PROBE

        stage = "probe" if probe else "recipe"
        recipes = {"recipe": FINETUNE, "probe": LINEAR_PROBE}
        recipes[stage] = recipes[stage].changed(epochs=epochs, learning_rate=learning_rate)
    with training_bar() as progress:
        result = stages.finetune(
            data,
            weights,
            output,
            first=None if probe else unfreeze,
            **recipes,
            precision=precision,
            resume=resume,
            data_name=data,
            progress=progress,
            features=progress.features,
        )
    print_skipped(result.broken, most=20)
    low, high = result.evaluation.interval
    out.print(
        f"{result.evaluation.top1:.2%} of {result.evaluation.images:,} held-out photos right ({low:.2%} to {high:.2%} at 95 %); "
        f"the head alone had {result.probe_accuracy:.2%}. model.keras, model.tflite, confusion.png and report.json are in {output}",
        highlight=False,
    )
