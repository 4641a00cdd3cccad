"""Weights into a model that is built, from wherever they are; and out again as a TF-Slim checkpoint."""

import contextlib
import logging
import math
import os
import re
import tempfile
import warnings
import zipfile
from pathlib import Path

import keras

import mnv2_keras.layers  # noqa: F401 - Keras then knows the layers that a file may hold
from mnv2_keras.convert.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from mnv2_keras.convert.names import depth, variables
from mnv2_keras.convert.transfer import Transfer, load_variables, network_shapes
from mnv2_keras.fetch import fetch_checkpoint
from mnv2_keras.registry import get_checkpoint, imagenet_checkpoint, list_checkpoints

log = logging.getLogger("mnv2_keras")

KERAS_FILES = (".keras", ".h5")


def find_weights(weights) -> Path:
    """A local path as it is, a registered name as its verified archive.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: neither a path nor a registered name.
    """
    if not isinstance(weights, str | os.PathLike) or not str(weights):
        raise ValueError(f"weights is {weights!r}: expected a path, or a name from list_checkpoints().")
    if str(weights) == "imagenet":
        raise ValueError(
            '"imagenet" goes with build_mobilenetv2(weights="imagenet"): here, name one of list_checkpoints().'
        )
    path = Path(weights).expanduser()
    if path.exists() or Path(f"{path}.index").exists():
        return path
    names = {record.name for record in list_checkpoints()}
    if str(weights) in names:
        return fetch_checkpoint(str(weights))
    if path.parent != Path() or path.suffix in (*KERAS_FILES, ".tgz", ".gz", ".index", ".ckpt", ".tflite"):
        raise FileNotFoundError(f"weights: {path} does not exist.")
    get_checkpoint(str(weights))  # raises with the closest names
    raise AssertionError("unreachable: the name was not registered")


def fill(model: keras.Model, weights, alpha: float, resolution: int | None) -> None:
    """Fill a fresh model with what a builder's `weights` argument names."""
    if str(weights) == "imagenet":
        weights = imagenet_checkpoint(alpha, resolution or 224).name
    path = find_weights(weights)
    if path.name.endswith(".weights.h5"):
        _fill_from_weights_file(model, path)
        return
    with open_variables(path) as checkpoint:
        fill_from_checkpoint(model, checkpoint)


@contextlib.contextmanager
def open_variables(path: Path):
    """A checkpoint, or a whole saved Keras model as if it were one: its variables under TF-Slim's names."""
    if path.suffix not in KERAS_FILES:
        with open_checkpoint(path) as checkpoint:
            yield checkpoint
        return
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(load_keras_file(path)).items()}
    yield Checkpoint.of_arrays(path, arrays)


def fill_from_checkpoint(model: keras.Model, checkpoint: Checkpoint, ema: bool = True) -> Transfer:
    """Fill a fresh model; a head the file does not have (of other classes, of another task) stays new, and the log says so."""
    ours, theirs = variables(model), network_shapes(checkpoint.shapes)
    new = _new_head(ours, theirs)
    transfer = load_variables(ours, checkpoint, ema, new)
    if new:
        held, wanted = _classes(theirs), _classes({name: variable.shape for name, variable in ours.items()})
        log.warning(
            "%s has %s classes: its backbone is kept, the head of %s classes is new and untrained.",
            checkpoint.source.name,
            held or "no",
            wanted,
        )
    return transfer


def _new_head(ours: dict, theirs: dict) -> list[str]:
    """The weights a file cannot fill: a predictor of other classes, or a whole head over a classifier's backbone."""
    heads = [name for name in ours if _is_head(name)]
    if heads and not any(map(_is_head, theirs)):
        return heads
    held, wanted = _classes(theirs), _classes({name: variable.shape for name, variable in ours.items()})
    if not held or not wanted or held == wanted or (held, wanted) == (1001, 1000):
        return []
    return [name for name in ours if _PREDICTOR.search(name)]


def _is_head(variable: str) -> bool:
    """Whether a variable stands beside the backbone, in a detector's or a segmenter's head."""
    return depth(variable)[0] == math.inf


