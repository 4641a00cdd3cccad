"""The form of weights that every reader of files returns."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv2_keras.convert.archives import FETCH_AGAIN, first_line

_RESOLUTION = re.compile(r"mobilenet_v2_[\d.]+_(\d{2,4})(?!\d)|quantized_v2_(\d{2,4})_")


@dataclass(frozen=True)
class Source:
    """Weights of one network under TF-Slim's names: shapes at once, arrays on demand.

    Attributes:
        path: the user's path, for messages.
        file: the file inside, such as a checkpoint's prefix, possibly in a temporary folder.
        shapes: shape of every variable in the file, with optimiser slots and counters.
        read: from a name to its array; may raise any error.
        frozen_graph: the genuine program's graph next to it, or None.
        sha256: of the files that hold the variables, by file name.
        facts: arguments of the network's builder that the file holds, such as `input_shape`, `output_stride`, `aspp_rates`.
        labels: names of the classes, if the file has them.
        folded: whether batch norms are folded into the kernels; a new head cannot be trained on them.
    """

    path: Path
    file: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    frozen_graph: Path | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    folded: bool = False

    @classmethod
    def of_arrays(cls, path: Path, arrays: Mapping[str, np.ndarray], **fields) -> "Source":
        """A source of arrays in memory; `fields` are the other attributes."""
        fields = {"file": path} | fields
        return cls(path, shapes={name: np.shape(a) for name, a in arrays.items()}, read=arrays.__getitem__, **fields)

    def array(self, name: str) -> np.ndarray:
        """One variable; ValueError if the file is damaged there."""
        try:
            return self.read(name)
        except Exception as error:  # TensorFlow raises many kinds: all mean an unreadable file
            raise ValueError(f"{self.path}: variable {name} cannot be read ({first_line(error)}). {FETCH_AGAIN}") from error

    @property
    def hint(self) -> str:
        """The names of the files, which may hold alpha and resolution."""
        return self.file.name + self.path.name

    @property
    def resolution(self) -> int | None:
        """Side of the square input in pixels, from the name of the file; None if the name does not hold it."""
        for path in (self.file, self.path):
            if match := _RESOLUTION.search(path.name):
                return int(match[1] or match[2])
        return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
