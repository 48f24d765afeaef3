"""Scores from the weights alone, and a random control."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graphnet.edit.scores.base import Scoring, score
from graphnet.edit.scores.members import Aggregate, Members, combine, members_of
from graphnet.errors import EditError

__all__ = ["fpgm", "l1", "l2", "magnitude", "random", "slimming"]


@score("magnitude")
def magnitude(
    scoring: Scoring,
    *,
    norm: Literal["l1", "l2"] = "l1",
    members: Members = "producers",
    aggregate: Aggregate = "pool",
    normalise: bool = False,
) -> Tensor:
    """Mean absolute incoming weight of each unit (``l1``, the study's), or the root mean square (``l2``).

    Where several weights write the group, all their elements count alike.
    """
    if norm == "l1":
        return _elementwise(scoring, "magnitude", 1, members, aggregate, normalise, mean=True)
    return _elementwise(scoring, "magnitude", 2, members, aggregate, normalise, mean=True)


@score("l1")
def l1(
    scoring: Scoring,
    *,
    members: Members = "producers",
    aggregate: Aggregate = "pool",
    normalise: bool = False,
) -> Tensor:
    """``sum |w|`` over the unit's weights. Source: Li et al. (ICLR 2017, arXiv 1608.08710)."""
    return _elementwise(scoring, "l1", 1, members, aggregate, normalise)


@score("l2")
def l2(
    scoring: Scoring,
    *,
    members: Members = "producers",
    aggregate: Aggregate = "pool",
    normalise: bool = False,
) -> Tensor:
    """``sqrt(sum w^2)`` over the unit's weights."""
    return _elementwise(scoring, "l2", 2, members, aggregate, normalise)


def _elementwise(
    scoring: Scoring, name: str, power: int, which: Members, aggregate: Aggregate, normalise: bool, *,
    mean: bool = False,
) -> Tensor:  # fmt: skip
    found = members_of(scoring, which)
    parts = [member.sums_of(Tensor.abs_ if power == 1 else Tensor.square_) for member in found]

    def finish(total: Tensor, count: float) -> Tensor:
        total = total / count if mean else total
        return total if power == 1 else total.sqrt()

    return combine(f"{name} of {scoring.group.name!r}", found, parts, aggregate, normalise=normalise, finish=finish)


@score("fpgm")
def fpgm(
    scoring: Scoring,
    *,
    members: Members = "producers",
    aggregate: Aggregate = "pool",
    normalise: bool = False,
) -> Tensor:
    """``sum_i ||W[j] - W[i]||`` over the group's units: small near their geometric median.

    Source: He et al. (CVPR 2019, arXiv 1811.00250). ``pool`` takes the distance of the weights of all members
    together.
    """
    found = members_of(scoring, members)
    squares = [_square_distances(member.rows()).cpu() for member in found]
    return combine(
        f"fpgm of {scoring.group.name!r}", found, squares, aggregate, normalise=normalise,
        finish=lambda total, count: total.sqrt().sum(1),
    )  # fmt: skip


def _square_distances(rows: Tensor) -> Tensor:
    """``[units, units]``: from products, and by differences where units are so close that products would cancel."""
    rows = rows - rows.mean(0)
    products = rows @ rows.T
    sizes = products.diagonal()
    sums = sizes[:, None] + sizes
    squares = (sums - 2 * products).fill_diagonal_(0.0)
    near = torch.nonzero(torch.triu(squares < 1e-4 * sums, diagonal=1))
    for pairs in torch.split(near, max(1, (1 << 22) // rows.shape[1])):
        one, two = pairs.T
        squares[one, two] = squares[two, one] = (rows[one] - rows[two]).square().sum(1)
    return squares


@score("slimming")
def slimming(scoring: Scoring, *, aggregate: Aggregate = "pool", normalise: bool = False) -> Tensor:
    """``|gamma|`` of the unit's normalisation, summed (``pool``) or reduced over the group's norms.

    Source: Liu et al. (network slimming, ICCV 2017, arXiv 1708.06519), where training adds an L1 penalty on gamma.

    Raises
    ------
    EditError
        No norm with a scale stands on the group.
    """
    found = members_of(scoring, norms=True)
    if not found:
        raise EditError(
            f"slimming: no norm with a scale stands on {scoring.group.name!r}: add a normalisation after it (affine), "
            "or use another score"
        )
    parts = [member.sums(member.value.abs()) for member in found]
    return combine("slimming", found, parts, aggregate, normalise=normalise)


@score("random")
def random(scoring: Scoring) -> Tensor:
    """A random order: the control."""
    return torch.rand(scoring.group.size, generator=scoring.generator, dtype=torch.float64)
