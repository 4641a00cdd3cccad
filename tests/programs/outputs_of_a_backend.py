"""Outputs of networks on another backend of Keras, which must not need TensorFlow.

Arguments: the backend's name, the .npz file for the outputs. Standard input: a list of options of `build_mobilenetv2`.
"""

import ast
import importlib.machinery
import sys


class WithoutTensorFlow:
    """An import of TensorFlow fails."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "tensorflow" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise ModuleNotFoundError(module.__name__)


sys.meta_path.insert(0, WithoutTensorFlow())
import keras  # noqa: E402
import numpy as np  # noqa: E402

from mnv2_keras import build_mobilenetv2  # noqa: E402
from mnv2_keras.convert.goldens import name_rule_value, seeded_input  # noqa: E402
from mnv2_keras.convert.names import variables  # noqa: E402
from mnv2_keras.convert.transfer import load_arrays  # noqa: E402

backend, path = sys.argv[1:]
assert keras.backend.backend() == backend
outputs = {}
for i, options in enumerate(ast.literal_eval(sys.stdin.read())):
    model = build_mobilenetv2(**options)
    load_arrays(model, {name: name_rule_value(name, tuple(v.shape)) for name, v in variables(model).items()})
    shape = (2, *(side or 51 for side in options["input_shape"][:2]), options["input_shape"][2])
    images = keras.ops.convert_to_tensor(seeded_input(shape))
    outputs[str(i)] = keras.ops.convert_to_numpy(model(images))
    if i == 0:
        model.save(path.replace(".npz", ".keras"))
        loaded = keras.models.load_model(path.replace(".npz", ".keras"))
        assert np.array_equal(keras.ops.convert_to_numpy(loaded(images)), outputs["0"])
np.savez(path, **outputs)
