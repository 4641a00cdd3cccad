"""Which classes are taken for which, as a picture."""

import os
from pathlib import Path

from mnv2_keras.evaluation.classification import Evaluation
from mnv2_keras.export.report import save_plot

#: With more classes than this, numbers and names would be too small to read.
NAMED = 30


def plot_confusions(evaluation: Evaluation, path: str | os.PathLike) -> Path:
    """The confusion matrix as PNG: a row for each true class, its images' predictions across.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix, names = evaluation.confusion_matrix(), evaluation.about["labels"]
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    named = len(names) <= NAMED
    side = 3 + 0.45 * len(names) if named else 10
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{evaluation.top1:.2%} of {evaluation.images:,} right")
    if named:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in evaluation.counts.confusion.items():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    path = Path(path)
    save_plot(figure, path)
    return path
