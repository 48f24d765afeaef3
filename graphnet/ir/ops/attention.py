"""Scaled dot-product attention with heads, grouped-query included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import fx

from graphnet.ir.layout import times
from graphnet.ir.ops.base import Context, Dims, Emitter, Op, Shape, register, whole

__all__ = ["Attention"]


@register
class Attention(Op):
    """``softmax(scale * q k^T) v`` for each head, over projected inputs.

    Inputs are ``q[B, T, heads*D]``, ``k[B, S, kv_heads*D]`` and ``v[B, S, kv_heads*Dv]``; the output is
    ``[B, T, heads*Dv]``. With ``kv_heads`` below ``heads`` each key-value head serves ``heads/kv_heads`` query
    heads. A missing ``scale`` is pinned to ``1/sqrt(D)`` when the graph is built, so that it stays when D grows.
    """

    op: Literal["attention"] = "attention"
    heads: int = Field(ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    causal: bool = False
    scale: float | None = Field(default=None, gt=0)

    arity: ClassVar[tuple[int, int | None]] = (3, 3)
    relower: ClassVar[bool] = True

    @model_validator(mode="after")
    def _divides(self) -> Attention:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads equally")
        return self

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        q, k, v = inputs
        if any(len(x) != 3 for x in inputs):
            raise ctx.error("attention reads inputs of shape [batch, time, features]")
        kv_heads = self.kv_heads or self.heads
        for x, heads, what in ((q, self.heads, "query"), (k, kv_heads, "key"), (v, kv_heads, "value")):
            if ctx.number(x[2]) % heads:
                raise ctx.error(f"{ctx.number(x[2])} {what} features cannot be divided among {heads} heads")
        ctx.unify(k[1], v[1])
        for x in (k, v):
            ctx.unify(q[0], x[0])
        shared = self.kv_heads is not None and self.kv_heads != self.heads
        head = ctx.units(kv_heads, role="kv_heads" if shared else "heads")
        dim = ctx.units(ctx.number(q[2]) // self.heads, role="head_dim", minimum=2)
        value = ctx.units(ctx.number(v[2]) // kv_heads, role="head_dim", minimum=2)
        queries = times(head, ctx.units(self.heads // kv_heads, role="queries_per_kv", minimum=2)) if shared else head
        ctx.unify(q[2], times(queries, dim))
        ctx.unify(k[2], times(head, dim))
        ctx.unify(v[2], times(head, value))
        for time in (q[1], k[1]):
            if self.causal and not ctx.fixed(time):
                ctx.freeze(time, "a causal mask depends on its order")
        if not ctx.fixed(k[1]):
            ctx.couple(k[1], "attention takes a softmax along it")
        ctx.contract(dim, "queries and keys are multiplied along it")
        ctx.size("heads", queries)
        if shared:
            ctx.size("kv_heads", head)
        ctx.size("shared_heads", head)
        if self.scale is None:
            ctx.pin("scale", 1.0 / math.sqrt(ctx.number(dim)))
        return (q[0], q[1], times(queries, value))

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        heads, kv_heads = whole(emit.sizes["heads"]), whole(emit.sizes["shared_heads"])
        q, k, v = (
            emit.call(torch.transpose, emit.method("unflatten", x, -1, (count, -1)), 1, 2)
            for x, count in zip(args, (heads, kv_heads, kv_heads), strict=True)
        )
        options: dict[str, object] = {"is_causal": self.causal, "scale": self.scale}
        if heads != kv_heads:
            options["enable_gqa"] = True
        mixed = emit.call(F.scaled_dot_product_attention, q, k, v, **options)
        return emit.method("flatten", emit.call(torch.transpose, mixed, 1, 2), 2)

    def flops(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
        (batch, time, width), (_, source, _) = inputs[0], inputs[1]
        return 2 * batch * time * source * (width + outputs[0][2])
