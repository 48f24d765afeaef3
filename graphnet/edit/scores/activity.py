"""Scores from a batch: activation frequency, gradient, gate gradient, first-order Taylor."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graphnet.edit.action import reduce_units
from graphnet.edit.scores.base import Scoring, score
from graphnet.errors import EditError
from graphnet.ir.sites import site

__all__ = ["activation_frequency", "gate", "gradient", "taylor"]


@score("activation-frequency")
def activation_frequency(scoring: Scoring, *, tau: float = 0.05) -> Tensor:
    """Share of a batch (and of positions) in which the unit's activation exceeds ``tau``."""
    place = site(scoring.plan.graph, scoring.group.name)
    found = scoring.evaluate("activation-frequency", taps=(place.post,))
    return _mean(scoring, found.activations[place.post] > tau, place.post, place.dim)


@score("gradient")
def gradient(scoring: Scoring, *, at: Literal["activation", "pre-activation"] = "activation") -> Tensor:
    """Mean absolute gradient of the loss with respect to the unit's activation (after a mask), or before it."""
    if at not in ("activation", "pre-activation"):
        raise EditError(f"gradient: at is 'activation' or 'pre-activation', not {at!r}")
    place = site(scoring.plan.graph, scoring.group.name)
    tap = place.post if at == "activation" else place.pre
    found = scoring.evaluate("gradient", gradients=True, taps=(tap,))
    return _mean(scoring, found.gradients[tap].abs(), tap, place.dim)


@score("gate")
def gate(scoring: Scoring) -> Tensor:
    """|sum h * dL/dh| of each unit: the gradient of a gate on it."""
    place = site(scoring.plan.graph, scoring.group.name)
    found = scoring.evaluate("gate", gradients=True, taps=(place.post,))
    product = found.activations[place.post].double() * found.gradients[place.post].double()
    return _sum(scoring, product, place.post, place.dim).abs()


@score("taylor")
def taylor(scoring: Scoring, *, form: Literal["abs-sum", "sum-abs", "square-sum"] = "square-sum") -> Tensor:
    """First-order Taylor over the unit's incoming weights: ``(sum g*w)^2``, ``|sum g*w|`` or ``sum |g*w|``.

    Source: Molchanov et al. (CVPR 2019, arXiv 1906.10771), and its group forms.
    """
    if form not in ("abs-sum", "sum-abs", "square-sum"):
        raise EditError(f"taylor: form is 'abs-sum', 'sum-abs' or 'square-sum', not {form!r}")
    holders = [h for h in scoring.plan.holders(scoring.group.name, roles=("write",)) if h.kind != "statistic"]
    names = tuple(dict.fromkeys(holder.tensor for holder in holders))
    found = scoring.evaluate("taylor", gradients=True, parameters=names)
    total = torch.zeros(scoring.group.size, dtype=torch.float64)
    for holder in holders:
        product = found.parameters[holder.tensor].double() * scoring.plan.value(holder.tensor).double()
        product = product.abs() if form == "sum-abs" else product
        total += scoring.per_unit(product, holder.dim, holder.tensor).cpu()
    return total.square() if form == "square-sum" else total.abs()


def _sum(scoring: Scoring, values: Tensor, op: str, dim: int) -> Tensor:
    layout = scoring.plan.graph.dims(op)[dim]
    return reduce_units(values.double(), dim, layout, scoring.group.name, scoring.plan.graph.sizes).cpu()


def _mean(scoring: Scoring, values: Tensor, op: str, dim: int) -> Tensor:
    return _sum(scoring, values, op, dim) * (scoring.group.size / values.numel())
