"""Every notebook runs from top to bottom in its small setting, without the network."""

import ast
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
#: The others train and quantise for longer; only `make test-slow` runs them.
QUICK = ("01_build_and_convert", "04_segment", "06_digits")


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """The working folder of a notebook is empty, its setting small, and there is no network."""
    monkeypatch.setenv("MNV2_OFFLINE", "1")
    monkeypatch.setenv("MNV2_SMALL", "1")  # a notebook then keeps its training short
    monkeypatch.chdir(tmp_path)


def read(path: Path):
    """A notebook that follows the format and has no saved outputs."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "saved with outputs: clear them"
    return notebook


def code_cells(notebook) -> list:
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def show(value: object) -> dict:
    """The forms in which a notebook shows a value, by type; empty for None."""
    return {} if value is None else DisplayFormatter().format(value)[0]


def run(source: str, name: str, namespace: dict) -> dict:
    """Run a cell; returns the forms of its last expression."""
    tree = parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    return {} if last is None else show(eval(compile(ast.Expression(last.value), name, "eval"), namespace))


def parse(source: str, name: str) -> ast.Module:
    """A cell as Python, with its magics as function calls."""
    return ast.parse(TransformerManager().transform_cell(source), name)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_that_a_notebook_imports_from_the_package_exists(path):
    for number, cell in enumerate(code_cells(read(path))):
        for node in ast.walk(parse(cell.source, f"cell {number}")):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mnv2_keras"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.filterwarnings("ignore")  # a notebook does not turn warnings into errors
@pytest.mark.usefixtures("setting")
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem in QUICK], ids=lambda path: path.stem)
def test_runs(path):
    """In this process: a kernel takes seconds to import TensorFlow."""
    shown = []
    namespace = {"__name__": "__main__", "display": lambda value: shown.append(show(value))}
    for number, cell in enumerate(code_cells(read(path))):
        shown.append(run(cell.source, f"cell {number}", namespace))
    plt.close("all")
    assert any(shown), "a notebook shows what it computed"


@pytest.mark.slow
@pytest.mark.usefixtures("setting")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_a_kernel(path, tmp_path):
    """As a user runs it: in a fresh process, whose working folder is empty."""
    notebook = read(path)
    resources = {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert all(cell.execution_count for cell in code_cells(notebook))


def test_a_failing_cell_and_a_magic_are_run_as_in_a_notebook():
    namespace = {}
    run("if False:\n    %pip install nothing\nvalue = 2\nvalue", "cell", namespace)
    assert namespace["value"] == 2
    with pytest.raises(ZeroDivisionError):
        run("1 / 0", "cell", namespace)
