"""The neuron-by-neuron graph of a part of a network, on demand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx
import numpy as np

from graphnet.errors import GraphError
from graphnet.ir.graph import Graph
from graphnet.ir.layout import Factor, Layout
from graphnet.ir.ops.base import TensorSpec

__all__ = ["UnitNode", "expand"]

UnitNode: TypeAlias = tuple[str, Any]
"""A unit: ``(group, id)``; of a product of groups ``("heads*head_dim", (id, id))``; fixed: ``(op, position)``."""

_Ids: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Connection:
    """One weight: the units that its rows write and its columns read, position by position."""

    op: str
    spec: TensorSpec
    write: Layout
    read: Layout
    grouping: Layout | None
    writer: str
    reader: str


def expand(
    graph: Graph,
    *groups: str,
    limit: int = 20_000,
    tensors: Mapping[str, Any] | None = None,
    newborns: Mapping[str, Collection[int]] | None = None,
    dormant: bool = False,
) -> nx.DiGraph:
    """Expand the part around some unit groups, neuron by neuron.

    A node is a unit: ``(group, id)``. Where a dimension is a product of groups the node names both,
    ``("attn.heads*attn.head_dim", (3, 0))``; a feature that no group holds is ``(op, position)``, such as
    ``("x", 17)``. An edge leads from the unit that a weight reads to the unit that it writes, for every linear layer
    and convolution. Elementwise ops, norms and pools keep their units and add no edge; attention, which connects
    units without a stored weight, adds none either. A residual stream is one group, so its units may lie on cycles.

    Parameters
    ----------
    graph : Graph
    *groups : str
        Groups, or ops that write one; every edge has an end in one of them. None: the whole graph.
    limit : int
        The most edges.
    tensors : mapping of str to tensor or array, optional
        Named as in a state dict; puts weights on the edges.
    newborns : mapping of group to unit ids, optional
        Units to mark.
    dormant : bool
        Add dormant units and their edges (these carry no weights).

    Returns
    -------
    networkx.DiGraph
        Nodes carry ``group``, ``kind``, ``dormant`` and ``newborn``. Edges carry ``ops`` (what connects the two
        units), ``kernel`` (the shape of the first op's weight between them: ``()`` for one number, ``(3, 3)`` for a
        kernel, ``(64,)`` for a channel flattened over 64 positions) and, with ``tensors``, ``values`` (an array of
        that shape for each op) and ``weight`` (the number itself, or the Frobenius norm of several).

    Raises
    ------
    GraphError
        There is no such group, the part has more edges than ``limit``, or a tensor does not fit.

    Examples
    --------
    >>> from graphnet.ir.builders import mlp
    >>> found = expand(mlp([4, 3, 2]), "fc1")
    >>> found.number_of_nodes(), found.number_of_edges()
    (9, 18)
    >>> sorted(found.predecessors(("fc1", 0)))
    [('x', 0), ('x', 1), ('x', 2), ('x', 3)]
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise GraphError(f"expand: limit is a whole number, not {limit!r}")
    around = {name for each in groups for name in _named(graph, each)}
    connections = [found for found in _connections(graph) if not groups or _touches(found, around)]
    ids = {
        name: group.extended if dormant and group.dormant else group.ids for name, group in graph.groups.items()
    }  # fmt: skip
    _check_size(connections, around if groups else None, {name: len(units) for name, units in ids.items()}, limit)
    result = nx.DiGraph(name=graph.name, version=graph.version)
    for found in connections:
        _add(result, graph, found, ids, around if groups else None, tensors)
    marked = {name: set(units) for name, units in (newborns or {}).items()}
    for node, data in result.nodes(data=True):
        units = _units(node)
        kinds = {graph.groups[name].kind for name, _ in units if name in graph.groups} or {"fixed"}
        data["group"] = node[0]
        data["kind"] = kinds.pop() if len(kinds) == 1 else "units"
        data["dormant"] = any(unit in graph.groups[name].dormant for name, unit in units if name in graph.groups)
        data["newborn"] = any(unit in marked.get(name, ()) for name, unit in units)
    return result


def _named(graph: Graph, name: str) -> set[str]:
    if not isinstance(name, str):
        raise GraphError(f"expand: a group is named by a string, not {name!r}")
    if name in graph.nodes and name not in graph.groups:
        found = {key for dims in graph.nodes[name].outputs for dim in dims for key in dim.atoms()} & set(graph.groups)
        if found:
            return found
    return {graph.group(name).name}


def _units(node: UnitNode) -> list[tuple[str, int]]:
    name, unit = node
    return list(zip(name.split("*"), unit, strict=True)) if isinstance(unit, tuple) else [(name, unit)]


def _connections(graph: Graph) -> Iterator[_Connection]:
    for name, node in graph.nodes.items():
        for spec in node.tensors:
            if spec.kind != "weight" or spec.roles[:2] != ("write", "read"):
                continue
            dims = graph.dims(*node.inputs[0])
            read = dims[1] if len(spec.dims) > 2 else dims[-1]
            grouping = node.sizes.get("group_count")
            yield _Connection(
                name, spec, spec.dims[0], read, grouping if isinstance(grouping, Layout) else None, name,
                _origin(graph, node.inputs[0][0]),
            )  # fmt: skip


def _origin(graph: Graph, name: str) -> str:
    """The op that first wrote the features an op passes on: the nearest one with a weight, or an input."""
    node = graph.nodes[name]
    while node.inputs and not any("write" in spec.roles for spec in node.tensors):
        name = node.inputs[0][0]
        node = graph.nodes[name]
    return name


def _touches(found: _Connection, around: set[str]) -> bool:
    return not around.isdisjoint((*found.write.atoms(), *found.read.atoms())) or bool(
        {found.writer, found.reader} & around
    )


