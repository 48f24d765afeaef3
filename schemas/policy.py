"""Policy documents: rules (pattern + guard + schedule + steps) with budgets, as frozen values.

A rule is data. The same models are built from YAML, from JSON and from Python (``gn.Rule(...)``). What can be
checked without a graph is checked here: names, edges, connectedness, exactly-one-of choices. The rest is
checked by the rule engine against a graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
    model_serializer,
    model_validator,
)

from graphnet.schemas.base import Document, Frozen, Scalar, load_document, problem

__all__ = [
    "Age",
    "All",
    "Always",
    "AnyPattern",
    "Any_",
    "At",
    "Budgets",
    "Choice",
    "Compare",
    "Cost",
    "Count",
    "Cycles",
    "Dormant",
    "EdgePattern",
    "Every",
    "Grow",
    "Guard",
    "Insert",
    "Match",
    "Metric",
    "NodePattern",
    "Not",
    "OneOf",
    "OpPattern",
    "Operator",
    "Parity",
    "Plateau",
    "Policy",
    "Predicate",
    "Prune",
    "Recruit",
    "Redirect",
    "Regex",
    "Remove",
    "Replace",
    "Retire",
    "Rewind",
    "Rule",
    "Schedule",
    "Share",
    "Step",
    "UnitsPattern",
    "load_policy_document",
]  # fmt: skip

NODE_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_EDGE = re.compile(rf"\s*({NODE_NAME})\s*(->|~>)\s*({NODE_NAME})\s*")

Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200)]
NodeName: TypeAlias = Annotated[str, StringConstraints(pattern=rf"^{NODE_NAME}$")]


def require_one(value: Frozen, *fields: str) -> None:
    """Raise unless exactly one of `fields` is given."""
    given = [field for field in fields if getattr(value, field) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise problem(f"expected exactly one of {', '.join(fields)}; found {found}")


def _whole(value: Scalar) -> Scalar:
    low, high = value.bounds()
    if low < 0 or (value.kind == "constant" and (high < 1 or high != int(high))):
        raise problem(
            f"expected a whole number of units, at least 1, or a schedule of at least 0; found {low:g}"
        )
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


# --------------------------------------------------------------------------------------------------- patterns


class Compare(Frozen):
    """The attribute compares so with `value`; a tuple attribute does when each of its items does."""

    kind: Literal["eq", "ne", "lt", "le", "gt", "ge"]
    value: JsonValue

    @model_validator(mode="after")
    def _check(self) -> Compare:
        if self.kind not in ("eq", "ne") and (
            isinstance(self.value, bool) or not isinstance(self.value, (int, float))
        ):
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
    where: dict[str, Predicate] = Field(
        default_factory=dict, description="attribute of the node -> what must hold"
    )


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


def _unknown(name: str, known: Iterable[str], what: str, *at: str | int) -> Any:
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
                raise _unknown(name, self.nodes, "node of the pattern", "edges", i)
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


# ----------------------------------------------------------------------------------------------------- guards


class Always(Frozen):
    """Holds."""

    kind: Literal["always"] = "always"


class All(Frozen):
    """Holds when each of `of` holds."""

    kind: Literal["all"] = "all"
    of: tuple[Guard, ...] = Field(min_length=1)


class Any_(Frozen):  # noqa: N801 - `Any` is typing's
    """Holds when one of `of` holds."""

    kind: Literal["any"] = "any"
    of: tuple[Guard, ...] = Field(min_length=1)


class Not(Frozen):
    """Holds when `of` does not."""

    kind: Literal["not"] = "not"
    of: Guard


class Plateau(Frozen):
    """Holds when `metric` has improved by less than `min_delta`, relative, over `window` steps."""

    kind: Literal["plateau"] = "plateau"
    metric: Name
    window: int = Field(gt=0, description="optimizer steps looked back")
    min_delta: Scalar = Field(default=1e-3, validate_default=True)
    patience: int = Field(default=0, ge=0, description="further steps for which it must hold")
    mode: Literal["min", "max"] = "min"


class _Bounds(Frozen):
    above: Scalar | None = None
    below: Scalar | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> _Bounds:
        if self.above is None and self.below is None:
            raise problem("expected above, below or both; found neither")
        return self


class Metric(_Bounds):
    """Holds when the reported `metric` is above or below a threshold."""

    kind: Literal["metric"] = "metric"
    metric: Name


class Cost(_Bounds):
    """Holds when a cost of the current version is above or below a threshold."""

    kind: Literal["cost"] = "cost"
    metric: Literal["params", "flops", "optimizer_bytes", "activation_bytes"]


class Parity(_Bounds):
    """Holds when newborns have reached parity with incumbents, or are `max_age` steps old."""

    kind: Literal["parity"] = "parity"
    of: Name = Field(description="a node of the pattern, or a group's name or glob")
    signal: Literal["gradient", "activation"] = "gradient"
    max_age: int | None = Field(default=None, gt=0, description="optimizer steps after which it holds anyway")


class Age(_Bounds):
    """Holds when the youngest unit's age, in optimizer steps, is above or below a threshold."""

    kind: Literal["age"] = "age"
    of: Name = Field(description="a node of the pattern, or a group's name or glob")


class Dormant(_Bounds):
    """Holds when the share of inactive units is above or below a threshold."""

    kind: Literal["dormant"] = "dormant"
    of: Name = Field(description="a node of the pattern, or a group's name or glob")


Guard: TypeAlias = Annotated[
    Always | All | Any_ | Not | Plateau | Metric | Cost | Parity | Age | Dormant, Field(discriminator="kind")
]
for _guard in (All, Any_, Not):
    _guard.model_rebuild()


