"""Normalisation: batch, layer, group and root-mean-square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from graphnet.ir.layout import Layout
from graphnet.ir.ops.base import Context, Dims, Op, SizeValue, register, whole

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"]


@register
class BatchNorm(Op):
    """Batch normalisation of each channel (dimension 1) over batch and positions.

    ``weight``, ``bias``, ``running_mean`` and ``running_var`` are ``[channels]``; a newborn slot is the identity.
    """

    op: Literal["batch_norm"] = "batch_norm"
    eps: float = Field(default=1e-5, gt=0)
    momentum: float = Field(default=0.1, ge=0, le=1)
    affine: bool = True

    module_sizes: ClassVar[Mapping[str, str]] = {"channels": "num_features"}
    zero_at_zero: ClassVar[bool] = False

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if len(x) not in (2, 3, 4, 5):
            raise ctx.error(f"batch_norm reads an input of 2 to 5 dimensions, not {len(x)}")
        ctx.size("channels", x[1])
        ctx.size("rank", [x[1]] * len(x))  # the number of dimensions picks the torch class
        _affine(ctx, x[1], weight=self.affine, bias=self.affine)
        ctx.tensor("running_mean", "statistic", (x[1], "slot"), buffer=True)
        ctx.tensor("running_var", "statistic", (x[1], "slot"), newborn=1.0, buffer=True)
        ctx.tensor("num_batches_tracked", "counter", buffer=True)
        for dim in (x[0], *x[2:]):
            if not ctx.fixed(dim):
                ctx.couple(dim, "batch norm takes mean and variance along it")
        return x

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        rank = sizes["rank"]
        assert isinstance(rank, list)
        kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(rank), nn.BatchNorm1d)
        return kind(whole(sizes["channels"]), eps=self.eps, momentum=self.momentum, affine=self.affine)


@register
class LayerNorm(Op):
    """Layer normalisation over the last dimension, which it couples; ``weight[dim]``, ``bias[dim]``."""

    op: Literal["layer_norm"] = "layer_norm"
    eps: float = Field(default=1e-5, gt=0)
    bias: bool = True

    zero_at_zero: ClassVar[bool] = False

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        ctx.size("shape", [x[-1]])
        ctx.couple(x[-1], "layer norm takes mean and variance along it")
        _affine(ctx, x[-1], weight=True, bias=self.bias)
        return x

    module_sizes: ClassVar[Mapping[str, str]] = {"shape": "normalized_shape"}

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.LayerNorm(sizes["shape"], eps=self.eps, bias=self.bias)


@register
class RMSNorm(Op):
    """Root-mean-square normalisation over the last dimension, which it couples; ``weight[dim]``."""

    op: Literal["rms_norm"] = "rms_norm"
    eps: float = Field(default=1e-6, gt=0)

    module_sizes: ClassVar[Mapping[str, str]] = {"shape": "normalized_shape"}

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        ctx.size("shape", [x[-1]])
        ctx.couple(x[-1], "RMS norm takes the mean square along it")
        _affine(ctx, x[-1], weight=True, bias=False)
        return x

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.RMSNorm(sizes["shape"], eps=self.eps)


@register
class GroupNorm(Op):
    """Group normalisation of channels (dimension 1); couples the channels inside each group."""

    op: Literal["group_norm"] = "group_norm"
    groups: int = Field(ge=1)
    eps: float = Field(default=1e-5, gt=0)

    module_sizes: ClassVar[Mapping[str, str]] = {"channels": "num_channels", "groups": "num_groups"}
    zero_at_zero: ClassVar[bool] = False

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if len(x) < 2:
            raise ctx.error("group_norm reads an input with channels in dimension 1")
        if ctx.number(x[1]) % self.groups:
            raise ctx.error(f"{ctx.number(x[1])} channels cannot be divided into {self.groups} groups")
        grouping, each = ctx.factor(x[1], self.groups)
        ctx.size("channels", x[1])
        ctx.size("groups", grouping)
        ctx.couple(each, "group norm takes mean and variance along it, inside each group")
        for dim in x[2:]:
            if not ctx.fixed(dim):
                ctx.couple(dim, "group norm takes mean and variance along it")
        _affine(ctx, x[1], weight=True, bias=True)
        return x

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.GroupNorm(whole(sizes["groups"]), whole(sizes["channels"]), eps=self.eps)


def _affine(ctx: Context, units: Layout, *, weight: bool, bias: bool) -> None:
    if weight:
        ctx.tensor("weight", "scale", (units, "slot"), newborn=1.0)
    if bias:
        ctx.tensor("bias", "shift", (units, "slot"))
