"""State policies: what the optimizer holds for newborn units.

==============  ==========================================================================================
``cold``        the optimizer's neutral value (zero for SGD and Adam); Adam's first step is then 3.16 lr
``aged``        cold moments, with bias correction by each unit's own age: the first step is exactly lr
``transplant``  second moments of a donor, first moments zero; the donor's age
``scaled``      for replicas: incoming moments by share (second ones by its square), outgoing ones copied
==============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.host import Slot
from graphnet.edit.newborns import Block, Newborns
from graphnet.edit.registry import Registry
from graphnet.edit.staged import Staged
from graphnet.errors import EditError

__all__ = ["AGELESS", "NEUTRAL", "STATES", "AgeSlot", "age_slot", "set_births", "set_speed", "state_policy"]

AGELESS = -(1 << 40)
"""The birth of a row that is as old as the optimizer."""

AgeSlot = Literal["birth", "rate", "until", "multiplier"]
"""What the optimizer's hooks know of each row and column (:class:`graphnet.runtime.updates.Births`)."""

NEUTRAL: Mapping[AgeSlot, float] = {"birth": float(AGELESS), "rate": 1.0, "until": 0.0, "multiplier": 1.0}
"""What those hold where nothing was written."""


class StatePolicy(Protocol):
    """Writes the optimizer state of newborn slices, which are neutral so far."""

    def __call__(self, newborns: Newborns) -> None:
        """Write the state."""


STATES: Registry[StatePolicy] = Registry("state policy")
state_policy = STATES.register


@state_policy("cold")
def cold(newborns: Newborns) -> None:
    """Leave the neutral values."""


@state_policy("aged")
def aged(newborns: Newborns) -> None:
    """Record the birth of every newborn row and column; the optimizer's hooks correct by age from there."""
    for block in newborns.blocks("write", "read", "slot"):
        set_births(newborns, block)


@state_policy("transplant")
def transplant(newborns: Newborns, *, first_moments: bool = False) -> None:
    """Copy a donor's second moments (Lillo and Cheney, arXiv 2605.15435); nothing under plain SGD.

    Without donors of its own the growth gets incumbents drawn at random. ``first_moments`` copies those too,
    which pushes a newborn in its donor's direction and is right for replicas only.
    """
    if newborns.donors is None:
        newborns.donors = random_donors(newborns)
    for block in newborns.blocks("write", "read", "slot"):
        assert block.donors is not None
        for slot, staged in newborns.plan.slots(block.holder.tensor).values():
            if slot.key[0] == "birth" and slot.key[3] == str(block.holder.dim):
                staged.write([block.positions], staged.block([block.donors]))
            elif slot.key[0] == "state" and (slot.magnitude or (first_moments and slot.power == 1)):
                staged.write(block._index(block.positions), staged.block(block._index(block.donors)))


@state_policy("scaled")
def scaled(newborns: Newborns, *, trajectory: bool = False) -> None:
    """Give replicas the state that their donors' gradients would have made; exact for elementwise optimizers.

    Incoming moments of *every* copy are the donor's times its share (to the second power for second moments);
    outgoing ones are the donor's, and so are ages. Gradients in flight follow like first moments.

    Parameters
    ----------
    trajectory : bool
        Also multiply the updates of every copy, for good, so that the widened network follows the path that the
        network before would have taken: with share a, (incoming, outgoing) by (1/a, a) under SGD and (1, a) under
        Adam. Exact without noise, gradient clipping and coupled weight decay, and under Adam up to its epsilon,
        which is not scaled (relative error epsilon/(a sqrt(v))).
    """
    if newborns.shares is None or newborns.donors is None:
        raise EditError("the state policy 'scaled' is for replicas: use it with init='net2wider'")
    name, sizes = newborns.group.name, newborns.plan.graph.sizes
    shared = np.flatnonzero(newborns.shares != 1.0)
    for holder in newborns.plan.holders(name):
        flat = holder.layout.index({name: newborns.donors}, sizes)
        owner = holder.layout.owners(name, sizes)
        at = np.flatnonzero(np.isin(owner, shared))
        rank = len(newborns.plan.spec(holder.tensor).dims)
        index = [at if dim == holder.dim else None for dim in range(rank)]
        source = [flat[at] if dim == holder.dim else None for dim in range(rank)]
        for slot, staged in newborns.plan.slots(holder.tensor).values():
            if slot.key[0] in NEUTRAL and slot.key[3] == str(holder.dim):
                staged.write([at], staged.block([flat[at]]))
            if slot.key[0] not in ("state", "grad"):
                continue
            value, power = staged.block(source), slot.power
            if slot.newborn == "weight":  # divided where the weights were
                power = float(holder.role == "read")
            elif holder.role == "read":
                power = 0.0
            if power:
                shape = [1] * rank
                shape[holder.dim] = -1
                share = torch.from_numpy(newborns.shares[owner[at]] ** power)
                value = value * share.to(value).reshape(shape)
            staged.write(index, value)
        if trajectory:
            shares = torch.from_numpy(newborns.shares[owner[at]])
            for optimizer in newborns.plan.host.optimizers_of(holder.tensor):
                sgd = newborns.plan.host.optimizer_kind(optimizer) == "sgd"
                factor = shares if holder.role == "read" else 1.0 / shares if sgd else torch.ones_like(shares)
                staged = age_slot(newborns, "multiplier", optimizer, holder.tensor, holder.dim)
                staged.write([at], staged.block([at]) * factor)


