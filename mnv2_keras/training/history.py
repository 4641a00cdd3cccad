"""A run's history, one row for each round: as CSV, as a figure, for TensorBoard."""

import csv
import io
import tempfile
import time
from pathlib import Path

import tensorflow as tf

from mnv2_keras.atomic import write_bytes, write_text
from mnv2_keras.figures import draw_training


def write_history(folder: Path, rows: list[dict], draw: bool = True) -> None:
    """Write table and curves of all rows, and TensorBoard's scalars of the last one (each file atomically)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "history.csv", text.getvalue())
    if draw:
        draw_training(rows, folder / "curves.png")
    write_tensorboard(folder / "tensorboard", rows[-1])


def write_tensorboard(folder: Path, row: dict) -> None:
    """Write one row as an event file of scalars for TensorBoard, which need not be installed."""
    event, step, now = tf.compat.v1.Event, row.get("epoch", row.get("step")), time.time()
    values = [
        tf.compat.v1.Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if name not in ("epoch", "step") and value is not None
    ]
    scalars = event(wall_time=now, step=step, summary=tf.compat.v1.Summary(value=values))
    with tempfile.TemporaryDirectory() as temporary:  # TensorFlow writes records to files only
        draft = Path(temporary) / "events"
        with tf.io.TFRecordWriter(str(draft)) as writer:
            writer.write(event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            writer.write(scalars.SerializeToString())
        write_bytes(folder / f"events.out.tfevents.{step:010d}.mnv2", draft.read_bytes())
