"""The registry of scores: functions that give each unit of a group a number, lowest pruned first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.action import reduce_units
from graphnet.edit.host import Batch, Evaluation, Loss
from graphnet.edit.plan import Plan
from graphnet.edit.registry import Registry
from graphnet.errors import EditError
from graphnet.ir.groups import UnitGroup
from graphnet.ir.sites import Site, site

__all__ = ["SCORES", "Score", "Scoring", "score", "score_units"]


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

    @property
    def site(self) -> Site:
        """Where the group's pre-activation and activation can be read."""
        return site(self.plan.graph, self.group.name)

    def per_unit(self, tensor: Tensor, dim: int, name: str) -> Tensor:
        """Sum a tensor shaped like a stored one over everything but the group's units: ``[units]``, float64."""
        layout = self.plan.spec(name).dims[dim]
        return reduce_units(tensor.double(), dim, layout, self.group.name, self.plan.graph.sizes)

    def unit_sum(self, values: Tensor, op: str, dim: int) -> Tensor:
        """Sum a tensor shaped like an op's output over everything but the group's units: ``[units]``, float64."""
        layout = self.plan.graph.dims(op)[dim]
        return reduce_units(values.double(), dim, layout, self.group.name, self.plan.graph.sizes).cpu()

    def unit_mean(self, values: Tensor, op: str, dim: int) -> Tensor:
        """As :meth:`unit_sum`, the mean: over the elements of each unit, those of other units left out."""
        graph = self.plan.graph
        owners = graph.dims(op)[dim].owners(self.group.name, graph.sizes)
        elements = values.numel() * np.count_nonzero(owners >= 0) / owners.size / self.group.size
        return self.unit_sum(values, op, dim) / elements


class Score(Protocol):
    """Gives ``[units]`` in float64. Options are keyword-only parameters."""

    def __call__(self, scoring: Scoring) -> Tensor:
        """Score the units."""


SCORES: Registry[Score] = Registry("score")
score = SCORES.register


def score_units(name: str, scoring: Scoring, options: Mapping[str, Any] | None = None) -> Tensor:
    """Call a registered score: ``[units]``, float64, finite.

    Raises
    ------
    EditError
        There is no such score, an option or data is missing or wrong, or the result is no finite number for each
        unit.
    """
    found = SCORES.call(name, scoring, **(options or {}))
    group = scoring.group
    if not isinstance(found, Tensor) or tuple(found.shape) != (group.size,):
        shown = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise EditError(f"score {name!r} gave {shown} for the {group.size} units of {group.name!r}: a tensor [units]")
    values = found.detach().cpu().double()
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        wrong = torch.nonzero(~finite).flatten().tolist()
        raise EditError(
            f"score {name!r} is {float(values[wrong[0]])} for units {[group.ids[at] for at in wrong[:8]]} of "
            f"{group.name!r}, so they cannot be ranked: look for what is not finite in the weights or the batch"
        )
    return values
