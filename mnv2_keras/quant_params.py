"""The scale and zero point of a quantised tensor (NumPy)."""

from dataclasses import dataclass

import numpy as np

_INT8 = np.dtype("int8")


@dataclass(frozen=True)
class QuantParams:
    """Which real number a stored integer stands for: `real = scale * (stored - zero_point)`.

    Source: TensorFlow Lite's 8-bit quantisation specification.
    """

    scale: float | np.ndarray  # one number, or float32 (C,), one per channel
    zero_point: int | np.ndarray = 0  # one whole number, or int64 (C,)
    dtype: np.dtype = _INT8  # of the stored integers
    axis: int | None = None  # of the channels; None where one scale is for the whole tensor

    @classmethod
    def covering(cls, low: float, high: float) -> "QuantParams":
        """The int8 ones of the smallest scale that reach from `low` to `high` and hold 0 exactly."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = max(high - low, 1e-6) / 255
        return cls(float(np.float32(scale)), int(np.clip(np.round(-128 - low / scale), -128, 127)))

    def as_uint8(self) -> "QuantParams":
        """The same of an int8 tensor whose integers are counted from 0."""
        return QuantParams(self.scale, self.zero_point + 128, np.dtype("uint8"), self.axis)

    def quantize(self, real: np.ndarray) -> np.ndarray:
        """Real values, float32, to the nearest stored integers."""
        limits = np.iinfo(self.dtype)
        steps = np.rint(real / self._along_axis(self.scale, real, np.float32))
        zero_point = self._along_axis(self.zero_point, real, np.float32)
        return np.clip(steps + zero_point, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """Stored integers to real values, float32 (computed in float64)."""
        steps = stored.astype(np.float64) - self._along_axis(self.zero_point, stored, np.float64)
        return (steps * self._along_axis(self.scale, stored, np.float64)).astype(np.float32)

    def _along_axis(self, values, tensor: np.ndarray, dtype) -> np.ndarray:
        """Scales or zero points in the shape that lines up with a tensor's channels."""
        values = np.asarray(values, dtype)
        if self.axis is None:
            return values
        sides = [1] * np.ndim(tensor)
        sides[self.axis] = -1
        return values.reshape(sides)
