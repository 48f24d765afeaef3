"""A stored tensor that stands alone: a parameter or buffer that ops read as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import fx, nn

from graphnet.ir.layout import Layout, const
from graphnet.ir.ops.base import Context, Dims, Emitter, Op, Role, SizeValue, register

__all__ = ["Stored"]


@register
class Stored(Op):
    """A parameter or buffer, as a value that other ops read; its name in the state dict is the op's path.

    An entry of ``shape`` that is text (``"1"``) is fixed. ``tied`` names the tensor whose storage it shares.
    ``read`` says whether an op reads it: where none does, every dimension is frozen.
    """

    op: Literal["parameter"] = "parameter"
    shape: tuple[int | Annotated[str, Field(pattern=r"^[1-9][0-9]{0,11}$")], ...] = ()
    dtype: str = "float32"
    buffer: bool = False
    persistent: bool = True
    trainable: bool = True
    tied: str | None = None
    read: bool = True
    pinned: str | None = None

    @field_validator("dtype")
    @classmethod
    def _a_type(cls, dtype: str) -> str:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"torch has no type {dtype!r}")
        return dtype

    arity: ClassVar[tuple[int, int | None]] = (0, 0)
    traced: ClassVar[bool] = True
    source: ClassVar[bool] = True

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        dims: list[Layout] = []
        for at, size in enumerate(self.shape):
            dim = const(int(size)) if isinstance(size, str) else ctx.units(size, label=f"dim{at}")
            if not self.read and self.tied is None:
                ctx.freeze(dim, "no op reads the tensor")
            if self.pinned is not None:
                ctx.freeze(dim, self.pinned)
            dims.append(dim)
        ctx.size("shape", dims)
        slots: list[tuple[Layout, Role]] = [(dim, "slot") for dim in dims]
        ctx.tensor("", "scale", *slots, buffer=self.buffer, shared=self.tied)
        return tuple(dims)

    def build_tensor(self, sizes: Mapping[str, SizeValue]) -> torch.Tensor:
        shape = sizes["shape"]
        assert isinstance(shape, list)
        value = torch.zeros(shape, dtype=getattr(torch, self.dtype))
        return value if self.buffer else nn.Parameter(value, requires_grad=self.trainable)

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        return emit.graph.get_attr(emit.name)
