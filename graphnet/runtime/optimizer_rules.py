"""The optimizers that graphnet knows, as data: what each keeps for an element and how that follows an edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch.optim import Optimizer

from graphnet.errors import EditError
from graphnet.runtime.ages import ADAM, ADAMAX, NADAM, RADAM, Ageing

__all__ = ["OptimizerRule", "SlotRule", "register_optimizer", "rule_for"]

Group: TypeAlias = Mapping[str, Any]
Filler: TypeAlias = "float | Literal['weight'] | Callable[[Optimizer, Group], float]"


@dataclass(frozen=True, slots=True)
class SlotRule:
    """One tensor that an optimizer keeps for each parameter, of the parameter's shape.

    Attributes
    ----------
    newborn : float, "weight" or callable
        What a newborn element starts with: a number, the element's own weight, or what the optimizer and the parameter
        group say.
    power : float
        How it scales with the gradient: 1 for a first moment, 2 for a second one.
    magnitude : bool
        Whether it measures the size of gradients or updates, so that ``transplant`` copies it; every slot of power 2
        does.
    """

    newborn: Filler = 0.0
    power: float = 0.0
    magnitude: bool = False


def _no_decay(group: Group, state: Mapping[str, Any]) -> float:
    return 1.0


@dataclass(frozen=True, slots=True)
class OptimizerRule:
    """How an optimizer's state follows an edit.

    Attributes
    ----------
    slots : mapping of state key to SlotRule
    scalars : tuple of str
        Keys that do not depend on units; carried as they are.
    ageing : Ageing, optional
        The update by age, for ``aged`` newborns; None where it does not depend on the step count.
    invariant : bool
        Whether an update stays as it is when every gradient so far is multiplied by one positive number.
    decay : callable
        What a step multiplies the weights by before the update, from the parameter group and the state before it.
    average : (str, callable), optional
        The slot that averages the weights, and the share of the newest ones in it, from the state before a step.
    resets : mapping of str to Any, optional
        For an optimizer whose state couples all elements: an edit clears the state and sets these of its attributes.
    """

    slots: Mapping[str, SlotRule]
    scalars: tuple[str, ...] = ("step",)
    ageing: Ageing | None = None
    invariant: bool = False
    decay: Callable[[Group, Mapping[str, Any]], float] = field(default=_no_decay)
    average: tuple[str, Callable[[Mapping[str, Any]], float]] | None = None
    resets: Mapping[str, Any] | None = None


def _decoupled(group: Group, state: Mapping[str, Any]) -> float:
    decays = group.get("decoupled_weight_decay") and group["weight_decay"]
    return 1.0 - float(group["lr"]) * float(group["weight_decay"]) if decays else 1.0


def _always_decoupled(group: Group, state: Mapping[str, Any]) -> float:
    return 1.0 - float(group["lr"]) * float(group["weight_decay"])


def _averaged(group: Group, state: Mapping[str, Any]) -> float:
    return 1.0 - float(group["lambd"]) * float(state.get("eta", group["lr"]))


def _newest(state: Mapping[str, Any]) -> float:
    return float(state.get("mu", 1.0))


def _initial_sum(optimizer: Optimizer, group: Group) -> float:
    return float(optimizer.defaults["initial_accumulator_value"])  # torch does not read the group's either


def _lr(optimizer: Optimizer, group: Group) -> float:
    return float(group["lr"])


_FIRST, _SECOND = SlotRule(power=1.0), SlotRule(power=2.0)
_MOMENTS = {"exp_avg": _FIRST, "exp_avg_sq": _SECOND}
_ADAM = OptimizerRule(_MOMENTS | {"max_exp_avg_sq": _SECOND}, ageing=ADAM, invariant=True, decay=_decoupled)

_RULES: dict[type[Optimizer], OptimizerRule] = {
    torch.optim.SGD: OptimizerRule({"momentum_buffer": _FIRST}, scalars=()),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: replace(_ADAM, decay=_always_decoupled),
    torch.optim.NAdam: OptimizerRule(
        _MOMENTS, ("step", "mu_product"), ageing=NADAM, invariant=True, decay=_decoupled
    ),
    torch.optim.RAdam: OptimizerRule(_MOMENTS, ageing=RADAM, invariant=True, decay=_decoupled),  # from step 6 on
    torch.optim.Adamax: OptimizerRule(
        {"exp_avg": _FIRST, "exp_inf": SlotRule(power=1.0, magnitude=True)}, ageing=ADAMAX, invariant=True
    ),
    torch.optim.RMSprop: OptimizerRule(
        {"square_avg": _SECOND, "grad_avg": _FIRST, "momentum_buffer": SlotRule()}, invariant=True
    ),
    torch.optim.Adagrad: OptimizerRule({"sum": SlotRule(_initial_sum, power=2.0)}, invariant=True),
    torch.optim.Adadelta: OptimizerRule(
        {"square_avg": _SECOND, "acc_delta": SlotRule(magnitude=True)}, invariant=True
    ),
    torch.optim.Rprop: OptimizerRule({"prev": _FIRST, "step_size": SlotRule(_lr)}, invariant=True),
    torch.optim.ASGD: OptimizerRule(
        {"ax": SlotRule("weight")}, ("step", "eta", "mu"), decay=_averaged, average=("ax", _newest)
    ),
    torch.optim.LBFGS: OptimizerRule({}, (), resets={"_numel_cache": None}),
}  # fmt: skip

_REFUSED: dict[type[Optimizer], str] = {
    torch.optim.Adafactor: "its second moment is factored into row and column means of the whole tensor, and its "
    "update is clipped by the whole tensor's norm, so that an edit would change the updates of the units that stay",
    torch.optim.Muon: "it orthogonalises the update of a whole matrix, so that an edit would change the updates of "
    "the units that stay",
    torch.optim.SparseAdam: "it needs sparse gradients, which do not follow an edit",
}


def register_optimizer(cls: type[Optimizer], rule: OptimizerRule) -> None:
    """State how an optimizer class follows an edit; its subclasses need a rule of their own."""
    _RULES[cls] = rule


def rule_for(optimizer: Optimizer) -> OptimizerRule:
    """The rule of an optimizer's class.

    Raises
    ------
    EditError
        There is none; says why, where it is known, and how to register one.
    """
    rule = _RULES.get(type(optimizer))
    if rule is None:
        known = ", ".join(sorted(cls.__name__ for cls in _RULES))
        why = _REFUSED.get(type(optimizer))
        raise EditError(
            f"graphnet does not know how the state of {type(optimizer).__name__} follows an edit"
            f"{f': {why}' if why else ''} (it knows {known}). "
            "State it with graphnet.runtime.optimizers.register_optimizer(cls, OptimizerRule(...))"
        )
    return rule
