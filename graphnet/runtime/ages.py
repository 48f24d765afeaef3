"""The updates of the Adam family with an age for every element: what ``aged`` newborns get in place of the step.

An optimizer has one step count t for a whole tensor; here each element has its own age a, counted from 1 at its first
step, in every place where the formula has t. Formulas: Kingma and Ba, 2015 (arXiv 1412.6980) for Adam and Adamax;
Dozat, 2016 (ICLR workshop) for NAdam; Liu et al., 2020 (arXiv 1908.03265) for RAdam; each as torch has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["ADAM", "ADAMAX", "NADAM", "RADAM", "Ageing", "Slices", "horizon_of"]

ACCURACY = 1e-3

Group: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Slices:
    """Some rows or columns of one parameter right after a step; tensors of one shape.

    Attributes
    ----------
    before, decayed : Tensor
        The weights of before the step, and those after decoupled decay.
    gradient : Tensor
        As the optimizer saw it, before maximizing and coupled decay.
    ages : Tensor
        float64, broadcast to the others; from 1. Right where at most ``oldest``.
    oldest : int
        No age that matters is above it.
    state : callable
        The advanced state by key.
    group : mapping
        The parameter group.
    """

    before: Tensor
    decayed: Tensor
    gradient: Tensor
    ages: Tensor
    oldest: int
    state: Callable[[str], Tensor]
    group: Group


@dataclass(frozen=True, slots=True)
class Ageing:
    """How an optimizer's update depends on the step count.

    Attributes
    ----------
    update : callable
        The weights after the step.
    horizon : callable
        The age past which the correction by age differs from 1 by less than 1e-3 (or less), by parameter group.
    """

    update: Callable[[Slices], Tensor]
    horizon: Callable[[Group], int]


def horizon_of(betas: tuple[float, float]) -> int:
    """The age past which the correction by age differs from 1 by less than 1e-3: 6,213 at beta2 = 0.999."""
    beta1, beta2 = betas
    oldest = 0
    for beta, share in ((beta1, ACCURACY), (beta2, 2 * ACCURACY)):
        if beta > 0:
            oldest = max(oldest, ceil(log(share) / log(beta)))
    return oldest


def _betas(group: Group) -> tuple[float, float]:
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2)


def _adam(s: Slices) -> Tensor:
    beta1, beta2 = _betas(s.group)
    first: Tensor = (1.0 - torch.pow(beta1, s.ages)).to(s.before.dtype)
    second: Tensor = (1.0 - torch.pow(beta2, s.ages)).sqrt().to(s.before.dtype)
    m, v = s.state("exp_avg"), s.state("max_exp_avg_sq" if s.group["amsgrad"] else "exp_avg_sq")
    return s.decayed - float(s.group["lr"]) * (m / first) / (v.sqrt() / second + float(s.group["eps"]))


def _nadam(s: Slices) -> Tensor:
    beta1, beta2 = _betas(s.group)
    lr, psi, decay = float(s.group["lr"]), float(s.group["momentum_decay"]), s.group["weight_decay"]
    g = -s.gradient if s.group["maximize"] else s.gradient
    if decay and not s.group["decoupled_weight_decay"]:
        g = g + decay * s.before
    products = _mu_products(beta1, psi, 1 << s.oldest.bit_length()).to(s.ages.device)
    product = products[(s.ages.long() - 1).clamp(0, len(products) - 1)]
    mu, following = _mu(beta1, psi, s.ages), _mu(beta1, psi, s.ages + 1)
    of_gradient: Tensor = ((1.0 - mu) / (1.0 - product)).to(g.dtype)
    of_moment: Tensor = (following / (1.0 - product * following)).to(g.dtype)
    second: Tensor = (1.0 - torch.pow(beta2, s.ages)).sqrt().to(g.dtype)
    step = of_gradient * g + of_moment * s.state("exp_avg")
    return s.decayed - lr * step / (s.state("exp_avg_sq").sqrt() / second + float(s.group["eps"]))


def _mu(beta1: float, psi: float, ages: Tensor) -> Tensor:
    """NAdam's momentum at an age."""
    return beta1 * (1.0 - 0.5 * torch.pow(0.96, ages * psi))


@lru_cache(maxsize=8)
def _mu_products(beta1: float, psi: float, count: int) -> Tensor:
    """The products of NAdam's momenta up to each age, from 1 on."""
    return torch.cumprod(_mu(beta1, psi, torch.arange(1, count + 1, dtype=torch.float64)), 0)


def _nadam_horizon(group: Group) -> int:
    """Also the age at which the momentum's own schedule has ended: 38,060 by default."""
    psi = float(group["momentum_decay"])
    schedule = ceil(log(2 * ACCURACY) / (log(0.96) * psi)) if psi > 0 else 0
    return max(horizon_of(_betas(group)), schedule)


def _radam(s: Slices) -> Tensor:
    beta1, beta2 = _betas(s.group)
    first: Tensor = (1.0 - torch.pow(beta1, s.ages)).to(s.before.dtype)
    powers = torch.pow(beta2, s.ages)
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * s.ages * powers / (1.0 - powers)
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    adaptive = length > 5.0
    factor = torch.where(adaptive, rectified * (1.0 - powers), torch.ones_like(rectified)).sqrt().to(s.before.dtype)
    step = float(s.group["lr"]) * (s.state("exp_avg") / first) * factor
    return s.decayed - torch.where(adaptive, step / (s.state("exp_avg_sq").sqrt() + float(s.group["eps"])), step)


@lru_cache(maxsize=64)
def _rectified_horizon(betas: tuple[float, float]) -> int:
    """Also the age at which the rectification, about 1 - a beta2^a / longest, has ended: 8,333 at 0.999."""
    age, beta2 = horizon_of(betas), betas[1]
    longest = 2.0 / (1.0 - beta2) - 1.0
    while age * beta2**age > ACCURACY * longest:
        age += max(1, age // 1000)
    return age


def _adamax(s: Slices) -> Tensor:
    first: Tensor = (1.0 - torch.pow(_betas(s.group)[0], s.ages)).to(s.before.dtype)
    return s.decayed - float(s.group["lr"]) * (s.state("exp_avg") / first) / s.state("exp_inf")


def _adamax_horizon(group: Group) -> int:
    """The age at which the correction is lost in rounding; so few steps (350 by default) that it costs nothing."""
    beta1 = _betas(group)[0]
    return ceil(log(1e-16) / log(beta1)) if beta1 > 0 else 0


ADAM = Ageing(_adam, lambda group: horizon_of(_betas(group)))
NADAM = Ageing(_nadam, _nadam_horizon)
RADAM = Ageing(_radam, lambda group: _rectified_horizon(_betas(group)))
ADAMAX = Ageing(_adamax, _adamax_horizon)
