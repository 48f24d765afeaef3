"""The graph: an immutable network of ops and unit groups, valid by construction.

Build one with :func:`graphnet.load`, a builder (:func:`graphnet.mlp` ...), or :meth:`Graph.from_ops`. Every
``Graph`` that exists has passed validation: acyclic data flow, arity and ports, agreeing layouts, non-empty
groups, no op without a way to an output. (Inside an open edit widths change one by one; that graph is validated before
anything is run on it, and once when the edit ends.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import networkx as nx
from networkx import DiGraph

from graphnet.errors import EditError, FrozenGroupError, GraphError
from graphnet.ir.expressions import expression_of
from graphnet.ir.groups import UnitGroup
from graphnet.ir.infer import Inference, Node, infer
from graphnet.ir.layout import Layout
from graphnet.ir.ops.base import Dims, Op, Shape, SizeValue, TensorSpec
from graphnet.ir.ops.io import Input, Output

if TYPE_CHECKING:
    from graphnet.ir.cost import Cost
    from graphnet.ir.diff import GraphDiff

__all__ = ["Graph", "units_node"]

OUTPUT = "output"

_OF_LAYOUTS = ("tensors", "users", "outputs", "_sized_by")
"""What is computed from layouts and edges alone: it stays as it is where only the units of groups change."""


def units_node(group: str) -> str:
    """The key of a unit group's node in :attr:`Graph.nx` (ops are keyed by their name)."""
    return f"units:{group}"


