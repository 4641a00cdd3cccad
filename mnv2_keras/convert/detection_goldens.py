"""Outputs of the genuine Object Detection API, kept as files.

`NAME_variables.json` lists the network's variables; `NAME_golden.npz` holds one run on two seeded 300 x 300 images: anchors,
encodings, logits, and feature maps, large ones thinned out. `NAME_extra_golden.npz` may hold a run on one image of 320 x 320.
"""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnv2_keras.preprocessing import normalize_image


@dataclass(frozen=True)
class DetectionGolden:
    """One run of the genuine program."""

    path: Path  # the .npz
    prefix: str  # of its keys in the file
    shape: tuple[int, int, int, int]  # of the images

    @property
    def tag(self) -> str:
        """Name of the run."""
        return f"{self.path.stem.removesuffix('_golden').removesuffix('_extra')}_{self.shape[1]}"

    def input(self) -> np.ndarray:
        """The images the run was given, normalised."""
        pixels = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, self.shape)
        return normalize_image(pixels.astype(np.float32))

    def outputs(self) -> dict[str, tuple[np.ndarray, Callable, float | None]]:
        """What the run put out, by endpoint: the kept values, what cuts ours to them, and the whole's range where known."""
        arrays = {key.removeprefix(self.prefix): value for key, value in _arrays(self.path).items()}
        found = {}
        for key in arrays:
            name, _, kept = key.removeprefix("features/").rpartition("/")
            if kept in ("full", "slice"):
                found[name] = (arrays[key], _CUTS[kept], float(arrays[f"features/{name}/absmax"]))
        for name in ("anchors", "box_encodings", "class_predictions_with_background"):
            for ending, cut in _ROWS.items():
                if name + ending in arrays:
                    found[name] = (arrays[name + ending], cut, None)
        return found


#: How feature maps and rows of outputs were thinned.
_CUTS = {"full": lambda a: a, "slice": lambda a: a[:, ::4, ::4, ::16]}
_ROWS = {"": lambda a: a, "_every8": lambda a: a[:, ::8]}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a golden's arrays ({error}).") from error


def find_detection_goldens(path: Path, shapes: dict[str, tuple[int, ...]]) -> list[DetectionGolden]:
    """The runs in a folder whose network has these variables.

    Raises:
        ValueError: there are none.
    """
    folder = path if path.is_dir() else path.parent
    found = []
    for listed in sorted(folder.glob("*_variables.json")):
        listing = json.loads(listed.read_text())
        if {name: tuple(shape) for name, shape in listing} == shapes:
            name = listed.name.removesuffix("_variables.json")
            for file, prefix, shape in (("golden", "", (2, 300, 300, 3)), ("extra_golden", "320/", (1, 320, 320, 3))):
                arrays = folder / f"{name}_{file}.npz"
                if arrays.is_file():
                    found.append(DetectionGolden(arrays, prefix, shape))
    if not found:
        raise ValueError(
            f"{path} holds no golden of this detector: expected NAME_variables.json listing its {len(shapes)} variables, with "
            "NAME_golden.npz beside it."
        )
    return found
