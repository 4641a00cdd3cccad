"""The arrows of docs/map.md: imports go down only, and a bare `import mnv2_keras` is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mnv2_keras

PACKAGE = Path(mnv2_keras.__file__).parent

#: From the bottom up. A module imports from its own layer and from those below.
LAYERS = [
    {"architecture", "registry", "atomic", "subprocess_job", "cache", "analysis", "checks", "deprecation"},
    {"download"},
    {"fetch", "images", "labels", "bundled", "layers", "tflite", "figures"},
    {"preprocessing", "boxes", "masks"},
    {"detection"},
    {"convert", "data"},
    {"weights"},
    {"networks"},
    {"tasks"},
    {"conversion"},
    {"export"},
    {"inference"},
    {"evaluation"},
    {"training", "demonstration"},
    {"cli"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
#: Readable without anything but Python.
STANDARD_LIBRARY_ONLY = {"architecture", "registry", "analysis", "checks", "deprecation"}
#: What exists for LiteRT may import it at the top: nothing else imports these at its own top.
FOR_LITERT = ("export/", "inference/", "tflite.py", "convert/sources/")
#: Imported where they are used: nobody pays for what they do not use.
WHERE_USED = {
    "tensorflow_datasets",
    "ai_edge_litert",
    "matplotlib",
    "torch",
    "ray",
    "jax",
    "openvino",
    "mediapipe",
    "pycocotools",
}


def modules():
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def home(path):
    """The name under `mnv2_keras` that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree, top_only=False):
    """Dotted names a module imports; with `top_only`, those outside functions."""
    nodes = ast.walk(tree)
    if top_only:
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        nodes = (node for node in ast.walk(tree) if id(node) not in inside)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            if node.module == "mnv2_keras":
                yield from (f"mnv2_keras.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    tree, own = ast.parse(path.read_text()), home(path)
    assert own in LEVEL, f"{own} has no place in LAYERS"
    for name in imports(tree):
        root, _, rest = name.partition(".")
        if root == "mnv2_keras":
            other = rest.split(".")[0]
            if other in LEVEL:  # else a name of the package itself, such as __version__
                assert LEVEL[other] <= LEVEL[own], f"{own} imports {other}, which lies above it"
    litert = {"ai_edge_litert"} if path.relative_to(PACKAGE).as_posix().startswith(FOR_LITERT) else set()
    for name in imports(tree, top_only=True):
        assert name.split(".")[0] not in WHERE_USED - litert, f"{name} is imported at the top"
        if own in STANDARD_LIBRARY_ONLY:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "mnv2_keras"}
        if own == "cli":
            assert name.split(".")[0] not in {"tensorflow", "keras", "numpy"}


def test_a_bare_import_brings_nothing_heavy():
    code = "import sys, mnv2_keras; sys.exit(','.join({'tensorflow', 'keras', 'numpy', 'PIL'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names():
    assert set(mnv2_keras.__all__) <= set(dir(mnv2_keras))
    for name in mnv2_keras.__all__:
        value = getattr(mnv2_keras, name)
        assert not isinstance(value, type(sys)), f"{name} is a module: a function of that name cannot be reached"
        if callable(value):
            assert value.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'build_mobilenetv3'"):
        _ = mnv2_keras.build_mobilenetv3


def test_nothing_is_unpickled():
    for path in modules():
        for name in imports(ast.parse(path.read_text())):
            assert name.split(".")[0] not in {"pickle", "dill", "joblib", "shelve", "marshal"}, path
        assert "allow_pickle=True" not in path.read_text(), path
