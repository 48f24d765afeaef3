"""The registry of scores: functions that give each unit of a group a number, lowest pruned first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from graphnet.edit.action import reduce_units
from graphnet.edit.host import Batch, Evaluation, Loss
from graphnet.edit.plan import Plan
from graphnet.edit.registry import Registry
from graphnet.ir.groups import UnitGroup

__all__ = ["SCORES", "Score", "Scoring", "score"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a score works on.

    Attributes
    ----------
    plan : Plan
        The network as it will be at this point of the transaction.
    group : UnitGroup
    batch, loss : optional
        The caller's data.
    gates : mapping of op to Tensor, optional
        What outputs are multiplied by before anything reads them; taps read activations before the gate and
        gradients after it.
    """

    plan: Plan
    group: UnitGroup
    batch: Batch | None = None
    loss: Loss | None = None
    gates: Mapping[str, Tensor] | None = None

    def evaluate(self, score: str, *, gradients: bool = False, **options: Any) -> Evaluation:
        """Run the network on the caller's batch; an :class:`EditError` says what the score lacks."""
        loss = self.loss if gradients else None
        what = f"the score {score!r} of {self.group.name!r}"
        return self.plan.evaluate(self.batch, loss, what, needs_loss=gradients, gates=self.gates, **options)

    @property
    def generator(self) -> torch.Generator:
        """The random numbers of this edit."""
        return self.plan.generator

    def per_unit(self, tensor: Tensor, dim: int, name: str) -> Tensor:
        """Sum a tensor shaped like a stored one over everything but the group's units: ``[units]``, float64."""
        layout = self.plan.spec(name).dims[dim]
        return reduce_units(tensor.double(), dim, layout, self.group.name, self.plan.graph.sizes)


class Score(Protocol):
    """Gives ``[units]`` in float64. Options are keyword-only parameters."""

    def __call__(self, scoring: Scoring) -> Tensor:
        """Score the units."""


SCORES: Registry[Score] = Registry("score")
score = SCORES.register
