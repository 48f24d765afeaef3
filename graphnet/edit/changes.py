"""What an operator did to a graph, as plain data: enough to do it again without tensors.

Most steps say it by the ids of units that were born or dropped. Where that is not enough (a permutation, units that
take the place of others, ops that come and go), a step carries a list of changes, each a mapping:

``{"kind": "units", "groups": {name: {"ids", "dormant", "next_id"}}}``
    Groups with other units; ids as runs ``[first, last]``.
``{"kind": "ops", "put", "remove", "moved", "resized", "fresh", "groups"}``
    Ops that came or changed (as in an architecture document), went or were renamed; ``groups`` names unit groups
    that go on under another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import filterfalse
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, SerializeAsAny, TypeAdapter, ValidationError

from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup, compress, expand
from graphnet.ir.layout import IndexArray
from graphnet.ir.ops import OPS
from graphnet.ir.ops.base import Op
from graphnet.ir.rewrite import Rewritten
from graphnet.schemas.base import Frozen

__all__ = ["Change", "follow", "follow_units", "ops_change", "units_change"]

Change: TypeAlias = Mapping[str, Any]

Run: TypeAlias = tuple[int, int]


class _Units(Frozen):
    ids: tuple[Run, ...]
    dormant: tuple[Run, ...] = ()
    next_id: int


class _UnitsChange(Frozen):
    kind: Literal["units"]
    groups: dict[str, _Units]


class _OpsChange(Frozen):
    kind: Literal["ops"]
    put: tuple[SerializeAsAny[dict[str, Any]], ...] = ()
    remove: tuple[str, ...] = ()
    moved: dict[str, str] = Field(default_factory=dict)
    resized: dict[str, dict[str, tuple[int, ...]]] = Field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    groups: dict[str, str] = Field(default_factory=dict)


_CHANGE: TypeAdapter[_UnitsChange | _OpsChange] = TypeAdapter(
    Annotated[_UnitsChange | _OpsChange, Field(discriminator="kind")]
)


def units_change(after: Graph, groups: Iterable[str]) -> Change:
    """What one step of unit maps came to."""
    return {
        "kind": "units",
        "groups": {
            name: {
                "ids": [list(run) for run in compress(after.groups[name].ids)],
                "dormant": [list(run) for run in compress(after.groups[name].dormant)],
                "next_id": after.groups[name].next_id,
            }
            for name in groups
        },
    }


def ops_change(
    put: Sequence[Op],
    remove: Sequence[str],
    found: Rewritten,
    moved: Mapping[str, str],
    resized: Mapping[str, Mapping[int, IndexArray]],
    fresh: Iterable[str],
) -> Change:
    """What one rewrite came to."""
    return {
        "kind": "ops",
        "put": [op.model_dump(mode="json", exclude_defaults=True) | {"op": op.op} for op in put],
        "remove": list(remove),
        "moved": dict(moved),
        "resized": {name: {str(dim): one.tolist() for dim, one in dims.items()} for name, dims in resized.items()},
        "fresh": list(fresh),
        "groups": {new: old for new, old in found.origins.items() if new != old},
    }


def follow(graph: Graph, change: Change) -> Graph:
    """The graph after a change.

    Raises
    ------
    EditError
        It is not a change, or does not fit the graph.
    """
    try:
        read = _CHANGE.validate_python(change)
        if isinstance(read, _UnitsChange):
            groups = {}
            for name, units in read.groups.items():
                ids, dormant = expand(units.ids), expand(units.dormant)
                groups[name] = replace(graph.group(name), ids=ids, dormant=dormant, next_id=units.next_id)
            return graph.resized(groups)
        put = [TypeAdapter(OPS[str(data.get("op"))]).validate_python(data) for data in read.put]
        resized = {
            name: {int(dim): np.array(one, dtype=np.int64) for dim, one in dims.items()}
            for name, dims in read.resized.items()
        }
        return graph.rewritten(put, remove=read.remove, moved=read.moved, resized=resized, fresh=read.fresh)
    except (ValidationError, KeyError, ValueError) as error:
        raise EditError(f"not a change of a graph: {error}") from error
    except EditError:
        raise
    except GraphnetError as error:
        raise EditError(str(error)) from error


def follow_units(group: UnitGroup, born: Sequence[int], dropped: Sequence[int], *, dormant: bool) -> UnitGroup:
    """The group after units came or went, as most operators do it: newborns at the end, order kept.

    Raises
    ------
    EditError
        The ids do not fit the group.
    """
    live, resting, gone = group.ids, set(group.dormant), set(dropped)
    if absent := gone.difference(live):
        raise EditError(f"units {sorted(absent)[:8]} go that are not there")
    live = tuple(filterfalse(gone.__contains__, live))
    if dormant:
        if missing := sorted(set(born) - resting):
            raise EditError(f"units {missing[:8]} come back that are not dormant")
        resting = (resting | gone) - set(born)
        live = _woken(live, born)
        return replace(group, ids=live, dormant=tuple(sorted(resting)))
    if wrong := [unit for unit in born if unit < group.next_id]:
        raise EditError(f"units {wrong[:8]} are born, but ids below {group.next_id} were given before")
    if not born:
        return replace(group, ids=live)
    return replace(group, ids=(*live, *born), next_id=max([group.next_id, *(unit + 1 for unit in born)]))


def _woken(live: tuple[int, ...], woken: Sequence[int]) -> tuple[int, ...]:
    """Units that come back stand in order of id where the others do, else at the end."""
    return tuple(sorted((*live, *woken))) if list(live) == sorted(live) else (*live, *woken)
