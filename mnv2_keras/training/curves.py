"""The training of a detector or segmenter drawn: the losses, and what held-out images say."""

import logging
from importlib.util import find_spec
from pathlib import Path

from mnv2_keras.export.report import save_plot

log = logging.getLogger(__name__)

_LOSSES = ("loss", "classification", "localization", "l2")
_JUDGED = {"AP50": "mAP at IoU 0.5", "AP": "COCO AP", "mean_iou": "mean IoU"}


def can_draw(path: str | Path) -> bool:
    """Whether matplotlib is installed; if not, one warning says that the figure `path` is left out.

    Ask before the work starts: a figure that a run adds to its results must not end the run.
    """
    if find_spec("matplotlib") is None:
        log.warning("matplotlib is not installed: %s is left out. To get it: pip install matplotlib.", path)
        return False
    return True


def plot_training(rows: list[dict], path: str | Path) -> Path:
    """A PNG of the rows of a training: `step`, losses, and figures of held-out images where there are any.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    judged = [name for name in _JUDGED if name in rows[0]]
    axes = figure.subplots(1, 1 + bool(judged), squeeze=False)[0]
    steps = [row["step"] for row in rows]
    for name in _LOSSES:
        if name in rows[0]:
            axes[0].plot(steps, [row[name] for row in rows], label=name)
    axes[0].set(xlabel="step", ylabel="loss", yscale="log")
    for name in judged:
        axes[1].plot(steps, [row[name] for row in rows], label=_JUDGED[name])
    if judged:
        axes[1].set(xlabel="step", ylabel="on held-out images", ylim=(0, 1))
    for each in axes:
        each.grid(alpha=0.3)
        each.legend()
    return save_plot(figure, path)
