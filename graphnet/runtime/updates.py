"""Corrections of an optimizer's update by the age of rows and columns, through its step hooks.

``aged`` newborns: after each step the newborn slices are computed again from their weights of before the step and
the advanced moments, with bias correction by their own age (element age = the younger of row and column). Rescaling
the update would not be exact; recomputing is. Rates (Two-Speed) and multipliers then scale the update itself, not
the gradient, which Adam would undo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from graphnet.edit.states import AGELESS
from graphnet.runtime.ages import Ageing, Slices, horizon_of
from graphnet.runtime.optimizer_rules import OptimizerRule

__all__ = ["Births", "UpdateCorrection", "horizon_of"]


@dataclass(slots=True)
class Births:
    """What is known of the age of one parameter's slices; tensors of one dimension, by dimension.

    Attributes
    ----------
    birth : dict of int to Tensor
        The optimizer's step count at birth, ``AGELESS`` for incumbents.
    rate, until : dict of int to Tensor
        What the update (decay included) is multiplied by, and the step count at which that ends.
    multiplier : dict of int to Tensor
        What the update without decoupled decay is multiplied by, for good.
    """

    birth: dict[int, Tensor] = field(default_factory=dict)
    rate: dict[int, Tensor] = field(default_factory=dict)
    until: dict[int, Tensor] = field(default_factory=dict)
    multiplier: dict[int, Tensor] = field(default_factory=dict)

    def table(self, kind: str) -> dict[int, Tensor]:
        """One of the four by name."""
        table: dict[int, Tensor] = getattr(self, kind)
        return table


@dataclass(slots=True)
class _Saved:
    parameter: Tensor
    births: Births
    step: int
    decay: float  # decoupled: what the step multiplies the weights by
    newest: float  # the share of the newest weights in the optimizer's average of them, where it keeps one
    blocks: dict[int, tuple[Tensor, Tensor]]  # dimension -> (positions, weights before the step)


class UpdateCorrection:
    """The step hooks of one optimizer. They cost nothing while no slice is young or scaled."""

    def __init__(self, optimizer: Optimizer, rule: OptimizerRule, *, horizon: int | None) -> None:
        self.optimizer = optimizer
        self.rule = rule
        self.horizon = horizon
        self.births: dict[Tensor, Births] = {}
        self.steps = 0
        self._saved: list[_Saved] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    # -- hooks ------------------------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._saved.clear()
        if not self.births:
            return
        groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, births in list(self.births.items()):
            group = groups.get(parameter)
            if group is None:
                continue  # gradients may still come, from a closure: whether a step was made is seen after it
            step = self._count(parameter)
            blocks = {}
            for dim in sorted({*births.birth, *births.rate, *births.multiplier}):
                at = self._active(births, dim, step, group)
                if at.numel():
                    at = at.to(parameter.device)
                    blocks[dim] = (at, parameter.detach().index_select(dim, at))
            if blocks:
                state = optimizer.state.get(parameter, {})
                newest = self.rule.average[1](state) if self.rule.average is not None else 1.0
                self._saved.append(_Saved(parameter, births, step, self.rule.decay(group, state), newest, blocks))
            elif not births.multiplier:
                del self.births[parameter]

    def _count(self, parameter: Tensor) -> int:
        if self.rule.ageing is None:
            return self.steps
        state = self.optimizer.state.get(parameter, {})
        return int(state["step"]) if "step" in state else 0

    def _active(self, births: Births, dim: int, step: int, group: dict[str, Any]) -> Tensor:
        """Positions along a dimension whose update is not the optimizer's own."""
        active: Tensor | None = None

        def include(mask: Tensor) -> None:
            nonlocal active
            active = mask if active is None else active | mask

        if dim in births.birth and self.rule.ageing is not None:
            horizon = self.horizon if self.horizon is not None else self.rule.ageing.horizon(group)
            birth = births.birth[dim]
            include((birth != AGELESS) & (step - birth < horizon))
        if dim in births.rate:
            include((births.rate[dim] != 1.0) & (births.until[dim] > step))
        if dim in births.multiplier:
            include(births.multiplier[dim] != 1.0)
        return torch.empty(0, dtype=torch.int64) if active is None else torch.nonzero(active).flatten()

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        if not self._saved:
            return
        groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        for saved in self._saved:
            if self.rule.ageing is None and saved.parameter.grad is None:
                continue  # no gradient, no step
            if self.rule.ageing is not None and self._count(saved.parameter) != saved.step + 1:
                continue  # the step was skipped, by a gradient scaler for instance
            group = groups[saved.parameter]
            corrected = [
                (dim, at, self._corrected(saved, dim, at, before, group)) for dim, (at, before) in saved.blocks.items()
            ]
            self._average(saved, corrected)
            for dim, at, value in corrected:  # blocks overlap in their corners, where all of them hold the same value
                saved.parameter.index_copy_(dim, at, value)
        self._saved.clear()

    def _average(self, saved: _Saved, corrected: list[tuple[int, Tensor, Tensor]]) -> None:
        """Let the optimizer's average of the weights see the corrected ones; it is linear in them."""
        if self.rule.average is None:
            return
        average = self.optimizer.state[saved.parameter][self.rule.average[0]]
        seen = []
        for dim, at, value in corrected:
            gap = value - saved.parameter.detach().index_select(dim, at)
            held = average.index_select(dim, at) + saved.newest * gap
            seen.append((dim, at, value if saved.newest == 1.0 else held))
        for dim, at, held in seen:
            average.index_copy_(dim, at, held)

    def _corrected(self, saved: _Saved, dim: int, at: Tensor, before: Tensor, group: dict[str, Any]) -> Tensor:
        parameter, births = saved.parameter, saved.births
        value = parameter.detach().index_select(dim, at)
        decayed = before if saved.decay == 1.0 else before * saved.decay
        if self.rule.ageing is not None and births.birth:
            value = self._by_age(saved, self.rule.ageing, dim, at, before, decayed, value, group)
        if births.multiplier:
            factor = _product(births.multiplier, dim, at, value)
            value = torch.where(factor == 1.0, value, decayed + factor * (value - decayed))
        if births.rate:
            rates = {
                d: torch.where(births.until[d] > saved.step, r, torch.ones_like(r)) for d, r in births.rate.items()
            }
            factor = _oldest(rates, dim, at, value)
            value = torch.where(factor == 1.0, value, before + factor * (value - before))
        return value

    def _by_age(
        self, saved: _Saved, ageing: Ageing, dim: int, at: Tensor, before: Tensor, decayed: Tensor, value: Tensor,
        group: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        horizon = self.horizon if self.horizon is not None else ageing.horizon(group)
        state = self.optimizer.state[saved.parameter]
        count = saved.step + 1
        age: Tensor | None = None
        for d, birth in saved.births.birth.items():
            own = torch.where(birth == AGELESS, torch.full_like(birth, count), (count - birth).clamp(min=1))
            own = own.to(value.device)
            own = own.index_select(0, at) if d == dim else own
            own = own.reshape([-1 if k == d else 1 for k in range(value.dim())])
            age = own if age is None else torch.minimum(age, own)
        assert age is not None
        young = (age < count) & (age <= horizon)
        gradient = saved.parameter.grad
        assert gradient is not None
        slices = Slices(
            before, decayed, gradient.detach().index_select(dim, at), age.double(), min(horizon, count),
            lambda key: state[key].index_select(dim, at), group,
        )  # fmt: skip
        again = ageing.update(slices)
        return torch.where(young, again, value)


def _spread(vector: Tensor, dim: int, own: int, at: Tensor, like: Tensor) -> Tensor:
    vector = vector.to(like.device)
    if own == dim:
        vector = vector.index_select(0, at)
    return vector.reshape([-1 if k == own else 1 for k in range(like.dim())]).to(like.dtype)


def _product(table: dict[int, Tensor], dim: int, at: Tensor, like: Tensor) -> Tensor:
    factor = torch.ones((), dtype=like.dtype, device=like.device)
    for own, vector in table.items():
        factor = factor * _spread(vector, dim, own, at, like)
    return factor.expand_as(like)


def _oldest(table: dict[int, Tensor], dim: int, at: Tensor, like: Tensor) -> Tensor:
    """The factor of an element: that of its row or column, whichever is not 1 (the larger where both)."""
    factor = torch.ones((), dtype=like.dtype, device=like.device)
    for own, vector in table.items():
        spread = _spread(vector, dim, own, at, like)
        factor = torch.where(factor == 1.0, spread, torch.where(spread == 1.0, factor, torch.maximum(factor, spread)))
    return factor.expand_as(like)
