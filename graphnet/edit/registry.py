"""Registries by name: initialisers, scores, state policies, operators. One call adds one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from graphnet.errors import EditError

__all__ = ["Registry"]

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

    def register(self, name: str) -> Callable[[F], F]:
        """Add a function under a name (decorator)."""

        def add(function: F) -> F:
            if name in self._entries:
                raise EditError(f"there is already {self._article()} {self.kind} named {name!r}")
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
        takes = [
            p.name for p in inspect.signature(function).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        wrong = [option for option in options if option not in takes]
        if wrong:
            listed = ", ".join(takes) or "no options"
            raise EditError(f"the {self.kind} {name!r} does not take {', '.join(wrong)}; it takes {listed}")
        return function(*args, **options)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _article(self) -> str:
        return "an" if self.kind[0] in "aeiou" else "a"
