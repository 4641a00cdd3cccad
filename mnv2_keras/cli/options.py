"""Options that several commands have, and how their values are read."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

#: `--json`, on every command that reads.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def grouped_options(command: Callable) -> Callable:
    """A decorator for a command with parameters that are dataclasses: each field is an option of the command line.

    The fields are annotated as parameters of a command are, and have default values.
    """
    parameters, groups = [], {}
    for parameter in inspect.signature(command).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            fields = dataclasses.fields(parameter.annotation)
            groups[parameter.name] = parameter.annotation, [field.name for field in fields]
            parameters += [_keyword(field.name, field.type, field.default) for field in fields]
        else:
            parameters.append(_keyword(parameter.name, parameter.annotation, parameter.default))

    @functools.wraps(command)
    def wrapper(**values):
        for name, (kind, fields) in groups.items():
            values[name] = kind(**{field: values.pop(field) for field in fields})
        return command(**values)

    wrapper.__signature__ = inspect.Signature(parameters)
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _keyword(name: str, annotation, default) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def image_size(text: str | None) -> tuple[int, int] | None:
    """The value of `--resolution`, "224" or "96x160", as (height, width) in pixels; None stays None.

    Raises:
        ValueError: it is neither.
    """
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise ValueError(f"--resolution is {text!r}: expected a number of pixels such as 224, or HEIGHTxWIDTH such as 96x160.")
    return int(sides[0]), int(sides[-1])


def numbers(text: str) -> tuple[float, ...]:
    """A list of numbers such as "0.75,1,1.25".

    Raises:
        ValueError: a part of it is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers: expected numbers such as 0.75,1,1.25.") from None


def unique_stems(paths: list[Path]) -> list[str]:
    """The file names without suffix; equal ones get a number, so that no output file overwrites another."""
    stems: dict[str, None] = {}
    for path in paths:
        names = itertools.chain([path.stem], (f"{path.stem}-{number}" for number in itertools.count(2)))
        stems[next(name for name in names if name not in stems)] = None
    return list(stems)
