"""Outputs of the genuine DeepLab program, kept as files: one run each, of a photo of seeded random pixels at 513 x 513.

A run has the list of its network's variables (a JSON of names and shapes, in creation order) and its arrays in an npz file,
some of them with other runs', under a prefix.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from mnv2_keras.preprocessing import normalize_image

_SIDE = 513


@dataclass(frozen=True)
class SegmentationGolden:
    """One run of the genuine program."""

    folder: Path
    tag: str
    network: str  # whose list of variables it has
    file: str  # stem of its npz
    prefix: str = ""
    options: dict = field(default_factory=dict)  # of the builder, beside what the variables tell
    label_step: int = 1

    @property
    def arrays(self) -> Path:
        """The npz file."""
        return self.folder / f"{self.file}.npz"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the genuine variables, in creation order."""
        path = self.folder / f"deeplab_{self.network}_variables.json"
        return {name: tuple(shape) for name, shape in json.loads(path.read_text())}

    def input(self) -> np.ndarray:
        """The image, float32 (1, 513, 513, 3) in [-1, 1)."""
        random = np.random.Generator(np.random.PCG64(0))
        return normalize_image(random.uniform(0, 255, (1, _SIDE, _SIDE, 3)).astype(np.float32))

    def load(self) -> dict[str, np.ndarray]:
        """The run's arrays, the prefix taken off."""
        try:
            # NumPy leaves a damaged file open unless it is given an opened one.
            with self.arrays.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                names = [name for name in arrays.files if name.startswith(self.prefix)]
                return {name.removeprefix(self.prefix): arrays[name] for name in names}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.arrays} cannot be read as a golden's arrays ({error}).") from error

    def outputs(self) -> dict[str, tuple[np.ndarray, Callable, float | None]]:
        """Endpoint to its genuine values, how ours are thinned to be compared, and its range where the values do not tell."""
        found = {}
        arrays = self.load()
        for name in arrays:
            endpoint, _, kind = name.removeprefix("features/").rpartition("/")
            if not name.startswith("features/") or not kind.startswith("slice"):
                continue
            shape, part = arrays[f"features/{endpoint}/shape"], arrays[name]
            cut = partial(_every, steps=[_step(*sides) for sides in zip(shape, part.shape, strict=True)])
            found[_ENDPOINTS.get(endpoint, endpoint)] = (part, cut, 2 * float(arrays[f"features/{endpoint}/absmax"]))
        if "image_pooling_before_resize" in arrays:
            found["image_pooling"] = (arrays["image_pooling_before_resize"], _every, None)
        whole = "logits" in arrays
        logits = arrays["logits" if whole else "logits_every2"]
        found["logits/semantic"] = (logits, partial(_every, steps=(1, 1, 1) if whole else (1, 2, 2)), None)
        every = 8 if "upsampled_logits_every8" in arrays else 16
        found["net"] = (arrays[f"upsampled_logits_every{every}"], partial(_every, steps=(1, every, every)), None)
        return found

    def labels(self) -> tuple[np.ndarray, Callable]:
        """The genuine labels, and how ours are thinned to be compared."""
        name = "argmax" if self.label_step == 1 else f"argmax_every{self.label_step}"
        return self.load()[name], partial(_every, steps=(1, self.label_step, self.label_step))


#: What the runs call by other names than the variables' scopes.
_ENDPOINTS = {
    "layer_4_depthwise": "layer_4/depthwise_output",
    "feature_projection0": "decoder/feature_projection0",
    "decoder_conv0_depthwise": "decoder/decoder_conv0_depthwise",
    "decoder_conv1_depthwise": "decoder/decoder_conv1_depthwise",
    "decoder_conv0": "decoder/decoder_conv0_pointwise",
    "decoder_conv1": "decoder/decoder_conv1_pointwise",
} | {f"aspp{i}": f"aspp{i}_pointwise" for i in (1, 2, 3)}


def _every(array: np.ndarray, steps=()) -> np.ndarray:
    return array[tuple(slice(None, None, step) for step in steps)]


def _step(whole: int, thinned: int) -> int:
    """The power of two by which a side was thinned."""
    step = 1
    while -(-whole // step) > thinned:
        step *= 2
    return step


_MORE = {"file": "deeplab_more_golden", "label_step": 2}
_RUNS = (
    {"tag": "os16", "network": "os16", "file": "deeplab_os16_golden", "options": {"output_stride": 16}},
    {"tag": "os8", "network": "os16", "file": "deeplab_os8_golden", "options": {"output_stride": 8}},
    {"tag": "dm05_os16", "network": "dm05", "file": "deeplab_dm05_os16_golden", "options": {"output_stride": 16}},
    {"tag": "dm05_os8", "network": "dm05", "file": "deeplab_dm05_os8_golden", "options": {"output_stride": 8}},
    _MORE | {"tag": "aspp", "network": "aspp", "prefix": "aspp/", "options": {"aspp_rates": (6, 12, 18)}},
    _MORE | {"tag": "decoder", "network": "decoder", "prefix": "decoder/", "options": {"aspp_rates": (6, 12, 18)}},
    _MORE | {"tag": "os32", "network": "os32", "prefix": "os32/", "options": {"output_stride": 32}},
    _MORE | {"tag": "os32_bare", "network": "os32_bare", "prefix": "os32_bare/", "options": {"output_stride": 32}},
)


def segmentation_goldens(folder: Path) -> list[SegmentationGolden]:
    """The runs whose files are in a folder."""
    goldens = [SegmentationGolden(folder, **run) for run in _RUNS]
    return [
        each
        for each in goldens
        if each.arrays.is_file() and (folder / f"deeplab_{each.network}_variables.json").is_file()
    ]


def find_segmentation_goldens(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[SegmentationGolden]:
    """The runs in a folder (or those of one npz file) whose network has these variables.

    Raises:
        ValueError: there are none.
    """
    folder = path if path.is_dir() else path.parent
    present = [each for each in segmentation_goldens(folder) if path.is_dir() or each.arrays == path]
    matching = [each for each in present if each.shapes == shapes]
    if not matching:
        raise ValueError(
            f"{path} holds no golden of this network: expected deeplab_NAME_golden.npz and deeplab_NAME_variables.json with the "
            f"checkpoint's {len(shapes)} variables; found {', '.join(each.tag for each in present) or 'none'}."
        )
    return matching
