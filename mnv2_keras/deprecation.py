"""Old names of public things: they work for one release and warn (standard library)."""

import functools
import warnings
from collections.abc import Callable


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Say that `old` is called `new` now."""
    warnings.warn(f"{old} is called {new} now; the old name goes away in the next release.", DeprecationWarning, stacklevel)


def renamed_arguments(**renamed: str | tuple[str, Callable]):
    """A decorator: keyword arguments under their old names still work, with a `DeprecationWarning`.

    Args:
        renamed: old name to new name, or to (new name, function from the old value to the new one).

    Raises:
        TypeError: a call gives an argument under both names.
    """

    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **options):
            for old in renamed.keys() & options.keys():
                new, convert = renamed[old] if isinstance(renamed[old], tuple) else (renamed[old], lambda value: value)
                if new in options:
                    raise TypeError(f"{function.__qualname__}() got both {old} and {new}: give {new} alone.")
                warn_renamed(f"the argument {old} of {function.__qualname__}", new)
                options[new] = convert(options.pop(old))
            return function(*args, **options)

        return wrapper

    return decorate