def random_donors(newborns: Newborns) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """An incumbent for each newborn, drawn at random; incumbents are their own donors."""
    donors = np.arange(newborns.group.size, dtype=np.int64)
    incumbents = np.flatnonzero(newborns.step.source >= 0)
    drawn = torch.randint(len(incumbents), (newborns.count,), generator=newborns.generator).numpy()
    donors[newborns.positions] = incumbents[drawn]
    return donors


def set_births(newborns: Newborns, block: Block) -> None:
    """Record that the rows or columns of a block are born now, for every optimizer that counts steps."""
    plan, tensor, dim = newborns.plan, block.holder.tensor, block.holder.dim
    for optimizer in plan.host.optimizers_of(tensor):
        step = plan.host.step_of(optimizer, tensor)
        if step is None:
            continue
        staged = age_slot(newborns, "birth", optimizer, tensor, dim)
        staged.write([block.positions], torch.full((block.positions.size,), step, dtype=torch.int64))


def set_speed(newborns: Newborns, speed: tuple[float, int] | None) -> None:
    """Multiply the updates of newborn rows and columns by a factor for so many steps (Two-Speed).

    The whole update is scaled, weight decay included: ``W <- W_old + factor * (W_new - W_old)``. An element in a
    newborn row and a newborn column is scaled once. Source: Lillo and Cheney, arXiv 2605.15435.

    Raises
    ------
    EditError
        The factor is not a positive number or the count not a whole number of at least 1.
    """
    if speed is None:
        return
    factor, steps = speed if isinstance(speed, tuple | list) and len(speed) == 2 else (None, None)
    numbers = not isinstance(factor, bool) and isinstance(factor, int | float) and isfinite(factor) and factor > 0
    if not numbers or isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise EditError(f"speed is (factor above 0, number of steps), for instance (5.0, 1955); not {speed!r}")
    plan = newborns.plan
    for block in newborns.blocks("write", "read", "slot"):
        tensor, dim, count = block.holder.tensor, block.holder.dim, block.positions.size
        for optimizer in plan.host.optimizers_of(tensor):
            step = plan.host.step_of(optimizer, tensor)
            until = (plan.host.steps_taken(optimizer) if step is None else step) + steps
            rates = age_slot(newborns, "rate", optimizer, tensor, dim)
            rates.write([block.positions], torch.full((count,), float(factor), dtype=torch.float64))
            ends = age_slot(newborns, "until", optimizer, tensor, dim)
            ends.write([block.positions], torch.full((count,), until, dtype=torch.int64))


def age_slot(newborns: Newborns, kind: AgeSlot, optimizer: str, tensor: str, dim: int) -> Staged:
    """What is kept of the age of each slice along one dimension of a parameter, made neutral where nothing is."""
    plan = newborns.plan
    key = (kind, optimizer, tensor, str(dim))
    table = plan.slots(tensor)
    if key in table:
        return table[key][1]
    layout = plan.base.tensors[tensor].dims[dim]
    neutral, dtype = NEUTRAL[kind], torch.int64 if kind in ("birth", "until") else torch.float64
    base: Tensor = torch.full((layout.size(plan.base.sizes),), neutral, dtype=torch.float64).to(dtype)
    return plan.add_slot(Slot(key, tensor, base, (layout,), neutral))
