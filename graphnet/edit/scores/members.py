"""The stored slices of a group's units, and how per-unit numbers of several of them become one.

A *member* is one dimension of one stored tensor that holds the group: the rows of a producer, the columns of a
consumer, the scale of a norm. Each gives a number for every unit; the layout of the dimension says which elements
belong to which unit, so that flattened, concatenated and multi-head dimensions come out right.

Source: coupled groups are scored member by member as in Fang et al. (DepGraph, CVPR 2023, arXiv 2301.12900).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.plan import Holder
from graphnet.edit.scores.base import Scoring
from graphnet.errors import EditError
from graphnet.ir.ops.base import Role

__all__ = ["Aggregate", "Member", "Members", "combine", "members_of"]

Aggregate: TypeAlias = Literal["pool", "sum", "mean", "max", "first"]
"""``pool``: the elements of all members are one vector; else each member is scored and the numbers are reduced;
``first`` is the member that comes first in the graph."""

Members: TypeAlias = Literal["producers", "all"]
"""Rows of the weights that write the group; or also columns of those that read it, and the scales of its norms."""


_AT_ONCE = 1 << 16
"""How many elements are worked on at a time, for each thread."""


@dataclass(frozen=True, slots=True)
class Member:
    """One dimension of one stored tensor that holds the group."""

    scoring: Scoring
    holder: Holder

    @property
    def tensor(self) -> str:
        """The tensor's name."""
        return self.holder.tensor

    @property
    def value(self) -> Tensor:
        """The tensor as it will be, in float64; not to be changed."""
        return self.stored.double()

    @property
    def stored(self) -> Tensor:
        """The tensor as it will be, in its own type; not to be changed."""
        return self.scoring.plan.value(self.holder.tensor)

    @property
    def count(self) -> int:
        """How many elements each unit has."""
        plan = self.scoring.plan
        shape = plan.graph.shape(plan.spec(self.holder.tensor))
        rest = prod(size for dim, size in enumerate(shape) if dim != self.holder.dim)
        if self.holder.layout.single == self.scoring.group.name:
            return rest
        return rest * int(self._positions().shape[1])

    def sums(self, values: Tensor) -> Tensor:
        """Sum values shaped like the tensor over the elements of each unit: ``[units]``.

        With a leading dimension of samples: ``[samples, units]``.
        """
        lead = values.dim() - len(self.scoring.plan.spec(self.holder.tensor).dims)
        if not lead:
            return self.scoring.per_unit(values, self.holder.dim, self.holder.tensor).cpu()
        moved = values.double().movedim(self.holder.dim + lead, lead)
        flat = moved.reshape(*moved.shape[: lead + 1], -1).sum(-1)
        return flat[:, torch.from_numpy(self._positions()).to(flat.device)].sum(-1).cpu()

    def sums_of(self, overwrite: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum an elementwise function of the stored tensor over the elements of each unit: ``[units]``, float64.

        ``overwrite`` puts the function of a float64 tensor (of a complex one's magnitudes) in its place and returns it.
        Where units are rows a few of them are taken at a time, so that nothing as large as the tensor is made; the sums
        are the same, bit for bit.
        """
        stored, single = self.stored, self.holder.layout.single == self.scoring.group.name
        stored = stored.abs() if stored.is_complex() else stored
        rows = single and self.holder.dim == 0 and stored.is_contiguous() and stored.device.type == "cpu"
        if not rows or stored.numel() <= _AT_ONCE:
            return self.sums(overwrite(stored.to(torch.float64, copy=True)))
        flat = stored.reshape(len(stored), -1)
        count = max(1, _AT_ONCE * torch.get_num_threads() // flat.shape[1])
        room, total = flat.new_empty((count, flat.shape[1]), dtype=torch.float64), []
        for part in torch.split(flat, count):
            total.append(overwrite(room[: len(part)].copy_(part)).sum(1))
        return torch.cat(total)

    def rows(self) -> Tensor:
        """The elements of each unit as a vector: ``[units, elements]``, float64."""
        moved = self.value.movedim(self.holder.dim, 0)
        at = torch.from_numpy(self._positions()).to(moved.device)
        return moved[at].reshape(len(at), -1)

    def _positions(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Positions of each unit along the dimension, ``[units, each]``; every unit has equally many."""
        graph, group = self.scoring.plan.graph, self.scoring.group
        owners = self.holder.layout.owners(group.name, graph.sizes)
        mine = np.flatnonzero(owners >= 0)
        return mine[np.argsort(owners[mine], kind="stable")].reshape(group.size, -1)


def members_of(
    scoring: Scoring, which: Members = "producers", *, biases: bool = False, norms: bool = False
) -> list[Member]:
    """The members of a group, in the order of the graph; a dimension with tied uses is one member.

    Parameters
    ----------
    scoring : Scoring
    which : {"producers", "all"}
    biases : bool
        Also biases, and with ``all`` the shifts of norms.
    norms : bool
        Only scales of norms, and with ``biases`` their shifts.
    """
    wanted: dict[Role, set[str]] = {"write": set(), "read": set(), "slot": set()}
    if norms or which == "all":
        wanted["slot"] = {"scale", "shift"} if biases else {"scale"}
    if not norms:
        wanted["write"] = {"weight", "table", "bias"} if biases else {"weight", "table"}
        wanted["read"] = {"weight", "table"} if which == "all" else set()
    found: dict[tuple[str, int], Member] = {}
    for holder in scoring.plan.holders(scoring.group.name):
        if holder.kind in wanted[holder.role] and not scoring.plan.spec(holder.tensor).buffer:
            found.setdefault((holder.tensor, holder.dim), Member(scoring, holder))
    return list(found.values())


def combine(
    name: str,
    found: Sequence[Member],
    parts: Sequence[Tensor],
    aggregate: Aggregate,
    *,
    normalise: bool = False,
    finish: Callable[[Tensor, float], Tensor] = lambda total, count: total,
) -> Tensor:
    """One number for each unit from what each member gives.

    Parameters
    ----------
    name : str
        The score's, for messages.
    found : sequence of Member
    parts : sequence of Tensor
        For each member what adds up over elements; the first dimension is that of the units.
    aggregate : {"pool", "sum", "mean", "max", "first"}
    normalise : bool
        Divide by the mean over the units, so that groups can be compared.
    finish : callable
        From what has been added up, and the number of elements of a unit, to the score ``[units]``.

    Raises
    ------
    EditError
        There is no member.
    """
    if not found:
        raise EditError(f"{name}: no stored weight of that kind stands on the group: use another score")
    counts = [float(member.count) for member in found]
    if aggregate == "pool":
        values = finish(torch.stack(list(parts)).sum(0), sum(counts))
    else:
        each = torch.stack([finish(part, count) for part, count in zip(parts, counts, strict=True)])
        reduce: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda t: t.sum(0), "mean": lambda t: t.mean(0), "max": lambda t: t.amax(0), "first": lambda t: t[0],
        }  # fmt: skip
        values = reduce[aggregate](each)
    if normalise:
        mean = values.mean()
        values = values / mean if mean != 0 else values
    return values
