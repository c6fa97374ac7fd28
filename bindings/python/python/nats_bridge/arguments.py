"""Arguments on their way to the core: what is wrong with one is said with its name."""

import inspect
import json
from collections.abc import Mapping
from os import PathLike, fspath

from .errors import InvalidConfig

__all__ = ["as_json", "crossing", "function", "number", "path", "runs_when_called", "wrong_type"]


def wrong_type(name: str, wanted: str, given: object) -> TypeError:
    """The error for an argument of another type."""
    return TypeError(f"argument '{name}': {wanted} is wanted, not {type(given).__name__}")


def crossing(given: Mapping[str, object], within: str = "") -> dict[str, object]:
    """What is not ``None``, once it is known that JSON has it."""
    here = {name: value for name, value in given.items() if value is not None}
    for name, value in here.items():
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            if isinstance(value, int) and not -(2**63) <= value < 2**64:
                raise ValueError(f"{value} is out of range")
        except TypeError:
            raise wrong_type(f"{within}{name}", "a text, a number, or a list or mapping of them", value) from None
        except ValueError as error:
            context = {"field": f"{within}{name}", "why": str(error)}
            text = f"config: field={context['field']} why={context['why']}"
            raise InvalidConfig(text, code="config", context=context) from None
    return here


def as_json(**given: object) -> str:
    """Arguments as the core reads them; ``None`` is its default."""
    return json.dumps(crossing(given))


def path(name: str, given: str | PathLike[str]) -> str:
    """A path as a text."""
    try:
        text: object = fspath(given)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise wrong_type(name, "str or os.PathLike", given)
    return text


def function(name: str, given: object) -> None:
    """Refuses what cannot be called."""
    if not callable(given):
        raise wrong_type(name, "a function", given)


def runs_when_called(name: str, given: object, *, awaited: bool = False) -> None:
    """Refuses what cannot be called, and a function that does nothing yet when it is called. ``awaited``: the caller awaits a coroutine."""
    function(name, given)
    for called in (given, getattr(type(given), "__call__", None)):
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(f"argument '{name}': a function without 'yield' is wanted: one with it does nothing when it is called")
        if not awaited and inspect.iscoroutinefunction(called):
            raise TypeError(f"argument '{name}': a plain function is wanted, not 'async def': nobody would await it")


def number(name: str, given: object) -> None:
    """Refuses what is no whole number."""
    if not isinstance(given, int):
        raise wrong_type(name, "int", given)
