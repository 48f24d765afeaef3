"""The registries of the law matrix: networks with a group to edit, and operators with their options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from graphnet.ir.graph import Graph

__all__ = ["CASES", "OPERATORS", "Apply", "Case", "Operator", "case", "operator"]


@dataclass(frozen=True, slots=True)
class Case:
    """A network and the group of it that is edited.

    Attributes
    ----------
    name : str
        What kind of layers stand around the group.
    norm : str
        The norm between its writers and its readers, or a dash.
    build : callable
        Makes the graph.
    group : str
    """

    name: str
    norm: str
    build: Callable[[], Graph]
    group: str


Apply: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator with its options, as the matrix runs it.

    Attributes
    ----------
    name : str
    family : str
        The table that it stands in.
    apply : callable
        ``apply(edit, case, data, **promise)``; ``data`` is ``{"batch", "loss"}`` and ``promise`` is empty or
        ``{"preserves": "function"}``.
    prepare : callable or None
        ``prepare(edit, case, data)``, committed before anything is measured.
    promises : bool
        Whether it takes a promise.
    applies : callable or None
        Whether it has a meaning for a case; others are left out.
    """

    name: str
    family: str
    apply: Apply
    prepare: Apply | None = None
    promises: bool = True
    applies: Callable[[Case], bool] | None = None


CASES: dict[str, Case] = {}
OPERATORS: dict[str, Operator] = {}


def case(name: str, norm: str, group: str) -> Callable[[Callable[[], Graph]], Callable[[], Graph]]:
    """Add a case: decorates a function that makes its graph."""

    def add(build: Callable[[], Graph]) -> Callable[[], Graph]:
        key = name if norm == "–" else f"{name} ({norm})"
        if key in CASES:
            raise ValueError(f"there is already a case {key!r}")
        CASES[key] = Case(name, norm, build, group)
        return build

    return add


def operator(
    name: str,
    family: str,
    *,
    prepare: Apply | None = None,
    promises: bool = True,
    applies: Callable[[Case], bool] | None = None,
) -> Callable[[Apply], Apply]:
    """Add an operator: decorates its ``apply``."""

    def add(apply: Apply) -> Apply:
        if name in OPERATORS:
            raise ValueError(f"there is already an operator {name!r}")
        OPERATORS[name] = Operator(name, family, apply, prepare, promises, applies)
        return apply

    return add
