"""State policies: what the optimizer holds for newborn units.

==============  ==========================================================================================
``cold``        the optimizer's neutral value (zero for SGD and Adam); Adam's first step is then 3.16 lr
``aged``        cold moments, with bias correction by each unit's own age: the first step is exactly lr
``transplant``  second moments of a donor, first moments zero; the donor's age
``scaled``      for replicas: incoming moments by share (second ones by its square), outgoing ones copied
==============  ==========================================================================================
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from graphnet.edit.host import Slot
from graphnet.edit.newborns import Block, Newborns
from graphnet.edit.registry import Registry
from graphnet.edit.staged import Staged
from graphnet.errors import EditError

__all__ = ["AGELESS", "STATES", "birth_slot", "set_births", "state_policy"]

AGELESS = -(1 << 40)
"""The birth of a row that is as old as the optimizer."""


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
        for slot, staged in newborns.plan.slots(block.holder.tensor).values():
            if slot.key[0] != "state" or not (slot.power == 2 or (first_moments and slot.power == 1)):
                continue
            assert block.donors is not None
            staged.write(block._index(block.positions), staged.block(block._index(block.donors)))


@state_policy("scaled")
def scaled(newborns: Newborns) -> None:
    """Give replicas the state that their donors' gradients would have made; exact for elementwise optimizers.

    Incoming moments of *every* copy are the donor's times its share (to the second power for second moments);
    outgoing ones are the donor's. Gradients in flight follow like first moments.
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
            if slot.key[0] not in ("state", "grad") or slot.power == 0:
                continue
            value = staged.block(source)
            if holder.role != "read":
                shape = [1] * rank
                shape[holder.dim] = -1
                share = torch.from_numpy(newborns.shares[owner[at]] ** slot.power)
                value = value * share.to(value).reshape(shape)
            staged.write(index, value)


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
        staged = birth_slot(newborns, optimizer, tensor, dim)
        staged.write([block.positions], torch.full((block.positions.size,), step, dtype=torch.int64))


def birth_slot(newborns: Newborns, optimizer: str, tensor: str, dim: int) -> Staged:
    """The births along one dimension of a parameter, made ageless where there are none yet."""
    plan = newborns.plan
    key = ("birth", optimizer, tensor, str(dim))
    table = plan.slots(tensor)
    if key in table:
        return table[key][1]
    layout = plan.base.tensors[tensor].dims[dim]
    base = torch.full((layout.size(plan.base.sizes),), AGELESS, dtype=torch.int64)
    return plan.add_slot(Slot(key, tensor, base, (layout,), float(AGELESS)))
