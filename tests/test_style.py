"""How the package's code is written: short functions, few parameters, variables named for what they hold, docstrings."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mnv2_keras"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_PARAMETERS = 80, 9
#: The public builders and exports: they have an argument for each option of the network or the file.
LONGER = {
    "build_mobilenetv2",
    "build_ssdlite_mobilenetv2",
    "build_deeplabv3_mobilenetv2",
    "export_litert",
    "export_detector",
    "export_segmenter",
}
#: Participles and fillers: they say nothing about what the variable holds.
VAGUE = {"found", "each", "kept", "made", "given", "known", "theirs", "whole", "said", "wanted"}


EXAMPLE = '''
def f(self, a, *b, c=1, **d):
    """One.

    Two."""
    # three

    found = (
        a
    )
    return found
'''


def lines_of_code(node: ast.FunctionDef, code: set[int]) -> int:
    """Lines of a function's signature and body that hold code: no blank line, comment or docstring."""
    lines = {line for line in code if node.lineno <= line <= node.end_lineno}
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def code_lines(text: str) -> set[int]:
    """Numbers of the lines with code."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    return {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in ignored
        for line in range(token.start[0], token.end[0] + 1)
    }


def parameters(node: ast.FunctionDef) -> int:
    """The number of parameters, without `self` and `cls`."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return sum(argument is not None and argument.arg not in ("self", "cls") for argument in arguments)


def names_of_variables(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every variable, parameter and attribute where it gets its value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def is_command(node: ast.FunctionDef) -> bool:
    """Whether the parameters are options of the command line: a command has one parameter for each."""
    return any("typer.Option" in ast.unparse(argument.annotation) for argument in node.args.args if argument.annotation)


def problems() -> dict[str, str]:
    """Name of each function that is beyond a limit, and what is wrong with it."""
    result = {}
    for path in FILES:
        text = path.read_text()
        code = code_lines(text)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines, count = lines_of_code(node, code), parameters(node)
            if lines > MOST_LINES or (count > MOST_PARAMETERS and not is_command(node)):
                place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                result[node.name] = f"{place}: {node.name} has {lines} lines of code and {count} parameters"
    return result


def test_functions_are_short_and_have_few_parameters():
    assert not [sentence for name, sentence in problems().items() if name not in LONGER]


def test_every_exemption_is_needed():
    """A function that meets the limits is taken off the list."""
    assert not LONGER - problems().keys()


def test_variables_are_named_for_what_they_hold():
    vague = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in FILES
        for line, name in names_of_variables(ast.parse(path.read_text()))
        if name in VAGUE
    ]
    assert not vague


def test_public_functions_and_classes_have_a_docstring():
    missing = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.name}"
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_" and not ast.get_docstring(node)
    ]
    assert not missing


def test_the_measures_count_what_they_say():
    (node,) = ast.parse(EXAMPLE).body
    assert lines_of_code(node, code_lines(EXAMPLE)) == 5
    assert parameters(node) == 4
    assert (8, "found") in names_of_variables(ast.parse(EXAMPLE))
