"""Replication: newborns that copy donors, whose outgoing weights all copies share."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from graphnet.edit.newborns import Claim, Newborns, visible
from graphnet.edit.slices import read_units, write_units
from graphnet.errors import EditError
from graphnet.ir.layout import IndexArray
from graphnet.ir.ops.norm import GroupNorm, LayerNorm, RMSNorm

__all__ = ["random_weights", "replicate", "shares_of"]


def replicate(newborns: Newborns, donors: IndexArray, weights: NDArray[np.float64], *, noise: float = 0.0) -> Claim:
    """Copy what comes into the donors, and divide what goes out among the copies.

    Sets ``newborns.donors`` and ``newborns.shares``, from which the state policy ``scaled`` follows. Source: Chen,
    Goodfellow and Shlens (ICLR 2016, arXiv 1511.05641).

    Parameters
    ----------
    donors : array of int
        For each unit of the group the position of the unit that it copies (itself for an incumbent).
    weights : array of float
        For each unit the weight of its share among the copies of its donor; they need not be normalised.
    noise : float
        Standard deviation of the noise on newborn incoming weights, as a share of the incumbents' own.
    """
    if not 0 <= noise < float("inf"):
        raise EditError(f"noise must be a number of at least 0, it is {noise}")
    plan, name, generator = newborns.plan, newborns.group.name, newborns.generator
    newborns.donors, newborns.shares = donors, shares_of(donors, weights)
    for block in newborns.blocks("write", "slot"):
        value = block.donor_values()
        if noise and block.holder.role == "write" and block.holder.kind != "bias":
            deviation = noise * float(block.incumbent_values().double().std(correction=0))
            drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            value = value + deviation * drawn.to(value)
        block.write(value)
    shared = np.flatnonzero(newborns.shares != 1.0)
    factors = torch.from_numpy(newborns.shares[shared])
    for holder in plan.holders(name, roles=("read",)):
        value = read_units(plan, holder, name, donors[shared])
        shape = (-1, *(1,) * (value.dim() - 1))
        write_units(plan, holder, name, shared, value * factors.to(value).reshape(shape))
    reason = _visible_copies(newborns)
    if reason is not None:
        return Claim("none", reason)
    if noise:
        return Claim("approximate", "noise on the newborns' incoming weights")
    return Claim("function")


def _visible_copies(newborns: Newborns) -> str | None:
    """Why copies change the function; None where they cannot.

    Where every unit of a norm's statistics is copied equally often and shared equally, mean and variance stay.
    """
    group, plan, shares = newborns.group, newborns.plan, newborns.shares
    if group.coupled is None or shares is None or np.ptp(shares) != 0.0:
        return visible(group)
    for node in plan.graph.nodes.values():
        for layout, _ in node.coupled:
            owned = layout.owners(group.name, plan.graph.sizes) >= 0
            if owned.any() and not (owned.all() and isinstance(node.op, LayerNorm | RMSNorm | GroupNorm)):
                return visible(group)
    return visible(replace(group, coupled=None))


def random_weights(newborns: Newborns, split: Literal["equal", "random"]) -> NDArray[np.float64]:
    """For each unit the weight of its share: all 1, or drawn from 0.2 to 1.2."""
    size = newborns.group.size
    if split == "equal":
        return np.ones(size)
    drawn: NDArray[np.float64] = torch.rand(size, generator=newborns.generator, dtype=torch.float64).numpy()
    return 0.2 + drawn


def shares_of(donors: IndexArray, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each unit's share of its donor's outgoing weight; those of one donor's copies sum to 1."""
    total = np.zeros(len(donors))
    np.add.at(total, donors, weights)
    return weights / total[donors]
