"""Where a rule looks: patterns of nodes and edges that a part of the graph matches.

A :class:`Match` names the nodes of a pattern and the edges between them, and is connected. A node pattern
says what the node is, a predicate what holds for one of its attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from graphnet.schemas.models import Frozen, Name, problem

__all__ = [
    "NODE_NAME",
    "AnyPattern",
    "Compare",
    "Edge",
    "EdgePattern",
    "Match",
    "NodeName",
    "NodePattern",
    "OneOf",
    "OpPattern",
    "Predicate",
    "Regex",
    "UnitsPattern",
    "unknown_name",
]

NODE_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_EDGE = re.compile(rf"\s*({NODE_NAME})\s*(->|~>)\s*({NODE_NAME})\s*")

NodeName: TypeAlias = Annotated[str, StringConstraints(pattern=rf"^{NODE_NAME}$")]


class Compare(Frozen):
    """The attribute compares so with `value`; a tuple attribute does when each of its items does."""

    kind: Literal["eq", "ne", "lt", "le", "gt", "ge"]
    value: JsonValue

    @model_validator(mode="after")
    def _check(self) -> Compare:
        if self.kind not in ("eq", "ne") and (isinstance(self.value, bool) or not isinstance(self.value, (int, float))):
            raise problem(f"{self.kind} compares numbers; expected a number", "value")
        return self


class OneOf(Frozen):
    """The attribute is one of `values`."""

    kind: Literal["in"] = "in"
    values: tuple[JsonValue, ...] = Field(min_length=1)


class Regex(Frozen):
    """The attribute, as text, matches `pattern` from end to end (Python's `re.fullmatch`)."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(max_length=1000)

    @model_validator(mode="after")
    def _check(self) -> Regex:
        try:
            re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise problem(f"not a regular expression: {error}", "pattern") from None
        return self


Predicate: TypeAlias = Annotated[Compare | OneOf | Regex, Field(discriminator="kind")]


class _Pattern(Frozen):
    name: Name | None = Field(default=None, description="a glob that the node's name in the graph matches")
    where: dict[str, Predicate] = Field(default_factory=dict, description="attribute of the node -> what must hold")


class OpPattern(_Pattern):
    """Matches an op node, of the type `op` (or one of several) if given."""

    kind: Literal["op"] = "op"
    op: Name | tuple[Name, ...] | None = None


class UnitsPattern(_Pattern):
    """Matches a unit group; `hidden` groups are those that are neither an output nor frozen."""

    kind: Literal["units"] = "units"
    role: Literal["hidden", "output", "frozen", "coupled"] | None = None


class AnyPattern(_Pattern):
    """Matches any node."""

    kind: Literal["any"] = "any"


NodePattern: TypeAlias = Annotated[OpPattern | UnitsPattern | AnyPattern, Field(discriminator="kind")]


class EdgePattern(Frozen):
    """An edge between two nodes of a pattern, written ``a -> b`` (data) or ``h ~> a`` (units of an op)."""

    source: NodeName
    target: NodeName
    kind: Literal["data", "membership"] = "data"

    @model_serializer(mode="plain")
    def _as_text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.source} {'->' if self.kind == 'data' else '~>'} {self.target}"


def _edge(value: Any) -> Any:
    if isinstance(value, (EdgePattern, Mapping)):
        return value
    found = _EDGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise problem("expected an edge written 'src -> dst' (data) or 'h ~> op' (the units of an op)")
    return {"source": found[1], "target": found[3], "kind": "data" if found[2] == "->" else "membership"}


Edge: TypeAlias = Annotated[EdgePattern, BeforeValidator(_edge, json_schema_input_type=str)]


def unknown_name(name: str, known: Iterable[str], what: str, *at: str | int) -> PydanticCustomError:
    """Return the problem of a `name` that is none of `known`, each of which names a `what`."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return problem(f"found {name!r}, which names no {what}; expected one of {', '.join(known)}{hint}", *at)


class Match(Frozen):
    """A connected pattern: named nodes and the edges between them."""

    nodes: dict[NodeName, NodePattern] = Field(min_length=1)
    edges: tuple[Edge, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Match:
        for i, edge in enumerate(self.edges):
            self._check_edge(i, edge)
        near: dict[str, set[str]] = {name: {name} for name in self.nodes}
        for edge in self.edges:
            joined = near[edge.source] | near[edge.target]
            for name in joined:
                near[name] = joined
        parts = sorted({tuple(sorted(part)) for part in near.values()})
        if len(parts) > 1:
            shown = "; ".join(", ".join(part) for part in parts)
            raise problem(
                f"the pattern falls into {len(parts)} parts ({shown}) with no edge between them: every pair "
                "of their matches would match; join them with edges, or make one rule of each"
            )
        return self

    def _check_edge(self, i: int, edge: EdgePattern) -> None:
        for name in (edge.source, edge.target):
            if name not in self.nodes:
                raise unknown_name(name, self.nodes, "node of the pattern", "edges", i)
        if edge.source == edge.target:
            raise problem(f"found '{edge}'; expected an edge between two different nodes", "edges", i)
        if edge in self.edges[:i]:
            raise problem(f"found '{edge}' a second time", "edges", i)
        source, target = self.nodes[edge.source].kind, self.nodes[edge.target].kind
        if target == "units" or ((source == "units") != (edge.kind == "membership") and source != "any"):
            raise problem(
                f"found '{edge}' from {source} to {target}; expected '->' (op to op) or '~>' (units to op)",
                "edges",
                i,
            )
