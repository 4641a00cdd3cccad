"""Small checkpoints with the goldens' weights, and what tests of conversion do with them."""

import tarfile

import numpy as np

from mnv2_keras import build_mobilenetv2
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables


def arrays_of(model):
    return {name: variable.numpy() for name, variable in variables(model).items()}


def small(**options):
    return build_mobilenetv2(**({"alpha": 0.1, "input_shape": (32, 32, 3), "classes": 4} | options))


def fill_by_name(model):
    """The model, with the goldens' weights."""
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    return model


def filled():
    """A small network with the goldens' weights, and its checkpoint's arrays."""
    model = fill_by_name(small())
    return model, arrays_of(model)


def archive_of(prefix, path, extra=()):
    with tarfile.open(path, "w:gz") as tar:
        for suffix in (".index", ".data-00000-of-00001"):
            tar.add(f"{prefix}{suffix}", f"./{prefix.name}{suffix}")
        for member, content in extra:
            tar.addfile(member, content)
    return path


def same_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))