@dataclass(frozen=True, eq=False)
class Graph:
    """One version of a network's structure.

    Attributes
    ----------
    name : str
    nodes : mapping of str to Node
        Ops in topological order, with inferred layouts; includes the inputs and one ``output`` op.
    groups : mapping of str to UnitGroup
        Unit groups; frozen ones are listed with their reason.
    dynamic : mapping of str to int
        Dimensions that change from batch to batch, with the nominal sizes that stand for them.
    version : int
        Counts edits from 0.
    """

    name: str
    nodes: Mapping[str, Node]
    groups: Mapping[str, UnitGroup]
    dynamic: Mapping[str, int] = field(default_factory=dict)
    version: int = 0

    @classmethod
    def from_ops(
        cls,
        ops: Iterable[Op],
        outputs: Sequence[str] | None = None,
        *,
        name: str = "network",
        groups: Mapping[str, UnitGroup] | None = None,
        version: int = 0,
        twice: bool = True,
    ) -> Graph:
        """Build and validate a graph.

        Parameters
        ----------
        ops : iterable of Op
            In any order; inputs are ops too.
        outputs : sequence of str, optional
            What the network returns; needed unless ``ops`` holds an ``output`` op.
        groups : mapping, optional
            Unit ids (live, dormant, next) of an edited graph, by group name.
        twice : bool
            Run the rules of all ops a second time, which must change nothing. False is for a graph that is looked at
            and dropped.

        Raises
        ------
        GraphError
            What is wrong, where, and that part of the graph.
        """
        listed = list(ops)
        if outputs is not None:
            listed.append(Output(name=OUTPUT, inputs=tuple(outputs)))
        ordered, edges = _order(listed)
        found = infer(ordered, edges, twice=twice)
        return cls._finish(name, found, groups, version)

    @classmethod
    def _finish(
        cls, name: str, found: Inference, groups: Mapping[str, UnitGroup] | None, version: int
    ) -> Graph:  # fmt: skip
        merged = dict(found.groups)
        for key, given in (groups or {}).items():
            fresh = merged.get(key)
            if fresh is None:
                raise GraphError(f"there is no unit group {key!r}; the groups are {sorted(merged)}")
            merged[key] = _adopt(fresh, given)
        return cls(
            name,
            MappingProxyType(found.nodes),
            MappingProxyType(merged),
            MappingProxyType(found.dynamic),
            version,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.name, dict(self.nodes), dict(self.groups), dict(self.dynamic), self.version)
        return _rebuild, parts

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def ops(self) -> Mapping[str, Op]:
        """Ops by name, in topological order."""
        return MappingProxyType({name: node.op for name, node in self.nodes.items()})

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The network's inputs, in order."""
        return tuple(node.op for node in self.nodes.values() if isinstance(node.op, Input))

    @cached_property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """What the network returns: producer and port."""
        return next(node.inputs for node in self.nodes.values() if isinstance(node.op, Output))

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Size of every atom: live units of each group, nominal sizes of dynamic dimensions."""
        return MappingProxyType({name: group.size for name, group in self.groups.items()} | dict(self.dynamic))

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Stored tensors by name; a tied tensor is listed once, under its owner."""
        return MappingProxyType(
            {spec.name: spec for node in self.nodes.values() for spec in node.tensors if spec.shared is None}
        )

    @cached_property
    def users(self) -> Mapping[str, tuple[TensorSpec, ...]]:
        """For each group the tensor roles on it, tied uses included (under the owner's name)."""
        table: dict[str, list[TensorSpec]] = {name: [] for name in self.groups}
        for node in self.nodes.values():
            for spec in node.tensors:
                for key in {key for layout in spec.dims for key in layout.atoms()}:
                    table[key].append(spec)
        return MappingProxyType({key: tuple(specs) for key, specs in table.items()})

    def group(self, name: str) -> UnitGroup:
        """A unit group by its name, or by the name of an op that writes it.

        Raises
        ------
        GraphError
            There is none, or the op writes several (they are listed).
        """
        if not isinstance(name, str):
            raise GraphError(f"a unit group is named by text, not by {name!r}")
        if name in self.groups:
            return self.groups[name]
        if name in self.nodes:
            found = sorted(
                {key for dims in self.nodes[name].outputs for dim in dims for key in dim.atoms()} & set(self.groups)
            )
            if len(found) == 1:
                return self.groups[found[0]]
            if found:
                raise GraphError(f"op {name!r} has several unit groups: {', '.join(found)}; name one of them")
            raise GraphError(f"op {name!r} has no unit group: all its dimensions are fixed")
        near = get_close_matches(name, list({**self.groups, **self.nodes}), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; the groups are {sorted(self.groups)}"
        raise GraphError(f"there is no unit group or op {name!r}{hint}")

    def editable(self, name: str) -> UnitGroup:
        """A group that an edit may change.

        Raises
        ------
        FrozenGroupError
            Structure forbids it; names op and reason.
        """
        group = self.group(name)
        if group.frozen is not None:
            raise FrozenGroupError(f"unit group {group.name!r} cannot be edited: {group.frozen}")
        return group

    def shape(self, spec: TensorSpec) -> Shape:
        """The shape of a stored tensor in this version."""
        return tuple(layout.size(self.sizes) for layout in spec.dims)

    def op_sizes(self, name: str) -> dict[str, SizeValue]:
        """The size arguments of an op in this version, as integers."""
        sizes = self.sizes
        return {
            key: layout.size(sizes) if isinstance(layout, Layout) else [part.size(sizes) for part in layout]
            for key, layout in self.nodes[name].sizes.items()
        }

    def dims(self, name: str, port: int = 0) -> Dims:
        """The layouts of an op's output."""
        return self.nodes[name].outputs[port]

    @cached_property
    def nx(self) -> DiGraph:
        """The graph as a frozen networkx ``DiGraph``.

        Op nodes are keyed by name (``kind="op"``, ``op``, ``spec``); unit groups by ``units:NAME``
        (``kind="units"``, ``group``). Data edges carry ``kind="data"`` and ``ports``, a tuple of
        ``(output port, operand)``; membership edges run from units to ops with ``kind="member"``, ``writes``,
        ``reads`` and ``tensors``.
        """
        graph = nx.DiGraph(name=self.name, version=self.version)
        for name, node in self.nodes.items():
            graph.add_node(name, kind="op", op=node.op.op, spec=node.op)
        for name, group in self.groups.items():
            graph.add_node(units_node(name), kind="units", group=group)
        for name, node in self.nodes.items():
            for operand, (producer, port) in enumerate(node.inputs):
                ports = graph.edges[producer, name]["ports"] if graph.has_edge(producer, name) else ()
                graph.add_edge(producer, name, kind="data", ports=(*ports, (port, operand)))
            reads = {key for producer, port in node.inputs for key in _atoms(self.dims(producer, port))}
            writes = {key for dims in node.outputs for key in _atoms(dims)}
            held = {key for spec in node.tensors for key in _atoms(spec.dims)}
            for key in sorted((reads | writes | held) & set(self.groups)):
                tensors = tuple(spec.name for spec in node.tensors if key in set(_atoms(spec.dims)))
                graph.add_edge(
                    units_node(key),
                    name,
                    kind="member",
                    writes=key in writes,
                    reads=key in reads,
                    tensors=tensors,
                )
        return nx.freeze(graph)

    # -- changing ---------------------------------------------------------------------------------------------

    def resized(self, changes: Mapping[str, UnitGroup], *, validate: bool = True) -> Graph:
        """The next version, with some groups replaced by edited ones.

        Parameters
        ----------
        changes : mapping of str to UnitGroup
        validate : bool
            Infer every layout again and compare; without it the caller does so (:meth:`validate`) before the graph is
            used, once for any number of changes.

        Raises
        ------
        EditError
            A group would be empty or below the structure's minimum, or the widths break a layout.
        FrozenGroupError
            A frozen group would change.
        """
        groups = dict(self.groups)
        for name, group in changes.items():
            old = self.groups[name]
            if old.frozen is not None and old != group:
                raise FrozenGroupError(f"unit group {name!r} cannot be edited: {old.frozen}")
            if old.no_growth is not None and not set(group.ids) <= {*old.ids, *old.dormant}:
                raise FrozenGroupError(f"unit group {name!r} cannot grow: {old.no_growth}")
            if group.size < min(group.minimum, old.size):  # a factor may have been 1 from the start
                raise EditError(
                    f"unit group {name!r} would keep {group.size} of {old.size} units; "
                    f"the structure needs at least {group.minimum}"
                )
            if len(set(group.ids) | set(group.dormant)) != len(group.ids) + len(group.dormant):
                raise EditError(f"unit group {name!r} would hold a unit twice")
            groups[name] = group
        following = self._sized(groups, self.version + 1)
        if validate:
            following.validate()
        return following

    def rewritten(self, put: Sequence[Op] = (), *, remove: Iterable[str] = (), **options: Any) -> Graph:
        """The next version with other ops, unit ids carried; see :func:`graphnet.ir.rewrite.rewrite`."""
        from graphnet.ir.rewrite import rewrite

        return rewrite(self, put, remove=remove, **options).graph

    def validate(self) -> None:
        """Infer every layout again from the ops alone and compare.

        Raises
        ------
        EditError
            The widths of this version do not give the layouts that it claims.
        """
        try:
            self._compare(self, twice=False)  # these rules have been seen to be stable, and once costs half as much
            return
        except EditError:
            pass
        try:
            self._compare(self)
        except EditError:
            surrogate = self._widened()
            if surrogate is None:
                raise
            self._compare(surrogate)

    def _compare(self, sized: Graph, *, twice: bool = True) -> None:
        """Infer layouts from the ops of a graph that may have other sizes, and compare them with this one's."""
        try:
            edges = {name: node.inputs for name, node in sized.nodes.items()}
            found = infer([node.op for node in sized.nodes.values()], edges, twice=twice)
        except GraphError as error:
            raise EditError(f"the edited graph is not valid: {error}") from error
        for name, node in self.nodes.items():
            again = found.nodes[name]
            if again.outputs != node.outputs or again.tensors != node.tensors:
                raise EditError(
                    f"the edited graph is not valid: at these widths the layouts of op {name!r} would be "
                    f"{_show(again)} in place of {_show(node)}{self._why_one()}"
                )
        for name, group in found.groups.items():
            if group.frozen is None and (name not in self.groups or sized.groups[name].size != group.size):
                raise EditError(f"the edited graph is not valid: unit group {name!r} would have {group.size} units")

    def _why_one(self) -> str:
        """What to do where groups of several have one unit left."""
        single = [repr(name) for name, group in self.groups.items() if group.size == 1 < group.next_id]
        names = " or ".join(single)
        return f" (an op may take one unit for a dimension to broadcast: keep two in {names})" if single else ""

    def _widened(self) -> Graph | None:
        """The graph with two units in every group that has one left of several; None where there is no such group.

        A factor of one unit cannot be told from none by sizes, and what an imported program does with it is the same.
        """
        single = {name for name, group in self.groups.items() if group.size == 1 < group.next_id and not group.frozen}
        if not single or not any(node.op.traced for node in self.nodes.values()):
            return None
        groups = {
            name: replace(group, ids=(0, 1), dormant=()) if name in single else group
            for name, group in self.groups.items()
        }
        return self._sized(groups)

    def numbered(self, version: int) -> Graph:
        """The same graph as another version."""
        if version == self.version:
            return self
        found = replace(self, version=version)
        found.__dict__.update({key: self.__dict__[key] for key in (*_OF_LAYOUTS, "sizes") if key in self.__dict__})
        return found

    def _sized(self, groups: Mapping[str, UnitGroup], version: int | None = None) -> Graph:
        """The graph with other groups, the sizes of its ops made to fit; not validated."""
        version = self.version if version is None else version
        following = Graph(self.name, self.nodes, MappingProxyType(dict(groups)), self.dynamic, version)
        touched: set[str] = set()
        for name, group in groups.items():
            if group.size != self.groups[name].size:
                touched.update(self._sized_by.get(name, ()))
        nodes = dict(self.nodes)
        for name in touched:
            node = nodes[name]
            op = _with_sizes(node.op, following.op_sizes(name), node.sizes, self.dynamic, following.sizes)
            if op is not node.op:
                nodes[name] = replace(node, op=op)
        found = Graph(self.name, MappingProxyType(nodes), following.groups, self.dynamic, version)
        found.__dict__.update({key: self.__dict__[key] for key in _OF_LAYOUTS if key in self.__dict__})
        if "sizes" in following.__dict__:
            found.__dict__["sizes"] = following.__dict__["sizes"]
        return found

    @cached_property
    def _sized_by(self) -> Mapping[str, tuple[str, ...]]:
        """For each group the ops that have it in a size argument."""
        table: dict[str, dict[str, None]] = {}
        for name, node in self.nodes.items():
            for held in node.sizes.values():
                for layout in _several(held):
                    for key in layout.atoms():
                        table.setdefault(key, {})[name] = None
        return {key: tuple(names) for key, names in table.items()}

    # -- documents, cost, pictures (their modules say how) ------------------------------------------------------

    def to_document(self) -> dict[str, Any]:
        """The architecture document of this version, as plain data; :func:`graphnet.load` is its inverse."""
        from graphnet.ir.document import to_document

        return to_document(self)

    def cost(
        self,
        input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        *,
        batch: int = 1,
        **options: Any,
    ) -> Cost:
        """FLOPs, parameters and bytes; see :func:`graphnet.ir.cost.cost`."""
        from graphnet.ir.cost import cost

        return cost(self, input_shape, batch=batch, **options)

    def expand(self, *groups: str, limit: int = 20_000, **options: Any) -> DiGraph:
        """The neuron-by-neuron graph of a part; see :func:`graphnet.ir.expand.expand`."""
        from graphnet.ir.expand import expand

        return expand(self, *groups, limit=limit, **options)

    def draw(self, path: str | Path, **options: Any) -> Path:
        """Draw the graph as an SVG file; see :func:`graphnet.ir.draw.draw`."""
        from graphnet.ir.draw import draw

        return draw(self, path, **options)

    def diff(self, other: Graph) -> GraphDiff:
        """What differs between this graph and a later one; see :func:`graphnet.ir.diff.diff`."""
        from graphnet.ir.diff import diff

        return diff(self, other)

    def __str__(self) -> str:
        lines = [f"{self.name} (version {self.version})"]
        for name, node in self.nodes.items():
            reads = ", ".join(p if port == 0 else f"{p}:{port}" for p, port in node.inputs)
            shapes = " ".join("[" + ", ".join(map(str, dims)) + "]" for dims in node.outputs)
            lines.append(f"  {name} = {node.op.op}({reads}) -> {shapes}")
        lines += ["groups", *(f"  {group}" for group in self.groups.values())]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r} version {self.version}: {len(self.nodes)} ops, {len(self.groups)} groups>"


