"""Net2WiderNet: newborns replicate donors, whose outgoing weights they share."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from graphnet.edit.initialisers.base import initialiser
from graphnet.edit.newborns import Claim, Newborns, tied_through, visible
from graphnet.errors import EditError

__all__ = ["net2wider"]


@initialiser("net2wider")
def net2wider(
    newborns: Newborns, *, split: Literal["equal", "random"] = "equal", noise: float = 0.0
) -> Claim:  # fmt: skip
    """Chen, Goodfellow and Shlens (ICLR 2016, arXiv 1511.05641): copy rows, divide columns.

    Every newborn copies the incoming weights, bias and norm slots of a donor drawn at random, and the copies of
    one donor share its outgoing weights, equally or by random shares that sum to 1. Exact without noise where no
    statistic, output or unweighted sum reads the group. With the state policy ``scaled`` the optimizer's state
    follows exactly (first moments of incoming weights by the share, second ones by its square; outgoing ones
    copied).

    Parameters
    ----------
    split : {"equal", "random"}
        Equal shares without noise leave the copies identical for ever.
    noise : float
        Standard deviation of the noise on newborn incoming weights, as a share of the incumbents' own.
    """
    if noise < 0:
        raise EditError(f"net2wider: noise must not be negative, it is {noise}")
    if split not in ("equal", "random"):
        raise EditError(f"net2wider: split is 'equal' or 'random', not {split!r}")
    tied = tied_through(newborns)
    if tied is not None:
        raise EditError(
            f"net2wider: {tied!r} both produces and consumes {newborns.group.name!r} (tied weights), so that copies "
            "cannot share what goes out without changing what comes in: use another initialiser"
        )
    old, size, generator = newborns.step.old, newborns.group.size, newborns.generator
    incumbents = np.flatnonzero(newborns.step.source >= 0)
    donors = np.arange(size, dtype=np.int64)
    drawn = torch.randint(old, (newborns.count,), generator=generator).numpy()
    donors[newborns.positions] = incumbents[drawn]
    weights = np.ones(size)
    if split == "random":
        weights = 0.2 + torch.rand(size, generator=generator, dtype=torch.float64).numpy()
    total = np.zeros(size)
    np.add.at(total, donors, weights)
    newborns.donors, newborns.shares = donors, weights / total[donors]
    for block in newborns.blocks("write", "slot"):
        value = block.donor_values()
        if noise and block.holder.role == "write" and block.holder.kind != "bias":
            deviation = float(block.incumbent_values().double().std(correction=0))
            value = value + noise * deviation * torch.randn(value.shape, generator=generator, dtype=value.dtype).to(
                value
            )
        block.write(value)
    shared = np.flatnonzero(newborns.shares != 1.0)
    for holder in newborns.plan.holders(newborns.group.name, roles=("read",)):
        staged, name = newborns.plan.staged(holder.tensor), newborns.group.name
        flat = holder.layout.index({name: donors}, newborns.plan.graph.sizes)
        owner = holder.layout.owners(name, newborns.plan.graph.sizes)
        at = np.flatnonzero(np.isin(owner, shared))
        index = [at if dim == holder.dim else None for dim in range(len(newborns.plan.spec(holder.tensor).dims))]
        source = [flat[at] if dim == holder.dim else None for dim in range(len(index))]
        value = staged.block(source)
        scale = torch.from_numpy(newborns.shares[owner[at]]).to(value)
        shape = [1] * value.dim()
        shape[holder.dim] = -1
        staged.write(index, value * scale.reshape(shape))
    reason = visible(newborns.group)
    if reason is not None:
        return Claim("none", reason)
    if noise:
        return Claim("approximate", "noise on the newborns' incoming weights")
    return Claim("function")
