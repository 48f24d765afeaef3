"""The architecture document: inputs, ops, outputs, and the unit ids of an edited network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union

from pydantic import Field, SerializeAsAny, TypeAdapter, create_model, model_validator

from graphnet.ir.ops import OPS, Op
from graphnet.ir.ops.io import DimensionName, InputType
from graphnet.schemas.base import Document, Frozen, load_document

__all__ = ["Architecture", "GroupState", "InputEntry", "architecture_model", "load_architecture"]


class InputEntry(Frozen):
    """One input: its shape without the batch; a name is a dimension that changes from batch to batch."""

    shape: tuple[int | DimensionName, ...]
    dtype: InputType = "float"
    high: int | None = Field(default=None, ge=1)
    batched: bool = True


class GroupState(Frozen):
    """Unit ids of an edited group, as runs ``[first, last]`` in the order of its units."""

    ids: tuple[tuple[int, int], ...] = Field(min_length=1)
    dormant: tuple[tuple[int, int], ...] = ()
    next_id: int = Field(ge=1, le=2**53)


class Architecture(Document):
    """A network: ``kind: architecture``.

    An op that leaves out ``inputs`` reads the op before it; ``outputs`` left out means the last op.
    """

    kind: Literal["architecture"] = "architecture"
    inputs: dict[str, InputEntry] = Field(min_length=1)
    ops: tuple[SerializeAsAny[Op], ...]
    outputs: tuple[str, ...] = ()
    graph_version: int = Field(default=0, ge=0)
    groups: dict[str, GroupState] | None = None

    @model_validator(mode="after")
    def _ops_or_outputs(self) -> Self:
        """An edit may take the last op away; by hand an empty list is a mistake more often than not."""
        if not self.ops and not self.outputs:
            raise ValueError("there are no ops: give at least one, or say with outputs which inputs are returned")
        return self


@cache
def _model(registered: tuple[str, ...]) -> type[Architecture]:
    classes = tuple(OPS[name] for name in registered)
    union = Annotated[Union[classes], Field(discriminator="op")]  # type: ignore[valid-type]  # noqa: UP007
    return create_model(
        "Architecture", __base__=Architecture, __doc__=Architecture.__doc__,
        ops=(tuple[union, ...], ...),
    )  # fmt: skip


def architecture_model() -> type[Architecture]:
    """The document's model with the union of all registered ops (a user's own included)."""
    return _model(tuple(name for name in OPS if name not in ("input", "output")))


def load_architecture(source: Path | str | Mapping[str, Any]) -> Architecture:
    """Read and check an architecture document.

    Raises
    ------
    SchemaError
        With the path inside the document, what was found and what was expected.
    """
    return load_document(TypeAdapter(architecture_model()), source, kind="architecture")