def _rebuild(name: str, nodes: Any, groups: Any, dynamic: Any, version: int) -> Graph:
    return Graph(name, MappingProxyType(nodes), MappingProxyType(groups), MappingProxyType(dynamic), version)


def _atoms(dims: Sequence[Layout]) -> list[str]:
    return [key for layout in dims for key in layout.atoms()]


def _show(node: Node) -> str:
    return " ".join("[" + ", ".join(map(str, dims)) + "]" for dims in node.outputs)


def _with_sizes(
    op: Op,
    sizes: Mapping[str, SizeValue],
    layouts: Mapping[str, Layout | tuple[Layout, ...]],
    dynamic: Mapping[str, int],
    units: Mapping[str, int],
) -> Op:
    """The op with its size attributes as they are now; names of dynamic dimensions and -1 are kept."""
    update: dict[str, Any] = {}
    for key, value in sizes.items():
        old = getattr(op, key, None) if key in type(op).model_fields else None
        if old is None:
            continue
        if isinstance(value, list):
            if isinstance(old, tuple) and len(old) == len(value):
                update[key] = tuple(
                    size if isinstance(was, int) and was > 0 else _expression(was, layout, size, dynamic, units)
                    for was, size, layout in zip(old, value, _several(layouts[key]), strict=True)
                )
        elif isinstance(old, int) and not isinstance(old, bool):
            update[key] = value
    changed = {key: value for key, value in update.items() if getattr(op, key) != value}
    return op.model_copy(update=changed) if changed else op


