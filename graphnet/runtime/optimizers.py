"""What optimizers keep for each parameter, and how it follows an edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from graphnet.errors import EditError
from graphnet.runtime.updates import UpdateCorrection

__all__ = ["Attached", "OptimizerRule", "SlotRule", "register_optimizer", "rule_for"]


@dataclass(frozen=True, slots=True)
class SlotRule:
    """One tensor that an optimizer keeps for each parameter, of the parameter's shape.

    Attributes
    ----------
    newborn : float
        Its neutral value.
    power : float
        How it scales with the gradient: 1 for a first moment, 2 for a second one.
    """

    newborn: float = 0.0
    power: float = 0.0


@dataclass(frozen=True, slots=True)
class OptimizerRule:
    """How an optimizer's state follows an edit.

    Attributes
    ----------
    slots : mapping of state key to SlotRule
    scalars : tuple of str
        Keys that do not depend on units; carried as they are.
    adam : bool
        Whether the update is Adam's, so that births correct it by age.
    """

    slots: Mapping[str, SlotRule]
    scalars: tuple[str, ...] = ("step",)
    adam: bool = False


_ADAM = OptimizerRule(
    {"exp_avg": SlotRule(power=1.0), "exp_avg_sq": SlotRule(power=2.0), "max_exp_avg_sq": SlotRule(power=2.0)},
    adam=True,
)
_RULES: dict[type[Optimizer], OptimizerRule] = {
    torch.optim.SGD: OptimizerRule({"momentum_buffer": SlotRule(power=1.0)}, scalars=()),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
}


def register_optimizer(cls: type[Optimizer], rule: OptimizerRule) -> None:
    """State how an optimizer class follows an edit; its subclasses need a rule of their own."""
    _RULES[cls] = rule


def rule_for(optimizer: Optimizer) -> OptimizerRule:
    """The rule of an optimizer's class.

    Raises
    ------
    EditError
        There is none; says how to register one.
    """
    rule = _RULES.get(type(optimizer))
    if rule is None:
        known = ", ".join(sorted(cls.__name__ for cls in _RULES))
        raise EditError(
            f"graphnet does not know how the state of {type(optimizer).__name__} follows an edit (it knows {known}): "
            "state it with graphnet.runtime.optimizers.register_optimizer(cls, OptimizerRule(...))"
        )
    return rule


class Attached:
    """An optimizer that a network carries through its edits."""

    def __init__(self, key: str, optimizer: Optimizer, horizon: int | None) -> None:
        self.key = key
        self.optimizer = optimizer
        self.rule = rule_for(optimizer)
        for group in optimizer.param_groups:
            if group.get("differentiable"):
                raise EditError("an optimizer with differentiable=True keeps its past steps alive and cannot be edited")
        self.updates = UpdateCorrection(optimizer, adam=self.rule.adam, horizon=horizon)

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

    def step_of(self, parameter: Tensor) -> int | None:
        """The optimizer's step count of a parameter; 0 before the first step; None where it keeps no count."""
        if not self.rule.adam:
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
