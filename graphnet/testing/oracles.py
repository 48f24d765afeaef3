"""Oracles for layouts: what must change nothing, and what must change something.

A law that only says "nothing changes" is kept by a network that ignores its tensors. So each oracle also leaves one
holder of a group out, or gives it another unit, and asks that the outputs change: for every holder separately. A
holder whose whole tensor has no effect on the outputs (a key's bias, which a softmax cancels) is *inert* and reported
as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from graphnet.compilers.plain import build_modules, lower
from graphnet.errors import GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.infer import infer
from graphnet.ir.layout import IndexArray
from graphnet.runtime.network import Network
from graphnet.testing.compare import ROUNDINGS, check_close, check_rounded, rounded, share_of, tolerance_of
from graphnet.testing.counting import COUNTS
from graphnet.testing.data import dtype_of, sample
from graphnet.testing.laws import _reordered

__all__ = ["Holding", "Report", "can_drop", "check_drop", "check_permute", "check_rules_twice", "holdings"]

Tensors: TypeAlias = dict[str, Tensor]
_SEEN = 1e-9
"""The least change, as a share of the greatest output, that counts as one."""
_BATCHES = 2
_DRAWS = 6
_MORE_DRAWS = 200
"""Further draws of all tensors in which a change may show: of dead units none does."""


@dataclass(frozen=True)
class Holding:
    """One dimension of one stored tensor that holds a group."""

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"dimension {self.dim} of {self.tensor}"


@dataclass(frozen=True)
class Report:
    """What an oracle saw.

    Attributes
    ----------
    seen : tuple of Holding
        Holders that change the outputs when they alone are treated otherwise.
    inert : tuple of Holding
        Holders of tensors that have no effect on the outputs at all.
    """

    seen: tuple[Holding, ...]
    inert: tuple[Holding, ...]


def holdings(graph: Graph, group: str) -> tuple[Holding, ...]:
    """Every dimension of a stored tensor that holds a group; a tied tensor is listed once."""
    return tuple(
        Holding(name, dim)
        for name, spec in graph.tensors.items()
        for dim, layout in enumerate(spec.dims)
        if group in set(layout.atoms())
    )


def check_permute(net: Network, group: str, order: Sequence[int] | None = None) -> Report:
    """Permuting a group in all its holders changes nothing but order; in all but one it must change something.

    Where an op reduces the group (a mean over units) order means nothing, and only the first half is checked.

    Parameters
    ----------
    net : Network
        Left as it is.
    order : sequence of int, optional
        The old position of each unit, some of which must move; by default every unit moves up by one.
    """
    graph, name = net.graph, net.graph.group(group).name
    size = graph.groups[name].size
    source = np.roll(np.arange(size), 1) if order is None else np.asarray(order, dtype=np.int64)
    if np.array_equal(source, np.arange(size)):
        raise ValueError("the order moves no unit")
    places = holdings(graph, name)
    bench = _Bench(net)

    def moved(tensors: Tensors, held: Sequence[Holding]) -> Tensors:
        return _moved(tensors, graph, {place: {name: source} for place in held})

    def expected(tensors: Tensors) -> list[Any]:
        return [_reordered(graph, output, name, source.tolist()) for output in bench.outputs(tensors)]

    everywhere = bench.outputs(moved(bench.tensors, places))
    for one, two in zip(expected(bench.tensors), everywhere, strict=True):
        bench.check(one, two, f"permuting {name!r} in all its holders")
    COUNTS.held("permute oracle")
    if is_reduced(graph, name):
        return Report((), ())
    return bench.report(
        "permute oracle, one out",
        name,
        f"permuting {name!r} in all its holders but",
        {
            place: lambda tensors, place=place: (  # type: ignore[misc]
                graph,
                moved(tensors, [one for one in places if one != place]),
            )
            for place in places
        },
        expected,
    )


def is_reduced(graph: Graph, group: str) -> bool:
    """Whether an op with one input, such as a mean, takes a symmetric statistic in which the group disappears."""
    for node in graph.nodes.values():
        along = {key for layout, _ in (*node.coupled, *node.contracted) for key in layout.atoms()}
        left = {key for dims in node.outputs for layout in dims for key in layout.atoms()}
        if len(node.inputs) == 1 and group in along - left:
            return True
    return False


def can_drop(graph: Graph, group: str) -> bool:
    """Whether dropping units of a group is the same as masking them: it is not where an op takes a statistic."""
    held = graph.group(group)
    silent = all(node.op.zero_at_zero or node.tensors for node in graph.nodes.values())
    return held.frozen is None and held.coupled is None and not held.output and (held.contracted is None or silent)


def check_drop(net: Network, group: str, units: Sequence[int]) -> Report:
    """Dropping units in all holders is masking them; dropping other units in one holder must change something.

    Parameters
    ----------
    net : Network
        Left as it is.
    group : str
        One for which :func:`can_drop`.
    units : sequence of int
        Positions in the group; not all of them.
    """
    graph, name = net.graph, net.graph.group(group).name
    if not can_drop(graph, name):
        raise ValueError(f"{name!r} is frozen, coupled or an output: dropping its units is no masking")
    held, gone = graph.groups[name], sorted(set(units))
    stay = np.array([at for at in range(held.size) if at not in gone], dtype=np.int64)
    try:
        smaller = graph.resized({name: replace(held, ids=tuple(held.ids[at] for at in stay))})
    except GraphnetError as error:
        raise ValueError(f"these units of {name!r} cannot be dropped: {error}") from error
    other = np.sort((stay + 1) % held.size)  # never the same units: only all of them, or none, stay under a rotation
    places = holdings(graph, name)
    bench = _Bench(net)
    masked = {key: value.clone() for key, value in bench.tensors.items()}
    for place in places:
        owner = graph.tensors[place.tensor].dims[place.dim].owners(name, graph.sizes)
        rows = torch.from_numpy(np.flatnonzero(np.isin(owner, gone)))
        masked[place.tensor].index_fill_(place.dim, rows, 0.0)
    dropped = {place: {name: stay} for place in places}

    def compact(tensors: Tensors) -> list[Any]:
        return bench.outputs(_moved(tensors, graph, dropped), smaller)

    for one, two in zip(bench.outputs(masked), compact(bench.tensors), strict=True):
        bench.check(one, two, f"dropping {len(gone)} units of {name!r} against masking them", masked)
    COUNTS.held("drop oracle")
    return bench.report(
        "drop oracle, one out",
        name,
        f"dropping {len(gone)} units of {name!r}, but others in",
        {
            place: lambda tensors, place=place: (  # type: ignore[misc]
                smaller,
                _moved(tensors, graph, dropped | {place: {name: other}}),
            )
            for place in places
        },
        compact,
    )


class _Bench:
    """A network's tensors on a few batches."""

    def __init__(self, net: Network) -> None:
        self.graph = net.graph
        self.tensors: Tensors = {name: net.tensor(name).detach() for name in net.graph.tensors}
        self.batches = [sample(net.graph, seed, 6, dtype=dtype_of(net)) for seed in range(_BATCHES)]
        self._programs: dict[int, fx.GraphModule] = {}

    def outputs(self, tensors: Tensors, graph: Graph | None = None) -> list[Any]:
        """What a graph gives for each batch."""
        graph = graph or self.graph
        if id(graph) not in self._programs:
            root = nn.Module()
            with torch.device("meta"):
                build_modules(graph, root)
            self._programs[id(graph)] = lower(graph, root).eval()
        values = dict(tensors)
        for node in graph.nodes.values():
            values.update({spec.name: tensors[spec.shared] for spec in node.tensors if spec.shared})
        with torch.no_grad():
            program = self._programs[id(graph)]
            return [torch.func.functional_call(program, values, inputs) for inputs in self.batches]

    def check(self, one: Any, two: Any, what: str, tensors: Tensors | None = None) -> None:
        """Two outputs agree within the tolerance, or within what rounding these tensors does to them."""
        held = self.tensors if tensors is None else tensors
        check_rounded(one, two, what, tolerance_of("function", (one, two)), lambda: self._noise(held))

    def _noise(self, tensors: Tensors) -> float:
        """What rounding tensors does to the outputs, as a share of their maximum."""
        plain = self.outputs(tensors)
        others = [self.outputs(rounded(tensors, sign)) for sign in (1.0, -1.0)]
        return max(share_of(a, b) for other in others for a, b in zip(plain, other, strict=True))

    def report(
        self,
        law: str,
        group: str,
        what: str,
        cases: Mapping[Holding, Callable[[Tensors], tuple[Graph, Tensors]]],
        expected: Callable[[Tensors], list[Any]],
    ) -> Report:
        """Every case must give something else than expected, for these tensors or other ones, or have no effect."""
        seen, inert = [], []
        wanted = expected(self.tensors)
        for place, case in cases.items():
            graph, tensors = case(self.tensors)
            if self._differ(self.outputs(tensors, graph), wanted) or self._differs_elsewhere(case, expected):
                seen.append(place)
            elif not any(self._has_effect(tensors, place, group) for tensors in self._others()):
                inert.append(place)
            elif self._differs_elsewhere(case, expected, _MORE_DRAWS):  # behind a norm of one unit only a sign is left
                seen.append(place)
            else:
                raise AssertionError(f"{what} {place} changes nothing: the layout of that dimension is wrong")
        COUNTS.held(law)
        return Report(tuple(seen), tuple(inert))

    def _others(self, draws: int = _DRAWS) -> Iterator[Tensors]:
        """Other draws of every tensor: in this one the units concerned may be dead; in a large one they saturate."""
        for seed in range(draws):
            generator, scale = torch.Generator().manual_seed(seed), 1.0 if seed % 2 == 0 else 0.2
            least = -0.4 if seed < _DRAWS else -1.0
            yield {
                name: (torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value) * 2 + least) * scale
                if value.is_floating_point()
                else value
                for name, value in self.tensors.items()
            }

    def _differs_elsewhere(
        self, case: Callable[[Tensors], tuple[Graph, Tensors]], expected: Callable[[Tensors], list[Any]],
        draws: int = _DRAWS,
    ) -> bool:  # fmt: skip
        for drawn in self._others(draws):
            graph, tensors = case(drawn)
            if self._differ(self.outputs(tensors, graph), expected(drawn)):
                return True
        return False

    def _has_effect(self, tensors: Tensors, place: Holding, group: str) -> bool:
        """Whether another draw of the slices that belong to the group gives other outputs, by more than rounding."""
        value = tensors[place.tensor]
        if not value.is_floating_point():
            return False
        drawn = torch.rand(value.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64) + 0.5
        owner = self.graph.tensors[place.tensor].dims[place.dim].owners(group, self.graph.sizes)
        mine = torch.from_numpy(owner >= 0).reshape([-1 if d == place.dim else 1 for d in range(value.dim())])
        other = torch.where(mine, drawn.to(value), value)
        one, two = self.outputs(tensors | {place.tensor: other}), self.outputs(tensors)
        if not self._differ(one, two):
            return False
        return max(map(share_of, two, one)) > ROUNDINGS * self._noise(tensors)

    def _differ(self, one: Sequence[Any], two: Sequence[Any]) -> bool:
        return any(_differ(a, b) for a, b in zip(one, two, strict=True))


