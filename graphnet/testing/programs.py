"""Random programs of ops that only move elements, and two oracles that say what their layouts must be.

*Colours*: fill each source with the unit that each of its elements belongs to, run the program with torch, and see
which unit each element of every result belongs to; the inferred layout must say the same. *Naturality*: run the
program of the resized graph on units that were moved, and the program as it was on all units and then move the
result; both must be the same, for kept, dropped, permuted and repeated units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from graphnet.errors import GraphError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.layout import IndexArray
from graphnet.ir.ops import Op
from graphnet.ir.ops.arithmetic import Add
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.io import Input, Output
from graphnet.ir.ops.shape import Concat, Flatten, Permute, Reshape, Split, Transpose
from graphnet.testing.counting import COUNTS
from graphnet.testing.graphs import op

__all__ = ["check_colours", "check_naturality", "program_maps", "programs", "resized_by"]

Values: TypeAlias = dict[tuple[str, int], Tensor]

_WIDTHS = (4, 6, 8, 12, 24)
_MOST = 600
"""Elements of the largest result."""


@st.composite
def programs(draw: st.DrawFn, *, max_ops: int = 8) -> Graph:
    """Programs of reshape, flatten, permute, transpose, split, concat and add over one to three linear layers.

    What nothing reads is an output. An op that does not fit is passed over; where two results only agree by freezing
    what they touch, it is frozen.
    """
    ops: list[Op] = []
    for index in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from([(1,), (2, 1), (3, 2, 1)]))
        ops.append(Input(name=f"x{index}", shape=shape))
        ops.append(op("linear", f"s{index}", f"x{index}", out=draw(st.sampled_from(_WIDTHS))))
    graph = _closed(ops)
    for step in range(draw(st.integers(1, max_ops))):
        refs = [f"{one.name}:{port}" for one in ops if not isinstance(one, Input) for port in range(one.ports)]
        source, other = draw(st.sampled_from(refs[-4:])), draw(st.sampled_from(refs))
        added = _candidate(draw, graph, f"p{step}", source, other)
        if added is None:
            continue
        try:
            graph = _closed([*ops, added])
        except GraphError:
            continue
        ops.append(added)
    return graph


def _shape(graph: Graph, ref: str) -> list[int]:
    name, _, port = ref.partition(":")
    return [layout.size(graph.sizes) for layout in graph.dims(name, int(port))[1:]]


def _closed(ops: Sequence[Op]) -> Graph:
    read = {ref.partition(":")[0] for one in ops for ref in one.inputs}
    return Graph.from_ops(ops, [one.name for one in ops if one.name not in read], name="program")


def _divisor(draw: st.DrawFn, total: int) -> int:
    return draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))


def _candidate(draw: st.DrawFn, graph: Graph, name: str, source: str, other: str) -> Op | None:
    shape = _shape(graph, source)
    rank, total = len(shape), prod(shape)
    if total > _MOST:
        return None
    dim = draw(st.integers(1, rank))
    at = shape[dim - 1]
    kind = draw(
        st.sampled_from(["factor", "regroup", "flatten", "permute", "transpose", "chunk", "split", "concat", "add"])
    )
    if kind == "factor":
        lead = _divisor(draw, at)
        return op("reshape", name, source, shape=(*shape[: dim - 1], lead, at // lead, *shape[dim:]))
    if kind == "regroup":
        lead = _divisor(draw, total)
        rest = _divisor(draw, total // lead)
        return op("reshape", name, source, shape=draw(st.sampled_from([(lead, -1), (lead, rest, -1), (total,)])))
    if kind == "flatten":
        return op("flatten", name, source, start=dim)
    if kind == "permute":
        return op("permute", name, source, order=tuple(draw(st.permutations(range(1, rank + 1)))))
    if kind == "transpose":
        return op("transpose", name, source, first=dim, second=draw(st.integers(1, rank)))
    if kind == "chunk":
        count = _divisor(draw, at)
        return op("split", name, source, dim=dim, sizes=(at // count,) * count) if 1 < count <= 6 else None
    if kind == "split":
        cut = draw(st.integers(1, at - 1)) if at > 1 else 0
        return op("split", name, source, dim=dim, sizes=(cut, at - cut)) if cut else None
    if kind == "concat":
        return op("concat", name, source, other, dim=dim)
    return op("add", name, source, other) if _shape(graph, other) == shape else None  # broadcasting is not moving


# -- running a program ----------------------------------------------------------------------------------------


def _run(graph: Graph, sources: Mapping[str, Tensor], add: Callable[[str, Tensor, Tensor], Tensor]) -> Values:
    """Run a program with torch on what its linear layers give; sizes are those that the graph has now."""
    values: Values = {}
    for name, node in graph.nodes.items():
        one = node.op
        if isinstance(one, Input | Output):
            continue
        read = [values[ref] for ref in node.inputs if ref in values]
        found: Tensor | tuple[Tensor, ...]
        match one:
            case LinearOp():
                found = sources[name]
            case Reshape():
                found = read[0].reshape(read[0].shape[0], *(size for size in _sizes(graph, name, "shape")))
            case Flatten():
                found = torch.flatten(read[0], one.start)
            case Permute():
                found = read[0].permute(0, *one.order)
            case Transpose():
                found = read[0].transpose(one.first, one.second)
            case Split():
                found = torch.split(read[0], _sizes(graph, name, "sizes"), one.dim)
            case Concat():
                found = torch.cat(read, one.dim)
            case Add():
                found = read[0]
                for other in read[1:]:
                    found = add(name, found, other)
            case _:
                raise GraphError(f"{one.op!r} is no op of a program that moves elements")
        parts = found if isinstance(found, tuple) else (found,)
        values |= {(name, port): part for port, part in enumerate(parts)}
    return values


def _sizes(graph: Graph, name: str, key: str) -> list[int]:
    sizes = graph.op_sizes(name)[key]
    assert isinstance(sizes, list)
    return sizes


def _units(graph: Graph) -> list[str]:
    return sorted(name for name, group in graph.groups.items() if group.frozen is None)


def check_colours(graph: Graph) -> int:
    """The layout of every result says which unit each of its elements belongs to.

    Parameters
    ----------
    graph : Graph
        Linear layers, and ops that move elements.

    Returns
    -------
    int
        How many (result, group) pairs were compared.
    """
    linears = [name for name, node in graph.nodes.items() if isinstance(node.op, LinearOp)]
    compared = 0
    for group in _units(graph):
        found = {name: torch.from_numpy(_owner(graph, (name, 0), group))[None] for name in linears}

        def agree(name: str, one: Tensor, two: Tensor, group: str = group) -> Tensor:
            if one.shape != two.shape or not torch.equal(one, two):
                raise AssertionError(f"add {name!r} joins elements of different units of {group!r}")
            return one

        for ref, value in _run(graph, found, agree).items():
            expected = _owner(graph, ref, group)
            if not np.array_equal(value[0].numpy(), expected):
                shown = ", ".join(map(str, graph.dims(*ref)[1:]))
                raise AssertionError(
                    f"the layout [{shown}] of {ref[0]}:{ref[1]} is wrong for {group!r}: its elements belong to "
                    f"{value[0].flatten().tolist()[:40]}, the layout says {expected.flatten().tolist()[:40]}"
                )
            compared += 1
    COUNTS.held("colours")
    return compared


def _owner(graph: Graph, ref: tuple[str, int], group: str) -> IndexArray:
    """For each element of a result, without the batch, the unit that its layout says it belongs to, or -1.

    Where several dimensions hold the group the last one speaks; the naturality law sees all of them.
    """
    owner: IndexArray = np.full((), -1, dtype=np.int64)
    for layout in graph.dims(*ref)[1:]:
        own = layout.owners(group, graph.sizes)
        owner = np.where(own >= 0, own, owner[..., None])
    return owner


# -- naturality -----------------------------------------------------------------------------------------------


@st.composite
def program_maps(draw: st.DrawFn, graph: Graph) -> dict[str, list[int]]:
    """For each unit group old positions in a new order: kept, dropped, permuted, repeated."""
    maps = {}
    for name in _units(graph):
        size = graph.groups[name].size
        least = max(graph.groups[name].minimum, 2 if "." in name else 1)
        most = max(least, size + 2)
        maps[name] = draw(st.lists(st.integers(0, size - 1), min_size=least, max_size=most))
    return maps


def resized_by(graph: Graph, maps: Mapping[str, Sequence[int]]) -> Graph | None:
    """The graph with as many units as the maps give; None where the structure refuses that."""
    try:
        return graph.resized(
            {
                name: replace(graph.groups[name], ids=tuple(range(len(source))), next_id=len(source))
                for name, source in maps.items()
            }
        )
    except GraphnetError:
        return None


def check_naturality(graph: Graph, maps: Mapping[str, Sequence[int]]) -> bool:
    """Moving units and then running the program is running the program and then moving units.

    Parameters
    ----------
    graph : Graph
        As for :func:`check_colours`.
    maps : mapping of group to list of int
        For each new unit its old position.

    Returns
    -------
    bool
        False where the structure refuses these sizes, and nothing was compared.
    """
    after = resized_by(graph, maps)
    if after is None:
        return False
    sources = {name: np.asarray(source, dtype=np.int64) for name, source in maps.items()}
    old, new = {}, {}
    for number, (name, node) in enumerate(graph.nodes.items()):
        if isinstance(node.op, LinearOp):
            shape = [layout.size(graph.sizes) for layout in graph.dims(name)[1:]]
            old[name] = (torch.arange(prod(shape)) + 10_000 * number).reshape(1, *shape)
            new[name] = _move(old[name], graph, (name, 0), sources)

    def plus(name: str, one: Tensor, two: Tensor) -> Tensor:
        return one + two

    moved_after, moved_before = _run(graph, old, plus), _run(after, new, plus)
    for ref, value in moved_after.items():
        expected = _move(value, graph, ref, sources)
        found = moved_before[ref]
        if found.shape != expected.shape or not torch.equal(found, expected):
            shown = ", ".join(map(str, graph.dims(*ref)[1:]))
            raise AssertionError(
                f"moving units before the program is not moving them after it: {ref[0]}:{ref[1]}, whose layout is "
                f"[{shown}], with { ({name: list(source) for name, source in maps.items()}) }"
            )
    COUNTS.held("naturality")
    return True


def _move(tensor: Tensor, graph: Graph, ref: tuple[str, int], sources: Mapping[str, IndexArray]) -> Tensor:
    for dim, layout in enumerate(graph.dims(*ref)[1:], start=1):
        tensor = tensor.index_select(dim, torch.from_numpy(layout.index(sources, graph.sizes)))
    return tensor