def load_keras_file(path: Path) -> keras.Model:
    """A whole model from a `.keras` or `.h5` file, in safe mode (no code in the file is run).

    Raises:
        ValueError: the file is no Keras model, or holds weights only.
    """
    if path.suffix == ".keras" and path.is_file() and not zipfile.is_zipfile(path):  # Keras would call it "not found"
        raise ValueError(
            f"{path} is not a Keras model file: it is damaged, incomplete or of another kind. Copy it again."
        )
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py and Keras each raise their own for a damaged file
        hint = "It holds weights only: build the model and pass weights=." if path.name.endswith(".weights.h5") else ""
        raise ValueError(
            f"{path} is not a Keras model file that can be read ({str(error)[:300]}). {hint}".strip()
        ) from error


def _fill_from_weights_file(model: keras.Model, path: Path) -> None:
    """A `.weights.h5`, which only the very model it was saved from can take."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers it found no weights for
            model.load_weights(path)
    except Exception as error:  # h5py and Keras each raise their own for a damaged or a foreign file
        raise ValueError(
            f"{path} does not fit the model ({error}): build it with the options it was saved with, or save the whole "
            "model as .keras, which fills other heads and a base too."
        ) from error


#: What knows the classes: the classifier's last convolution, the segmenter's.
_PREDICTOR = re.compile(r"/Logits/Conv2d_1c_1x1/|^logits/semantic/")


def _classes(shapes: dict) -> int | None:
    """Classes a network's variables predict; None without a predictor."""
    return next(
        (shape[0] for name, shape in shapes.items() if _PREDICTOR.search(name) and name.endswith("/biases")), None
    )


def load_checkpoint(model: keras.Model, path: str | os.PathLike, ema: bool = True) -> Transfer:
    """Fill a model from a TF-Slim checkpoint: all of its weights, or none.

    A base without the classifier takes a full checkpoint; a 1000-class model takes a 1001-class one without the background.

    Args:
        model: a model of this package.
        path: an archive, a folder, a checkpoint prefix, an `.index` file, a V1 file, a saved `.keras` or `.h5` model, or a
            registered name.
        ema: take the moving average where a variable has one (as the published graphs do), not the raw variable.

    Returns:
        Where each weight came from, and what of the file was left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or does not hold exactly this model's variables. The model is then untouched.
    """
    with open_variables(find_weights(path)) as checkpoint:
        return load_variables(variables(model), checkpoint, ema)


def save_checkpoint(model: keras.Model, prefix: str | os.PathLike) -> Path:
    """Write a model as a TF-Slim checkpoint, variable for variable under TF-Slim's names.

    Args:
        model: a model of this package.
        prefix: path without suffix; writes `PREFIX.index` and `PREFIX.data-00000-of-00001`, both or neither.

    Returns:
        The prefix, as `tf.train.load_checkpoint` and TF-Slim's `--checkpoint_path` take it.
    """
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(model).items()}
    return write_checkpoint(arrays, prefix)


def check_name(path: str | os.PathLike) -> bool:
    """Whether `save_model` writes a checkpoint under this name, rather than a Keras file.

    Raises:
        ValueError: it writes neither.
    """
    path = Path(path)
    if path.suffix in KERAS_FILES:
        return False
    if ".ckpt" in path.name or not path.suffix:  # model.ckpt-1000 too
        return True
    raise ValueError(f"{path}: expected .keras, .h5, .weights.h5 or .ckpt.")


def save_model(model: keras.Model, path: str | os.PathLike) -> Path:
    """Write a model to a file, all of it or nothing.

    Args:
        model: a model of this package.
        path: `.keras`, `.h5` or `.weights.h5` for Keras; `.ckpt` (or no suffix) for a TF-Slim checkpoint.

    Returns:
        The path.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written; nothing was changed.
    """
    path = Path(path).expanduser()
    if check_name(path):
        return save_checkpoint(model, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            if path.name.endswith(".weights.h5"):
                model.save_weights(draft)
            else:
                model.save(draft)
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            draft.replace(path)
    except (OSError, RuntimeError) as error:  # h5py raises either for a disk that is full
        raise OSError(f"{path} could not be written ({error}): what was there is unchanged.") from error
    return path
