"""What each rule of a policy would match in a graph now, and why others would not.

:func:`lint` gives a :class:`Finding` for each rule. Where a pattern matches nowhere it says, besides the reason, how
its nodes stand one by one, and where it would match with one of its conditions left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphnet.errors import EditError, GraphnetError, SchemaError
from graphnet.ir.graph import Graph
from graphnet.rules.engine import troubles
from graphnet.rules.matching import CompiledPattern, Context, Matches
from graphnet.rules.matching.attributes import near
from graphnet.rules.matching.compiled import NodeTest
from graphnet.rules.matching.index import Index, index_of
from graphnet.rules.matching.reasons import nearest, shown_value
from graphnet.rules.patterns import groups_named
from graphnet.schemas.guards import Event, Since
from graphnet.schemas.models import Frozen
from graphnet.schemas.parsing import parse
from graphnet.schemas.patterns import EdgePattern, Match
from graphnet.schemas.policy import Policy, Rule
from graphnet.schemas.predicate_text import predicate_text
from graphnet.schemas.structure import DataEdge
from graphnet.schemas.timing import RESERVED_EVENTS, On

__all__ = ["Finding", "NearMiss", "NodeFinding", "lint"]

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class NodeFinding:
    """How one node of a pattern stands in a graph, by itself.

    Attributes
    ----------
    text : str
        The node as it is written.
    candidates : int
        Nodes of its type.
    fitting : int
        Those that meet all its conditions.
    failed : tuple of (str, int)
        For each condition that some candidates fail, how many do.
    nearest : tuple of str
        Where none fits, those that fail the fewest conditions.
    """

    text: str
    candidates: int
    fitting: int
    failed: tuple[tuple[str, int], ...]
    nearest: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{self.text}: {self.fitting} of {self.candidates} fit"
        failed = "; ".join(f"{text} fails at {count}" for text, count in self.failed)
        near = f"; nearest {'; '.join(self.nearest)}" if self.nearest else ""
        return counts + (f" ({failed}{near})" if failed or near else "")


@dataclass(frozen=True, slots=True)
class NearMiss:
    """Where a pattern would match with one part left out.

    Attributes
    ----------
    part : str
        What is left out, as it is written.
    count : int
        At how many places it would match then.
    examples : tuple of str
        Some of them, with what stands against it.
    """

    part: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        places = "1 place" if self.count == 1 else f"{self.count} places"
        more = "; ..." if self.count > len(self.examples) else ""
        return f"without {self.part} it would match at {places}: {'; '.join(self.examples)}{more}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one rule.

    Attributes
    ----------
    rule : str
    pattern : str
        As text; empty where the rule has none.
    matches : Matches
        Empty too where the pattern itself is wrong.
    problems : tuple of str
        What cannot work in this graph, or in this version: names that stand for nothing, parts that cannot be done.
    named : tuple of str
        Ops and groups that the rule names directly, beside its pattern.
    nodes : tuple of NodeFinding
        Where nothing matches, each node of the pattern by itself.
    near : tuple of NearMiss
        Where nothing matches, the parts that alone stand against a match.
    notes : tuple of str
        What may be meant so: events that no rule makes.
    """

    rule: str
    pattern: str
    matches: Matches
    problems: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    nodes: tuple[NodeFinding, ...] = ()
    near: tuple[NearMiss, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why there is no match."""
        return self.matches.reason


def lint(policy: Policy | Iterable[Rule], graph: Graph) -> list[Finding]:
    """Look at every rule of a policy in the light of one graph; nothing is changed, and no guard is asked.

    Parameters
    ----------
    policy : graphnet.schemas.policy.Policy, or rules
    graph : Graph

    Returns
    -------
    list of Finding
        In the policy's order.

    Examples
    --------
    >>> import graphnet as gn
    >>> wide = gn.rule("wide").match("units h[role=hidden, size>=64]").grow("h", count=8).build()
    >>> (found,) = lint([wide], gn.mlp([4, 32, 16, 3]))
    >>> found.reason
    'none of 3 unit groups meets role=hidden, size>=64 (fc1: size is 32; fc2: size is 16; head: ...)'
    >>> print(found.near[0])
    without size>=64 it would match at 2 places: h=fc1 (size is 32); h=fc2 (size is 16)
    """
    rules = policy.rules if isinstance(policy, Policy) else tuple(policy)
    names = [rule.name for rule in rules]
    return [replace(_look(rule, graph), notes=tuple(_events(rule, names))) for rule in rules]


def _look(rule: Rule, graph: Graph) -> Finding:
    where = f"rule {rule.name!r}"
    problems = troubles(rule)
    named, unknown = _names(rule, graph)
    problems += unknown
    if rule.match is None:
        return Finding(rule.name, "", Matches(()), tuple(problems), named)
    text = str(rule.match)
    try:
        pattern = CompiledPattern(rule.match, where)
        matches = pattern.find(graph)
    except GraphnetError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return Finding(rule.name, text, Matches(()), tuple(problems), named)
    if matches:
        return Finding(rule.name, text, matches, tuple(problems), named)
    index = index_of(graph)
    nodes = tuple(_node(test, index) for test in pattern.parts.nodes)
    return Finding(
        rule.name, text, matches, tuple(problems), named, nodes, tuple(_near(rule.match, graph, index))
    )  # fmt: skip


# -- names ----------------------------------------------------------------------------------------------------------


def _names(rule: Rule, graph: Graph) -> tuple[tuple[str, ...], list[str]]:
    """Ops and groups that steps and guards name beside the pattern, and what is wrong with such names."""
    known = set(rule.match.nodes) if rule.match is not None else set()
    found: dict[str, None] = {}
    problems: dict[str, None] = {}
    wanted: list[tuple[str, str, str]] = []
    for i, step in enumerate(rule.steps):
        where = f"step {i + 1} ({step.do})"
        refers = getattr(step, "REFERS", {})
        wanted += [
            (where, kind, name)
            for field, kind in refers.items()
            if kind != "new"
            for name in _each_name(getattr(step, field))
            if name not in known
        ]
        known.update(
            name for field, kind in refers.items() if kind == "new" for name in _each_name(getattr(step, field))
        )
    for guard in _guards(rule.when):
        names = _each_name(getattr(guard, "of", None))
        wanted += [(f"guard {guard.kind}", "units", name) for name in names if name not in known]
    for where, kind, name in wanted:
        try:
            if kind == "units":
                found.update(dict.fromkeys(groups_named(graph, name, {}, outputs=True)))
            elif name in graph.nodes:
                found[name] = None
            else:
                problems[f"{where}: there is no op {name!r}{near(name, graph.nodes)}"] = None
        except GraphnetError as error:
            problems[f"{where}: {error}"] = None
    return tuple(found), list(problems)


def _events(rule: Rule, names: Sequence[str]) -> Iterator[str]:
    """Events that the rule waits for and that only the loop can report: a rule's name may have been meant."""
    known = (*RESERVED_EVENTS, *names)
    wanted = [("schedule", rule.schedule.event)] if isinstance(rule.schedule, On) else []
    wanted += [(f"guard {guard.kind}", guard.event) for guard in _guards(rule.when) if isinstance(guard, Event | Since)]
    for where, event in wanted:
        if event not in known:
            yield (
                f"{where}: the event {event!r} is no rule's name, so it comes from policy.step(..., events=[{event!r}])"
                f"{near(event, known)}"
            )


def _each_name(value: Any) -> list[str]:
    """The names in a field: one, several, or the two of an edge."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, DataEdge | EdgePattern):
        return [value.source, value.target]
    return [each for each in value if isinstance(each, str)] if isinstance(value, tuple | list) else []


def _guards(guard: Any) -> Iterator[Any]:
    inner = getattr(guard, "of", None)
    inner = inner if isinstance(inner, tuple) else (inner,)
    if any(isinstance(each, Frozen) for each in inner):
        for each in inner:
            yield from _guards(each)
    else:
        yield guard


# -- near misses ----------------------------------------------------------------------------------------------------


def _node(test: NodeTest, index: Index) -> NodeFinding:
    candidates = test.candidates(index)
    fitting = sum(test.holds(index, number) for number in candidates)
    failed = [(each.text, sum(not each.holds(index, number) for number in candidates)) for each in test.conditions]
    closest = () if fitting else tuple(nearest(test, candidates, index))
    return NodeFinding(test.text, len(candidates), fitting, tuple(pair for pair in failed if pair[1]), closest)


def _near(match: Match, graph: Graph, index: Index) -> Iterator[NearMiss]:
    for part, relaxed, node, key in _relaxed(match):
        try:
            pattern = CompiledPattern(parse(Match, relaxed), "pattern")
        except SchemaError:  # what is left falls into two parts, or is no pattern
            continue
        try:
            matches: Sequence[Any] = pattern.find(graph)
        except EditError:
            yield NearMiss(part, Context().max_matches, ("more than can be listed",))
            continue
        if matches:
            examples = [_example(found, node, key, match, index) for found in matches[:_SHOWN]]
            yield NearMiss(part, len(matches), tuple(examples))


def _example(found: Any, node: str | None, key: str | None, match: Match, index: Index) -> str:
    shown = str(found)
    if node is None:
        return shown
    table = index.place if found.kinds[node] == "op" else index.group_place
    number = table[found[node]]
    if key is None:
        kind = index.types[number]
        return f"{shown} ({found[node]} is {'a unit group' if kind == 'units' else kind})"
    test = CompiledPattern(Match(nodes={node: match.nodes[node]})).parts.nodes[0]
    condition = next((each for each in test.conditions if each.key == key), None)
    if condition is None:
        return shown
    return f"{shown} ({key} is {shown_value(condition.value(index, number))})"


def _relaxed(match: Match) -> Iterator[tuple[str, dict[str, Any], str | None, str | None]]:
    """Each part that can be left out, the pattern without it, and the node and attribute that it speaks of."""
    data: dict[str, Any] = match.model_dump()

    def changed(name: str, /, **fields: Any) -> dict[str, Any]:
        node = {key: value for key, value in {**data["nodes"][name], **fields}.items() if value is not None}
        return {**data, "nodes": {**data["nodes"], name: node}}

    for name, node in match.nodes.items():
        for key, predicate in node.where.items():
            rest = {other: value for other, value in data["nodes"][name].get("where", {}).items() if other != key}
            yield predicate_text(key, predicate, alone=True), changed(name, where=rest), name, key
        if node.name is not None:
            yield f"{name}'s name={node.name}", changed(name, name=None), name, "name"
        role = getattr(node, "role", None)
        if role is not None:
            yield f"role={role}", changed(name, role=None), name, "role"
        elif node.kind == "units" and "frozen" not in node.where:
            either = {"kind": "in", "values": [True, False]}
            where = {**data["nodes"][name].get("where", {}), "frozen": either}
            yield f"{name}'s frozen=false", changed(name, where=where), name, "frozen"
    edges, without = data.get("edges", []), data.get("without", [])
    for i, edge in enumerate(match.edges):
        yield f"'{edge}'", {**data, "edges": [*edges[:i], *edges[i + 1 :]]}, None, None
        bare = EdgePattern(source=edge.source, target=edge.target, kind=edge.kind)
        if edge != bare:
            yield f"what is said of '{edge}'", {**data, "edges": [*edges[:i], bare, *edges[i + 1 :]]}, None, None
    for i, part in enumerate(match.without):
        shown = str(Match.model_construct(nodes={}, edges=(), without=(part,)))
        yield f"'{shown}'", {**data, "without": [*without[:i], *without[i + 1 :]]}, None, None
    for name, node in match.nodes.items():
        types = getattr(node, "op", None)
        if types is not None:
            shown = types if isinstance(types, str) else "|".join(types)
            also = " and its conditions" if node.where else ""
            yield f"{name}'s type {shown}{also}", changed(name, op=None, where={}), name, None
