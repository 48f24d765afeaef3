"""Elementwise activations and dropout."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import fx, nn

from graphnet.ir.ops.base import Context, Dims, Emitter, Op, SizeValue, register

__all__ = ["Activation", "Dropout", "RandSmoothLeaky"]


class Activation(Op):
    """An elementwise op: every layout passes through."""

    elementwise: ClassVar[bool] = True

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        return inputs[0]


@register
class ReLU(Activation):
    """max(x, 0)."""

    op: Literal["relu"] = "relu"
    idempotent: ClassVar[bool] = True
    slope_at_zero: ClassVar[float | None] = 0.0

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.ReLU()


@register
class GELU(Activation):
    """Gaussian error linear unit, exact or with the tanh approximation."""

    op: Literal["gelu"] = "gelu"
    approximate: Literal["none", "tanh"] = "none"
    slope_at_zero: ClassVar[float | None] = 0.5

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.GELU(approximate=self.approximate)


@register
class SiLU(Activation):
    """x * sigmoid(x)."""

    op: Literal["silu"] = "silu"
    slope_at_zero: ClassVar[float | None] = 0.5

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.SiLU()


@register
class Tanh(Activation):
    """Hyperbolic tangent."""

    op: Literal["tanh"] = "tanh"
    slope_at_zero: ClassVar[float | None] = 1.0

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Tanh()


@register
class Sigmoid(Activation):
    """1 / (1 + exp(-x)); does not map zero to zero."""

    op: Literal["sigmoid"] = "sigmoid"
    zero_at_zero: ClassVar[bool] = False
    slope_at_zero: ClassVar[float | None] = 0.25

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Sigmoid()


@register
class LeakyReLU(Activation):
    """max(x, slope * x)."""

    op: Literal["leaky_relu"] = "leaky_relu"
    slope: float = Field(default=0.01, gt=0, le=1)
    slope_at_zero: ClassVar[float | None] = 0.01

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.LeakyReLU(self.slope)


@register
class ELU(Activation):
    """Exponential linear unit."""

    op: Literal["elu"] = "elu"
    alpha: float = Field(default=1.0, gt=0)
    slope_at_zero: ClassVar[float | None] = 1.0

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.ELU(self.alpha)


@register
class Softplus(Activation):
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above 20, as in torch; does not map zero to zero."""

    op: Literal["softplus"] = "softplus"
    beta: float = Field(default=1.0, gt=0)
    linear_above: ClassVar[float] = 20.0
    zero_at_zero: ClassVar[bool] = False
    slope_at_zero: ClassVar[float | None] = 0.5

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Softplus(self.beta, threshold=self.linear_above)


@register
class Identity(Activation):
    """The input, unchanged."""

    op: Literal["identity"] = "identity"
    idempotent: ClassVar[bool] = True
    slope_at_zero: ClassVar[float | None] = 1.0

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Identity()


@register
class RandSmoothLeaky(Activation):
    """``r*x + (1 - r)*x*sigmoid(c*x/p)`` with ``r ~ U(lower, upper)`` for each element in training.

    In evaluation ``r = (lower + upper)/2``; ``lower == upper`` is Smooth-Leaky. Source: Lillo and Cheney,
    arXiv 2509.22562; default parameters are those of CIFAR.
    """

    op: Literal["rand_smooth_leaky"] = "rand_smooth_leaky"
    c: float = Field(default=3.0, gt=0)
    p: float = Field(default=5.0, gt=0)
    lower: float = 0.125
    upper: float = 0.333
    slope_at_zero: ClassVar[float | None] = 0.6145

    @model_validator(mode="after")
    def _ordered(self) -> RandSmoothLeaky:
        if self.lower > self.upper:
            raise ValueError(f"lower ({self.lower}) must not pass upper ({self.upper})")
        return self

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        module = nn.Module()
        module.add_module("noise", nn.RReLU(self.lower, self.upper))  # the one torch module that draws such slopes
        return module

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        (x,) = args
        minus = emit.call(torch.full_like, x, -1.0)
        slope = emit.call(operator.neg, emit.submodule("noise", minus))
        gate = emit.call(torch.sigmoid, emit.call(operator.mul, x, self.c / self.p))
        smooth = emit.call(operator.mul, emit.call(operator.sub, 1.0, slope), gate)
        return emit.call(operator.mul, x, emit.call(operator.add, slope, smooth))


@register
class Dropout(Activation):
    """Zeroes elements with probability p in training and scales the rest by 1/(1 - p)."""

    op: Literal["dropout"] = "dropout"
    p: float = Field(default=0.5, ge=0, lt=1)

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Dropout(self.p)
