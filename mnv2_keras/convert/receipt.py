"""The receipt of a verification: what was compared, and the result."""

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mnv2_keras import __version__
from mnv2_keras.atomic import write_text

#: Smallest range: differences of numbers near zero are float noise.
_TINY = 1e-12


@dataclass(frozen=True)
class Difference:
    """How far one endpoint is from the genuine one."""

    endpoint: str
    max_abs: float
    range_relative: float  # max_abs / (max - min) of the genuine endpoint
    passed: bool


@dataclass
class Receipt:
    """What was compared with what, and the result.

    Attributes:
        checkpoint: name of the file that was converted.
        reference: what it was compared with.
        tolerance: largest range-relative difference that passes.
        sha256: of the checkpoint's and the reference's files.
        versions: of Python and of the packages used.
        endpoints: the differences, in network order.
        constants: variables compared bit for bit with the frozen graph's constants.
        different_constants: those that differ.
        top1, top5: share of the images with the same first class, and the same five in order; None without a classifier.
        pixels: share of the pixels with the same label, the lowest of several runs; None without a segmenter.
        images: number of images compared.
        failure: the first failure, or None.
    """

    checkpoint: str
    reference: str
    tolerance: float
    sha256: dict[str, str]
    versions: dict[str, str] = field(default_factory=lambda: versions())
    endpoints: list[Difference] = field(default_factory=list)
    constants: int = 0
    different_constants: list[str] = field(default_factory=list)
    top1: float | None = None
    top5: float | None = None
    pixels: float | None = None
    images: int = 0
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether something was compared and all values agreed."""
        return self.failure is None and bool(self.endpoints)

    @property
    def worst(self) -> Difference | None:
        """The endpoint with the largest difference relative to its range."""
        return max(self.endpoints, key=lambda difference: difference.range_relative, default=None)

    def as_dict(self) -> dict:
        """The receipt as JSON holds it."""
        receipt = {"passed": self.passed, **asdict(self)}
        for difference in receipt["endpoints"]:  # JSON has no infinity and no NaN
            difference |= {n: None for n in ("max_abs", "range_relative") if not math.isfinite(difference[n])}
        return receipt

    def save(self, path: str | os.PathLike) -> Path:
        """Write the receipt as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")

    def fail(self, reason: str) -> None:
        """Record a failure; the first one stays."""
        self.failure = self.failure or reason

    def compare(self, endpoint: str, ours: np.ndarray, genuine: np.ndarray, value_range: float | None = None) -> None:
        """Add one endpoint; the first with too large a difference is the receipt's failure."""
        if ours.shape != genuine.shape:
            self.endpoints.append(Difference(endpoint, float("inf"), float("inf"), False))
            return self.fail(f"{endpoint} has shape {ours.shape}, the genuine one {genuine.shape}.")
        value_range = float(genuine.max() - genuine.min()) if value_range is None else value_range
        max_abs = float(np.max(np.abs(ours.astype(np.float64) - genuine)))
        relative = max_abs / max(value_range, _TINY)
        # Written so that NaN fails.
        passed = bool(relative <= self.tolerance)
        self.endpoints.append(Difference(endpoint, max_abs, relative, passed))
        if not passed:
            self.fail(
                f"{endpoint} is off by {max_abs:.3g}, {relative:.2g} of its range; at most {self.tolerance:g} passes. It is the "
                "first endpoint that differs: check the layers before it."
            )
        return None

    def compare_constants(self, ours: dict[str, np.ndarray], genuine: dict[str, np.ndarray]) -> None:
        """Compare the converted weights with a frozen graph's constants, bit for bit, where the graph has their names."""
        for name, value in ours.items():
            if name in genuine:
                self.constants += 1
                if value.shape != genuine[name].shape or value.tobytes() != genuine[name].tobytes():
                    self.different_constants.append(name)
        if self.different_constants:
            name = self.different_constants[0]
            same_shape = ours[name].shape == genuine[name].shape
            off = np.max(np.abs(ours[name].astype(np.float64) - genuine[name])) if same_shape else float("nan")
            self.fail(
                f"{len(self.different_constants)} of {self.constants} variables are not the frozen graph's, first {name} (off by "
                f"up to {off:.3g}): the checkpoint is not the one the graph was frozen from, or raw variables were read in place "
                "of the averages."
            )

    def compare_rankings(self, ours: np.ndarray, genuine: np.ndarray) -> None:
        """Top-1 and top-5 agreement of logits or probabilities (B, classes)."""
        first = [np.argsort(-values, axis=-1, kind="stable")[:, :5] for values in (ours, genuine)]
        self.top1 = float(np.mean(first[0][:, 0] == first[1][:, 0]))
        self.top5 = float(np.mean(np.all(first[0] == first[1], axis=1)))

    def compare_pixels(self, ours: np.ndarray, genuine: np.ndarray) -> None:
        """Agreement of the labels (B, H, W) of pixels."""
        share = float(np.mean(ours == genuine))
        self.pixels = share if self.pixels is None else min(self.pixels, share)


def versions() -> dict[str, str]:
    """Versions of this package, Python and the packages that compute."""
    packages = ("tensorflow", "keras", "numpy", "pillow", "ai-edge-litert")
    return {"mnv2_keras": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}
