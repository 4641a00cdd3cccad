"""README and docs: commands and their options, imports and arguments exist."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from mnv2_keras.cli.main import command_line

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "weights" / "README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(path: Path, *languages: str) -> list[str]:
    """The code blocks of a Markdown file in one of the languages."""
    return [text for language, text in BLOCK.findall(path.read_text()) if language in languages]


def command_lines(path: Path) -> list[list[str]]:
    """The words after `mnv2` in blocks and in inline code."""
    text = path.read_text()
    lines = [line for block in blocks(path, "", "sh", "bash", "console") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(mnv2 [^`]+)`", BLOCK.sub("", text).replace("\n", " "))
    lines = [part.strip().removeprefix("$ ") for line in lines for part in re.split(r";|&&", line)]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mnv2 ")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_and_options_exist(path):
    for words in command_lines(path):
        command, rest = typer.main.get_command(command_line()), list(words)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            assert name in command.commands, words
            command = command.commands[name]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= options | {"--help", "-h"}, words


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_and_arguments_in_examples_exist(path):
    for block in blocks(path, "python"):
        tree, names = ast.parse(block), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mnv2_keras"):
                module = importlib.import_module(node.module)
                names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                parameters = inspect.signature(names[node.func.id]).parameters
                if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
                    assert {word.arg for word in node.keywords if word.arg} <= set(parameters), ast.unparse(node)
