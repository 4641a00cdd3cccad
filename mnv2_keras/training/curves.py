"""A training drawn: losses, figures of held-out images, learning rate."""

import logging
from importlib.util import find_spec
from pathlib import Path

from mnv2_keras.export.report import save_plot

log = logging.getLogger(__name__)

#: Columns of a history's rows, for each panel: label of the axis, and column to label of the line.
_PANELS = {
    "loss": {name: name for name in ("loss", "val_loss", "classification", "localization", "l2")},
    "on held-out images": {
        "accuracy": "accuracy in training",
        "val_accuracy": "accuracy",
        "AP50": "mAP at IoU 0.5",
        "AP": "COCO AP",
        "mean_iou": "mean IoU",
    },
    "learning rate": {"learning_rate": "learning rate"},
}


def can_draw(path: str | Path) -> bool:
    """Whether matplotlib is installed; if not, one warning says that the figure `path` is left out.

    Ask before the work starts: a figure that a run adds to its results must not end the run.
    """
    if find_spec("matplotlib") is None:
        log.warning("matplotlib is not installed: %s is left out. To get it: pip install matplotlib.", path)
        return False
    return True


def plot_training(rows: list[dict], path: str | Path) -> Path:
    """Draw the rows of a history, as `fit` returns them, over its epochs or steps.

    Args:
        rows: at least one.
        path: of the PNG or SVG.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {label: [name for name in lines if name in rows[-1]] for label, lines in _PANELS.items()}
    panels = {label: names for label, names in panels.items() if names}
    figure = Figure(figsize=(4 * len(panels), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    unit = "epoch" if "epoch" in rows[0] else "step"
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(row[unit], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=_PANELS[label][name])
        axes.set(xlabel=unit, ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    return save_plot(figure, Path(path))
