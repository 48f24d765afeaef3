"""Convolutions: plain, grouped and depthwise, over one or two spatial dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator
from torch import nn

from graphnet.ir.layout import Layout, const, times
from graphnet.ir.ops.base import Context, Dims, Op, Role, Shape, SizeValue, register, whole

__all__ = ["Conv1d", "Conv2d"]

Side: TypeAlias = Annotated[int, Field(ge=1)]


class _Conv(Op):
    out: int = Field(ge=1)
    stride: int = Field(default=1, ge=1)
    padding: int = Field(default=0, ge=0)
    dilation: int = Field(default=1, ge=1)
    groups: int = Field(default=1, ge=1)
    depthwise: bool | None = None
    bias: bool = True

    spatial: ClassVar[int]
    unit_kind: ClassVar[str] = "channels"
    module_sizes: ClassVar[Mapping[str, str]] = {
        "in": "in_channels",
        "out": "out_channels",
        "groups": "groups",
    }

    @model_validator(mode="after")
    def _one_kind_of_grouping(self) -> _Conv:
        if self.depthwise and self.groups != 1:
            raise ValueError("a depthwise convolution has one group for each input channel: leave out 'groups'")
        return self

    def kernel_sizes(self) -> tuple[int, ...]:
        """The kernel's size along each spatial dimension."""
        kernel: int | tuple[int, int] = getattr(self, "kernel")  # noqa: B009 - declared by the subclasses
        return (kernel,) * self.spatial if isinstance(kernel, int) else tuple(kernel)

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        if len(x) != self.spatial + 2:
            dims = ", ".join(["batch", "channels", *("height", "width")[: self.spatial]])
            raise ctx.error(f"{self.op} reads an input of shape [{dims}], not of {len(x)} dimensions")
        channels, kernel = x[1], self.kernel_sizes()
        count = ctx.number(channels)
        depthwise = self.depthwise
        if depthwise is None:
            depthwise = 1 < self.groups == count
        if self.groups > 1:  # said once, so that a later width cannot change its meaning
            ctx.pin("depthwise", depthwise)
        if depthwise:
            if self.out % count:
                raise ctx.error(f"depthwise: {self.out} output channels are no multiple of {count} input channels")
            ctx.pin("groups", 1)
            multiplier = self.out // count
            out = channels if multiplier == 1 else times(channels, ctx.units(multiplier, role="multiplier", minimum=2))
            each: Layout = const(1)
            grouping = channels
            ctx.size("group_count", grouping)
        elif self.groups > 1:
            for size, what in ((count, "input"), (self.out, "output")):
                if size % self.groups:
                    raise ctx.error(f"{size} {what} channels cannot be divided into {self.groups} groups")
            grouping = ctx.units(self.groups, role="groups", minimum=2)
            each = ctx.units(count // self.groups, role="group_inputs", minimum=2)
            out = times(grouping, ctx.units(self.out // self.groups, role="group_outputs"))
            ctx.unify(channels, times(grouping, each))
            ctx.size("groups", grouping)
            ctx.size("group_count", grouping)
        else:
            out, each = ctx.units(self.out), channels
        ctx.size("in", channels)
        ctx.size("out", out)
        taps: list[tuple[Layout, Role]] = [(const(k), "slot") for k in kernel]
        ctx.tensor("weight", "weight", (out, "write"), (each, "read"), *taps)
        if self.bias:
            ctx.tensor("bias", "bias", (out, "write"))
        return (x[0], out, *(self._spatial(ctx, dim, k) for dim, k in zip(x[2:], kernel, strict=True)))

    def _spatial(self, ctx: Context, dim: Layout, kernel: int) -> Layout:
        reach = self.dilation * (kernel - 1)
        size = ctx.length(dim)
        if size is None:
            if self.stride == 1 and 2 * self.padding == reach:
                return dim
            raise ctx.error("a convolution over a dynamic dimension must keep its length (stride 1, same padding)")
        ctx.freeze(dim, "a convolution slides along it")
        out = (size + 2 * self.padding - reach - 1) // self.stride + 1
        if out < 1:
            raise ctx.error(f"a kernel of {kernel} does not fit in {size} positions with padding {self.padding}")
        return const(out)

    def _arguments(self, sizes: Mapping[str, SizeValue]) -> dict[str, object]:
        return {
            "in_channels": whole(sizes["in"]), "out_channels": whole(sizes["out"]), "stride": self.stride,
            "padding": self.padding, "dilation": self.dilation, "groups": whole(sizes.get("group_count", 1)),
            "bias": self.bias,
        }  # fmt: skip

    def flops(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
        grouping = inputs[0][1] if self.depthwise else self.groups
        return 2 * prod(outputs[0]) * inputs[0][1] // grouping * prod(self.kernel_sizes())


@register
class Conv2d(_Conv):
    """Two-dimensional convolution; ``weight[out, in/groups, kh, kw]``, ``bias[out]``.

    ``groups: g`` makes the channels ``g*each``; ``depthwise: true`` gives every input channel its own kernel.
    """

    op: Literal["conv2d"] = "conv2d"
    kernel: Side | tuple[Side, Side]
    spatial: ClassVar[int] = 2
    module_sizes: ClassVar[Mapping[str, str]] = {
        "in": "in_channels",
        "out": "out_channels",
        "group_count": "groups",
    }

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Conv2d(kernel_size=self.kernel_sizes(), **self._arguments(sizes))  # type: ignore[arg-type]


@register
class Conv1d(_Conv):
    """One-dimensional convolution; ``weight[out, in/groups, k]``, ``bias[out]``."""

    op: Literal["conv1d"] = "conv1d"
    kernel: Side
    spatial: ClassVar[int] = 1
    module_sizes: ClassVar[Mapping[str, str]] = {
        "in": "in_channels",
        "out": "out_channels",
        "group_count": "groups",
    }

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Conv1d(kernel_size=self.kernel_sizes(), **self._arguments(sizes))  # type: ignore[arg-type]
