"""The genuine detectors' and DeepLab's outputs as the test data keeps them, and their conversion into the package's one format.

The test data has lists of variables (JSON) and arrays of one or several runs (npz), each layout its own. A `Run` reads one of
them; `write_goldens` writes every run as `TAG.json` with `TAG.npz`, which `verify_checkpoint(goldens=...)` takes.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from mnv2_keras.preprocessing import normalize_image

#: What the segmenters' runs call by other names than the variables' scopes.
ENDPOINTS = {
    "layer_4_depthwise": "layer_4/depthwise_output",
    "feature_projection0": "decoder/feature_projection0",
    "decoder_conv0_depthwise": "decoder/decoder_conv0_depthwise",
    "decoder_conv1_depthwise": "decoder/decoder_conv1_depthwise",
    "decoder_conv0": "decoder/decoder_conv0_pointwise",
    "decoder_conv1": "decoder/decoder_conv1_pointwise",
} | {f"aspp{i}": f"aspp{i}_pointwise" for i in (1, 2, 3)}


def every(array: np.ndarray, steps) -> np.ndarray:
    """An array at regular steps along its first axes."""
    return array[tuple(slice(None, None, step) for step in steps)]


@dataclass(frozen=True)
class Run:
    """One run of a genuine program on images of seeded random pixels.

    Attributes:
        tag: name of the run.
        task: "detection" or "segmentation".
        variables: the JSON list of the network's variables.
        file: the npz with the arrays.
        prefix: of the run's arrays in the file.
        input_shape: of the images, (B, H, W, C).
        options: arguments of the builder that the variables do not tell.
        label_step: of the kept labels.
    """

    tag: str
    task: str
    variables: Path
    file: Path
    prefix: str
    input_shape: tuple[int, ...]
    options: dict = field(default_factory=dict)
    label_step: int = 1

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the genuine variables, in creation order."""
        return {name: tuple(shape) for name, shape in json.loads(self.variables.read_text())}

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The run's arrays without their prefix."""
        with np.load(self.file) as file:
            return {name.removeprefix(self.prefix): file[name] for name in file.files if name.startswith(self.prefix)}

    def input(self) -> np.ndarray:
        """The images, float32 in [-1, 1)."""
        pixels = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, self.input_shape)
        return normalize_image(pixels.astype(np.float32))

    def outputs(self) -> dict[str, tuple[np.ndarray, tuple[int, ...], float | None]]:
        """Endpoint or output to its kept values, the steps along each axis, and the largest absolute value where known."""
        outputs = {}
        for key, array in self.arrays.items():
            name, _, kind = key.removeprefix("features/").rpartition("/")
            if key.startswith("features/") and kind.startswith(("full", "slice")):
                shape = self.arrays[f"features/{name}/shape"]
                steps = tuple(_step(*sides) for sides in zip(shape, array.shape, strict=True))
                outputs[ENDPOINTS.get(name, name)] = array, steps, float(self.arrays[f"features/{name}/absmax"])
        for name, key, steps in _KEPT[self.task]:
            if key in self.arrays:
                outputs[name] = self.arrays[key], steps, None
        return outputs

    def labels(self) -> tuple[np.ndarray, tuple[int, ...]]:
        """The genuine labels of a segmenter, and their steps."""
        name = "argmax" if self.label_step == 1 else f"argmax_every{self.label_step}"
        return self.arrays[name], (1, self.label_step, self.label_step)


def _step(length: int, kept: int) -> int:
    """The power of two by which an axis was subsampled."""
    step = 1
    while -(-length // step) > kept:
        step *= 2
    return step


#: (name, key in the file, steps) of what is kept besides feature maps.
_KEPT = {
    "detection": [
        ("anchors", "anchors", (1,)),
        ("box_encodings", "box_encodings", (1, 1)),
        ("class_predictions_with_background", "class_predictions_with_background", (1, 1)),
        ("class_predictions_with_background", "class_predictions_with_background_every8", (1, 8)),
    ],
    "segmentation": [
        ("image_pooling", "image_pooling_before_resize", (1,)),
        ("logits/semantic", "logits_every2", (1, 2, 2)),
        ("logits/semantic", "logits", (1, 1, 1)),
        ("net", "upsampled_logits_every16", (1, 16, 16)),
        ("net", "upsampled_logits_every8", (1, 8, 8)),
    ],
}

_SEGMENTERS = (  # tag, list of variables, file, prefix, options, step of the labels
    ("os16", "os16", "deeplab_os16", "", {"output_stride": 16}, 1),
    ("os8", "os16", "deeplab_os8", "", {"output_stride": 8}, 1),
    ("dm05_os16", "dm05", "deeplab_dm05_os16", "", {"output_stride": 16}, 1),
    ("dm05_os8", "dm05", "deeplab_dm05_os8", "", {"output_stride": 8}, 1),
    ("aspp", "aspp", "deeplab_more", "aspp/", {"aspp_rates": (6, 12, 18)}, 2),
    ("decoder", "decoder", "deeplab_more", "decoder/", {"aspp_rates": (6, 12, 18)}, 2),
    ("os32", "os32", "deeplab_more", "os32/", {"output_stride": 32}, 2),
    ("os32_bare", "os32_bare", "deeplab_more", "os32_bare/", {"output_stride": 32}, 2),
)
_DETECTORS = (  # tag, list of variables, file, prefix, shape of the images
    ("ssdlite_300", "ssdlite", "ssdlite", "", (2, 300, 300, 3)),
    ("ssdlite_320", "ssdlite", "ssdlite_extra", "320/", (1, 320, 320, 3)),
    ("ssd_300", "ssd", "ssd", "", (2, 300, 300, 3)),
)


def segmentation_runs(golden: Path) -> dict[str, Run]:
    """The runs of DeepLab by tag."""
    folder = golden / "segmentation"
    return {
        tag: Run(
            tag,
            "segmentation",
            folder / f"deeplab_{network}_variables.json",
            folder / f"{file}_golden.npz",
            prefix,
            (1, 513, 513, 3),
            options,
            label_step,
        )
        for tag, network, file, prefix, options, label_step in _SEGMENTERS
    }


def detection_runs(golden: Path) -> dict[str, Run]:
    """The runs of the Object Detection API by tag."""
    folder = golden / "detection"
    return {
        tag: Run(tag, "detection", folder / f"{network}_variables.json", folder / f"{file}_golden.npz", prefix, input_shape)
        for tag, network, file, prefix, input_shape in _DETECTORS
    }


def write_goldens(golden: Path, folder: Path) -> Path:
    """Write every run in the package's format.

    Args:
        golden: the folder `golden` of the test data.
        folder: where to write.
    """
    for run in (segmentation_runs(golden) | detection_runs(golden)).values():
        arrays, steps, endpoints = {}, {}, {}
        for name, (array, kept, largest) in run.outputs().items():
            arrays[f"ep:{name}"], steps[name] = array, kept
            if largest is not None:  # ReLU6 or ReLU in detectors; DeepLab's maps may be negative
                low = -largest if run.task == "segmentation" else 0.0
                endpoints[name] = {"min": low, "max": largest}
        if run.task == "segmentation":
            arrays["labels"], steps["labels"] = run.labels()
        about = {
            "task": run.task,
            "kwargs": run.options,
            "input_shape": run.input_shape,
            "input": "pixels",
            "variables": list(run.shapes.items()),
            "endpoints": endpoints,
            "steps": steps,
        }
        (folder / f"{run.tag}.json").write_text(json.dumps(about))
        np.savez(folder / f"{run.tag}.npz", **arrays)
    return folder
