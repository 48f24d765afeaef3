"""What the optimizers' hooks are to know of newborn rows and columns: when they were born, how fast they may move.

Everything is a vector along one dimension of a parameter, kept beside the optimizer's state and moved with it by
unit maps: :class:`graphnet.runtime.births.Births` holds them, :mod:`graphnet.runtime.updates` acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from graphnet.edit.host import Slot
from graphnet.edit.newborns import Block, Newborns
from graphnet.edit.plan import Plan
from graphnet.edit.staged import Staged
from graphnet.errors import EditError
from graphnet.ir.layout import IndexArray

__all__ = [
    "AGELESS",
    "NEUTRAL",
    "AgeSlot",
    "Rate",
    "age_slot",
    "births_along",
    "set_births",
    "set_rates",
    "set_speed",
]

AGELESS = -(1 << 40)
"""The birth of a row that is as old as the optimizer."""

FLOOR = 0.1
"""The least factor of rate adaptation, unless another is given: a block of zeros would never move."""

MOST_STEPS = 1 << 40
"""More optimizer steps than any training takes; step counts are kept as 64-bit integers."""

_LARGEST = torch.finfo(torch.float64).max

AgeSlot = Literal["birth", "rate", "until", "rewarm", "rewarmed", "stage", "floor", "multiplier"]

NEUTRAL: Mapping[AgeSlot, float] = {
    "birth": float(AGELESS), "rate": 1.0, "until": 0.0, "rewarm": 0.0, "rewarmed": 0.0, "stage": 0.0, "floor": 0.0,
    "multiplier": 1.0,
}  # fmt: skip
"""What those hold where nothing was written."""

_WHOLE = ("birth", "until", "rewarm", "rewarmed", "stage")

Rate: TypeAlias = 'Literal["adapted"] | tuple[Literal["adapted"], float] | Sequence[Any] | None'
"""``"adapted"``, or that with a floor: ``("adapted", 0.1)``."""


def set_births(newborns: Newborns, block: Block) -> None:
    """Record that the rows or columns of a block are born now, for every optimizer that counts steps."""
    births_along(newborns.plan, block.holder.tensor, block.holder.dim, block.positions)


def births_along(plan: Plan, tensor: str, dim: int, positions: IndexArray) -> None:
    """Record that positions along a dimension of a parameter are born now, for every optimizer that counts steps."""
    for optimizer in plan.host.optimizers_of(tensor):
        step = plan.host.step_of(optimizer, tensor)
        if step is not None:
            staged = age_slot(plan, "birth", optimizer, tensor, dim)
            staged.write([positions], torch.full((positions.size,), step, dtype=torch.int64))


def set_rates(
    newborns: Newborns, *, speed: tuple[float, int] | None = None, rate: Rate = None, rewarm: int | None = None
) -> dict[str, Any]:
    """Multiply the updates of newborn rows and columns by factors of their age; the whole update, decay included.

    Where several are given the factors are multiplied. An element in a newborn row and a newborn column counts once.

    Parameters
    ----------
    speed : (float, int), optional
        Two-Speed: a factor, and for how many optimizer steps: ``W <- W_old + factor * (W_new - W_old)``. Source:
        Lillo and Cheney, arXiv 2605.15435.
    rate : "adapted" or ("adapted", float), optional
        For good, in every tensor of two or more dimensions: the Frobenius norm of the weights that were born with this
        version, over that of the weights that were there before any growth of this kind, taken anew at each step, and
        at least the floor (0.1 if none is given). Source: Yuan, Savarese and Maire, 2023, arXiv 2306.12700.
    rewarm : int, optional
        A linear warm-up over so many optimizer steps: the first update is 1/rewarm of what it would be.

    Returns
    -------
    dict
        The arguments as a step records them; those that were not given are left out.

    Raises
    ------
    EditError
        A value is not of its kind, or an optimizer makes no updates that could be scaled (LBFGS).
    """
    fast, floor = _speed(speed), _floor(rate)
    if rewarm is not None and not _is_steps(rewarm):
        raise EditError(f"rewarm is a number of optimizer steps, a whole number from 1 to 2**40; not {rewarm!r}")
    given: dict[str, Any] = {}
    if fast is not None:
        given["speed"] = list(fast)
    if floor is not None:
        given["rate"] = ["adapted", floor]
    if rewarm is not None:
        given["rewarm"] = rewarm
    if not given:
        return {}
    plan, version = newborns.plan, newborns.plan.base.version + 1
    for block in newborns.blocks("write", "read", "slot"):
        tensor = block.holder.tensor
        for optimizer in plan.host.optimizers_of(tensor):
            if plan.host.optimizer_kind(optimizer) == "cleared":
                raise EditError(
                    f"{', '.join(given)}: the optimizer of {tensor!r} (LBFGS) takes many steps over all parameters "
                    "together in one call, with a line search or a history that assumes its own steps: leave the "
                    "option out, or use another optimizer"
                )
            step = plan.host.step_of(optimizer, tensor)
            now = plan.host.steps_taken(optimizer) if step is None else step
            if fast is not None:
                _fill(newborns, block, optimizer, {"rate": fast[0], "until": now + fast[1]})
            if rewarm is not None:
                _fill(newborns, block, optimizer, {"rewarm": rewarm, "rewarmed": now + rewarm})
            if floor is not None and len(plan.spec(tensor).dims) > 1:
                _fill(newborns, block, optimizer, {"stage": version, "floor": floor})
    return given


def set_speed(newborns: Newborns, speed: tuple[float, int] | None) -> None:
    """:func:`set_rates` with Two-Speed alone."""
    set_rates(newborns, speed=speed)


def _speed(speed: Any) -> tuple[float, int] | None:
    if speed is None:
        return None
    factor, steps = speed if isinstance(speed, tuple | list) and len(speed) == 2 else (None, None)
    numbers = not isinstance(factor, bool) and isinstance(factor, int | float) and 0 < factor <= _LARGEST
    if not numbers or not _is_steps(steps):
        raise EditError(
            f"speed is (factor above 0, number of steps from 1 to 2**40), for instance (5.0, 1955); not {speed!r}"
        )
    assert isinstance(factor, int | float)
    assert isinstance(steps, int)
    return float(factor), steps


def _is_steps(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_STEPS


def _floor(rate: Any) -> float | None:
    if rate is None:
        return None
    name, floor = rate if isinstance(rate, tuple | list) and len(rate) == 2 else (rate, FLOOR)
    number = not isinstance(floor, bool) and isinstance(floor, int | float) and 0 < floor <= 1
    if not (isinstance(name, str) and name == "adapted" and number):
        raise EditError(f"rate is 'adapted', or ('adapted', floor) with a floor above 0 and up to 1; not {rate!r}")
    return float(floor)


def _fill(newborns: Newborns, block: Block, optimizer: str, values: Mapping[AgeSlot, float]) -> None:
    for kind, value in values.items():
        staged = age_slot(newborns.plan, kind, optimizer, block.holder.tensor, block.holder.dim)
        dtype = torch.int64 if kind in _WHOLE else torch.float64
        staged.write([block.positions], torch.full((block.positions.size,), value, dtype=dtype))


def age_slot(plan: Plan, kind: AgeSlot, optimizer: str, tensor: str, dim: int) -> Staged:
    """What is kept of the age of each slice along one dimension of a parameter, made neutral where nothing is."""
    key = (kind, optimizer, tensor, str(dim))
    table = plan.slots(tensor)
    if key in table:
        return table[key][1]
    layout = plan.base_spec(tensor).dims[dim]
    neutral, dtype = NEUTRAL[kind], torch.int64 if kind in _WHOLE else torch.float64
    base: Tensor = torch.full((layout.size(plan.base.sizes),), neutral, dtype=torch.float64).to(dtype)
    return plan.add_slot(Slot(key, tensor, base, (layout,), neutral, axes=(dim,)))