def _differ(one: Any, two: Any) -> bool:
    try:
        check_close(one, two, "", tolerance=max(_SEEN, 10 * tolerance_of("function", (one, two))))
    except AssertionError:
        return True
    return False


def _moved(tensors: Tensors, graph: Graph, maps: Mapping[Holding, Mapping[str, IndexArray]]) -> Tensors:
    """Tensors with each listed dimension moved by its own maps."""
    found = dict(tensors)
    for place, sources in maps.items():
        layout = graph.tensors[place.tensor].dims[place.dim]
        index = layout.index(sources, graph.sizes)
        found[place.tensor] = found[place.tensor].index_select(place.dim, torch.from_numpy(index))
    return found


def check_rules_twice(graph: Graph) -> None:
    """Running every layout rule again changes nothing: not in one inference, and not on the ops that it gave.

    Inference itself runs the rules twice and raises where the second run binds a dimension.
    """
    nodes = graph.nodes
    try:
        again = infer([node.op for node in nodes.values()], {name: node.inputs for name, node in nodes.items()})
    except GraphnetError as error:
        raise AssertionError(f"the rules do not run again on {graph.name!r}: {error}") from error
    for name, node in nodes.items():
        other = again.nodes[name]
        for what, one, two in (
            ("layouts", node.outputs, other.outputs), ("tensors", node.tensors, other.tensors),
            ("size arguments", dict(node.sizes), dict(other.sizes)), ("attributes", node.op, other.op),
            ("couplings", node.coupled, other.coupled), ("contractions", node.contracted, other.contracted),
        ):  # fmt: skip
            if one != two:
                raise AssertionError(f"running the rules again, the {what} of op {name!r} are {two}, not {one}")
    for name, group in graph.groups.items():
        other_group = again.groups.get(name)
        if other_group is None or (other_group.size, other_group.frozen) != (group.size, group.frozen):
            raise AssertionError(f"running the rules again, group {name!r} is {other_group}, not {group}")
    COUNTS.held("rules twice")
