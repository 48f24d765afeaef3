"""Patterns made ready to be matched: nodes as tests, edges as links between them, names checked.

:func:`compile_pattern` checks what a document cannot: that types of ops and attributes exist and that a predicate
could hold. It needs no graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import partial
from typing import Any, TypeAlias

from graphnet.errors import SchemaError
from graphnet.ir.ops import OPS
from graphnet.rules.matching.attributes import (
    MISSING,
    UNITS_ATTRIBUTES,
    Attribute,
    attributes_of_ops,
    known_attributes,
    near,
    op_roles,
    units_roles,
)
from graphnet.rules.matching.index import UNITS, Index, PathKey
from graphnet.rules.matching.values import check_predicate, compile_predicate, leaves
from graphnet.schemas.pattern_print import node_text
from graphnet.schemas.patterns import (
    Absent,
    AnyPattern,
    EdgePattern,
    Match,
    NodePattern,
    OneOf,
    OpPattern,
    Predicate,
    Regex,
    UnitsPattern,
)
from graphnet.schemas.predicate_text import predicate_text, value_text

__all__ = ["AbsentPart", "Condition", "Link", "Neighbours", "NodeTest", "Parts", "compile_parts"]

Test: TypeAlias = Callable[[Index, int], bool]
Neighbours: TypeAlias = Callable[[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold for a node.

    Attributes
    ----------
    key : str
        ``name``, ``role``, or the attribute of ``where``.
    text : str
        As it is written: ``kernel>=3``.
    holds : function of index and node's number
    value : function of index and node's number
        What it looks at; :data:`MISSING` where the node has no such attribute.
    """

    key: str
    text: str
    holds: Test
    value: Callable[[Index, int], Any]


@dataclass(frozen=True, slots=True)
class NodeTest:
    """A node of a pattern.

    Attributes
    ----------
    name, text : str
        As the pattern calls it, and as it is written.
    types : tuple of str or None
        Types of ops, ``units``, or None for any node.
    only_ops : bool
        Whether ``types`` of None means any op.
    exact : str or None
        The one name that a node may have.
    conditions : tuple of Condition
    """

    name: str
    text: str
    types: tuple[str, ...] | None
    only_ops: bool
    exact: str | None
    conditions: tuple[Condition, ...]

    def fits(self, index: Index, number: int) -> bool:
        """Whether a node is of the right type."""
        if self.types is None:
            return not self.only_ops or number < index.count
        return index.types[number] in self.types

    def holds(self, index: Index, number: int) -> bool:
        """Whether a node is of the right type and meets every condition."""
        return self.fits(index, number) and all(each.holds(index, number) for each in self.conditions)

    def candidates(self, index: Index) -> Sequence[int]:
        """Nodes of the right type and name, in order."""
        if self.exact is not None:
            places = (index.place.get(self.exact), index.group_place.get(self.exact))
            return [number for number in places if number is not None and self.fits(index, number)]
        if self.types is None:
            return range(index.count if self.only_ops else len(index.names))
        if len(self.types) == 1:
            return index.by_type.get(self.types[0], ())
        return sorted(number for kind in dict.fromkeys(self.types) for number in index.by_type.get(kind, ()))

    def may_be(self, other: NodeTest) -> bool:
        """Whether one node of a graph could stand for both."""
        if self.exact is not None and other.exact is not None and self.exact != other.exact:
            return False
        if self.types is None or other.types is None:
            return self.only_ops <= (other.types != (UNITS,)) and other.only_ops <= (self.types != (UNITS,))
        return bool(set(self.types) & set(other.types))


