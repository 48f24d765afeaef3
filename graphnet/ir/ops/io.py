"""Where activations enter and leave the network."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from graphnet.ir.ops.base import Context, Dims, Op, register

__all__ = ["DimensionName", "Input", "Output"]

DimensionName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=80)]
"""The name of a dimension that changes from batch to batch."""


@register
class Input(Op):
    """An input; ``shape`` leaves out the batch, and a name in it is a dimension that changes from batch to batch.

    ``high`` bounds an integer input (exclusive), so that a random one can be drawn.
    """

    op: Literal["input"] = "input"
    shape: tuple[int | DimensionName, ...]
    dtype: Literal["float", "int64"] = "float"
    high: int | None = Field(default=None, ge=1)

    arity: ClassVar[tuple[int, int | None]] = (0, 0)


@register
class Output(Op):
    """The outputs of the network, in order."""

    op: Literal["output"] = "output"

    arity: ClassVar[tuple[int, int | None]] = (1, None)

    def infer(self, ctx: Context, *inputs: Dims) -> tuple[Dims, ...]:
        for dims in inputs:
            for dim in dims[1:]:
                ctx.output(dim)
        return inputs