def _several(layouts: Layout | tuple[Layout, ...]) -> tuple[Layout, ...]:
    return (layouts,) if isinstance(layouts, Layout) else layouts


def _expression(
    was: int | str, layout: Layout, size: int, dynamic: Mapping[str, int], units: Mapping[str, int]
) -> int | str:
    """A size argument that is text or -1: an expression in which units stand is written again."""
    mixed = {key in dynamic for key in layout.atoms()} == {True, False}
    return expression_of(layout, units, dynamic) if isinstance(was, str) and mixed else was


def _adopt(fresh: UnitGroup, given: UnitGroup) -> UnitGroup:
    """A newly inferred group with the unit ids of a document."""
    if len(given.ids) != fresh.size:
        raise GraphError(f"unit group {fresh.name!r} has {fresh.size} units but {len(given.ids)} ids")
    ids = (*given.ids, *given.dormant)
    if len(set(ids)) != len(ids) or min(ids) < 0 or given.next_id <= max(ids):
        raise GraphError(f"unit group {fresh.name!r}: ids must differ and lie below next_id ({given.next_id})")
    return UnitGroup(
        fresh.name, given.ids, fresh.kind, fresh.role, fresh.frozen, fresh.output, fresh.coupled, fresh.contracted,
        tuple(sorted(given.dormant)), fresh.minimum, given.next_id, fresh.no_growth,
    )  # fmt: skip


