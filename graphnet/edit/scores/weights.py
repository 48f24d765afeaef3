"""Scores from the weights alone, and a random control."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graphnet.edit.scores.base import Scoring, score
from graphnet.errors import EditError

__all__ = ["magnitude", "random"]


@score("magnitude")
def magnitude(scoring: Scoring, *, norm: Literal["l1", "l2"] = "l1") -> Tensor:
    """Mean absolute incoming weight of each unit (``l1``, the study's), or the root mean square (``l2``).

    Where several weights write the group, all their elements count alike.
    """
    if norm not in ("l1", "l2"):
        raise EditError(f"magnitude: norm is 'l1' or 'l2', not {norm!r}")
    total = torch.zeros(scoring.group.size, dtype=torch.float64)
    count = torch.zeros_like(total)
    for holder in scoring.plan.holders(scoring.group.name, roles=("write",)):
        if holder.kind not in ("weight", "table"):
            continue
        value = scoring.plan.value(holder.tensor).double()
        value = value.abs() if norm == "l1" else value.square()
        total += scoring.per_unit(value, holder.dim, holder.tensor).cpu()
        count += scoring.per_unit(torch.ones_like(value), holder.dim, holder.tensor).cpu()
    if not count.all():
        raise EditError(f"magnitude: no weight writes {scoring.group.name!r}: use another score")
    mean = total / count
    return mean if norm == "l1" else mean.sqrt()


@score("random")
def random(scoring: Scoring) -> Tensor:
    """A random order: the control."""
    return torch.rand(scoring.group.size, generator=scoring.generator, dtype=torch.float64)