# -------------------------------------------------------------------------------------------------- schedules


class _When(Frozen):
    cooldown: int = Field(
        default=0, ge=0, description="optimizer steps without another try after one applied"
    )


class At(_When):
    """Due at these optimizer steps."""

    kind: Literal["at"] = "at"
    steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)


class Every(_When):
    """Due at `start`, `start + steps`, ... before `stop`, until it has been applied `max_fires` times."""

    kind: Literal["every"] = "every"
    steps: int = Field(gt=0)
    start: int = Field(default=0, ge=0)
    stop: int | None = None
    max_fires: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Every:
        if self.stop is not None and self.stop <= self.start:
            raise problem(f"found {self.stop}; expected more than start, {self.start}", "stop")
        return self


class Cycles(_When):
    """Due at the start of each of `cycles` cycles, each so many steps or epochs long."""

    kind: Literal["cycles"] = "cycles"
    cycles: int = Field(gt=0)
    steps_per_cycle: int | None = Field(default=None, gt=0)
    epochs: int | None = Field(default=None, gt=0, description="epochs per cycle")

    @model_validator(mode="after")
    def _check(self) -> Cycles:
        require_one(self, "steps_per_cycle", "epochs")
        return self


Schedule: TypeAlias = Annotated[At | Every | Cycles, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------------------ steps


class _OnUnits(Frozen):
    units: Name = Field(description="a node of the pattern, or a group's name or glob")


class Grow(_OnUnits):
    """Add units: `count` of them, a `fraction` of those there, or as many as make `to`."""

    do: Literal["grow"] = "grow"
    count: Count | None = None
    fraction: Annotated[Scalar, AfterValidator(_positive)] | None = None
    to: Count | None = None
    init: Named = Choice(name="kaiming")
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


# ----------------------------------------------------------------------------------------- rules and policies


class Rule(Frozen):
    """Where (`match`), whether (`when`), how often (`schedule`) and what (`steps`).

    Without a `match`, steps and guards name ops and groups of the graph directly. With one, the ops of steps
    are nodes of the pattern or ops inserted by an earlier step; `units` may still name a group directly.

    Examples
    --------
    >>> rule = Rule(name="wider", steps=[Grow(units="fc1", count=8)], schedule=Every(steps=100))
    >>> rule.steps[0].count.at(0), rule.steps[0].init.name
    (8, 'kaiming')
    """

    name: Name
    match: Match | None = None
    when: Guard = Always()
    steps: tuple[Step, ...] = Field(min_length=1)
    schedule: Schedule = Every(steps=1)
    preserves: Literal["function", "approximate", "none"] | None = None
    priority: int = Field(default=0, description="of rules due at one step, the higher is tried first")

    @model_validator(mode="after")
    def _check(self) -> Rule:
        nodes = set(self.match.nodes) if self.match else set()
        known = set(nodes)
        for i, step in enumerate(self.steps):
            if isinstance(step, Redirect) and step.edge.kind != "data":
                raise problem(f"found '{step.edge}'; expected a data edge 'src -> dst'", "steps", i, "edge")
            if self.match is not None:
                for field, name in _ops_named(step):
                    if name not in known:
                        raise _unknown(
                            name, sorted(known), "node of the pattern or earlier insert", "steps", i, field
                        )
            if isinstance(step, Insert):
                if step.name in known:
                    what = "a node of the pattern" if step.name in nodes else "an earlier insert"
                    raise problem(
                        f"found {step.name!r}, the name of {what}; expected a new name", "steps", i, "name"
                    )
                known.add(step.name)
        return self


def _ops_named(step: Any) -> list[tuple[str, str]]:
    """Return (field, name) for each op that a structural step refers to."""
    if isinstance(step, Insert):
        return [("inputs", name) for name in step.inputs] + ([("like", step.like)] if step.like else [])
    if isinstance(step, Redirect):
        return [("edge", step.edge.source), ("edge", step.edge.target), ("to", step.to)]
    return [("node", step.node)] if isinstance(step, (Remove, Replace)) else []


class Budgets(Frozen):
    """Limits that no edit passes; `transient_bytes` is the memory that the edit itself needs at its peak."""

    params: float | None = Field(default=None, gt=0)
    flops: float | None = Field(default=None, gt=0, description="of one forward pass of one example")
    optimizer_bytes: float | None = Field(default=None, gt=0)
    transient_bytes: float | None = Field(default=None, gt=0)


class Policy(Document):
    """Rules with the limits that all of them keep to."""

    kind: Literal["policy"] = "policy"
    rules: tuple[Rule, ...] = Field(min_length=1)
    budgets: Budgets = Budgets()
    cooldown: int = Field(default=0, ge=0, description="optimizer steps between two edits, of any rules")
    immunity: int = Field(default=0, ge=0, description="optimizer steps for which a newborn is not removed")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Policy:
        seen: dict[str, int] = {}
        for i, rule in enumerate(self.rules):
            if rule.name in seen:
                raise problem(
                    f"found {rule.name!r}, the name of rules[{seen[rule.name]}] too; expected another name",
                    "rules", i, "name",
                )  # fmt: skip
            seen[rule.name] = i
        return self


def load_policy_document(source: Path | str | Mapping[str, Any] | list[Any]) -> Policy:
    """Return the policy in a file, a mapping, or a bare list of rules (a file may be such a list too).

    Raises
    ------
    SchemaError
        The document cannot be read or is no policy; lists every problem.
    """
    if isinstance(source, list):
        source = {"rules": source}
    return load_document(Policy, source, kind="policy", list_key="rules")
