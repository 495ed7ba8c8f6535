"""One-line mutations: a function with a piece of its source replaced, in place until the test ends, never in the files.

The piece must stand in the function exactly once: where the code is rewritten, the mutation fails and asks to be rewritten with it,
instead of changing nothing unseen.
"""

import inspect
import textwrap
from types import FunctionType
from typing import Any

import pytest


class MutationError(Exception):
    """The mutation does not fit the code (any more)."""


def replace(patch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Let `owner` (a module or a class) have its function `name` with the one occurrence of `old` replaced by `new`."""
    patch.setattr(owner, name, mutated(inspect.getattr_static(owner, name), old, new))


def mutated(function: Any, old: str, new: str) -> Any:
    """Return the function compiled anew, in its own module, with a piece of its source replaced."""
    wrap: Any = None
    if isinstance(function, staticmethod | classmethod):
        wrap, function = type(function), function.__func__
    elif isinstance(function, property):
        assert function.fget is not None
        wrap, function = property, function.fget
    plain = inspect.unwrap(function)
    if not isinstance(plain, FunctionType):
        raise MutationError(f"{function!r} is no function written in Python")
    source = textwrap.dedent(inspect.getsource(plain))
    if source.count(old) != 1:
        raise MutationError(f"{plain.__qualname__} holds {source.count(old)} times, not once: {old}")
    lines = source.replace(old, new).splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith(("def ", "async def ")))  # without decorators
    space: dict[str, Any] = {}
    code = compile("\n" * (plain.__code__.co_firstlineno - 1 + start) + "".join(lines[start:]), plain.__code__.co_filename, "exec")
    exec(code, plain.__globals__, space)
    changed = space[plain.__name__]
    changed.__qualname__, changed.__kwdefaults__, changed.__defaults__ = (
        plain.__qualname__,
        plain.__kwdefaults__,
        plain.__defaults__,
    )
    return wrap(changed) if wrap else changed
