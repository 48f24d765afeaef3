"""Policy documents: rules (where, whether, when, what) with budgets, as frozen values.

A rule is data. The same models are built from YAML, from JSON and from Python (``gn.Rule(...)``). Its parts
have modules of their own, and their names are had from here too: `patterns` (where), `guards` (whether),
`timing` (when) and `steps` (what). What can be checked without a graph is checked here: names, edges,
connectedness, exactly-one-of choices. The rest is checked by the rule engine against a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from graphnet.schemas.choices import Choice, Count, Named, OfEdit, Share
from graphnet.schemas.guards import (
    Age,
    All,
    Always,
    Any_,
    Bottleneck,
    Budget,
    Cost,
    Dormant,
    Event,
    Guard,
    Metric,
    Not,
    Parity,
    Plateau,
    Rank,
    Since,
    Utility,
)
from graphnet.schemas.models import Document, Frozen, Name, problem, require_one
from graphnet.schemas.parsing import load_document
from graphnet.schemas.patterns import (
    NODE_NAME,
    Absent,
    AllOf,
    AnyOf,
    AnyPattern,
    Compare,
    Edge,
    EdgePattern,
    Match,
    Negated,
    NodeName,
    NodePattern,
    OneOf,
    OpPattern,
    Predicate,
    Regex,
    UnitsPattern,
    unknown_name,
)
from graphnet.schemas.scalars import Constant, Span
from graphnet.schemas.steps import (
    Adapted,
    Grow,
    Merge,
    Permute,
    Prune,
    Recruit,
    Reset,
    Retire,
    Rewind,
    ShrinkAndPerturb,
    Speed,
    Split,
    Step,
)
from graphnet.schemas.structure import (
    DataEdge,
    Deepen,
    Insert,
    Kernel,
    Operator,
    Redirect,
    Remove,
    Replace,
    Tie,
    Untie,
)
from graphnet.schemas.timing import RESERVED_EVENTS, At, Cycles, Every, Milestones, On, Schedule

__all__ = [
    "NODE_NAME",
    "Absent",
    "Adapted",
    "Age",
    "All",
    "AllOf",
    "Always",
    "AnyOf",
    "AnyPattern",
    "Any_",
    "At",
    "Bottleneck",
    "Budget",
    "Budgets",
    "Choice",
    "Compare",
    "Cost",
    "Count",
    "Cycles",
    "DataEdge",
    "Deepen",
    "Dormant",
    "Edge",
    "EdgePattern",
    "Event",
    "Every",
    "Grow",
    "Guard",
    "Insert",
    "Kernel",
    "Match",
    "Merge",
    "Metric",
    "Milestones",
    "Name",
    "Named",
    "Negated",
    "NodeName",
    "NodePattern",
    "Not",
    "On",
    "OneOf",
    "OpPattern",
    "Operator",
    "Parity",
    "Permute",
    "Plateau",
    "Policy",
    "Predicate",
    "Prune",
    "Rank",
    "Recruit",
    "Redirect",
    "Regex",
    "Remove",
    "Replace",
    "Reset",
    "Retire",
    "Rewind",
    "Rule",
    "Schedule",
    "Share",
    "ShrinkAndPerturb",
    "Since",
    "Speed",
    "Split",
    "Step",
    "Tie",
    "UnitsPattern",
    "Untie",
    "Utility",
    "load_policy_document",
    "require_one",
]


class Rule(Frozen):
    """Where (`match`), whether (`when`), how often (`schedule`) and what (`steps`).

    Without a `match`, steps and guards name ops and groups of the graph directly. With one, the ops of steps
    are nodes of the pattern or ops inserted by an earlier step; `units` may still name a group directly.

    Examples
    --------
    >>> rule = Rule(name="wider", steps=[Grow(units="fc1", count=8)], schedule=Every(steps=100))
    >>> rule.steps[0].count.at(0), rule.steps[0].init.name
    (8, 'zero-outgoing')
    """

    name: Name
    match: Match | None = None
    when: Guard = Always()
    steps: tuple[Step, ...] = Field(min_length=1)
    schedule: Schedule = Every(steps=Constant(value=1))
    preserves: Literal["function", "approximate", "none"] | None = None
    priority: int = Field(default=0, description="of rules due at one step, the higher is tried first")
    at_most: int | None = Field(default=None, gt=0, description="matches that one firing takes, in graph order")

    @model_validator(mode="after")
    def _check(self) -> Rule:
        nodes = set(self.match.nodes) if self.match else set()
        known = set(nodes)
        for i, step in enumerate(self.steps):
            if not isinstance(step, OfEdit):
                continue
            for field, name in _ops_named(step) if self.match is not None else ():
                if name not in known:
                    raise unknown_name(name, sorted(known), "node of the pattern or earlier insert", "steps", i, field)
                if name in nodes and self.match is not None and self.match.nodes[name].kind == "units":
                    raise problem(f"found {name!r}, units of the pattern; expected an op of it", "steps", i, field)
            for field, kind in step.REFERS.items():
                name = getattr(step, field)
                if kind != "new" or name is None:
                    continue
                if name in known:
                    what = "a node of the pattern" if name in nodes else "an earlier insert"
                    raise problem(f"found {name!r}, the name of {what}; expected a new name", "steps", i, field)
                known.add(name)
        return self


def _ops_named(step: OfEdit) -> list[tuple[str, str]]:
    """Return (field, name) for each op that a step refers to."""
    found: list[tuple[str, str]] = []
    for field, kind in step.REFERS.items():
        value = getattr(step, field)
        if value is None or kind not in ("op", "edge"):
            continue
        names = (value.source, value.target) if kind == "edge" else (value,) if isinstance(value, str) else value
        found += [(field, name) for name in names]
    return found


class Budgets(Frozen):
    """Limits that no edit passes; `transient_bytes` is the memory that the edit itself needs at its peak."""

    params: float | None = Field(default=None, gt=0)
    flops: float | None = Field(default=None, gt=0, description="of one forward pass of one example")
    optimizer_bytes: float | None = Field(default=None, gt=0)
    transient_bytes: float | None = Field(default=None, gt=0)
    latency: float | None = Field(
        default=None, gt=0, description="seconds of one forward pass of the policy's batch, measured before the commit"
    )


class Policy(Document):
    """Rules with the limits that all of them keep to."""

    kind: Literal["policy"] = "policy"
    rules: tuple[Rule, ...] = Field(min_length=1)
    budgets: Budgets = Budgets()
    cooldown: Span = Field(default=Constant(value=0), description="optimizer steps between two edits, of any rules")
    immunity: int = Field(default=0, ge=0, description="optimizer steps for which a newborn is not removed")
    hysteresis: int = Field(
        default=0, ge=0, description="optimizer steps for which a group that grew does not shrink, and the reverse"
    )
    max_growth: float | None = Field(default=None, gt=0, description="share by which one edit may grow a group")
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
            if rule.name in RESERVED_EVENTS:
                raise problem(
                    f"found {rule.name!r}, which is an event of its own; expected another name", "rules", i, "name"
                )
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