def _order(ops: Sequence[Op]) -> tuple[list[Op], dict[str, tuple[tuple[str, int], ...]]]:
    """Ops in a stable topological order, and where each reads; checks names, arity, ports, cycles, dead ends."""
    by_name: dict[str, Op] = {}
    for op in ops:
        if op.name in by_name:
            raise GraphError(f"two ops are named {op.name!r}: names must be unique")
        by_name[op.name] = op
    _check_ends(ops)
    edges = {op.name: tuple(_port(op, ref, by_name) for ref in op.inputs) for op in ops}
    for op in ops:
        low, high = op.arity
        if not low <= len(op.inputs) <= (len(op.inputs) if high is None else high):
            wanted = f"{low}" if low == high else f"at least {low}"
            raise GraphError(f"op {op.name!r} ({op.op}) reads {wanted} inputs, it has {len(op.inputs)}")
    ordered = _sort(ops, edges)
    needed = {OUTPUT}
    for op in reversed(ordered):
        if op.name in needed:
            needed.update(producer for producer, _ in edges[op.name])
    dead = [op.name for op in ops if op.name not in needed and not op.source]
    if dead:
        raise GraphError(f"no output is reached from {dead}: remove them, or add them to the outputs")
    return ordered, edges


def _check_ends(ops: Sequence[Op]) -> None:
    outputs = [op for op in ops if isinstance(op, Output)]
    if len(outputs) != 1 or outputs[0].name != OUTPUT:
        raise GraphError(f"a graph has one 'output' op, named {OUTPUT!r}; name the outputs of the network")
    if not any(isinstance(op, Input) for op in ops):
        raise GraphError("a graph needs at least one input")
    names = {op.name for op in ops if not isinstance(op, Input | Output)}
    for name in (op.name for op in ops if not op.source):
        parent = name
        while "." in parent:
            parent = parent.rpartition(".")[0]
            if parent in names:
                raise GraphError(f"op {name!r} lies inside op {parent!r}: a dotted name's parents must not be ops")


