"""Ops that move elements and compute nothing: flatten, reshape, permute, concat, split."""

from __future__ import annotations

import operator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import fx

from graphnet.ir.layout import Layout, join, times
from graphnet.ir.ops.base import Context, Dims, Emitter, Op, register

__all__ = ["Concat", "Flatten", "Permute", "Reshape", "Split"]


@register
class Flatten(Op):
    """Merges every dimension from ``start`` on into one, row-major."""

    op: Literal["flatten"] = "flatten"
    start: int = Field(default=1, ge=1)

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if self.start >= len(x):
            raise ctx.error(f"start {self.start} is past the input's {len(x)} dimensions")
        return (*x[: self.start], times(*x[self.start :]))

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        return emit.call(torch.flatten, *args, self.start)


@register
class Reshape(Op):
    """Regroups the elements after the batch dimension; one entry of ``shape`` may be -1.

    A name stands for a dynamic dimension of the input, in its order.
    """

    op: Literal["reshape"] = "reshape"
    shape: tuple[int | str, ...] = Field(min_length=1)

    relower: ClassVar[bool] = True

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        body = list(x[1:])
        dynamic = [dim for dim in body if ctx.length(dim) is None]
        total, known = 1, 1
        for dim in body:
            total *= ctx.number(dim)
        queue = list(dynamic)
        given: list[Layout | int] = []
        for entry in self.shape:
            if isinstance(entry, str):
                if not queue:
                    raise ctx.error(f"shape names a dynamic dimension {entry!r} that the input does not have")
                given.append(queue.pop(0))
                known *= ctx.number(dynamic[len(dynamic) - len(queue) - 1])
            else:
                given.append(entry)
                known *= entry if entry > 0 else 1
        if sum(entry == -1 for entry in given) > 1 or any(isinstance(e, int) and e < 1 and e != -1 for e in given):
            raise ctx.error(f"shape {list(self.shape)} has more than one -1 or a size below 1")
        if total % known or (-1 not in given and total != known):
            raise ctx.error(f"shape {list(self.shape)} does not hold the input's {total} elements")
        out = [
            entry if isinstance(entry, Layout) else ctx.units(entry if entry > 0 else total // known, minimum=2)
            for entry in given
        ]
        ctx.align(body, out)
        ctx.size("shape", out)
        return (x[0], *out)

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        (x,) = args
        sizes = emit.sizes["shape"]
        assert isinstance(sizes, list)
        inputs = emit.dims[0]
        out: list[int | fx.Node] = [emit.method("size", x, 0)]
        for dim, size in zip(emit.outs[0][1:], sizes, strict=True):
            out.append(size if emit.length(dim) is not None else emit.method("size", x, inputs.index(dim)))
        return emit.method("reshape", x, *out)


@register
class Permute(Op):
    """Reorders the dimensions after the batch; ``order`` counts from 1."""

    op: Literal["permute"] = "permute"
    order: tuple[int, ...] = Field(min_length=1)

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if sorted(self.order) != list(range(1, len(x))):
            raise ctx.error(f"order {list(self.order)} is no permutation of the dimensions 1 to {len(x) - 1}")
        return (x[0], *(x[dim] for dim in self.order))

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        return emit.method("permute", *args, 0, *self.order)


@register
class Transpose(Op):
    """Swaps two dimensions after the batch."""

    op: Literal["transpose"] = "transpose"
    first: int = Field(ge=1)
    second: int = Field(ge=1)

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if max(self.first, self.second) >= len(x):
            raise ctx.error(f"dimensions {self.first} and {self.second}: the input has {len(x)} dimensions")
        out = list(x)
        out[self.first], out[self.second] = x[self.second], x[self.first]
        return tuple(out)

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        return emit.call(torch.transpose, *args, self.first, self.second)


@register
class Concat(Op):
    """Joins inputs along one dimension, whose layout is the sum of theirs."""

    op: Literal["concat"] = "concat"
    dim: int = Field(default=1, ge=1)

    arity: ClassVar[tuple[int, int | None]] = (2, None)

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        first = inputs[0]
        if self.dim >= len(first):
            raise ctx.error(f"dim {self.dim} is past the input's {len(first)} dimensions")
        for other in inputs[1:]:
            if len(other) != len(first):
                raise ctx.error(f"inputs of {len(first)} and {len(other)} dimensions cannot be joined")
            for position, (a, b) in enumerate(zip(first, other, strict=True)):
                if position != self.dim:
                    ctx.unify(a, b)
        return (*first[: self.dim], join(*(x[self.dim] for x in inputs)), *first[self.dim + 1 :])

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        return emit.call(torch.cat, list(args), self.dim)


@register
class Split(Op):
    """Cuts one dimension into parts of these ``sizes``, in order; one output for each."""

    op: Literal["split"] = "split"
    dim: int = Field(default=1, ge=1)
    sizes: tuple[int, ...] = Field(min_length=2)

    relower: ClassVar[bool] = True

    @property
    def ports(self) -> int:
        return len(self.sizes)

    def infer(self, ctx: Context, *inputs: Dims) -> tuple[Dims, ...]:
        (x,) = inputs
        if self.dim >= len(x):
            raise ctx.error(f"dim {self.dim} is past the input's {len(x)} dimensions")
        total = ctx.number(x[self.dim])
        if min(self.sizes) < 1 or sum(self.sizes) != total:
            raise ctx.error(f"sizes {list(self.sizes)} do not add up to the dimension's {total}")
        parts = ctx.split(x[self.dim], self.sizes)
        ctx.size("sizes", parts)
        return tuple((*x[: self.dim], part, *x[self.dim + 1 :]) for part in parts)

    def emit(self, emit: Emitter, *args: fx.Node) -> tuple[fx.Node, ...]:
        parts = emit.method("split", *args, emit.sizes["sizes"], self.dim)
        return tuple(emit.call(operator.getitem, parts, index) for index in range(self.ports))
