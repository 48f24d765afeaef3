"""A call of an imported program: target, arguments as plain data, sizes of its outputs.

Arguments hold numbers, text, lists and, as an object with one key: ``{"in": 0}`` (an operand),
``{"size": "batch*2"}`` (a size expression), ``{"dtype": "float32"}``, ``{"float": "inf"}``, ``{"complex": [0, 1]}``,
``{"memory": "channels_last"}``, ``{"device": true}`` (where the network runs) and
``{"mode": [in training, in evaluation]}``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, JsonValue, model_validator
from torch import fx, nn

from graphnet.ir.layout import Layout, const
from graphnet.ir.ops.base import Context, Dims, Emitter, Op, SizeValue

__all__ = ["FAMILIES", "STRAY", "Call", "family_of", "said", "schema_of", "target_of"]

FAMILIES: dict[str, type[Call]] = {}
"""The family of each ATen function, by its name without the overload (``aten.linear``)."""


STRAY = (ArithmeticError, AssertionError, AttributeError, LookupError, StopIteration, TypeError, ValueError)
"""What a rule raises for arguments that no program has: it reads them as torch gives them."""


@cache
def target_of(name: str) -> Any:
    """The function of a name such as ``aten.add.Tensor``.

    Raises
    ------
    ValueError
        There is none.
    """
    found: Any = torch.ops
    try:
        for part in name.split("."):
            found = getattr(found, part)
        found._schema  # noqa: B018 - a namespace has none
    except (AttributeError, RuntimeError):
        raise ValueError(f"there is no operator {name!r}") from None
    return found


@cache
def schema_of(name: str) -> tuple[tuple[str, bool, Any], ...]:
    """Name, whether by keyword only, and default of each argument."""
    return tuple(
        (argument.name, argument.kwarg_only, argument.default_value if argument.has_default_value() else None)
        for argument in target_of(name)._schema.arguments
    )


def family_of(target: str) -> type[Call] | None:
    """The family that has a rule for a target, or None."""
    function = target.rpartition(".")[0]
    return FAMILIES.get(target) or FAMILIES.get(function)


class Call(Op):
    """A call of an ATen function."""

    target: str
    args: tuple[JsonValue, ...] = ()
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    shape: tuple[int | str, ...] = ()
    ranks: tuple[int, ...]

    arity: ClassVar[tuple[int, int | None]] = (0, None)
    traced: ClassVar[bool] = True
    relower: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for target in cls.__dict__.get("targets", ()):
            FAMILIES.setdefault(f"aten.{target}", cls)

    # -- arguments --------------------------------------------------------------------------------------------------

    @property
    def given(self) -> dict[str, JsonValue]:
        """Arguments by name, defaults left out."""
        names = [name for name, keyword, _ in schema_of(self.target) if not keyword]
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    def arg(self, name: str) -> Any:
        """An argument, or its default."""
        found = self.given
        if name in found:
            return found[name]
        return next((default for key, _, default in schema_of(self.target) if key == name), None)

    def operand(self, name: str) -> int | None:
        """Which operand an argument is, or None."""
        value = self.arg(name)
        return value["in"] if isinstance(value, dict) and "in" in value else None

    def operands(self, name: str) -> list[int | None]:
        """Which operands a list of tensors is."""
        value = self.arg(name) or ()
        return [item["in"] if isinstance(item, dict) and "in" in item else None for item in value]

    @property
    def function(self) -> str:
        """The function's name without namespace and overload."""
        return self.target.split(".")[1]

    # -- layouts ----------------------------------------------------------------------------------------------------

    @property
    def ports(self) -> int:
        return len(self.ranks)

    def size(self, ctx: Context, at: int) -> Layout:
        """An output dimension of which the size is known and nothing else."""
        entry = self.shape[at]
        return ctx.extent(entry) if isinstance(entry, str) else ctx.unknown(entry)

    def fixed(self, ctx: Context, at: int) -> Layout:
        """An output dimension that no edit changes."""
        entry = self.shape[at]
        return ctx.extent(entry) if isinstance(entry, str) else const(entry)

    def start(self, port: int) -> int:
        """Where the dimensions of an output begin in ``shape``."""
        return sum(self.ranks[:port])

    def rule(self, ctx: Context, *inputs: Dims) -> Dims | tuple[Dims, ...]:
        """The layout rule."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _known(self) -> Self:
        target_of(self.target)
        unknown = [at for at in _operands([*self.args, *self.kwargs.values()]) if not 0 <= at < len(self.inputs)]
        if unknown:
            raise ValueError(f"an argument is operand {unknown[0]} of {len(self.inputs)}")
        return self

    def infer(self, ctx: Context, *inputs: Dims) -> Dims | tuple[Dims, ...]:
        try:
            found = self.rule(ctx, *inputs)
        except STRAY as error:
            raise ctx.error(f"{self.target} takes no such operands or arguments ({said(error)})") from error
        several: tuple[Dims, ...] = found if found and isinstance(found[0], tuple) else (found,)  # type: ignore[assignment]
        if tuple(map(len, several)) != self.ranks:
            raise ctx.error(
                f"{self.target} gives outputs of {list(map(len, several))} dimensions, not {list(self.ranks)}"
            )
        flat = [dim for dims in several for dim in dims]
        if len(flat) != len(self.shape):
            raise ctx.error(f"{self.target} gives {len(flat)} dimensions, and the program has {len(self.shape)}")
        for dim, entry in zip(flat, self.shape, strict=True):
            if isinstance(entry, int) and ctx.number(dim) != entry:
                raise ctx.error(f"{self.target} gives a dimension of {ctx.number(dim)} where the program has {entry}")
        ctx.size("shape", flat)
        return several if len(several) > 1 else several[0]

    # -- code -------------------------------------------------------------------------------------------------------

    def sized(self, emit: Emitter) -> dict[str, Any]:
        """Arguments that follow from layouts, by name."""
        return {}

    def build(self, sizes: Mapping[str, SizeValue]) -> nn.Module | None:
        return nn.Module() if _has_mode([*self.args, *self.kwargs.values()]) else None

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node | tuple[fx.Node, ...]:
        given: dict[str, Any] = {name: self.written(emit, value, args) for name, value in self.given.items()}
        given |= self.sized(emit)
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for name, keyword, default in schema_of(self.target):
            if keyword:
                named |= {name: given[name]} if name in given else {}
            else:
                positional.append(given.get(name, default))
        last = max(
            (at for at, (name, key, _) in enumerate(schema_of(self.target)) if not key and name in given), default=-1
        )
        found = emit.call(target_of(self.target), *positional[: last + 1], **named)
        if not self.listed:
            return found
        return tuple(emit.call(operator.getitem, found, port) for port in range(self.ports))

    @property
    def listed(self) -> bool:
        """Whether the function returns several values, or a list of them."""
        returns = target_of(self.target)._schema.returns
        return len(returns) > 1 or (len(returns) == 1 and str(returns[0].type).startswith("List"))

    def written(self, emit: Emitter, value: Any, args: Sequence[fx.Node]) -> Any:
        """An argument as it stands in the emitted code."""
        if isinstance(value, list):
            return [self.written(emit, item, args) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, held),) = value.items()
        if kind == "in":
            return args[held]
        if kind == "size":
            return emit.extent(str(held))
        if kind == "dtype":
            return getattr(torch, held)
        if kind == "float":
            return float(held)
        if kind == "complex":
            return complex(*(float(part) for part in held))
        if kind == "memory":
            return getattr(torch, held)
        if kind == "device":
            return emit.device()
        if kind == "mode":
            train, evaluation = (self.written(emit, item, args) for item in held)
            return emit.call(operator.getitem, (evaluation, train), training(emit))
        raise ValueError(f"op {self.name!r}: {kind!r} is no kind of argument")


def training(emit: Emitter) -> fx.Node:
    """Whether the op's module is in training mode, in the emitted code."""
    return emit.call(getattr, emit.graph.get_attr(emit.name), "training")


def said(error: Exception) -> str:
    """Kind and words of an error."""
    return f"{type(error).__name__}: {error}"


def _operands(value: Any) -> Iterator[int]:
    """Which operands an argument refers to; what is no number counts as none of them."""
    if isinstance(value, list):
        for item in value:
            yield from _operands(item)
    elif isinstance(value, dict):
        for kind, held in value.items():
            if kind == "mode":
                yield from _operands(held)
            elif kind == "in":
                yield held if isinstance(held, int) and not isinstance(held, bool) else -1


def _has_mode(value: Any) -> bool:
    if isinstance(value, dict):
        return "mode" in value or any(map(_has_mode, value.values()))
    return isinstance(value, list) and any(map(_has_mode, value))


def axis(dim: Any, rank: int) -> int:
    """A dimension counted from the front."""
    return int(dim) + rank if dim < 0 else int(dim)


def axes(dims: Any, rank: int) -> tuple[int, ...]:
    """Dimensions counted from the front; None or nothing means all."""
    if dims is None or (isinstance(dims, list) and not dims):
        return tuple(range(rank))
    return tuple(axis(dim, rank) for dim in (dims if isinstance(dims, list | tuple) else [dims]))
