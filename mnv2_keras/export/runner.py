"""A .tflite file run by LiteRT's own kernels, so that the values between its layers can be read."""

import numpy as np

from mnv2_keras.tflite import TfliteFile, open_interpreter


class GraphRunner:
    """Runs a file on one input at a time.

    Args:
        file: the file; it is not changed.
        every_tensor: whether the values between the layers can be read afterwards; otherwise only the outputs, faster.
    """

    def __init__(self, file: TfliteFile, every_tensor: bool = True):
        self.file = file
        self._interpreter = open_interpreter(file.to_bytes(), every_tensor=every_tensor)
        self._interpreter.allocate_tensors()
        self._input = file.graph.inputs[0]
        self._batch = file.shape(self._input)[0]

    def run(self, image: np.ndarray) -> "GraphRunner":
        """Run on one image (1, H, W, C), float32 in the values of the float network; a larger static batch repeats it."""
        params = self.file.quantization(self._input)
        stored = image.astype(self.file.dtype(self._input), copy=False) if params is None else params.quantize(image)
        self._interpreter.set_tensor(self._input, np.repeat(stored, self._batch, axis=0))
        self._interpreter.invoke()
        return self

    def stored(self, tensor: int) -> np.ndarray:
        """A tensor's stored values after the last run."""
        return self._interpreter.get_tensor(tensor)

    def real(self, tensor: int) -> np.ndarray:
        """A tensor's real values after the last run."""
        stored, params = self.stored(tensor), self.file.quantization(tensor)
        return stored if params is None or stored.dtype.kind == "f" else params.dequantize(stored)
