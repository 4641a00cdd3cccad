"""The arrows of docs/map.md: imports go down only, and a bare `import mnv2_keras` is cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mnv2_keras

PACKAGE = Path(mnv2_keras.__file__).parent

MAP = Path(__file__).parents[1] / "docs" / "map.md"

#: From the bottom up. A module imports from its own layer and from those below. docs/map.md shows the same.
LAYERS = [
    {"registry", "atomic", "subprocess_job", "cache", "checks", "deprecation", "quant_params"},
    {"architecture"},
    {"analysis", "download"},
    {"fetch", "images", "labels", "bundled", "layers", "tflite", "figures"},
    {"preprocessing", "boxes", "masks"},
    {"detection"},
    {"convert", "data", "hub"},
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
FOR_LITERT = ("export/", "inference/", "tflite/", "convert/sources/")
#: Imported where they are used: nobody pays for what they do not use.
WHERE_USED = {"tensorflow_datasets", "ai_edge_litert", "matplotlib", "torch", "ray", "jax", "openvino", "mediapipe", "pycocotools"}


def modules():
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def home(path):
    """The name under `mnv2_keras` that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def dynamic_import(call) -> str | None:
    """The module that `import_module("...")` or `__import__("...")` names; of an f-string, the constant part at its start."""
    function = getattr(call.func, "attr", getattr(call.func, "id", None))
    if function not in ("import_module", "__import__"):
        return None
    argument = next(iter(call.args), None) or next((word.value for word in call.keywords if word.arg == "name"), None)
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value.rstrip(".")
    return None


def imports(tree, top_only=False):
    """Dotted names a module imports, dynamic imports included; with `top_only`, those outside functions."""
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
        elif isinstance(node, ast.Call) and (name := dynamic_import(node)):
            yield name


def upward_imports(tree, own: str):
    """The modules of the package that a file of `own` imports from above its layer."""
    for name in imports(tree):
        root, _, rest = name.partition(".")
        other = rest.split(".")[0]
        # What has no layer is a name of the package itself, such as __version__.
        if root == "mnv2_keras" and LEVEL.get(other, -1) > LEVEL[own]:
            yield name


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    tree, own, file = ast.parse(path.read_text()), home(path), path.relative_to(PACKAGE).as_posix()
    assert own in LEVEL, f"{own} has no place in LAYERS"
    assert not list(upward_imports(tree, own)), f"{file} imports from above its layer"
    litert = {"ai_edge_litert"} if file.startswith(FOR_LITERT) else set()
    for name in imports(tree, top_only=True):
        assert name.split(".")[0] not in WHERE_USED - litert, f"{name} is imported at the top"
        if own in STANDARD_LIBRARY_ONLY:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "mnv2_keras"}
        if own == "cli":
            assert name.split(".")[0] not in {"tensorflow", "keras", "numpy"}


@pytest.mark.parametrize(
    "code",
    [
        "from mnv2_keras.export.litert import export_litert",
        "def f():\n    import mnv2_keras.export.litert",
        "import importlib\nimportlib.import_module('mnv2_keras.export.litert')",
        "from importlib import import_module\ndef f():\n    import_module(name='mnv2_keras.export')",
        "def f(name):\n    __import__(f'mnv2_keras.export.{name}')",
        "from mnv2_keras import export",
    ],
)
def test_an_import_upwards_is_found_however_it_is_written(code):
    assert list(upward_imports(ast.parse(code), "networks"))
    assert not list(upward_imports(ast.parse(code), "inference"))


def module_file(name: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def defined_names(file: Path) -> set[str]:
    """Names that a module binds at its top level; for a package, its modules too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if file.name == "__init__.py":
        names |= {path.stem for path in file.parent.iterdir()}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imported_names_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("mnv2_keras."):
            file = module_file(node.module)
            assert file, f"there is no module {node.module}"
            missing = {alias.name for alias in node.names} - defined_names(file)
            assert not missing, f"{node.module} has no {', '.join(sorted(missing))}"
        elif isinstance(node, ast.Call) and (name := dynamic_import(node)) and name.startswith("mnv2_keras"):
            assert module_file(name), f"there is no module {name}"


def test_the_map_shows_the_layers():
    picture = re.search(r"## The layers\n.*?```\n(.*?)```", MAP.read_text(), re.DOTALL)[1]
    shown = [set(re.findall(r"\w+", line)) for line in picture.splitlines() if line.strip()]
    assert shown == LAYERS[::-1], "docs/map.md and LAYERS differ: from the top down, a line for each layer"


def test_the_map_names_files_that_exist():
    """Every `name.py` of the picture of the folders is a file of that folder, and every module at the top has its line."""
    picture = re.search(r"## The folders\n.*?```\n(.*?)```", MAP.read_text(), re.DOTALL)[1]
    folder, named = PACKAGE, set()
    for line in picture.splitlines()[1:]:
        if match := re.match(r"  (\w+)/", line):
            folder = PACKAGE / match[1]
            named.add(match[1])
            assert folder.is_dir(), f"there is no folder {match[1]}"
        elif re.match(r"  \w", line):
            folder = PACKAGE
        for name in re.findall(r"[\w/]+\.py\b", line):
            assert (folder / name).is_file(), f"there is no {name} in {folder.name}"
            named |= {Path(name).stem} if folder == PACKAGE else set()
    assert named == {home(path) for path in modules()}, "docs/map.md does not name all modules and folders at the top"


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