def _check_size(
    connections: Sequence[_Connection], around: set[str] | None, sizes: Mapping[str, int], limit: int
) -> None:
    """Count the edges from sizes alone, before any is made."""
    total = 0
    for found in connections:
        share = found.grouping.size(sizes) if found.grouping is not None else 1
        (rows, rows_in), (columns, columns_in) = (
            _count(layout, origin, sizes, around)
            for layout, origin in ((found.write, found.writer), (found.read, found.reader))
        )
        total += -(-(rows * columns - (rows - rows_in) * (columns - columns_in)) // share)
    if total > limit:
        raise GraphError(
            f"expand: this part has up to {total:,} edges, the limit is {limit:,}: name fewer groups, "
            f"or allow it with limit={total}"
        )


def _count(layout: Layout, origin: str, sizes: Mapping[str, int], around: set[str] | None) -> tuple[int, int]:
    """Units of a dimension (positions of one unit count once), and how many of them touch the named groups."""
    total = touched = 0
    for term in layout.terms:
        names = [key for key in Layout((term,)).atoms() if key in sizes]
        count = 1
        for factor in term:
            if isinstance(factor, str):
                count *= sizes[factor]
            elif isinstance(factor, Layout):
                count *= _count(factor, origin, sizes, around)[0]
            elif not names:
                count *= factor
        total += count
        touched += count if around is None or not around.isdisjoint([*names] if names else [origin]) else 0
    return total, touched


def _keys(layout: Layout, origin: str, ids: _Ids) -> list[UnitNode]:
    """The unit that stands at each position of a dimension."""
    keys: list[UnitNode] = []
    for term in layout.terms:
        for units in _positions(term, ids):
            if not units:
                keys.append((origin, len(keys)))
            elif len(units) == 1:
                keys.append(units[0])
            else:
                keys.append(("*".join(name for name, _ in units), tuple(unit for _, unit in units)))
    return keys


def _positions(term: Sequence[Factor], ids: _Ids) -> list[tuple[tuple[str, int], ...]]:
    found: list[tuple[tuple[str, int], ...]] = [()]
    for factor in term:
        choices: list[tuple[tuple[str, int], ...]]
        if isinstance(factor, int):
            choices = [()] * factor
        elif isinstance(factor, str):
            choices = [((factor, unit),) for unit in ids[factor]]
        else:
            choices = [part for inner in factor.terms for part in _positions(inner, ids)]
        found = [(*head, *tail) for head in found for tail in choices]
    return found


def _add(
    result: nx.DiGraph, graph: Graph, found: _Connection, ids: _Ids, around: Collection[str] | None,
    tensors: Mapping[str, Any] | None,
) -> None:  # fmt: skip
    rows, columns = _keys(found.write, found.writer, ids), _keys(found.read, found.reader, ids)
    share = 1 if found.grouping is None else found.grouping.size({name: len(units) for name, units in ids.items()})
    per_row, per_column = len(rows) // share, len(columns) // share
    synapses: dict[tuple[UnitNode, UnitNode], list[tuple[int, int]]] = {}
    near = [around is None or _near(key, around) for key in columns]
    for row, target in enumerate(rows):
        first = row // per_row * per_column
        wanted = around is None or _near(target, around)
        for column in range(first, first + per_column):
            if wanted or near[column]:
                synapses.setdefault((columns[column], target), []).append((row, column))
    kernel = tuple(layout.size(graph.sizes) for layout in found.spec.dims[2:])
    weight = None if tensors is None else _weight(graph, found.spec, tensors)
    live = {name: group.ids for name, group in graph.groups.items()}
    row_of = _stored(rows, _keys(found.write, found.writer, live))
    column_of = _stored(columns, _keys(found.read, found.reader, live))
    for (source, target), places in synapses.items():
        shape = (*([len(places)] if len(places) > 1 else []), *kernel)
        if not result.has_edge(source, target):
            result.add_edge(source, target, ops=(), kernel=shape)
        data = result.edges[source, target]
        data["ops"] = (*data["ops"], found.op)
        if weight is None or any(row_of[row] is None or column_of[column] is None for row, column in places):
            continue
        value = np.array([weight[row_of[row], column_of[column] % weight.shape[1]] for row, column in places])
        values = (*data.get("values", ()), value.reshape(shape))
        data["values"] = values
        single = len(values) == 1 and value.size == 1
        data["weight"] = float(value.item()) if single else float(np.sqrt(sum((part**2).sum() for part in values)))


def _stored(keys: Sequence[UnitNode], live: Sequence[UnitNode]) -> list[Any]:
    """For each position of an expanded dimension its position in the stored tensor; None for a dormant unit."""
    places: dict[UnitNode, list[int]] = {}
    for position, key in enumerate(live):
        places.setdefault(key, []).append(position)
    seen: dict[UnitNode, int] = {}
    found: list[Any] = []
    for key in keys:
        at = seen.get(key, 0)
        seen[key] = at + 1
        found.append(places[key][at] if key in places else None)
    return found


def _near(key: UnitNode, around: Collection[str]) -> bool:
    return any(name in around for name, _ in _units(key))


def _weight(graph: Graph, spec: TensorSpec, tensors: Mapping[str, Any]) -> Any:
    name = spec.shared or spec.name
    if name not in tensors:
        raise GraphError(f"expand: the tensor {name!r} is not given")
    given = tensors[name]
    value = given.detach().cpu().double().numpy() if hasattr(given, "detach") else np.asarray(given, np.float64)
    if value.shape != graph.shape(spec):
        raise GraphError(f"expand: tensor {name!r} has shape {list(value.shape)}, not {list(graph.shape(spec))}")
    return value
