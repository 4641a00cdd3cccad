"""Goldens: outputs of the genuine programs in files; and the rule that gives a variable its value from its name.

A golden is `TAG.json` next to `TAG.npz`. The JSON holds `task` (default: classification), `kwargs` (arguments of the call),
`input_shape`, `input` ("pixels" for noise from 0 to 255 that is then normalised, else noise in [-1, 1)), `variables` [name, shape]
in order of creation, `endpoints` (statistics, at least min and max), and `steps`: the stride of each array along each axis. Without
`steps`, large arrays are reduced as by `subsample`. The arrays are called `net`, `ep:ENDPOINT`, or by the name of the output.
"""

import ast
import contextlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from mnv2_keras.preprocessing import normalize_image

#: TF-Slim's argument to this package's.
_OPTIONS = {
    "depth_multiplier": "alpha",
    "num_classes": "classes",
    "use_explicit_padding": "explicit_padding",
    "activation_fn": "activation",
}


def name_rule_value(name: str, shape) -> np.ndarray:
    """Value of a variable by its TF-Slim name: float32, the same on every machine, scaled so that activations stay moderate."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    leaf = name.split("/")[-1]
    if leaf in ("gamma", "moving_variance"):
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("beta", "biases", "moving_mean"):
        value = rng.normal(0.0, 0.1, shape)
    else:
        fan_in = np.prod(shape[:2] if leaf == "depthwise_weights" else shape[:-1], dtype=int)
        value = rng.normal(0.0, np.sqrt(2.0 / fan_in), shape)
    return value.astype(np.float32)


def seeded_input(shape) -> np.ndarray:
    """The goldens' input: float32 in [-1, 1)."""
    return np.random.Generator(np.random.PCG64(0)).uniform(-1, 1, shape).astype(np.float32)


def subsample(array: np.ndarray, channels: int = 8) -> np.ndarray:
    """About 7 x 7 positions and `channels` channels of a map, at regular strides."""
    _, h, w, c = array.shape
    return array[:, :: max(1, h // 7), :: max(1, w // 7), :: max(1, c // channels)]


@dataclass(frozen=True)
class Golden:
    """One run of the genuine program."""

    path: Path  # the .json

    @cached_property
    def about(self) -> dict:
        """The JSON file."""
        try:
            about = json.loads(self.path.read_text())
            missing = {"variables", "input_shape", "endpoints", "kwargs"} - about.keys()
            if missing:
                raise KeyError(*missing)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is not a golden: expected JSON with variables, input_shape, kwargs, endpoints."
            ) from error
        return about

    @property
    def tag(self) -> str:
        """Name of the run."""
        return self.path.stem

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the genuine variables, in creation order."""
        return {name: tuple(shape) for name, shape in self.about["variables"]}

    @property
    def options(self) -> dict:
        """Arguments of the task's builder that build the same network."""
        shape = {"input_shape": tuple(self.about["input_shape"][1:])}
        if self.about.get("task", "classification") != "classification":
            return self.about["kwargs"] | shape
        options = {"finegrain_classification_mode": False}
        for name, value in self.about["kwargs"].items():
            if name == "activation_fn":
                value = value.split()[1]  # "<function relu at ...>"
            elif isinstance(value, str):
                with contextlib.suppress(ValueError, SyntaxError):  # a bare word, such as an endpoint's name
                    value = ast.literal_eval(value)
            options[_OPTIONS.get(name, name)] = value
        if any("/GroupNorm/" in name for name in self.shapes):
            options["normalization"] = "group_norm"
        base = "global_pool" not in self.about["endpoints"]
        return options | shape | {"include_top": not base}

    def input(self) -> np.ndarray:
        """The images of the run, float32 in [-1, 1)."""
        if self.about.get("input") == "pixels":
            pixels = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, self.about["input_shape"])
            return normalize_image(pixels.astype(np.float32))
        return seeded_input(self.about["input_shape"])

    def outputs(self) -> dict[str, np.ndarray]:
        """Endpoints and outputs of the run, subsampled where they are large."""
        try:
            with self.path.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name.removeprefix("ep:"): arrays[name] for name in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path.with_suffix('.npz')} cannot be read as a golden's arrays ({error}).") from error

    def value_range(self, endpoint: str, array: np.ndarray) -> float:
        """max - min of the complete endpoint (the array may be subsampled)."""
        stats = self.about["endpoints"].get(endpoint)
        return stats["max"] - stats["min"] if stats else float(array.max() - array.min())

    def subsample(self, endpoint: str, array: np.ndarray) -> np.ndarray:
        """Our value of an endpoint, subsampled as the golden's is."""
        if "steps" in self.about:
            return array[tuple(slice(None, None, step) for step in self.about["steps"].get(endpoint, ()))]
        if array.ndim != 4:
            return array
        if endpoint == "net":
            return subsample(array, 64) if array.size > 60_000 else array
        return subsample(array) if array.size >= 3000 else array


def find_goldens(path: Path, shapes: dict[str, tuple[int, ...]]) -> list[Golden]:
    """The goldens in a folder (or the one of a file) whose network has these variables.

    Raises:
        ValueError: there are none.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path.with_suffix(".json")]
    readable = []
    for file in files:
        if not file.is_file() or not file.with_suffix(".npz").is_file():
            continue
        try:
            about = json.loads(file.read_text())
        except ValueError:  # another kind of file, as any folder may have
            continue
        if isinstance(about, dict) and {"variables", "kwargs", "input_shape", "endpoints"} <= about.keys():
            readable.append(Golden(file))
    matching = [golden for golden in readable if golden.shapes == shapes]
    if not matching:
        raise ValueError(
            f"{path} holds no golden of this network: expected TAG.json with TAG.npz whose {len(shapes)} variables have the "
            f"checkpoint's names and shapes; found {', '.join(golden.tag for golden in readable) or 'none'}."
        )
    return matching


def bundled_golden() -> Golden:
    """The golden that comes with the package: alpha 0.35, 97 x 97 pixels, 1001 classes."""
    return Golden(Path(str(resources.files("mnv2_keras") / "goldens" / "alpha0.35_97_odd.json")))
