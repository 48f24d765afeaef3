"""The operators of the law matrix that edit units: growth by every initialiser, and what else there is."""

from __future__ import annotations

from typing import Any, TypeAlias

from graphnet.edit.edit import Edit
from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.scores import SCORES
from graphnet.testing.law_registry import Case, operator

__all__ = ["GROWTH", "Data"]

Data: TypeAlias = dict[str, Any]
"""``batch`` and ``loss``, as operators take them."""

GROWTH = {
    "Growth that can preserve the function": (
        "zero-outgoing", "zero-incoming", "pair-cancel", "net2wider", "gradmax", "variance-transfer",
    ),
    "Growth that changes the function": ("kaiming", "copy-std", "tiny", "firefly", "nest"),
}  # fmt: skip
"""Initialisers by the table that they stand in; others make a third."""

_OPTIONS: dict[str, dict[str, Any]] = {"nest": {"scale": 0.1}, "firefly": {"candidates": 20, "steps": 2}}


def _growth(init: str) -> None:
    family = next((name for name, inits in GROWTH.items() if init in inits), "Growth for one place")

    @operator(f"grow {init}", family)
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        edit.grow(on.group, 2, init=init, **data, **_OPTIONS.get(init, {}), **promise)


for _init in dict.fromkeys((*(one for inits in GROWTH.values() for one in inits), *INITIALISERS)):
    if INITIALISERS.get(_init).__module__.startswith("graphnet."):
        _growth(_init)


def _first(edit: Edit, on: Case, count: int = 1) -> list[int]:
    return list(edit.graph.group(on.group).ids[:count])


def _splitting(by: str, **options: Any) -> None:
    @operator(f"split {by}", "Other operators on units")
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        which = {"units": _first(edit, on)} if by == "net2wider" else {"highest": 1, **data}
        edit.split(on.group, by=by, **which, **options, **promise)


_splitting("net2wider")
_splitting("firefly", steps=2)
_splitting("steepest")


def _copy(edit: Edit, on: Case, data: Data) -> None:
    edit.split(on.group, units=_first(edit, on))


@operator("merge duplicates", "Other operators on units", prepare=_copy)
def _merge(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    ids = edit.graph.group(on.group).ids
    edit.merge(on.group, pairs=[(ids[0], ids[-1])], **promise)


@operator("permute", "Other operators on units")
def _permute(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.permute(on.group, order=edit.graph.group(on.group).ids[::-1], **promise)


def _silent(edit: Edit, on: Case, data: Data) -> None:
    edit.grow(on.group, 1, init="zero-outgoing")


@operator("prune units without outgoing weights", "Other operators on units", prepare=_silent)
def _prune_silent(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.prune(on.group, units=[edit.graph.group(on.group).ids[-1]], **promise)


@operator("prune", "Other operators on units")
def _prune(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.prune(on.group, units=_first(edit, on), **promise)


@operator("retire", "Other operators on units", promises=False)
def _retire(edit: Edit, on: Case, data: Data) -> None:
    edit.retire(on.group, units=_first(edit, on))


@operator("recruit", "Other operators on units", prepare=_retire, promises=False)
def _recruit(edit: Edit, on: Case, data: Data) -> None:
    edit.recruit(on.group, units=edit.graph.group(on.group).dormant)


@operator("reset units without outgoing weights", "Other operators on units", prepare=_silent)
def _reset_silent(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.reset(on.group, units=[edit.graph.group(on.group).ids[-1]], **promise)


@operator("reset", "Other operators on units")
def _reset(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.reset(on.group, units=_first(edit, on), **promise)


@operator("prune, compensated", "Other operators on units")
def _prune_compensated(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.prune(on.group, units=_first(edit, on), compensate=True, **data, **promise)


@operator("reset, compensated", "Other operators on units")
def _reset_compensated(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.reset(on.group, units=_first(edit, on), compensate=True, **data, **promise)


@operator("split every unit", "Other operators on units")
def _split_all(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.split(on.group, units=list(edit.graph.group(on.group).ids), **promise)


@operator("grow corrected, doubled", "Growth for one place")
def _double(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.grow(on.group, edit.graph.group(on.group).size, init="corrected", **promise)


def _pruning(score: str) -> None:
    @operator(f"prune by {score}", "Pruning one unit by its score")
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        edit.prune(on.group, lowest=1, score=score, **data, **promise)


for _score in SCORES:
    if SCORES.get(_score).__module__.startswith("graphnet."):
        _pruning(_score)
