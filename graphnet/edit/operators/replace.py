"""Replace: an op becomes another one, with its weights carried where that is defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from graphnet.edit.host import Batch
from graphnet.edit.newborns import Claim
from graphnet.edit.operators.grow import check_claim, check_promise
from graphnet.edit.operators.wiring import fresh_tensors, node_of
from graphnet.edit.plan import Plan, Preserves, Step
from graphnet.edit.registry import Registry
from graphnet.errors import EditError
from graphnet.ir.ops import OPS
from graphnet.ir.ops.activation import Activation
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.blend import BLENDED, Blend
from graphnet.ir.ops.conv import Conv2d
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm

__all__ = ["REPLACEMENTS", "Replacement", "replace_op", "replacement"]

NORMS = (BatchNorm, LayerNorm, GroupNorm, RMSNorm)


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of an op.

    Attributes
    ----------
    ops : tuple of Op
        New models; the one with the old op's name is what its readers read.
    tensors : mapping of name to Tensor
        Values of stored tensors that are new or start afresh.
    claim : Claim
    """

    ops: tuple[Op, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    claim: Claim = field(default_factory=lambda: Claim("none", "another op"))


REPLACEMENTS: Registry[Callable[..., Replacement]] = Registry("replacement")
"""Replacements by name: functions of the plan and the op's name, with keyword options."""
replacement = REPLACEMENTS.register


def replace_op(
    plan: Plan,
    name: str,
    *,
    by: str,
    preserves: Preserves | None = None,
    batch: Batch | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Replace an op. See :meth:`graphnet.edit.edit.Edit.replace`."""
    what = f"replace {name!r} by {by!r}"
    check_promise(what, preserves)
    node_of(plan, what, name)
    found: Replacement
    if isinstance(by, str) and by in REPLACEMENTS:
        found = REPLACEMENTS.call(by, plan, name, **(options or {}))
    else:
        found = _other_kind(plan, what, name, by, dict(options or {}), batch)
    check_claim(what, found.claim, preserves)
    plan.restructure(found.ops, tensors=found.tensors)
    arguments = {"name": name, "by": by, **(options or {})}
    plan.steps.append(Step("replace", None, arguments, (), (), found.claim.preserves, found.claim.note))


def _other_kind(plan: Plan, what: str, name: str, by: str, options: dict[str, Any], batch: Batch | None) -> Replacement:
    """One activation or norm by another; attributes in ``options``."""
    old = plan.graph.nodes[name].op
    cls = OPS.get(by) if isinstance(by, str) else None
    if cls is None:
        known = sorted({*REPLACEMENTS, *(k for k, c in OPS.items() if issubclass(c, (Activation, *NORMS)))})
        raise EditError(f"{what}: there is no such replacement; there are {', '.join(known)}")
    alike = any(issubclass(cls, kind) and isinstance(old, kind) for kind in (Activation,))
    norms = issubclass(cls, NORMS) and isinstance(old, NORMS)
    if not (alike or norms):
        raise EditError(f"{what}: an activation is replaced by an activation and a norm by a norm; this is {old.op!r}")
    try:
        op: Op = TypeAdapter(cls).validate_python({"op": by, "name": name, "inputs": old.inputs, **options})
    except ValidationError as error:
        first = error.errors()[0]
        raise EditError(f"{what}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if op == old:
        raise EditError(f"{what}: it is that already")
    tensors: dict[str, Tensor] = {}
    probe = op.model_copy(update={"name": "replacement"})
    kept = {spec.name for spec in plan.graph.nodes[name].tensors}
    for key, value in fresh_tensors(plan, probe, "default", batch).items():
        mine = name + key[len("replacement") :]
        if mine not in kept:
            tensors[mine] = value
    return Replacement((op,), tensors, _activation_claim(plan, name, old, op) if alike else _norm_claim(old, op))


def _activation_claim(plan: Plan, name: str, old: Op, new: Op) -> Claim:
    if isinstance(old, Blend) and not isinstance(new, Blend):
        mix = float(plan.value(f"{name}.mix"))
        at = old.first if mix == 0.0 else old.second if mix == 1.0 else None
        if at is not None:
            plain = BLENDED[at](op=at, name=name, inputs=old.inputs)
            if plain == new:
                return Claim("function")
        return Claim("none", f"the blend stands at mix = {mix:g}")
    if isinstance(new, Blend) and new.first == old.op and not _attributes(old):
        return Claim("function")
    return Claim("none", f"{old.op} and {new.op} are different functions")


def _norm_claim(old: Op, new: Op) -> Claim:
    return Claim("none", f"{old.op} and {new.op} take other statistics; weight and bias are carried")


def _attributes(op: Op) -> set[str]:
    return set(op.model_dump(exclude_defaults=True)) - {"op", "name", "inputs"}


@replacement("blend")
def blend(plan: Plan, name: str, *, to: str, learned: bool = True) -> Replacement:
    """An activation by a mixture of itself and another, which starts as itself: exact.

    ``mix`` then moves from 0 to 1, learned or set by a policy, and :func:`replace_op` by the other one ends it.
    Source: Wei et al. (ICML 2016, arXiv 1603.01670).
    """
    old = plan.graph.nodes[name].op
    if old.op not in BLENDED or _attributes(old) or not isinstance(to, str) or to not in BLENDED:
        raise EditError(
            f"replace {name!r}: a blend goes from one to another of {', '.join(BLENDED)} with default attributes, not "
            f"from {old.op!r} to {to!r}"
        )
    op = Blend(name=name, inputs=old.inputs, first=old.op, second=to, learned=learned)  # type: ignore[arg-type]
    mix = fresh_tensors(plan, op.model_copy(update={"name": "replacement"}), "default")["replacement.mix"]
    return Replacement((op,), {f"{name}.mix": mix}, Claim("function"))


@replacement("separable")
def separable(plan: Plan, name: str, *, rank: int = 1) -> Replacement:
    """A convolution by a depthwise one (``NAME_depthwise``) and a pointwise one under its name.

    For each input channel the kernels ``[out, kh*kw]`` are approximated to a rank by their singular vectors; exact at
    the full rank ``min(out, kh*kw)``. The approximation is the best of its rank for each channel (Eckart and Young,
    1936).
    """
    old = plan.graph.nodes[name].op
    if not isinstance(old, Conv2d) or old.depthwise or old.groups != 1:
        raise EditError(f"replace {name!r}: 'separable' is for a conv2d without groups, not for {old.op!r}")
    weight = plan.value(f"{name}.weight")
    out, channels, height, width = weight.shape
    full = min(out, height * width)
    if not 1 <= rank <= full:
        raise EditError(f"replace {name!r}: a rank from 1 to {full}, not {rank}")
    _check_finite(name, weight)
    per_input = weight.double().permute(1, 0, 2, 3).reshape(channels, out, height * width)
    left, values, right = torch.linalg.svd(per_input, full_matrices=False)
    root = values[:, :rank].sqrt()
    depth = (root[:, :, None] * right[:, :rank]).reshape(channels * rank, 1, height, width)
    point = (left[:, :, :rank] * root[:, None, :]).permute(1, 0, 2).reshape(out, channels * rank, 1, 1)
    kernel = old.kernel
    first = Conv2d(
        name=_free(plan, f"{name}_depthwise"), inputs=old.inputs, out=channels * rank, kernel=kernel, stride=old.stride,
        padding=old.padding, dilation=old.dilation, depthwise=True, bias=False,
    )  # fmt: skip
    second = Conv2d(name=name, inputs=(first.name,), out=out, kernel=1, bias=old.bias)
    tensors = {f"{first.name}.weight": depth.to(weight), f"{name}.weight": point.to(weight)}
    lost = float(values[:, rank:].square().sum().sqrt() / values.square().sum().sqrt().clamp(min=1e-300))
    return Replacement((first, second), tensors, _rank_claim(rank, full, lost))


def _check_finite(name: str, weight: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise EditError(f"replace {name!r}: '{name}.weight' is not finite, so that it has no singular vectors")


@replacement("low-rank")
def low_rank(plan: Plan, name: str, *, rank: int) -> Replacement:
    """A linear layer by two of a rank between them (``NAME_in``, then its name), by singular vectors."""
    old = plan.graph.nodes[name].op
    if not isinstance(old, LinearOp) or old.tied is not None:
        raise EditError(f"replace {name!r}: 'low-rank' is for a linear layer with a weight of its own, not {old.op!r}")
    weight = plan.value(f"{name}.weight")
    full = min(weight.shape)
    if not 1 <= rank <= full:
        raise EditError(f"replace {name!r}: a rank from 1 to {full}, not {rank}")
    _check_finite(name, weight)
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values[:rank].sqrt()
    first = LinearOp(name=_free(plan, f"{name}_in"), inputs=old.inputs, out=rank, bias=False)
    second = LinearOp(name=name, inputs=(first.name,), out=old.out, bias=old.bias)
    tensors = {
        f"{first.name}.weight": (root[:, None] * right[:rank]).to(weight),
        f"{name}.weight": (left[:, :rank] * root).to(weight),
    }
    lost = float(values[rank:].square().sum().sqrt() / values.square().sum().sqrt().clamp(min=1e-300))
    return Replacement((first, second), tensors, _rank_claim(rank, full, lost))


def _rank_claim(rank: int, full: int, lost: float) -> Claim:
    if rank == full:
        return Claim("function")
    return Claim("approximate", f"rank {rank} of {full}: {lost:.3g} of the weight's norm is left out")


def _free(plan: Plan, name: str) -> str:
    count, found = 1, name
    while found in plan.graph.nodes or found in plan.loose:
        count, found = count + 1, f"{name}{count + 1}"
    return found
