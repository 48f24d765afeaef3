"""What a rule does: the steps of an edit, on the units of a group or on the ops of the graph.

A :data:`Step` is data; the rule engine carries it out. How many units it takes is a :data:`Count` or a
:data:`Share`, either of which may be a schedule; what is registered by name is a :class:`Choice`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_serializer, model_validator

from graphnet.schemas.models import Frozen, Name, problem, require_one
from graphnet.schemas.patterns import Edge, NodeName
from graphnet.schemas.scalars import Scalar

__all__ = [
    "Choice",
    "Count",
    "Grow",
    "Insert",
    "Named",
    "Operator",
    "Prune",
    "Recruit",
    "Redirect",
    "Remove",
    "Replace",
    "Retire",
    "Rewind",
    "Share",
    "Step",
]


def _whole(value: Scalar) -> Scalar:
    low, high = value.bounds()
    if low < 0 or (value.kind == "constant" and (high < 1 or high != int(high))):
        raise problem(f"expected a whole number of units, at least 1, or a schedule of at least 0; found {low:g}")
    return value


def _share(value: Scalar) -> Scalar:
    low, high = value.bounds()
    if not 0 <= low <= high <= 1:
        raise problem(f"expected a share between 0 and 1; found {low if low < 0 else high:g}")
    return value


def _positive(value: Scalar) -> Scalar:
    if value.bounds()[0] < 0:
        raise problem(f"expected no value below 0; found {value.bounds()[0]:g}")
    return value


Count: TypeAlias = Annotated[Scalar, AfterValidator(_whole)]
"""A number of units; a schedule's value is rounded where it is used."""
Share: TypeAlias = Annotated[Scalar, AfterValidator(_share)]
"""A share of a group's units, 0 to 1."""


class Choice(Frozen):
    """Something registered by name, with its arguments; written as the bare name where there are none."""

    name: Name
    args: dict[str, JsonValue] = Field(default_factory=dict)

    @model_serializer(mode="plain")
    def _short(self) -> Any:
        return {"name": self.name, "args": self.args} if self.args else self.name


def _choice(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, (Mapping, Choice)):
        raise problem("expected a name, or {name: ..., args: {...}}")
    return value


Named: TypeAlias = Annotated[Choice, BeforeValidator(_choice, json_schema_input_type=str | Choice)]


class _OnUnits(Frozen):
    units: Name = Field(description="a node of the pattern, or a group's name or glob")


class Grow(_OnUnits):
    """Add units: `count` of them, a `fraction` of those there, or as many as make `to`."""

    do: Literal["grow"] = "grow"
    count: Count | None = None
    fraction: Annotated[Scalar, AfterValidator(_positive)] | None = None
    to: Count | None = None
    init: Named = Choice(name="zero-outgoing")
    state: Named = Choice(name="aged")
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Grow:
        require_one(self, "count", "fraction", "to")
        return self


class Prune(_OnUnits):
    """Remove units: the `lowest` so many, a `fraction`, all but a `keep` share, down `to` many, or `ids`."""

    do: Literal["prune"] = "prune"
    lowest: Count | None = None
    fraction: Share | None = None
    keep: Share | None = None
    to: Count | None = None
    ids: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    score: Named = Choice(name="magnitude")

    @model_validator(mode="after")
    def _check(self) -> Prune:
        require_one(self, "lowest", "fraction", "keep", "to", "ids")
        return self


class Recruit(_OnUnits):
    """Wake dormant units, chosen by `select`: `count`, a `fraction` of them, or until `to` are active."""

    do: Literal["recruit"] = "recruit"
    count: Count | None = None
    fraction: Share | None = None
    to: Count | None = None
    select: Named = Choice(name="activation-frequency")
    state: Named = Choice(name="aged")
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Recruit:
        require_one(self, "count", "fraction", "to")
        return self


class Retire(_OnUnits):
    """Put the lowest units to sleep: `count`, a `fraction` of the active, or until `to` are active."""

    do: Literal["retire"] = "retire"
    count: Count | None = None
    fraction: Share | None = None
    to: Count | None = None
    score: Named = Choice(name="magnitude")

    @model_validator(mode="after")
    def _check(self) -> Retire:
        require_one(self, "count", "fraction", "to")
        return self


class Rewind(_OnUnits):
    """Set the units' parameters back to a snapshot and clear their optimizer state."""

    do: Literal["rewind"] = "rewind"
    snapshot: Name = "init"


class Insert(Frozen):
    """Add an op named `name` that reads `inputs`; its sizes are those of `like` where it is given."""

    do: Literal["insert"] = "insert"
    name: NodeName
    op: Name
    inputs: tuple[Name, ...] = Field(min_length=1)
    like: Name | None = None
    init: Named | None = None
    attrs: dict[str, JsonValue] = Field(default_factory=dict)


class Redirect(Frozen):
    """Make the target of a data edge read `to` in place of the edge's source."""

    do: Literal["redirect"] = "redirect"
    edge: Edge
    to: Name


class Remove(Frozen):
    """Remove an op; what read it reads its input."""

    do: Literal["remove"] = "remove"
    node: Name


class Replace(Frozen):
    """Put another op in the place of one, with its weights carried over where that is defined."""

    do: Literal["replace"] = "replace"
    node: Name
    op: Name
    attrs: dict[str, JsonValue] = Field(default_factory=dict)


class Operator(Frozen):
    """Apply the operator registered as `name`, graphnet's or the user's, `on` a node."""

    do: Literal["operator"] = "operator"
    name: Name
    on: Name | None = None
    args: dict[str, JsonValue] = Field(default_factory=dict)


Step: TypeAlias = Annotated[
    Grow | Prune | Recruit | Retire | Rewind | Insert | Redirect | Remove | Replace | Operator,
    Field(discriminator="do"),
]
