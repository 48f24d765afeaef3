"""Shrink and perturb: every weight is scaled down and gets noise; shapes, ids and optimizer state stay."""

from __future__ import annotations

import torch

from graphnet.edit.plan import Plan, Step
from graphnet.errors import EditError

__all__ = ["shrink_and_perturb"]

_KINDS = ("weight", "bias", "table")
_LARGEST = torch.finfo(torch.float64).max


def shrink_and_perturb(
    plan: Plan, group: str | None = None, *, shrink: float = 0.5, noise: float = 0.01
) -> tuple[str, ...]:  # fmt: skip
    """``w <- shrink * w + noise * N(0, 1)``; returns the tensors' names.

    See :meth:`graphnet.edit.edit.Edit.shrink_and_perturb`.
    """
    for option, given, most in (("shrink", shrink, 1.0), ("noise", noise, _LARGEST)):
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if not number or not 0 <= given <= most:
            bound = "from 0 to 1" if most == 1 else "of at least 0, and finite"
            raise EditError(f"shrink_and_perturb: {option} is a number {bound}, not {given!r}")
    shrink, noise = float(shrink), float(noise)
    names = _tensors(plan, group)
    for name in names:
        value = plan.value(name)
        drawn = torch.randn(value.shape, generator=plan.generator, dtype=torch.float64)
        rank = len(plan.spec(name).dims)
        plan.staged(name).write([None] * rank, shrink * value + (noise * drawn).to(value))
    arguments = {"shrink": shrink, "noise": noise}
    same = shrink == 1 and noise == 0
    plan.steps.append(
        Step("shrink_and_perturb", group, arguments, (), (), "function" if same else "none",
             "" if same else "weights are scaled and get noise")
    )  # fmt: skip
    return names


def _tensors(plan: Plan, group: str | None) -> tuple[str, ...]:
    """Weights and biases that a group's units are written by, or all of them; norms are left as they are."""
    if group is None:
        return tuple(name for name, spec in plan.graph.tensors.items() if spec.kind in _KINDS and not spec.buffer)
    name = plan.graph.group(group).name
    found = [holder.tensor for holder in plan.holders(name, roles=("write",)) if holder.kind in _KINDS]
    if not found:
        raise EditError(f"shrink_and_perturb: no weight is written by {name!r}")
    return tuple(dict.fromkeys(found))
