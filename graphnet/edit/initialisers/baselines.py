"""Random and zero initialisers of newborn units."""

from __future__ import annotations

from math import sqrt
from typing import Literal

from graphnet.edit.initialisers.base import initialiser
from graphnet.edit.newborns import Block, Claim, Newborns, tied_through
from graphnet.errors import EditError

__all__ = ["copy_std", "kaiming", "zero_outgoing"]


@initialiser("kaiming")
def kaiming(newborns: Newborns) -> Claim:
    """He et al. (2015, arXiv 1502.01852): incoming and outgoing weights from U(+-sqrt(6/fan_in)), biases zero.

    The fan-in of outgoing weights counts the newborns. Changes the function.
    """
    for block in (*newborns.incoming(), *newborns.outgoing()):
        _kaiming(block, newborns)
    return Claim("none", "random outgoing weights add to the consumers")


@initialiser("copy-std")
def copy_std(newborns: Newborns) -> Claim:
    """Incoming and outgoing weights from U(+-sqrt(3)*std) with the standard deviation of the incumbents'.

    Changes the function. Source: gromo (Verbockhaven et al., TMLR 2024).
    """
    for block in (*newborns.incoming(), *newborns.outgoing()):
        _like_incumbents(block, newborns)
    return Claim("none", "random outgoing weights add to the consumers")


@initialiser("zero-outgoing")
def zero_outgoing(newborns: Newborns, *, incoming: Literal["copy-std", "kaiming"] = "copy-std") -> Claim:
    """Random incoming weights, zero outgoing ones: the function is preserved exactly.

    Exact unless a statistic, a model output or an unweighted sum reads the group. At the first step only the
    outgoing weights of newborns have a gradient.
    """
    draw = {"copy-std": _like_incumbents, "kaiming": _kaiming}.get(incoming)
    if draw is None:
        raise EditError(f"zero-outgoing: incoming is 'copy-std' or 'kaiming', not {incoming!r}")
    tied = tied_through(newborns)
    if tied is not None:
        raise EditError(
            f"zero-outgoing: {tied!r} both produces and consumes {newborns.group.name!r} (tied weights): with both at "
            "zero the newborns would never train; use another initialiser"
        )
    for block in newborns.incoming():
        draw(block, newborns)
    for block in newborns.outgoing():
        block.zero()
    return newborns.claim_if_silent()


def _kaiming(block: Block, newborns: Newborns) -> None:
    if block.holder.kind == "table":
        _like_incumbents(block, newborns)
    elif block.holder.kind != "bias":
        block.uniform(sqrt(6.0 / block.fan_in), newborns.generator)


def _like_incumbents(block: Block, newborns: Newborns) -> None:
    if block.holder.kind == "bias":
        return
    values = block.incumbent_values()
    deviation = float(values.double().std(correction=0)) if values.numel() > 1 else 0.0
    if deviation == 0.0:
        _kaiming_bound = sqrt(6.0 / max(block.fan_in, 1))
        block.uniform(_kaiming_bound, newborns.generator)
    else:
        block.uniform(sqrt(3.0) * deviation, newborns.generator)