@dataclass(frozen=True, slots=True)
class Link:
    """All edges of a pattern from one of its nodes to another.

    Attributes
    ----------
    source, target : int
        Numbers of the pattern's nodes.
    data : tuple of (int or None, int or None)
        For each data edge its output and operand, or None for any.
    member : tuple of (bool or None, bool or None)
        For each membership edge whether the op writes the units and reads them, or None for either.
    paths : tuple of PathKey
    texts : tuple of str
    named_paths : tuple of (str, PathKey)
        Each path with its text.
    """

    source: int
    target: int
    data: tuple[tuple[int | None, int | None], ...]
    member: tuple[tuple[bool | None, bool | None], ...]
    paths: tuple[PathKey, ...]
    texts: tuple[str, ...]
    named_paths: tuple[tuple[str, PathKey], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it is one data edge of any ports."""
        return self.data == ((None, None),) and not self.member and not self.paths

    @property
    def shape(self) -> tuple[bool, bool, frozenset[PathKey]]:
        """Which kinds of edges it has."""
        return bool(self.data), bool(self.member), frozenset(self.paths)

    def holds(self, index: Index, source: int, target: int) -> bool:
        """Whether two nodes of a graph are linked so."""
        if self.data:
            ports = index.ports(source, target)
            if not ports or not distinct(self.data, ports):
                return False
        if self.member:
            found = index.membership.get((source, target))
            if found is None or any(
                (writes is not None and writes != found[0]) or (reads is not None and reads != found[1])
                for writes, reads in self.member
            ):
                return False
        return all(target in index.ahead(path, source) for path in self.paths)

    def targets(self, index: Index) -> Neighbours:
        """A function from a source to what could be its target, in order; :meth:`holds` decides unless `plain`."""
        if self.data:
            return index.successors.__getitem__
        if self.member:
            return index.members.__getitem__
        return partial(index.ahead, self.paths[0])

    def sources(self, index: Index) -> Neighbours:
        """A function from a target to what could be its source; as :meth:`targets`."""
        if self.data:
            return index.predecessors.__getitem__
        if self.member:
            return index.groups_of.__getitem__
        return partial(index.behind, self.paths[0])


def distinct(wanted: Sequence[tuple[int | None, int | None]], ports: Sequence[tuple[int, int]]) -> bool:
    """Whether each wanted edge can have a port pair of its own."""
    if len(wanted) == 1:
        (port, operand) = wanted[0]
        return any(port in (None, a) and operand in (None, b) for a, b in ports)
    fits = [[i for i, (a, b) in enumerate(ports) if p in (None, a) and o in (None, b)] for p, o in wanted]
    owner: dict[int, int] = {}

    def place(edge: int, tried: set[int]) -> bool:
        for port in fits[edge]:
            if port not in tried:
                tried.add(port)
                if port not in owner or place(owner[port], tried):
                    owner[port] = edge
                    return True
        return False

    return all(place(edge, set()) for edge in range(len(wanted)))


@dataclass(frozen=True, slots=True)
class AbsentPart:
    """What must not be there: further nodes, numbered on from the pattern's, and links."""

    text: str
    nodes: tuple[NodeTest, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """A pattern as tests and links."""

    nodes: tuple[NodeTest, ...]
    links: tuple[Link, ...]
    absent: tuple[AbsentPart, ...]


def compile_parts(match: Match, where: str) -> Parts:
    """Check a pattern against the registry of ops and make tests and links of it.

    Raises
    ------
    SchemaError
        A type of op or an attribute does not exist, or a predicate could never hold; names the place.
    """
    nodes = tuple(_node(name, node, f"{where}, node {name!r}") for name, node in match.nodes.items())
    links = _links(match.edges, list(match.nodes), where)
    absent = tuple(_absent(part, match, f"{where}, without[{i}]") for i, part in enumerate(match.without))
    return Parts(nodes, links, absent)


def _absent(part: Absent, match: Match, where: str) -> AbsentPart:
    nodes = tuple(_node(name, node, f"{where}, node {name!r}") for name, node in part.nodes.items())
    text = str(Match.model_construct(nodes={}, edges=(), without=(part,)))
    return AbsentPart(text, nodes, _links(part.edges, [*match.nodes, *part.nodes], where))


def _node(name: str, node: NodePattern, where: str) -> NodeTest:
    types = _types(name, node, where)
    conditions: list[Condition] = []
    exact = None
    if node.name is not None:
        if set(node.name) & set("*?["):
            conditions.append(_glob(node.name))
        else:
            exact = node.name
    role = _role(node)
    if role is not None:
        conditions.append(role)
    for key, predicate in node.where.items():
        conditions.append(_where(key, predicate, node, types, where))
    return NodeTest(name, node_text(name, node), types, isinstance(node, OpPattern), exact, tuple(conditions))


def _types(name: str, node: NodePattern, where: str) -> tuple[str, ...] | None:
    if isinstance(node, UnitsPattern):
        return (UNITS,)
    if not isinstance(node, OpPattern) or node.op is None:
        return None
    types = (node.op,) if isinstance(node.op, str) else node.op
    check_types(types, where, f" (a node of any type is written 'op {types[0]}')" if node.op == name else "")
    return types


def check_types(types: Iterable[str], where: str, hint: str = "") -> None:
    """Refuse types of ops that are not registered."""
    for kind in types:
        if kind not in OPS:
            raise SchemaError(f"{where}: there is no op {kind!r}{near(kind, OPS) or hint}")


def _glob(glob: str) -> Condition:
    matches = re.compile(translate(glob)).match
    return Condition(
        "name", f"name={value_text(glob)}", lambda index, n: matches(index.names[n]) is not None,
        lambda index, n: index.names[n],
    )  # fmt: skip


def _role(node: NodePattern) -> Condition | None:
    if isinstance(node, AnyPattern):
        return None
    role = node.role
    read = units_roles if isinstance(node, UnitsPattern) else op_roles
    if role is not None:
        return Condition("role", f"role={role}", lambda index, n: role in read(index, n), read)
    if isinstance(node, OpPattern) or "frozen" in node.where or _asks("frozen", node.where.get("role")):
        return None
    frozen = UNITS_ATTRIBUTES["frozen"].read
    return Condition("frozen", "frozen=false", lambda index, n: not frozen(index, n), frozen)


def _asks(value: str, predicate: Predicate | None) -> bool:
    return predicate is not None and any(
        value in (leaf.values if isinstance(leaf, OneOf) else (leaf.value,))
        for leaf in leaves(predicate)
        if not isinstance(leaf, Regex)
    )


def _where(
    key: str, predicate: Predicate, node: NodePattern, types: tuple[str, ...] | None, where: str
) -> Condition:  # fmt: skip
    of_units = UNITS_ATTRIBUTES.get(key) if not isinstance(node, OpPattern) else None
    of_ops = attributes_of_ops(key, types) if not isinstance(node, UnitsPattern) else {}
    if of_units is None and not of_ops:
        raise SchemaError(f"{where}: {_unknown(key, node, types)}")
    whose = {"units": "a unit group", "op": " or ".join(types or ()) or "an op", "any": "a node"}[node.kind]
    known = [*of_ops.values(), *([of_units] if of_units is not None else [])]
    check_predicate(key, predicate, known, whose, where)
    text = predicate_text(key, predicate, alone=True)
    if isinstance(node, UnitsPattern):
        assert of_units is not None
        return _condition(key, text, predicate, of_units)
    single = set(of_ops.values())
    if isinstance(node, OpPattern) and len(single) == 1 and (types is None) <= (len(of_ops) == len(OPS)):
        return _condition(key, text, predicate, single.pop())
    holds = {many: compile_predicate(predicate, many=many) for many in {attribute.many for attribute in known}}

    def attribute_of(index: Index, number: int) -> Attribute | None:
        return of_units if number >= index.count else of_ops.get(index.types[number])

    def value(index: Index, number: int) -> Any:
        attribute = attribute_of(index, number)
        return MISSING if attribute is None else attribute.read(index, number)

    def test(index: Index, number: int) -> bool:
        attribute = attribute_of(index, number)
        return attribute is not None and holds[attribute.many](attribute.read(index, number))

    return Condition(key, text, test, value)


def _condition(key: str, text: str, predicate: Predicate, attribute: Attribute) -> Condition:
    holds, read = compile_predicate(predicate, many=attribute.many), attribute.read
    return Condition(key, text, lambda index, number: holds(read(index, number)), read)


def _unknown(key: str, node: NodePattern, types: tuple[str, ...] | None) -> str:
    if isinstance(node, UnitsPattern):
        return (
            f"a unit group has no attribute {key!r}{near(key, UNITS_ATTRIBUTES)}; it has {', '.join(UNITS_ATTRIBUTES)}"
        )
    known = known_attributes(types)
    if types is None:
        return f"no op has an attribute {key!r}{near(key, known)}"
    return f"{' and '.join(types)} {'has' if len(types) == 1 else 'have'} no attribute {key!r}{near(key, known)}; " + (
        f"expected one of {', '.join(known)}"
    )


def _links(edges: Sequence[EdgePattern], names: Sequence[str], where: str) -> tuple[Link, ...]:
    number = {name: i for i, name in enumerate(names)}
    between: dict[tuple[int, int], list[EdgePattern]] = {}
    for edge in edges:
        if edge.through is not None:
            check_types(edge.through, f"{where}, edge '{edge}'")
        between.setdefault((number[edge.source], number[edge.target]), []).append(edge)
    return tuple(_link(source, target, each) for (source, target), each in between.items())


def _link(source: int, target: int, edges: Sequence[EdgePattern]) -> Link:
    return Link(
        source,
        target,
        tuple((edge.port, edge.operand) for edge in edges if edge.kind == "data"),
        tuple((edge.writes, edge.reads) for edge in edges if edge.kind == "membership"),
        tuple(path_key(edge) for edge in edges if edge.kind == "path"),
        tuple(map(str, edges)),
        tuple((str(edge), path_key(edge)) for edge in edges if edge.kind == "path"),
    )


def path_key(edge: EdgePattern) -> PathKey:
    """What of a path edge decides where it leads."""
    through = None if edge.through is None else tuple(sorted(set(edge.through)))
    return through, edge.at_least, edge.at_most, edge.port, edge.operand
