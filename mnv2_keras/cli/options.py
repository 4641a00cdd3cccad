"""Options that several commands have, and how their values are read."""

import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

import typer

from mnv2_keras.cli.console import print_warnings

#: `--json`, on every command that reads.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def renamed_options(**renamed: str) -> Callable:
    """A decorator for a command whose options have new names: the old ones still work, and warn on stderr.

    `--help` does not show the old ones.

    Args:
        renamed: old parameter to new parameter. `renamed_options(picture="plot")` accepts `--picture` for `--plot`. The new
            parameter must have a default value.

    Raises:
        ValueError: (from the command) an option is given under both names.
    """

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command)
        old_parameters = [_hidden_option(signature.parameters[new], old) for old, new in renamed.items()]

        def long_name(new: str) -> str:
            option = get_args(signature.parameters[new].annotation)[1]
            names = [name for name in (option.default, *(option.param_decls or ())) if isinstance(name, str)]
            return next((name for name in names if name.startswith("--")), _flag(new)).split("/")[0]

        @functools.wraps(command)
        def wrapper(**values):
            for old, new in renamed.items():
                value = values.pop(old)
                if value is None or value == []:
                    continue
                names = _flag(old), long_name(new)
                if values[new] != signature.parameters[new].default:
                    raise ValueError(f"{names[0]} is the old name of {names[1]}: give only {names[1]}.")
                print_warnings([f"{names[0]} is called {names[1]} now; the old name goes away in the next release."])
                values[new] = value
            return command(**values)

        parameters = [*signature.parameters.values(), *old_parameters]
        wrapper.__signature__ = signature.replace(parameters=parameters)
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


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


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _hidden_option(parameter: inspect.Parameter, name: str) -> inspect.Parameter:
    """An option with another name, hidden from `--help`; its value is None when it is not given."""
    kind, option = get_args(parameter.annotation)
    if not isinstance(option, type(typer.Option())):
        raise TypeError(f"{parameter.name} is not an option: expected Annotated[..., typer.Option(...)].")
    option = copy.copy(option)
    option.default, option.param_decls, option.hidden = _flag(name), None, True
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def image_size(text: str | None) -> tuple[int, int] | None:
    """The value of `--resolution`, "224" or "96x160", as (height, width) in pixels; None stays None.

    Raises:
        ValueError: it is neither.
    """
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise ValueError(
            f"--resolution is {text!r}: expected a number of pixels such as 224, or HEIGHTxWIDTH such as 96x160."
        )
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
