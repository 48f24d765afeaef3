"""Whether what should be text is text: names that a caller gives to an operator, by the operator's own annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from graphnet.errors import EditError

__all__ = ["check_texts"]

_TEXT = {"str", "str | None", "str | Sequence[str]", "str | Sequence[str] | None"}
"""Annotations, as they are written, of arguments that are looked at here."""


def check_texts(operator: Callable[..., object], args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuse a name that is no text, before an operator looks it up.

    Parameters
    ----------
    operator : callable
        One of :mod:`graphnet.edit.operators`; its first parameter is the plan.
    args, options
        What it is about to be called with, without the plan.

    Raises
    ------
    EditError
        Names the argument and says what it takes.
    """
    names, kinds = _parameters(operator)
    for name, value in (*zip(names, args, strict=False), *options.items()):
        kind = kinds.get(name)
        if kind is None or isinstance(value, str) or (value is None and kind.endswith("None")):
            continue
        several = "Sequence" in kind
        if several and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
            continue
        wanted = "a name, or a list of names" if several else "text"
        raise EditError(
            f"{operator.__name__.removesuffix('_op').removeprefix('resize_')}: {name} is {wanted}, not {value!r}"
        )


@lru_cache(maxsize=256)
def _parameters(operator: Callable[..., object]) -> tuple[tuple[str, ...], Mapping[str, str]]:
    parameters = list(inspect.signature(operator).parameters.values())[1:]
    kinds = {one.name: one.annotation for one in parameters if one.annotation in _TEXT}
    return tuple(one.name for one in parameters), kinds
