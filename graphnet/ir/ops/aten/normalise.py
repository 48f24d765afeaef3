"""Norms and softmax: calls that keep every dimension and take statistics along some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from graphnet.ir.ops.aten.call import Call, axes
from graphnet.ir.ops.base import Context, Dims, Emitter, TensorKind, register

__all__ = ["Normalise", "Softmax", "WeightNorm"]

_KINDS: Mapping[str, tuple[TensorKind, float]] = {
    "weight": ("scale", 1.0),
    "bias": ("shift", 0.0),
    "running_mean": ("statistic", 0.0),
    "running_var": ("statistic", 1.0),
}
"""What an operand is for, and what a newborn slot of it holds."""


@register
class Normalise(Call):
    """Batch, layer, group, instance and root-mean-square norm, with their parameters as operands."""

    op: Literal["normalise"] = "normalise"
    targets: ClassVar[tuple[str, ...]] = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")
    groups: int = 1

    def rule(self, ctx: Context, *inputs: Dims) -> Dims:
        x = inputs[0]
        if self.function in ("layer_norm", "rms_norm"):
            count = len(self.arg("normalized_shape"))
            normed = x[len(x) - count :]
            ctx.size("normalized", list(normed))
            for dim in normed:
                ctx.couple(dim, "the norm takes its statistics along it")
        elif self.function == "group_norm":
            grouping, each = ctx.factor(x[1], self.groups)
            ctx.size("groups", grouping)
            ctx.couple(each, "group norm takes its statistics along it, inside each group")
            normed = x[1:2]
        else:
            normed = x[1:2]
        if self.function not in ("layer_norm", "rms_norm"):
            for dim in (*x[:1], *x[2:]) if self.function == "batch_norm" else x[2:]:
                if not ctx.fixed(dim):
                    ctx.couple(dim, "the norm takes its statistics along it")
        for name, (kind, newborn) in _KINDS.items():
            at = self.operand(name) if any(name == key for key in self.given) else None
            if at is None:
                continue
            for dim, own in zip(normed, inputs[at], strict=True):
                ctx.unify(dim, own)
            ctx.use(at, ["slot"] * len(normed), kind, newborn)
        return x

    def sized(self, emit: Emitter) -> dict[str, Any]:
        if "normalized" in emit.sizes:
            return {"normalized_shape": emit.sizes["normalized"]}
        return {"num_groups": emit.sizes["groups"]} if "groups" in emit.sizes else {}


@register
class Softmax(Call):
    """Softmax and its like along one dimension, which they couple."""

    op: Literal["softmax"] = "softmax"
    targets: ClassVar[tuple[str, ...]] = (
        "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "softmin", "normalize",
    )  # fmt: skip

    def rule(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        for dim in axes(self.arg("dim"), len(x)):
            ctx.couple(x[dim], "a softmax is taken along it")
        return x


@register
class WeightNorm(Call):
    """A weight of given direction, with the length of its slices along one dimension, or of the whole, apart.

    The dimensions along which a length is taken are coupled.
    """

    op: Literal["weight_norm"] = "weight_norm"
    targets: ClassVar[tuple[str, ...]] = ("_weight_norm", "_weight_norm_interface")

    def rule(self, ctx: Context, *inputs: Dims) -> Dims | tuple[Dims, ...]:
        direction, length = inputs
        of_slices = len(length) == len(direction)
        for at, dim in enumerate(direction):
            if of_slices and length[at].constant != 1:
                ctx.unify(dim, length[at])
            elif not ctx.fixed(dim):
                ctx.couple(dim, "the length of a weight is taken along it")
        return direction if self.ports == 1 else (direction, length)
