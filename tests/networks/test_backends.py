"""The builder on Keras' other backends: the same outputs from the same weights. Run by `make test-backends`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnv2_keras import build_mobilenetv2
from mnv2_keras.convert.goldens import name_rule_value, seeded_input
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.transfer import load_arrays

OPTIONS = [
    {"alpha": 0.35, "input_shape": (97, 64, 3), "classes": 11},
    {"alpha": 0.35, "input_shape": (None, None, 3), "classes": 11},
    {"alpha": 0.5, "input_shape": (65, 65, 3), "output_stride": 8, "explicit_padding": True, "include_top": False},
    {"alpha": 0.5, "input_shape": (64, 64, 3), "normalization": "group_norm", "include_top": False},
    {"alpha": 0.5, "input_shape": (64, 64, 3), "classes": 5, "split_expansion": 4, "split_projection": 4},
    {"alpha": 0.35, "input_shape": (48, 48, 1), "classes": 5, "include_preprocessing": True, "output_stride": 16},
]

PROGRAM = Path(__file__).parents[1] / "programs" / "outputs_of_a_backend.py"


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_outputs(backend, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed: make test-backends installs it")
    out = tmp_path / "outputs.npz"
    done = subprocess.run(
        [sys.executable, PROGRAM, backend, out],
        input=repr(OPTIONS),
        text=True,
        capture_output=True,
        env=os.environ | {"KERAS_BACKEND": backend},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as outputs:
        for i, options in enumerate(OPTIONS):
            model = build_mobilenetv2(**options)
            load_arrays(model, {name: name_rule_value(name, v.shape) for name, v in variables(model).items()})
            shape = (2, *(side or 51 for side in options["input_shape"][:2]), options["input_shape"][2])
            ours = np.asarray(model(seeded_input(shape)))
            np.testing.assert_allclose(outputs[str(i)], ours, rtol=0, atol=3e-4 * np.ptp(ours))
