"""Registries by name: initialisers, scores, state policies, operators. One call adds one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from graphnet.errors import EditError

__all__ = ["Registry"]

MAX_NUMBER = 1e300

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """Functions of one kind by name.

    Parameters
    ----------
    kind : str
        What they are, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, F] = {}
        self._options: dict[str, dict[str, bool]] = {}  # for each entry its options, and which of them it needs

    def register(self, name: str) -> Callable[[F], F]:
        """Add a function under a name (decorator)."""

        def add(function: F) -> F:
            if name in self._entries:
                raise EditError(f"there is already {self._article()} {self.kind} named {name!r}")
            parameters = inspect.signature(function).parameters.values()
            options = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
            self._options[name] = {p.name: p.default is inspect.Parameter.empty for p in options}
            self._entries[name] = function
            return function

        return add

    def get(self, name: str) -> F:
        """The function of a name; an :class:`EditError` with near names where there is none."""
        found = self._entries.get(name) if isinstance(name, str) else None
        if found is None:
            near = get_close_matches(str(name), self._entries, n=2)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(sorted(self))}"
            raise EditError(f"there is no {self.kind} {name!r}; {hint}")
        return found

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call an entry; an option that it does not take is an :class:`EditError` that lists those it does."""
        function = self.get(name)
        takes = self._options[name]
        wrong = [option for option in options if option not in takes]
        if wrong:
            listed = ", ".join(takes) or "no options"
            raise EditError(f"the {self.kind} {name!r} does not take {', '.join(wrong)}; it takes {listed}")
        missing = [option for option, needed in takes.items() if needed and option not in options]
        if missing:
            raise EditError(f"the {self.kind} {name!r} needs {', '.join(f'{option}=' for option in missing)}")
        types = _annotations(function) if options else {}
        for option, value in options.items():
            expected = _misfit(types.get(option), value)
            if expected:
                raise EditError(f"{name}: {option} is {expected}, not {value!r}")
            if types.get(option) is float:
                options[option] = float(value)
        return function(*args, **options)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _article(self) -> str:
        return "an" if self.kind[0] in "aeiou" else "a"


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # a function of the caller's whose annotations name what is not there at run time
        return {}


def _misfit(annotation: Any, value: Any) -> str | None:
    """What an option with this annotation must be, where the value is not; annotations of other kinds pass."""
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        fits = isinstance(value, str | int) and value in choices
        return None if fits else " or ".join(map(repr, choices))
    if annotation is bool:
        return None if isinstance(value, bool) else "True or False"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is float:
        return None if number and abs(value) <= MAX_NUMBER else "a finite number"
    if annotation is int:
        return None if number and isinstance(value, int) else "a whole number"
    return None
