"""`mnv2` in this process, as tests call it."""

import sys

import pytest
from typer.testing import CliRunner

from mnv2_keras.cli import main


def run(monkeypatch, *arguments):
    """Run `mnv2` in this process."""
    monkeypatch.setattr("mnv2_keras.cli.console.out.width", 200, raising=False)
    return CliRunner().invoke(main.command_line(), [str(argument) for argument in arguments])


def mnv2(capsys, monkeypatch, *arguments):
    """Run `mnv2` as its entry point does."""
    monkeypatch.setattr(sys, "argv", ["mnv2", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err
