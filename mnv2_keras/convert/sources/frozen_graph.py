"""Frozen TensorFlow graphs (`*_frozen.pb`) as weights: their constants are TF-Slim's variables."""

from pathlib import Path

from mnv2_keras.convert.graph import FrozenGraph
from mnv2_keras.convert.names import is_variable
from mnv2_keras.convert.source import Source, sha256_of


def read(path: Path) -> Source:
    """Read the constants that have names of TF-Slim's variables.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a frozen graph, or its batch norms were folded away.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a frozen graph (.pb).")
    arrays = {name: array for name, array in FrozenGraph(path).constants().items() if is_variable(name)}
    return Source.of_arrays(path, arrays, frozen_graph=path, sha256={path.name: sha256_of(path)})
