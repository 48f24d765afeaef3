"""Calls that take a sum or a statistic along dimensions and drop them."""

from __future__ import annotations

from typing import ClassVar, Literal

from graphnet.ir.layout import Layout, const
from graphnet.ir.ops.aten.call import Call, axes
from graphnet.ir.ops.base import Context, Dims, register

__all__ = ["Reduce"]

_SUMS = frozenset(("sum", "nansum"))
_INDEX = frozenset(("argmax", "argmin", "mode", "median", "nanmedian"))


@register
class Reduce(Call):
    """Sum, mean, maximum, variance, norm ... along some dimensions or all."""

    op: Literal["reduce"] = "reduce"
    targets: ClassVar[tuple[str, ...]] = (
        "sum", "nansum", "mean", "nanmean", "prod", "amax", "amin", "max", "min", "aminmax", "var", "std", "var_mean",
        "std_mean", "norm", "linalg_vector_norm", "logsumexp", "any", "all", "argmax", "argmin", "mode", "median",
        "nanmedian", "count_nonzero",
    )  # fmt: skip

    def rule(self, ctx: Context, *inputs: Dims) -> Dims | tuple[Dims, ...]:
        x = inputs[0]
        given = self.given
        dims = axes(given.get("dim"), len(x))
        keep = bool(given.get("keepdim", False))
        for dim in dims:
            if self.function in _INDEX or (self.function in ("max", "min") and "dim" in given):
                ctx.freeze(x[dim], "positions along it are returned")
            elif ctx.fixed(x[dim]):
                continue
            elif self.function in _SUMS:  # a unit without weights may still add to it: cos(0) is 1
                ctx.couple(x[dim], "it is summed over")
            else:
                ctx.couple(x[dim], "a statistic is taken along it")
        out: list[Layout] = []
        for position, layout in enumerate(x):
            if position not in dims:
                out.append(layout)
            elif keep:
                out.append(const(1))
        return tuple(out) if self.ports == 1 else (tuple(out),) * self.ports
