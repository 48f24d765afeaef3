"""What the matcher looks up in a graph: nodes by type, neighbours, ports, members, paths; built once for each graph.

Nodes have numbers: ops come first, in the graph's topological order, then unit groups in the graph's order. So
whatever is listed by number is in one order, whatever the hash seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeAlias
from weakref import WeakKeyDictionary

from graphnet.ir.graph import Graph, units_node
from graphnet.ir.groups import UnitGroup
from graphnet.ir.infer import Node
from graphnet.ir.layout import Layout
from graphnet.ir.ops import Op

__all__ = ["UNITS", "Index", "PathKey", "index_of"]

UNITS = "units"
"""The type of a unit group's node, which no op has."""

PathKey: TypeAlias = tuple[tuple[str, ...] | None, int, int | None, int | None, int | None]
"""A kind of path: types of the ops between (None: elementwise), fewest, most, output of the source, operand."""

_INDEXES: WeakKeyDictionary[Graph, Index] = WeakKeyDictionary()


def index_of(graph: Graph) -> Index:
    """The index of a graph; built when it is first asked for, kept as long as the graph is."""
    found = _INDEXES.get(graph)
    if found is None:
        found = _INDEXES[graph] = Index(graph)
    return found


class Index:
    """The nodes of one graph by number, with tables of what the matcher asks.

    Attributes
    ----------
    names : list of str
        Of ops and groups; an op and a group may share one.
    types : list of str
        The type of each op, :data:`UNITS` for groups.
    by_type : dict of str to list of int
    successors, predecessors : list of list of int
        Data edges, each once; empty for groups.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes: Mapping[str, Node] = graph.nodes  # not the graph itself: the index must not keep it alive
        self.groups: Mapping[str, UnitGroup] = graph.groups
        self.count = count = len(self.nodes)
        self.names = [*self.nodes, *self.groups]
        self.specs: list[Op | UnitGroup] = [node.op for node in self.nodes.values()]
        self.specs += self.groups.values()
        self.types = [node.op.op for node in self.nodes.values()] + [UNITS] * len(self.groups)
        self.place = {name: number for number, name in enumerate(self.nodes)}
        self.group_place = {name: count + number for number, name in enumerate(self.groups)}
        self.by_type: dict[str, list[int]] = {}
        for number, kind in enumerate(self.types):
            self.by_type.setdefault(kind, []).append(number)
        self.inputs = [node.inputs for node in self.nodes.values()]
        self.successors: list[list[int]] = [[] for _ in self.names]
        self.predecessors: list[list[int]] = []
        place, successors = self.place, self.successors
        for target, inputs in enumerate(self.inputs):
            if len(inputs) == 1:
                sources = [place[inputs[0][0]]]
            else:
                sources = list(dict.fromkeys([place[producer] for producer, _ in inputs]))
            self.predecessors.append(sources)
            for source in sources:
                successors[source].append(target)
        self.predecessors += [[] for _ in self.groups]
        self._forward: dict[tuple[PathKey, int], tuple[int, ...]] = {}
        self._backward: dict[tuple[PathKey, int], tuple[int, ...]] = {}
        self._passes: dict[tuple[str, ...] | None, Sequence[bool]] = {}

    def key(self, number: int) -> str:
        """The node's key in ``graph.nx``."""
        return self.names[number] if number < self.count else units_node(self.names[number])

    def linked(self, source: int, target: int) -> bool:
        """Whether there is a data edge."""
        return source in self.predecessors[target]

    def ports(self, source: int, target: int) -> tuple[tuple[int, int], ...]:
        """Every (output of the source, operand of the target) of a data edge; none where there is no edge."""
        if not self.linked(source, target):
            return ()
        name = self.names[source]
        return tuple((port, at) for at, (producer, port) in enumerate(self.inputs[target]) if producer == name)

    # -- membership -------------------------------------------------------------------------------------------

    @cached_property
    def membership(self) -> Mapping[tuple[int, int], tuple[bool, bool]]:
        """For each group and op of a membership edge whether the op writes the group, and whether it reads it."""
        return {
            (group, number): flags for number, flags_of in enumerate(self._touched) for group, flags in flags_of.items()
        }

    @cached_property
    def members(self) -> Sequence[Sequence[int]]:
        """For each group the ops that have its units; for an op none."""
        table: list[list[int]] = [[] for _ in self.names]
        for number, touched in enumerate(self._touched):
            for group in touched:
                table[group].append(number)
        return table

    @cached_property
    def groups_of(self) -> Sequence[Sequence[int]]:
        """For each op the groups whose units it has; for a group none."""
        return [*(sorted(touched) for touched in self._touched), *([] for _ in self.groups)]

    @cached_property
    def _touched(self) -> Sequence[Mapping[int, tuple[bool, bool]]]:
        place = self.group_place
        known: dict[int, tuple[int, ...]] = {}  # by layout: nearly all of a graph's are the same few objects

        def groups(layout: Layout) -> tuple[int, ...]:
            found = known.get(id(layout))
            if found is None:
                found = known[id(layout)] = tuple(place[atom] for atom in layout.atoms() if atom in place)
            return found

        nothing: Mapping[int, tuple[bool, bool]] = {}
        given: dict[tuple[str, int], set[int]] = {}
        table = []
        for name, node in self.nodes.items():  # in topological order
            writes: set[int] = set()
            for port, dims in enumerate(node.outputs):
                given[name, port] = {group for layout in dims for group in groups(layout)}
                writes |= given[name, port]
            reads: set[int] = set()
            for source in node.inputs:
                reads |= given[source]
            held = {group for spec in node.tensors for layout in spec.dims for group in groups(layout)}
            touched = sorted(writes | reads | held)
            table.append({group: (group in writes, group in reads) for group in touched} if touched else nothing)
        return table

    @cached_property
    def writers(self) -> Mapping[int, Sequence[int]]:
        """For each group the ops in whose output it stands."""
        return {
            group: [number for number in self.members[group] if self.membership[group, number][0]]
            for group in range(self.count, len(self.names))
        }

    @cached_property
    def weighted(self) -> frozenset[str]:
        """Names of the groups that a stored weight reads."""
        return frozenset(
            atom
            for node in self.nodes.values()
            for spec in node.tensors
            for layout, role in zip(spec.dims, spec.roles, strict=True)
            if role == "read"
            for atom in layout.atoms()
        )

    # -- paths ------------------------------------------------------------------------------------------------

    def ahead(self, path: PathKey, source: int) -> tuple[int, ...]:
        """Ops that such a path leads to from `source`, in order."""
        found = self._forward.get((path, source))
        if found is None:
            found = self._forward[path, source] = self._reach(path, source, backward=False)
        return found

    def behind(self, path: PathKey, target: int) -> tuple[int, ...]:
        """Ops from which such a path leads to `target`, in order."""
        found = self._backward.get((path, target))
        if found is None:
            found = self._backward[path, target] = self._reach(path, target, backward=True)
        return found

    def _reach(self, path: PathKey, start: int, *, backward: bool) -> tuple[int, ...]:
        _, at_least, at_most, port, operand = path
        near = self.predecessors if backward else self.successors
        first, last = ((None, operand), (port, None)) if backward else ((port, None), (None, operand))
        any_port, passing = port is None and operand is None, self._passing(path[0])
        ends: set[int] = set()
        done: set[int] = set()
        frontier, between = {start}, 0
        while frontier and (at_most is None or between <= at_most):
            following: set[int] = set()
            for node in frontier:
                for other in near[node]:
                    edge = (other, node) if backward else (node, other)
                    if between >= at_least and (
                        any_port or self.fits(edge, *((port, operand) if between == 0 else last))
                    ):
                        ends.add(other)
                    if passing[other] and (any_port or between > 0 or self.fits(edge, *first)):
                        following.add(other)
            if between >= at_least:  # whatever a longer way through these leads to has been found
                done |= frontier
            frontier, between = following - done, between + 1
        return tuple(sorted(ends))

    def between(self, path: PathKey, source: int, target: int) -> tuple[int, ...]:
        """The ops between, on the shortest such path; of equally short ones the first in order."""
        _, at_least, at_most, port, operand = path
        if at_least == 0 and self.linked(source, target) and self.fits((source, target), port, operand):
            return ()
        passing = self._passing(path[0])
        layers: list[dict[int, int]] = [{source: -1}]
        while layers[-1] and (at_most is None or len(layers) <= at_most + 1):
            between = len(layers) - 1
            ends_at = (port if between == 0 else None, operand)
            if between >= at_least:
                for node in sorted(layers[-1]):
                    if self.linked(node, target) and self.fits((node, target), *ends_at):
                        way = [node]
                        for layer in reversed(layers[1:]):
                            way.append(layer[way[-1]])
                        return tuple(reversed(way[:-1]))
            following: dict[int, int] = {}
            for node in sorted(layers[-1]):
                for other in self.successors[node]:
                    if passing[other] and (between > 0 or self.fits((node, other), port, None)):
                        following.setdefault(other, node)
            layers.append(following)
        return ()

    def fits(self, edge: tuple[int, int], port: int | None, operand: int | None) -> bool:
        """Whether a data edge joins this output to this operand (None: any)."""
        if port is None and operand is None:
            return True
        return any(port in (None, output) and operand in (None, place) for output, place in self.ports(*edge))

    def _passing(self, types: tuple[str, ...] | None) -> Sequence[bool]:
        """For each node whether a path through ops of these types, or elementwise ones, may lead over it."""
        found = self._passes.get(types)
        if found is None:
            if types is None:
                found = [isinstance(spec, Op) and spec.elementwise for spec in self.specs]
            else:
                found = [kind in types for kind in self.types]
            self._passes[types] = found
        return found
