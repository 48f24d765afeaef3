"""Prune: remove units, named or chosen by a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import filterfalse
from math import isfinite
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.compensation import Shares, measure, output_change
from graphnet.edit.host import Batch, Loss
from graphnet.edit.newborns import Claim, visible
from graphnet.edit.operators.grow import check_claim, check_promise
from graphnet.edit.plan import Plan, Preserves, Step
from graphnet.edit.scores.base import Scoring, score_units
from graphnet.errors import EditError
from graphnet.ir.groups import UnitGroup

__all__ = ["Compensate", "check_compensate", "choose", "chosen_by", "lowest_first", "prune", "removal_claim"]

Compensate: TypeAlias = bool | Literal["all"]
"""Whether the means of units that go are put into their consumers' biases; ``all`` refuses where one has no place."""


def prune(
    plan: Plan,
    group: str,
    *,
    units: Sequence[int] | None = None,
    lowest: int | None = None,
    keep: float | int | None = None,
    below: float | None = None,
    score: str = "magnitude",
    preserves: Preserves | None = None,
    compensate: Compensate = False,
    batch: Batch | None = None,
    loss: Loss | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Remove units from a group; returns their ids. See :meth:`graphnet.edit.edit.Edit.prune`."""
    before = plan.graph.editable(group)
    what = f"prune {before.name!r}"
    check_promise(what, preserves)
    check_compensate(what, compensate)
    chosen = choose(plan, before, "prune", units, lowest, keep, score, batch, loss, options, below=below)
    if not chosen:
        return ()
    if below is not None and len(chosen) > before.size - before.minimum:
        raise EditError(
            f"{what}: {len(chosen)} of {before.size} units are at most {below}, and it keeps at least {before.minimum}"
        )
    shares = measure(plan, before, chosen, batch, f"{what} with compensate={compensate!r}") if compensate else None
    claim = removal_claim(plan, before, chosen, shares, compensate, what)
    check_claim(what, claim, preserves)
    if shares is not None:
        shares.absorb(plan)
    plan.advance(replace(before, ids=tuple(filterfalse(set(chosen).__contains__, before.ids))))
    if shares is not None and claim.preserves != "function":
        claim = Claim(claim.preserves, f"{claim.note}; {output_change(shares.output, plan, batch, what)}")
    arguments = chosen_by(chosen, units, below, score, options)
    if compensate:
        arguments |= {"compensate": compensate, "needs_batch": True}  # a replay has none
    plan.steps.append(Step("prune", before.name, arguments, (), chosen, claim.preserves, claim.note))
    return chosen


def chosen_by(
    chosen: Sequence[int],
    units: Sequence[int] | None,
    below: float | None,
    score: str,
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """How units were chosen, for the journal."""
    if units is not None:
        return {"units": list(chosen)}
    how = {"lowest": len(chosen)} if below is None else {"below": below}
    return {**how, "score": score, **(options or {})}


def check_compensate(what: str, compensate: object) -> None:
    """Refuse a ``compensate=`` that is neither a bool nor ``all``."""
    if not isinstance(compensate, bool) and not (isinstance(compensate, str) and compensate == "all"):
        raise EditError(f"{what}: compensate is True, False or 'all', not {compensate!r}")


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
    *,
    below: float | None = None,
    least: int | None = None,
) -> tuple[int, ...]:
    """The ids of the units that go, in group order: by name, the lowest by a score, or those at most a threshold.

    Ties are broken by the edit's random numbers, so that they follow the seed and not the order of units. With
    ``below`` there may be none. ``least`` is how many must be left, by default the structure's minimum.
    """
    if sum(given is not None for given in (units, lowest, keep, below)) != 1:
        raise EditError(
            f"{what} {group.name!r}: give one of units=[ids], lowest=count, keep=share or count, below=threshold"
        )
    if units is not None:
        positions = group.positions(units)
        if positions.size == 0:
            raise EditError(f"{what} {group.name!r}: no unit is named")
        return tuple(group.array[np.sort(positions)].tolist())
    scoring = Scoring(plan, group, batch, loss)
    if below is not None:
        if isinstance(below, bool) or not isinstance(below, int | float) or not isfinite(below):
            raise EditError(f"{what} {group.name!r}: below is a number, not {below!r}")
        values = score_units(score, scoring, options)
        return tuple(unit for unit, value in zip(group.ids, values.tolist(), strict=True) if value <= below)
    least = group.minimum if least is None else least
    count = lowest if lowest is not None else group.size - _kept(group, what, keep)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= group.size - least:
        raise EditError(
            f"{what} {group.name!r}: {count!r} units cannot go: it has {group.size} and keeps at least {least}"
        )
    values = score_units(score, scoring, options)
    return tuple(group.array[np.sort(lowest_first(plan, values)[:count])].tolist())


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


def removal_claim(
    plan: Plan,
    group: UnitGroup,
    chosen: Sequence[int],
    shares: Shares | None,
    compensate: Compensate,
    what: str,
) -> Claim:
    """What taking units out of the forward pass does to the function.

    It is preserved where their outgoing weights are all zero; where they are constant, as the weights show, and
    that constant is zero or goes into the consumers' biases. Other units that are silent on the batch, or whose means
    go into the biases, are taken out approximately.

    Raises
    ------
    EditError
        ``compensate="all"`` and a consumer has no place for a mean.
    """
    if shares is not None and compensate == "all" and shares.homeless:
        raise EditError(
            f"{what} with compensate='all': there is no place for the mean at {', '.join(shares.homeless)}; "
            "compensate=True leaves it out there"
        )
    reason = visible(group)
    if reason is not None:
        return Claim("none", reason)
    zero = outgoing_zero(plan, group, chosen)
    if zero is None:
        return Claim("none", f"nothing reads {group.name!r} through a stored weight")
    if zero:
        return Claim("function")
    if shares is None or not (compensate or shares.silent):
        return Claim("none", "the units that go have outgoing weights")
    if compensate and shares.homeless:
        return Claim("none", f"the mean is lost at {', '.join(shares.homeless)}")
    if shares.constant and not shares.padded:
        return Claim("function")
    if shares.silent:
        return Claim("approximate", "the units are zero on the batch; on other inputs they may not be")
    border = f", which is not right at the padded border of {', '.join(map(repr, shares.padded))}"
    note = "the units' means over the batch are in their consumers' biases"
    return Claim("approximate", note + (border if shares.padded else ""))


def outgoing_zero(plan: Plan, group: UnitGroup, chosen: Sequence[int]) -> bool | None:
    """Whether the outgoing weights of units are all zero; None where no stored weight reads the group."""
    readers = list(plan.holders(group.name, roles=("read",)))
    for units in (chosen[:1], chosen):  # one unit answers nearly always, and most are spared
        goes = np.zeros(group.size + 1, dtype=bool)  # the last for positions that are no unit's: their owner is -1
        goes[group.ids.index(units[0]) if len(units) == 1 else group.positions(np.array(units))] = True
        for holder in readers:
            flat = np.flatnonzero(goes[holder.layout.owners(group.name, plan.graph.sizes)])
            index = [flat if dim == holder.dim else None for dim in range(len(plan.spec(holder.tensor).dims))]
            if bool(plan.staged(holder.tensor).block(index).any()):
                return False
    return True if readers else None
