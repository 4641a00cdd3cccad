"""Checks of arguments: one for each kind of value, all with one form of message (standard library).

Each check returns the value in its plain type, so that NumPy's numbers come out as Python's.
"""

import math
import operator
import os
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from pathlib import Path


def whole_number(name: str, value: object, minimum: int = 1, note: str = "") -> int:
    """`value` as an int.

    Args:
        name: what the message calls it.
        value: an integer of any library, but not a bool.
        minimum: the least value allowed.
        note: what the message adds after the expectation, such as ", or None for all cores".

    Raises:
        ValueError: it is not a whole number of at least `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least {minimum}{note}.")
    return int(value)


def real_number(
    name: str,
    value: object,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    note: str = "",
) -> float:
    """`value` as a float.

    Args:
        name: what the message calls it.
        value: a finite number of any library, but not a bool.
        minimum, maximum: the range allowed.
        above, below: whether `minimum` or `maximum` is excluded.
        note: what the message adds after the expectation, such as ", such as 3e-4".

    Raises:
        ValueError: it is not a finite number within the range.
    """
    is_number = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    inside = is_number and (minimum < value if above else minimum <= value)
    inside = inside and (value < maximum if below else value <= maximum)
    if not inside:
        low = "" if minimum == -math.inf else f" above {minimum:g}" if above else f" from {minimum:g}"
        high = "" if maximum == math.inf else f" below {maximum:g}" if below else f" to {maximum:g}"
        joined = f"{low} and{high}" if above and high else f"{low} to{high}" if below and low else f"{low}{high}"
        raise ValueError(f"{name} is {value!r}: expected a finite number{joined}{note}.")
    return float(value)


def one_of(name: str, value: object, choices: Collection, note: str = "") -> object:
    """`value`, which must be one of `choices`.

    Raises:
        ValueError: it is not; the message lists the choices.
    """
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(map(str, choices))}{note}.")
    return value


def image_shape(name: str, value: object, example: Sequence[int], minimum: int = 1) -> tuple[int | None, int | None, int]:
    """(height, width, channels); height and width may be None.

    Args:
        example: the shape that the message offers.
        minimum: the smallest side in pixels.

    Raises:
        ValueError: it is not a tuple or list of this kind.
    """
    sides = tuple(value) if isinstance(value, tuple | list) else ()
    is_side = [isinstance(side, Integral) and not isinstance(side, bool) and side > 0 for side in sides]
    is_open = [side is None for side in sides[:2]]
    if len(sides) != 3 or not is_side[2] or not all(map(operator.or_, is_side, is_open)):
        raise ValueError(
            f"{name} is {value!r}: expected (height, width, channels), height and width whole numbers or None, such as "
            f"{tuple(example)}."
        )
    if any(side is not None and side < minimum for side in sides[:2]):
        raise ValueError(f"{name} is {sides}: both sides need at least {minimum} pixels.")
    return tuple(None if side is None else int(side) for side in sides)


def user_path(path: str | os.PathLike) -> Path:
    """A path with `~` and `~name` replaced by the user's folder.

    Raises:
        FileNotFoundError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{path} does not exist: there is no user with this name, or no home folder.") from error
