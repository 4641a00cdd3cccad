"""A run's state on disk: all or nothing, and nothing but numbers. And what stops a run."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from mnv2_keras.atomic import write_bytes


class DivergedError(ValueError):
    """The loss is no number any more."""


class WorkerLostError(OSError):
    """Another worker of a distributed run is gone."""


def save_state(path: Path, arrays: list[np.ndarray], about: dict) -> None:
    """Write arrays and a JSON document in one file, all of it or nothing (see `write_bytes`)."""
    content = io.BytesIO()
    np.savez(content, about=np.array(json.dumps(about)), **{f"a{i}": array for i, array in enumerate(arrays)})
    write_bytes(path, content.getvalue())


def load_state(path: Path) -> tuple[list[np.ndarray], dict]:
    """What `save_state` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or something else.
    """
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            return [file[f"a{i}"] for i in range(len(file.files) - 1)], about
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no state of a training run ({error}): start anew, without --resume.") from error


def restore(path: Path, variables: list, identity: dict) -> list[dict]:
    """Give a run's variables what `save_state` wrote, with `identity` and `rows` in its document.

    Args:
        path: of the state.
        variables: of the same run, in the same order.
        identity: what must be the same for a run to go on.

    Returns:
        The rows of its history.

    Raises:
        ValueError: it is the state of another run, or of another network.
    """
    arrays, about = load_state(path)
    differing = [name for name in identity if about.get("identity", {}).get(name) != identity[name]]
    if differing:
        raise ValueError(
            f"{path} is of a run with other {', '.join(differing)}: resume with the same recipe, network and data, or choose "
            "another output."
        )
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        raise ValueError(f"{path} holds the variables of another network: choose another output.")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return about["rows"]
