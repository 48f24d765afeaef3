"""Pooling over spatial dimensions, and the mean over any dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import fx, nn

from graphnet.ir.layout import Layout, const
from graphnet.ir.ops.base import Context, Dims, Emitter, Op, SizeValue, register

__all__ = ["AdaptiveAvgPool", "AvgPool", "MaxPool", "Mean"]


class _Pool(Op):
    kernel: int = Field(ge=1)
    stride: int | None = Field(default=None, ge=1)
    padding: int = Field(default=0, ge=0)

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if len(x) not in (3, 4):
            raise ctx.error(f"{self.op} reads an input of 3 or 4 dimensions, not {len(x)}")
        if 2 * self.padding > self.kernel:
            raise ctx.error(f"padding {self.padding} is more than half of the kernel {self.kernel}")
        ctx.size("rank", list(x))
        return (*x[:2], *(self._spatial(ctx, dim) for dim in x[2:]))

    def _spatial(self, ctx: Context, dim: Layout) -> Layout:
        size = ctx.length(dim)
        if size is None:
            raise ctx.error("pooling over a dynamic dimension has no fixed size")
        ctx.freeze(dim, "a pooling window slides along it")
        out = (size + 2 * self.padding - self.kernel) // (self.stride or self.kernel) + 1
        if out < 1:
            raise ctx.error(f"a window of {self.kernel} does not fit in {size} positions")
        return const(out)


def _rank(sizes: Mapping[str, SizeValue]) -> int:
    rank = sizes["rank"]
    assert isinstance(rank, list)
    return len(rank)


@register
class MaxPool(_Pool):
    """The maximum of each window."""

    op: Literal["max_pool"] = "max_pool"

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        kind = nn.MaxPool2d if _rank(sizes) == 4 else nn.MaxPool1d
        return kind(self.kernel, self.stride, self.padding)


@register
class AvgPool(_Pool):
    """The mean of each window."""

    op: Literal["avg_pool"] = "avg_pool"

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        if _rank(sizes) == 4:
            return nn.AvgPool2d(self.kernel, self.stride, self.padding)
        return nn.AvgPool1d(self.kernel, self.stride or self.kernel, self.padding)


@register
class AdaptiveAvgPool(Op):
    """The mean of windows chosen so that each spatial dimension ends at ``size``."""

    op: Literal["adaptive_avg_pool"] = "adaptive_avg_pool"
    size: int = Field(default=1, ge=1)

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if len(x) not in (3, 4):
            raise ctx.error(f"adaptive_avg_pool reads an input of 3 or 4 dimensions, not {len(x)}")
        for dim in x[2:]:
            if ctx.length(dim) is not None:
                ctx.freeze(dim, "a pooling window slides along it")
        ctx.size("rank", list(x))
        return (*x[:2], *(const(self.size) for _ in x[2:]))

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.AdaptiveAvgPool2d(self.size) if _rank(sizes) == 4 else nn.AdaptiveAvgPool1d(self.size)


@register
class Mean(Op):
    """The mean over one dimension, which is dropped; a unit group there is coupled."""

    op: Literal["mean"] = "mean"
    dim: int
    relower: ClassVar[bool] = False

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        dim = self.dim + len(x) if self.dim < 0 else self.dim
        if not 1 <= dim < len(x):
            raise ctx.error(f"dim {self.dim} is not one of the {len(x) - 1} dimensions after the batch")
        if not ctx.fixed(x[dim]):
            ctx.couple(x[dim], "the mean is taken along it")
        return x[:dim] + x[dim + 1 :]

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        return emit.call(torch.mean, *args, self.dim)
