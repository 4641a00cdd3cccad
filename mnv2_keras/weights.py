"""Weights into a model that is built, from wherever they are; and out again as a TF-Slim checkpoint."""

import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import keras

from mnv2_keras.architecture.detector import ANCHOR_SHAPES
from mnv2_keras.checks import user_path
from mnv2_keras.convert.names import DETECTOR, depth, is_network_variable, variables
from mnv2_keras.convert.source import Source
from mnv2_keras.convert.sources import KERAS_FILES, open_source
from mnv2_keras.convert.sources.keras_content import check_content
from mnv2_keras.convert.sources.tf_slim import write_checkpoint
from mnv2_keras.convert.transfer import Transfer, load_variables, network_shapes
from mnv2_keras.fetch import fetch_checkpoint
from mnv2_keras.registry import get_checkpoint, imagenet_checkpoint, list_checkpoints

log = logging.getLogger("mnv2_keras")

Shapes = Mapping[str, tuple[int, ...]]


def find_weights(weights) -> Path:
    """A local path as it is, a registered name as its verified archive.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: neither a path nor a registered name.
    """
    if not isinstance(weights, str | os.PathLike) or not str(weights):
        raise ValueError(f"weights is {weights!r}: expected a path, or a name from list_checkpoints().")
    if str(weights) == "imagenet":
        raise ValueError('"imagenet" goes with build_mobilenetv2(weights="imagenet"): here, name one of list_checkpoints().')
    path = user_path(weights)
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
    with open_source(path) as source:
        fill_from_source(model, source)


def fill_from_source(model: keras.Model, source: Source, ema: bool = True) -> Transfer:
    """Fill a fresh model; a head that the file does not have (of other classes, of another task) stays new, and the log says so.

    Raises:
        ValueError: the file does not hold the model's backbone, or one head in part; the model is untouched.
    """
    ours, shapes = variables(model), network_shapes(source.shapes)
    if not any(name.startswith(DETECTOR) for name in shapes):  # a detector's backbone has another scope
        ours = {name.removeprefix("FeatureExtractor/"): variable for name, variable in ours.items()}
    new = _new_weights({name: tuple(variable.shape) for name, variable in ours.items()}, shapes)
    transfer = load_variables(ours, source, ema, new)
    if new:
        log.warning(
            "%s has %s classes: its backbone is kept, the head of %s classes is new "
            "(%d weights of the model are new and untrained, first %s).",
            source.path.name,
            _classes(shapes) or "no",
            _classes({name: variable.shape for name, variable in ours.items()}),
            len(new),
            new[0],
        )
    return transfer


def _new_weights(ours: Shapes, shapes: Shapes) -> list[str]:
    """The weights that a file cannot fill: predictors of other classes, or all heads over another task's backbone."""
    heads = [name for name in ours if depth(name)[0] == math.inf]
    if heads and not any(name in shapes for name in heads):
        # A detector scales the last convolution with alpha, a classifier does not below 1, and DeepLab has none.
        last = [name for name in ours if "MobilenetV2/Conv_1/" in name]
        return heads + (last if any(ours[name] != shapes.get(name) for name in last) else [])
    before, after = _classes(shapes), _classes(ours)
    if not before or not after or before == after or (before, after) == (1001, 1000):
        return []
    return [name for name in ours if _PREDICTOR.search(name)]


#: The layers that know the classes: the classifier's last convolution, the segmenter's, the detector's.
_PREDICTOR = re.compile(r"/Logits/Conv2d_1c_1x1/|^logits/semantic/|^BoxPredictor_\d+/ClassPredictor/")


def _classes(shapes: Shapes) -> int | None:
    """Classes that a network's variables predict; None without a predictor."""
    for name, (*_, outputs) in shapes.items():
        if _PREDICTOR.search(name) and name.endswith("/biases"):
            return outputs // len(ANCHOR_SHAPES[0]) - 1 if name.startswith("BoxPredictor_0/") else outputs
    return None


def _fill_from_weights_file(model: keras.Model, path: Path) -> None:
    """A `.weights.h5`, which only a model built like the one it was saved from can take."""
    try:
        check_content(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers it found no weights for
            model.load_weights(path)
    except Exception as error:  # h5py and Keras each raise their own for a damaged or a foreign file
        raise ValueError(
            f"{path} does not fit the model ({error}): build it with the options it was saved with, or save the whole "
            "model as .keras, which fills other heads and a base too."
        ) from error


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
    with open_source(find_weights(path)) as source:
        return load_variables(variables(model), source, ema)


def save_checkpoint(model: keras.Model, prefix: str | os.PathLike) -> Path:
    """Write a model as a TF-Slim checkpoint, variable for variable under TF-Slim's names.

    Args:
        model: a model of this package.
        prefix: path without suffix; writes `PREFIX.index` and `PREFIX.data-00000-of-00001`, both or neither.

    Returns:
        The prefix, as `tf.train.load_checkpoint` and TF-Slim's `--checkpoint_path` take it.

    Raises:
        ValueError: the model has variables that TF-Slim's network does not have; the message names them.
    """
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(model).items()}
    if foreign := [name for name in arrays if not is_network_variable(name)]:
        raise ValueError(
            f"{model.name} is not a network of this package: TF-Slim has no variables {', '.join(foreign[:5])} ({len(foreign)} of "
            f"{len(arrays)} are foreign). Save it as .keras, or convert the part that was built by mnv2_keras."
        )
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
    path = user_path(path)
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
