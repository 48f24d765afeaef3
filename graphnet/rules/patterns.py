"""Where a rule applies: unit groups by name, glob and pattern, in the order of the graph, each once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from graphnet.errors import GraphError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.rules.registry import Compilers
from graphnet.schemas.policy import Compare, Match, OneOf, Predicate, Regex, UnitsPattern

__all__ = ["PATTERNS", "Binding", "Matcher", "compile_match", "groups_named"]

Binding: TypeAlias = Mapping[str, str]
"""What a match gives each node of the pattern: the name of a group."""

Matcher: TypeAlias = Callable[[Graph], Sequence[Binding]]
"""Every match in a graph, in the order of its groups."""

Test: TypeAlias = Callable[[UnitGroup], bool]

PATTERNS: Compilers[Test] = Compilers("the node")

_ATTRIBUTES: Mapping[str, Callable[[UnitGroup], Any]] = {
    "name": lambda group: group.name,
    "size": lambda group: group.size,
    "dormant": lambda group: len(group.dormant),
    "kind": lambda group: group.kind,
    "role": lambda group: group.role,
    "minimum": lambda group: group.minimum,
    "output": lambda group: group.output,
    "coupled": lambda group: group.coupled is not None,
    "contracted": lambda group: group.contracted is not None,
}
_ROLES: Mapping[str, Test] = {
    "hidden": lambda group: group.frozen is None and not group.output,
    "output": lambda group: group.frozen is None and group.output,
    "coupled": lambda group: group.frozen is None and group.coupled is not None,
    "frozen": lambda group: group.frozen is not None,
}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda found, value: bool(found == value),
    "ne": lambda found, value: bool(found != value),
    "lt": lambda found, value: bool(found < value),
    "le": lambda found, value: bool(found <= value),
    "gt": lambda found, value: bool(found > value),
    "ge": lambda found, value: bool(found >= value),
}


def compile_match(match: Match | None, where: str) -> Matcher:
    """Compile a pattern; without one there is a single match that binds nothing.

    Raises
    ------
    GraphnetError
        The pattern is structural (ops, edges), or asks for an attribute that groups have not.
    """
    if match is None:
        return lambda graph: [{}]
    if match.edges:
        raise GraphnetError(
            f"{where}: the edge '{match.edges[0]}' makes its pattern structural, and structural steps and patterns are "
            "not available in this version: match one node of kind 'units'"
        )
    ((node, pattern),) = match.nodes.items()  # nodes without edges between them are refused by the document
    test = PATTERNS.compile(pattern, f"{where}, node {node!r}", f"{where}, node {node!r}")
    return lambda graph: [{node: group.name} for group in graph.groups.values() if test(group)]


@PATTERNS.register(UnitsPattern)
def units(pattern: UnitsPattern, where: str) -> Test:
    """Unit groups; frozen ones match only where the role asks for them."""
    role = _ROLES[pattern.role] if pattern.role is not None else lambda group: group.frozen is None
    tests: list[Test] = [role]
    if pattern.name is not None:
        glob = pattern.name
        tests.append(lambda group: fnmatchcase(group.name, glob))
    tests += [_predicate(attribute, predicate, where) for attribute, predicate in pattern.where.items()]
    return lambda group: all(test(group) for test in tests)


def _predicate(attribute: str, predicate: Predicate, where: str) -> Test:
    read = _ATTRIBUTES.get(attribute)
    if read is None:
        raise GraphnetError(f"{where}: a unit group has no attribute {attribute!r}; it has {', '.join(_ATTRIBUTES)}")
    if isinstance(predicate, OneOf):
        values = predicate.values
        return lambda group: read(group) in values
    if isinstance(predicate, Regex):
        pattern = re.compile(predicate.pattern)
        return lambda group: pattern.fullmatch(str(read(group))) is not None
    assert isinstance(predicate, Compare)
    compare, value = _COMPARE[predicate.kind], predicate.value
    if predicate.kind not in ("eq", "ne") and attribute in ("name", "kind", "role"):
        raise GraphnetError(f"{where}: {attribute!r} is text: compare it with eq, ne, in or regex")
    return lambda group: compare(read(group), value)


def groups_named(graph: Graph, name: str, binding: Binding, *, outputs: bool = False) -> tuple[str, ...]:
    """The groups that a name stands for: a node of the pattern, a group, an op that writes one, or a glob.

    Parameters
    ----------
    outputs : bool
        Whether a glob takes groups that a model output reads too. It never takes frozen ones.

    Raises
    ------
    GraphError
        It stands for none; says what there is.
    """
    if name in binding:
        return (binding[name],)
    if name in graph.groups or name in graph.nodes or not any(sign in name for sign in "*?["):
        return (graph.group(name).name,)
    able = [group for group in graph.groups.values() if group.frozen is None and (outputs or not group.output)]
    found = tuple(group.name for group in able if fnmatchcase(group.name, name))
    if not found:
        raise GraphError(f"no unit group matches {name!r}; those that can be edited are {[g.name for g in able]}")
    return found
