"""The builder on Keras' other backends: the same outputs from the same weights. Run by `make test-backends`."""

import os
import subprocess
import sys

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

CHILD = """
import importlib.machinery
import sys

class WithoutTensorFlow:  # another backend needs none: whoever imports it fails
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise ModuleNotFoundError(module.__name__)

sys.meta_path.insert(0, WithoutTensorFlow())
import keras
import numpy as np
from mnv2_keras import build_mobilenetv2
from mnv2_keras.convert.transfer import load_arrays
from mnv2_keras.convert.goldens import name_rule_value, seeded_input
from mnv2_keras.convert.names import variables
backend, out = sys.argv[1:]
assert keras.backend.backend() == backend
results = {}
for i, options in enumerate(eval(sys.stdin.read(), {})):
    model = build_mobilenetv2(**options)
    load_arrays(model, {name: name_rule_value(name, tuple(v.shape)) for name, v in variables(model).items()})
    shape = (2, *(side or 51 for side in options["input_shape"][:2]), options["input_shape"][2])
    results[str(i)] = keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(seeded_input(shape))))
    if i == 0:
        path = out.replace(".npz", ".keras")
        model.save(path)
        again = keras.models.load_model(path)
        same = keras.ops.convert_to_numpy(again(keras.ops.convert_to_tensor(seeded_input(shape))))
        assert np.array_equal(same, results["0"])
np.savez(out, **results)
"""


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_outputs(backend, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed: make test-backends installs it")
    out = tmp_path / "outputs.npz"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, backend, str(out)],
        input=repr(OPTIONS),
        text=True,
        capture_output=True,
        env=os.environ | {"KERAS_BACKEND": backend},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as theirs:
        for i, options in enumerate(OPTIONS):
            model = build_mobilenetv2(**options)
            load_arrays(model, {name: name_rule_value(name, v.shape) for name, v in variables(model).items()})
            shape = (2, *(side or 51 for side in options["input_shape"][:2]), options["input_shape"][2])
            ours = np.asarray(model(seeded_input(shape)))
            np.testing.assert_allclose(theirs[str(i)], ours, rtol=0, atol=3e-4 * np.ptp(ours))
