"""Every notebook runs from top to bottom in its small setting, without the network."""

import ast
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request, tmp_path, monkeypatch):
    """A notebook; its working folder is empty, its setting small, and there is no network."""
    monkeypatch.setenv("MNV2_OFFLINE", "1")
    monkeypatch.setenv("MNV2_SMALL", "1")  # a notebook then keeps its training short
    monkeypatch.chdir(tmp_path)
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list:
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def show(value: object) -> None:
    """Format a value as a notebook does; a value that has no form at all is an error."""
    if value is not None:
        assert DisplayFormatter().format(value)[0]


def run(source: str, name: str, namespace: dict) -> None:
    """Run a cell; its last expression is shown."""
    tree = ast.parse(TransformerManager().transform_cell(source), name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is not None:
        show(eval(compile(ast.Expression(last.value), name, "eval"), namespace))


@pytest.mark.filterwarnings("ignore")  # a notebook does not turn warnings into errors
def test_runs(notebook):
    """In this process: a kernel of its own takes seconds to import TensorFlow."""
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "saved with outputs: clear them"
    namespace = {"__name__": "__main__", "display": show}
    for number, cell in enumerate(code_cells(notebook)):
        run(cell.source, f"cell {number}", namespace)
    plt.close("all")


@pytest.mark.slow
def test_runs_in_a_kernel(notebook, tmp_path):
    """As a user runs it: in a fresh process, whose working folder is empty."""
    resources = {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert all(cell.execution_count for cell in code_cells(notebook))


def test_a_failing_cell_and_a_magic_are_run_as_in_a_notebook():
    namespace = {}
    run("if False:\n    %pip install nothing\nvalue = 2\nvalue", "cell", namespace)
    assert namespace["value"] == 2
    with pytest.raises(ZeroDivisionError):
        run("1 / 0", "cell", namespace)
