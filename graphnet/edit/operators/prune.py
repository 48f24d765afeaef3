"""Prune: remove units, named or chosen by a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.host import Batch, Loss
from graphnet.edit.newborns import Claim, visible
from graphnet.edit.operators.grow import check_claim, check_promise
from graphnet.edit.plan import Plan, Preserves, Step
from graphnet.edit.scores import SCORES
from graphnet.edit.scores.base import Scoring
from graphnet.errors import EditError
from graphnet.ir.groups import UnitGroup

__all__ = ["choose", "prune"]


def prune(
    plan: Plan,
    group: str,
    *,
    units: Sequence[int] | None = None,
    lowest: int | None = None,
    keep: float | int | None = None,
    score: str = "magnitude",
    preserves: Preserves | None = None,
    batch: Batch | None = None,
    loss: Loss | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Remove units from a group; returns their ids. See :meth:`graphnet.edit.edit.Edit.prune`."""
    before = plan.graph.editable(group)
    check_promise(f"prune {before.name!r}", preserves)
    chosen = choose(plan, before, "prune", units, lowest, keep, score, batch, loss, options)
    claim, note = _claim(plan, before, chosen)
    check_claim(f"prune {before.name!r}", Claim(claim, note), preserves)
    gone = set(chosen)
    plan.advance(replace(before, ids=tuple(unit for unit in before.ids if unit not in gone)))
    arguments: dict[str, Any] = {"units": list(chosen)}
    if units is None:
        arguments = {"lowest": len(chosen), "score": score, **(options or {})}
    plan.steps.append(Step("prune", before.name, arguments, (), chosen, claim, note))
    return chosen


def choose(
    plan: Plan,
    group: UnitGroup,
    what: str,
    units: Sequence[int] | None,
    lowest: int | None,
    keep: float | int | None,
    score: str,
    batch: Batch | None,
    loss: Loss | None,
    options: Mapping[str, Any] | None,
) -> tuple[int, ...]:
    """The ids of the units that go, in group order: by name, or the lowest by a score.

    Ties are broken by the edit's random numbers, so that they follow the seed and not the order of units.
    """
    if sum(given is not None for given in (units, lowest, keep)) != 1:
        raise EditError(f"{what} {group.name!r}: give one of units=[ids], lowest=count, keep=share or count")
    if units is not None:
        positions = group.positions(units)
        if positions.size == 0:
            raise EditError(f"{what} {group.name!r}: no unit is named")
        return tuple(group.ids[position] for position in sorted(positions.tolist()))
    count = lowest if lowest is not None else group.size - _kept(group, what, keep)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= group.size - group.minimum:
        raise EditError(
            f"{what} {group.name!r}: {count!r} units cannot go: it has {group.size} and keeps at least {group.minimum}"
        )
    values: Tensor = SCORES.call(score, Scoring(plan, group, batch, loss), **(options or {}))
    if tuple(values.shape) != (group.size,):
        raise EditError(
            f"score {score!r} gave shape {tuple(values.shape)} for the {group.size} units of {group.name!r}"
        )
    if bool(torch.isnan(values).any()):
        raise EditError(f"score {score!r} is not a number for some units of {group.name!r}: check data and weights")
    return tuple(group.ids[position] for position in sorted(lowest_first(plan, values)[:count].tolist()))


def lowest_first(plan: Plan, values: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Positions by rising value, ties in random order."""
    ties = torch.randperm(len(values), generator=plan.generator).numpy()
    return np.lexsort((ties, values.detach().cpu().double().numpy()))


def _kept(group: UnitGroup, what: str, keep: float | int | None) -> int:
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise EditError(f"{what} {group.name!r}: keep is a share or a count, not {keep!r}")
    if isinstance(keep, int):
        return keep
    if not 0.0 < keep < 1.0:
        raise EditError(f"{what} {group.name!r}: keep is a share between 0 and 1, or a whole number; not {keep}")
    return max(group.minimum, round(group.size * keep))


def _claim(plan: Plan, group: UnitGroup, chosen: Sequence[int]) -> tuple[Preserves, str]:
    """Removing units whose outgoing weights are all zero preserves the function."""
    reason = visible(group)
    if reason is not None:
        return "none", reason
    at = group.positions(np.array(chosen))
    readers = list(plan.holders(group.name, roles=("read",)))
    for holder in readers:
        flat = np.flatnonzero(np.isin(holder.layout.owners(group.name, plan.graph.sizes), at))
        rank = len(plan.spec(holder.tensor).dims)
        block = plan.staged(holder.tensor).block([flat if dim == holder.dim else None for dim in range(rank)])
        if bool(block.any()):
            return "none", "the units that go have outgoing weights"
    return ("function", "") if readers else ("none", f"nothing reads {group.name!r} through a stored weight")
