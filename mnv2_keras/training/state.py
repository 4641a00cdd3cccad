"""The folder of a run: the state to resume from, stored by the variables' names, and the history. And what stops a run."""

import csv
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from mnv2_keras.atomic import write_bytes, write_text
from mnv2_keras.checks import user_path
from mnv2_keras.figures import can_draw, draw_training


class DivergedError(ValueError):
    """The loss, or a weight, is NaN or infinite."""


class WorkerLostError(OSError):
    """Another worker of a distributed run does not answer."""


def save_state(path: Path, arrays: Mapping[str, np.ndarray], about: dict) -> None:
    """Write named arrays and a JSON document to one `.npz` file (atomically)."""
    content = io.BytesIO()
    np.savez(content, about=np.array(json.dumps(about)), **{f"variables/{name}": arrays[name] for name in arrays})
    write_bytes(path, content.getvalue())


def load_state(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and the document that `save_state` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, another file, or a state of an earlier release.
    """
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {name.removeprefix("variables/"): file[name] for name in file.files if name != "about"}
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a training state ({error}): start without --resume.") from error
    if "a0" in arrays:
        raise ValueError(
            f"{path} was written by an earlier release, which stored variables by position: finish the run with that release "
            "(mnv2_keras 0.1.0), or start again in another folder."
        )
    return arrays, about


def check_folder(folder: Path, resume: bool) -> None:
    """Raise a ValueError if the folder holds a run and `resume` is False."""
    if (folder / "state.npz").exists() and not resume:
        raise ValueError(f"{folder} holds a run already: resume it (--resume), or choose another folder.")


class RunFolder:
    """A run's `state.npz` (to resume from), `history.csv`, `curves.png` (if matplotlib is installed), `tensorboard/`, and texts.

    Args:
        path: of the folder; None writes nothing.
        identity: what must be the same for a run to be resumed, as JSON holds it.
        resume: whether a run in the folder is continued; without, a run in the folder is a ValueError.
        texts: file name to content, written when the run starts.
    """

    def __init__(self, path, identity: dict, resume: bool = False, texts: Mapping[str, str] | None = None):
        self.path = None if path is None else user_path(path)
        self.identity, self.resume, self.texts = json.loads(json.dumps(identity)), resume, texts or {}
        if self.path:
            check_folder(self.path, resume)
        self._draws = self.path and can_draw(self.path / "curves.png")
        self.writes = True  # only the first of several workers does

    def restore(self, variables: Mapping) -> tuple[list[dict], bool]:
        """Assign the stored values to the run's variables, given by name; a ValueError names a state of another run or network.

        Returns:
            The rows of the history (none if there is nothing to resume), and whether the last one has its evaluation.
        """
        state = self.path and self.path / "state.npz"
        if not (state and self.resume and state.exists()):
            return [], True
        arrays, about = load_state(state)
        old = about.get("identity", {})
        if differing := [name for name in self.identity if old.get(name) != self.identity[name]]:
            raise ValueError(
                f"{state} is of a run with other {', '.join(differing)}: resume with the same recipe, network and data, or "
                "choose another output."
            )
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        stored = {name: array.shape for name, array in arrays.items()}
        if stored != shapes:
            name = min(name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name))
            raise ValueError(
                f"{state} holds the variables of another network ({name} has the shape {stored.get(name)}, expected "
                f"{shapes.get(name)}): choose another output."
            )
        for name, variable in variables.items():
            variable.assign(arrays[name])
        return about["rows"], about["evaluated"]

    def write_texts(self) -> None:
        """Write the texts that describe the run."""
        for name, text in self.texts.items() if self.path and self.writes else ():
            write_text(self.path / name, text)

    def save(self, arrays: Mapping[str, np.ndarray], rows: list[dict], evaluated: bool = True) -> None:
        """Write the state after a round."""
        if self.path and self.writes:
            about = {"identity": self.identity, "rows": rows, "evaluated": evaluated}
            save_state(self.path / "state.npz", arrays, about)

    def write_history(self, rows: list[dict]) -> None:
        """Write table and curves of all rounds, and TensorBoard's scalars of the last one (each file atomically)."""
        if not (self.path and self.writes):
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / "history.csv", text.getvalue())
        if self._draws:
            draw_training(rows, self.path / "curves.png")
        write_tensorboard(self.path / "tensorboard", rows[-1])


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
