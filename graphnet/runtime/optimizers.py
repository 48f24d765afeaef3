"""An optimizer that a network carries through its edits; the rules are in :mod:`graphnet.runtime.optimizer_rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from graphnet.errors import EditError
from graphnet.runtime.optimizer_rules import OptimizerRule, SlotRule, register_optimizer, rule_for
from graphnet.runtime.updates import UpdateCorrection

__all__ = ["Attached", "OptimizerRule", "SlotRule", "register_optimizer", "rule_for"]


class Attached:
    """An optimizer that a network carries through its edits."""

    def __init__(self, key: str, optimizer: Optimizer, horizon: int | None) -> None:
        self.key = key
        self.optimizer = optimizer
        self.rule = rule_for(optimizer)
        for group in optimizer.param_groups:
            if group.get("differentiable"):
                raise EditError("an optimizer with differentiable=True keeps its past steps alive and cannot be edited")
        self.updates = UpdateCorrection(optimizer, self.rule, horizon=horizon)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter in the optimizer's groups."""
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def holds(self, parameter: Tensor) -> bool:
        """Whether a parameter is in one of the groups."""
        return any(held is parameter for held in self.parameters())

    def state_tensors(self, parameter: Tensor, name: str) -> Iterator[tuple[str, Tensor, SlotRule]]:
        """The state that follows the parameter's layouts.

        Raises
        ------
        EditError
            The optimizer keeps something that its rule does not name.
        """
        if self.rule.resets is not None:
            return
        for key, value in self.optimizer.state.get(parameter, {}).items():
            rule = self.rule.slots.get(key)
            if rule is None:
                if key in self.rule.scalars or not isinstance(value, Tensor):
                    continue
                raise EditError(
                    f"{type(self.optimizer).__name__} keeps {key!r} for {name!r}, which its rule does not name: "
                    "register a rule that does"
                )
            if value is None:
                continue
            if value.shape != parameter.shape:
                raise EditError(
                    f"{type(self.optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name!r} of "
                    f"shape {tuple(parameter.shape)}: was the parameter resized outside graphnet?"
                )
            yield key, value, rule

    def newborn(self, parameter: Tensor, rule: SlotRule) -> float | Literal["weight"]:
        """What newborn elements of a slot of a parameter start with."""
        if not callable(rule.newborn):
            return rule.newborn
        group = next(g for g in self.optimizer.param_groups if any(held is parameter for held in g["params"]))
        return rule.newborn(self.optimizer, group)

    def step_of(self, parameter: Tensor) -> int | None:
        """The optimizer's step count of a parameter; 0 before the first step; None where it keeps no count."""
        if self.rule.ageing is None:
            return None
        state = self.optimizer.state.get(parameter, {})
        return int(state["step"]) if "step" in state else 0

    def bytes(self) -> int:
        """Bytes of state tensors."""
        return sum(
            value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
