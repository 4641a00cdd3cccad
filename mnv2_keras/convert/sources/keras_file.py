"""Models saved by Keras (`.keras`, `.h5`) as weights: their variables under TF-Slim's names."""

import zipfile
from pathlib import Path

import keras

import mnv2_keras.layers  # noqa: F401 (registers the layers that a file may hold)
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.source import Source
from mnv2_keras.convert.sources.keras_content import check_content


def load_keras_file(path: Path) -> keras.Model:
    """A complete model from a `.keras` or `.h5` file, in safe mode (no code in the file is run).

    Raises:
        ValueError: the file is not a Keras model, or holds weights only.
    """
    if path.suffix == ".keras" and path.is_file() and not zipfile.is_zipfile(path):  # Keras would call it "not found"
        raise ValueError(f"{path} is not a Keras model file: it is damaged, incomplete or of another kind. Copy it again.")
    try:
        check_content(path)
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py and Keras each raise their own for a damaged file
        hint = "It holds weights only: build the model and pass weights=." if path.name.endswith(".weights.h5") else ""
        raise ValueError(f"{path} is not a Keras model file that can be read ({str(error)[:300]}). {hint}".strip()) from error


def read(path: Path) -> Source:
    """Read the variables of a saved model.

    Raises:
        ValueError: as `load_keras_file`; or a layer has weights that TF-Slim has no name for.
    """
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables(load_keras_file(path)).items()}
    return Source.of_arrays(path, arrays)
