"""Every figure of the package, drawn with matplotlib.

    draw_training    curves of a training                    `mnv2 train`, `mnv2 finetune`: curves.png; `--plot`
    draw_confusion   true classes against predicted ones     `mnv2 evaluate --plot`, `mnv2 finetune`: confusion.png
    draw_layers      signal-to-noise ratio of each layer     `mnv2 export --plot`, `ExportReport.plot_layers`
    draw_latencies   median latencies                        `mnv2 bench --plot`

One policy when matplotlib is missing, applied before the work starts: a figure that the user asks for is refused
(`check_figure`); a figure that a run adds to its results is left out with a warning (`can_draw`), and the results are kept.
"""

import io
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mnv2_keras.atomic import write_bytes

log = logging.getLogger(__name__)

#: With more classes than this, names and numbers are too small to read.
NAMED_CLASSES = 30
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


def check_figure(path: str | os.PathLike) -> None:
    """Raise a ValueError if the name ends in neither .png nor .svg, or matplotlib is missing. Call it before the work starts."""
    if Path(path).suffix not in (".png", ".svg"):
        raise ValueError(f"{path}: figures are drawn as .png or .svg; choose a name that ends so.")
    if find_spec("matplotlib") is None:
        raise ValueError(f"{path} needs matplotlib: pip install matplotlib.")


def can_draw(path: str | os.PathLike) -> bool:
    """Whether matplotlib is installed; if not, a warning says that the figure is left out. Call it before the work starts."""
    if find_spec("matplotlib") is None:
        log.warning("matplotlib is not installed: %s is left out. To get it: pip install matplotlib.", path)
        return False
    return True


def draw_training(rows: Sequence[Mapping], path: str | os.PathLike) -> Path:
    """The rows of a history, as `fit` returns them, over its epochs or steps; at least one row."""
    panels = {label: [name for name in lines if name in rows[-1]] for label, lines in _PANELS.items()}
    panels = {label: names for label, names in panels.items() if names}
    figure = _figure(4 * len(panels), 3.5)
    unit = "epoch" if "epoch" in rows[0] else "step"
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(row[unit], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=_PANELS[label][name])
        axes.set(xlabel=unit, ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    return _save(figure, path)


def draw_confusion(counts: np.ndarray, names: Sequence[str], title: str, path: str | os.PathLike, *, percent: bool = False) -> Path:
    """A confusion matrix (rows are the true classes, columns the predicted ones), coloured by the shares of each true class.

    Names and counts are written for at most `NAMED_CLASSES` classes; with `percent`, names and shares (from 0.5 % on) always.
    """
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    named = percent or len(names) <= NAMED_CLASSES
    side = max(4.0, 2.5 + 0.45 * len(names)) if named else 10
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if named:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(shares >= 0.005 if percent else counts):
            share = shares[row, column]
            text = f"{100 * share:.0f}" if percent else str(counts[row, column])
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return _save(figure, path)


def draw_layers(ratios: Mapping[str, float], title: str, path: str | os.PathLike) -> Path:
    """The signal-to-noise ratio (dB) of each layer, by its name, in network order."""
    figure = _figure(12, 4.5)
    axes = figure.add_subplot()
    axes.plot(list(ratios.values()), marker="o", markersize=3)
    axes.set_xticks(range(len(ratios)), list(ratios), rotation=90, fontsize=6)
    axes.set(ylabel="signal-to-noise ratio (dB)", title=title)
    axes.grid(alpha=0.3)
    return _save(figure, path)


def draw_latencies(latencies: Mapping[str, tuple[float, float]], path: str | os.PathLike) -> Path:
    """Bars of median latencies up to p90, both in milliseconds, from the top down: `{label: (p50, p90)}`."""
    figure = _figure(8, 0.45 * len(latencies) + 1.2)
    axes = figure.add_subplot()
    labels, values = list(latencies)[::-1], np.array(list(latencies.values()))[::-1]
    axes.barh(labels, values[:, 0], xerr=[np.zeros(len(values)), values[:, 1] - values[:, 0]])
    axes.set_xlabel("milliseconds for each photo: median, and up to p90")
    return _save(figure, path)


def _figure(width: float, height: float):
    """An empty figure, in inches, that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: str | os.PathLike) -> Path:
    """Write a figure atomically."""
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:], dpi=120)
    return write_bytes(path, content.getvalue())
