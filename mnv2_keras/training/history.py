"""A run's course: a row for each epoch, as CSV, as a picture, for TensorBoard."""

import csv
import io
import tempfile
import time
from pathlib import Path

import tensorflow as tf

from mnv2_keras.atomic import write_bytes, write_text
from mnv2_keras.export.report import save_plot


def write_csv(path: Path, rows: list[dict]) -> None:
    """All rows, the file replaced as a whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_curves(path: Path, rows: list[dict]) -> None:
    """Loss, accuracy and learning rate over the epochs, as PNG; without matplotlib there is only the CSV file."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in rows]
    for axes, names in zip(
        figure.subplots(1, 3), (("loss", "val_loss"), ("accuracy", "val_accuracy"), ("learning_rate",)), strict=True
    ):
        for name in names:
            axes.plot(epochs, [row[name] for row in rows], marker="." if len(rows) < 30 else None, label=name)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    save_plot(figure, path)


def write_tensorboard(folder: Path, row: dict) -> None:
    """One row as scalars for TensorBoard, which need not be installed; each epoch in an event file of its own, whole."""
    event, step, moment = tf.compat.v1.Event, row["epoch"], time.time()
    values = [
        tf.compat.v1.Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "epoch"
    ]
    with tempfile.TemporaryDirectory() as place:  # TensorFlow writes records to files only
        draft = Path(place) / "events"
        with tf.io.TFRecordWriter(str(draft)) as writer:
            writer.write(event(wall_time=moment, file_version="brain.Event:2").SerializeToString())
            scalars = event(wall_time=moment, step=step, summary=tf.compat.v1.Summary(value=values))
            writer.write(scalars.SerializeToString())
        write_bytes(folder / f"events.out.tfevents.{step:010d}.mnv2", draft.read_bytes())
