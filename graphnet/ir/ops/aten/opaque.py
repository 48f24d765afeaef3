"""Calls without a layout rule: they freeze exactly what they touch."""

from __future__ import annotations

from typing import ClassVar, Literal

from graphnet.ir.ops.aten.call import Call
from graphnet.ir.ops.base import Context, Dims, register

__all__ = ["Opaque"]


@register
class Opaque(Call):
    """A call that graphnet has no rule for; every dimension of its operands is frozen."""

    op: Literal["opaque"] = "opaque"
    reason: str = ""

    targets: ClassVar[tuple[str, ...]] = ()

    def rule(self, ctx: Context, *inputs: Dims) -> Dims | tuple[Dims, ...]:
        why = self.reason or f"{self.target} has no layout rule"
        for dims in inputs:
            for dim in dims:
                ctx.freeze(dim, why)
        outs = []
        for port in range(self.ports):
            start = self.start(port)
            outs.append(tuple(self.fixed(ctx, start + at) for at in range(self.ranks[port])))
        return outs[0] if len(outs) == 1 else tuple(outs)
