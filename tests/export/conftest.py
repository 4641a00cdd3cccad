"""A small network for the tests of export, converted once."""

import keras
import numpy as np
import pytest
from small_litert import SHAPE, share_conversions, trained_like

from mnv2_keras.export.conversion import convert_in_process
from mnv2_keras.tflite import TfliteFile


@pytest.fixture(scope="session")
def small_model() -> keras.Model:
    """A classifier of 11 classes at 64 pixels. Tests leave its weights as they are."""
    return trained_like(0.35, SHAPE)


@pytest.fixture(scope="session")
def float_file(small_model) -> TfliteFile:
    """`small_model` as a float32 file. Tests leave it as it is."""
    return convert_in_process(small_model, "float32", [1, *SHAPE])


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    """Eight images of noise in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (8, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def shared_conversions():
    """See `share_conversions`."""
    with pytest.MonkeyPatch.context() as patch:
        share_conversions(patch)
        yield
