"""Elementwise calls, with broadcasting."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, Literal

import torch
from torch import fx, nn

from graphnet.ir.layout import const
from graphnet.ir.ops.arithmetic import agree
from graphnet.ir.ops.aten.call import Call, schema_of, target_of, training
from graphnet.ir.ops.base import Context, Dims, Emitter, Op, Role, SizeValue, TensorKind, register

__all__ = ["Pointwise", "Switch", "broadcast", "is_pointwise"]

_EXTRA = frozenset((
    "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "to", "_to_copy", "type_as", "contiguous", "clone",
    "detach", "detach_copy", "alias", "lift", "lift_fresh", "lift_fresh_copy", "dropout", "native_dropout",
    "alpha_dropout", "hardswish", "hardsigmoid", "masked_fill", "square", "nan_to_num", "bernoulli", "rand_like",
    "randn_like", "zeros_like", "ones_like", "full_like", "empty_like", "fill", "zero", "copy", "uniform",
    "normal_functional", "log_sigmoid", "logsigmoid", "relu6", "selu", "celu", "silu", "mish", "clamp", "clip",
    "where", "rrelu", "multiply", "divide", "subtract", "true_divide", "float_power", "_conj", "conj", "positive",
    "absolute", "negative", "ldexp", "gelu", "softplus", "isfinite", "isclose", "rsub", "exponential", "hardshrink",
    "softshrink", "tanhshrink", "threshold", "floor_divide", "fmod", "remainder", "logical_and", "logical_or",
    "logical_xor", "logical_not", "feature_dropout", "feature_alpha_dropout", "max.other", "min.other", "complex",
    "polar",
))  # fmt: skip
_ADDS = frozenset(("add", "sub", "subtract", "rsub", "where", "copy", "lerp", "maximum", "minimum"))
_SCALES = frozenset(("mul", "multiply", "div", "divide", "true_divide"))


def is_pointwise(target: str) -> bool:
    """Whether a call acts on each element by itself."""
    if target.split(".")[1] in _EXTRA or target.removeprefix("aten.") in _EXTRA:
        return True
    return torch.Tag.pointwise in target_of(target).tags


def broadcast(ctx: Context, shapes: Sequence[Dims]) -> Dims:
    """The common shape of operands, aligned at the last dimension."""

    def both(one: Dims, two: Dims) -> Dims:
        long, short = (one, two) if len(one) >= len(two) else (two, one)
        lead = len(long) - len(short)
        return (*long[:lead], *(agree(ctx, a, b) for a, b in zip(long[lead:], short, strict=True)))

    return reduce(both, shapes)


@register
class Pointwise(Call):
    """An elementwise call of any number of operands, which are broadcast."""

    op: Literal["pointwise"] = "pointwise"

    targets: ClassVar[tuple[str, ...]] = tuple(sorted(_EXTRA))
    elementwise: ClassVar[bool] = True

    def rule(self, ctx: Context, *inputs: Dims) -> Dims | tuple[Dims, ...]:
        out = broadcast(ctx, inputs)
        kind: TensorKind
        for at, dims in enumerate(inputs):
            role: Role
            role, kind, newborn = "slot", "shift", 0.0
            if self.function in _ADDS:
                role, kind = "write", "bias" if sum(dim.constant != 1 for dim in dims) <= 1 else "table"
            elif self.function in _SCALES:
                kind, newborn = "scale", 1.0
            ctx.use(at, [None if dim.constant == 1 else role for dim in dims], kind, newborn)
        return out if self.ports == 1 else (out,) * self.ports


@register
class PReLU(Call):
    """A rectifier with a learned slope, one for all channels (dimension 1) or one for each."""

    op: Literal["prelu"] = "prelu"
    targets: ClassVar[tuple[str, ...]] = ("prelu",)

    def rule(self, ctx: Context, *inputs: Dims) -> Dims:
        x, slope = inputs
        if len(slope) == 1 and len(x) > 1 and slope[0].constant != 1:
            ctx.unify(slope[0], x[1])
        ctx.use(1, ["slot"] * len(slope), "scale", 0.25)
        return x


@register
class Glu(Call):
    """The first half of a dimension times the sigmoid of the second; the halves are one group."""

    op: Literal["glu"] = "glu"
    targets: ClassVar[tuple[str, ...]] = ("glu",)

    def rule(self, ctx: Context, *inputs: Dims) -> Dims:
        (x,) = inputs
        dim = int(self.arg("dim")) % len(x)
        half = ctx.number(x[dim]) // 2
        first, second = ctx.split(x[dim], [half, half])
        ctx.unify(first, second)
        return (*x[:dim], first, *x[dim + 1 :])


@register
class Switch(Op):
    """The first input in training, the second in evaluation; they agree in every dimension."""

    op: Literal["switch"] = "switch"

    arity: ClassVar[tuple[int, int | None]] = (2, 2)
    traced: ClassVar[bool] = True

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        train, evaluation = inputs
        if len(train) != len(evaluation):
            raise ctx.error("values of different rank in training and in evaluation")
        for one, two in zip(train, evaluation, strict=True):
            ctx.unify(one, two)
        return evaluation

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Module()

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        train, evaluation = args
        return emit.call(operator.getitem, (evaluation, train), training(emit))


@register
class Noise(Call):
    """Random numbers that only training draws; evaluation gets plain ones, and the random stream stays where it is.

    A creation keeps its sizes as the function gets them, a call on an operand has the operand's dimensions.
    """

    op: Literal["noise"] = "noise"

    def rule(self, ctx: Context, *inputs: Dims) -> Dims:
        if inputs:
            return broadcast(ctx, inputs)
        return tuple(self.size(ctx, at) if entry != "1" else const(1) for at, entry in enumerate(self.shape))

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module:
        return nn.Module()

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        given: dict[str, Any] = {
            name: self.written(emit, value, args)
            for name, value in self.given.items()
            if name not in ("memory_format", "pin_memory")
        }
        quiet = NEUTRAL[self.target]
        chosen = emit.call(operator.getitem, (target_of(quiet), target_of(self.target)), training(emit))
        if "size" in given:
            size = [emit.extent(dim) for dim in emit.outs[0]]
            keep = {key: given[key] for key in ("dtype", "device") if key in given}
            return emit.call(operator.call, chosen, size, **keep)
        positional = [given.get(name, default) for name, keyword, default in schema_of(self.target) if not keyword]
        return emit.call(operator.call, chosen, *positional)


NEUTRAL: Mapping[str, str] = {
    "aten.rand.default": "aten.ones.default",
    "aten.randn.default": "aten.ones.default",
    "aten.rand_like.default": "aten.clone.default",
    "aten.randn_like.default": "aten.clone.default",
    "aten.bernoulli.default": "aten.clone.default",
    "aten.bernoulli.p": "aten.mul.Scalar",
}
"""What stands in evaluation for a random call that only training makes."""