def _port(op: Op, ref: str, by_name: Mapping[str, Op]) -> tuple[str, int]:
    name, colon, index = ref.partition(":")
    if colon and not index.isdecimal():
        raise GraphError(f"op {op.name!r} reads {ref!r}: after ':' stands the number of an output")
    if name not in by_name:
        near = get_close_matches(name, by_name, n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise GraphError(f"op {op.name!r} reads {name!r}, which does not exist{hint}")
    port = int(index) if colon else 0
    producer = by_name[name]
    if isinstance(producer, Output):
        raise GraphError(f"op {op.name!r} reads the network's output op: read what it reads instead")
    if port >= producer.ports:
        raise GraphError(f"op {op.name!r} reads {ref!r}, but {name!r} ({producer.op}) has {producer.ports} output(s)")
    return name, port


def _sort(ops: Sequence[Op], edges: Mapping[str, tuple[tuple[str, int], ...]]) -> list[Op]:
    position = {op.name: index for index, op in enumerate(ops)}
    waiting = {name: len({producer for producer, _ in reads}) for name, reads in edges.items()}
    readers: dict[str, list[str]] = {op.name: [] for op in ops}
    for name, reads in edges.items():
        for producer in {producer for producer, _ in reads}:
            readers[producer].append(name)
    ready = [position[name] for name, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    ordered: list[Op] = []
    while ready:
        op = ops[heapq.heappop(ready)]
        ordered.append(op)
        for reader in readers[op.name]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, position[reader])
    if len(ordered) < len(ops):
        stuck = sorted(name for name, count in waiting.items() if count)
        cycle = nx.find_cycle(nx.DiGraph([(p, n) for n in stuck for p, _ in edges[n] if p in stuck]))
        raise GraphError("data must flow without a cycle: " + " -> ".join([a for a, _ in cycle] + [cycle[0][0]]))
    return ordered
