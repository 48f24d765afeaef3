"""Matching a pattern against a graph: :func:`match`, and what it gives.

A :class:`CompiledPattern` is made once and asked of many graphs. It remembers its answer for the last one, so that a
rule which is tried at every step costs a look-up until the network changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeAlias, overload
from weakref import ref

from graphnet.errors import GraphnetError
from graphnet.ir.graph import Graph, units_node
from graphnet.rules.matching.anchored import Context, Embedding, Stop, extensions, search
from graphnet.rules.matching.compiled import Link, Parts, compile_parts
from graphnet.rules.matching.index import Index, PathKey, index_of
from graphnet.rules.matching.reasons import Miss, explain
from graphnet.schemas.patterns import Match as PatternDocument

__all__ = ["CompiledPattern", "Match", "Matches", "compile_pattern", "match"]

Kind: TypeAlias = Literal["op", "units"]


@dataclass(frozen=True, slots=True)
class Match:
    """One place where a pattern matches.

    Attributes
    ----------
    nodes : mapping of str to str
        For each node of the pattern the name of an op or unit group.
    kinds : mapping of str to {"op", "units"}
        Which of the two it is: an op and a group may have the same name.
    """

    nodes: Mapping[str, str]
    kinds: Mapping[str, Kind] = field(repr=False)
    _find_paths: Callable[[], Mapping[str, tuple[str, ...]]] = field(default=dict, repr=False, compare=False)

    @property
    def paths(self) -> Mapping[str, tuple[str, ...]]:
        """For each path edge, as it is written, the ops between.

        They are those of the shortest path, of several the first in order; looked for when they are asked for.
        """
        return self._find_paths()

    def __getitem__(self, name: str) -> str:
        return self.nodes[name]

    @property
    def touches(self) -> frozenset[str]:
        """Keys in ``graph.nx`` of everything that it covers, ops on its paths included."""
        covered = {name if self.kinds[key] == "op" else units_node(name) for key, name in self.nodes.items()}
        return frozenset(covered.union(*self.paths.values()))

    def __str__(self) -> str:
        return ", ".join(f"{key}={name}" for key, name in self.nodes.items())


@dataclass(frozen=True, slots=True)
class Matches(Sequence[Match]):
    """All matches of a pattern in a graph, in the order of the graph's nodes.

    Attributes
    ----------
    found : tuple of Match
    miss : Miss or None
        Why there is none.
    """

    found: tuple[Match, ...]
    miss: Miss | None = None

    @property
    def reason(self) -> str:
        """Why there is none, in words; empty where there are matches."""
        return "" if self.miss is None else str(self.miss)

    @overload
    def __getitem__(self, at: int) -> Match: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Match, ...]: ...
    def __getitem__(self, at: int | slice) -> Match | tuple[Match, ...]:
        return self.found[at]

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.found)


_USUAL = Context()


class CompiledPattern:
    """A pattern that has been checked and made ready.

    Parameters
    ----------
    document : graphnet.schemas.patterns.Match
    where : str
        What messages call it.

    Raises
    ------
    SchemaError
        A type of op or an attribute does not exist, or a predicate could never hold.
    """

    def __init__(self, document: PatternDocument, where: str = "pattern") -> None:
        self.document = document
        self.parts: Parts = compile_parts(document, where)
        self.names = tuple(document.nodes)
        self._last: tuple[ref[Graph], Context, Matches] | None = None

    def find(self, graph: Graph, *, context: Context | None = None) -> Matches:
        """Every match in a graph, or why there is none; see :func:`match`."""
        last = self._last
        context = context or _USUAL
        if last is not None and last[0]() is graph and (last[1] is context or last[1] == context):
            return last[2]
        index = index_of(graph)
        found = search(self.parts, index, context)
        if isinstance(found, Stop):
            matches = Matches((), explain(self.parts, found, index, context))
        else:
            matches = Matches(tuple(self._matches(found, index)))
        self._last = ref(graph), context, matches
        return matches

    def _matches(self, found: Sequence[Embedding], index: Index) -> Iterator[Match]:
        names, count = self.names, index.count
        paths = [(link, text, path) for link in self.parts.links for text, path in link.named_paths]
        fixed: dict[str, Kind] = {}
        for name, node in self.document.nodes.items():
            if node.kind != "any":
                fixed[name] = node.kind
        shared = MappingProxyType(fixed)
        called = index.names
        for each in found:
            nodes = dict(zip(names, [called[number] for number in each], strict=True))
            kinds: Mapping[str, Kind] = shared
            if len(fixed) < len(names):
                kinds = {name: "op" if n < count else "units" for name, n in zip(names, each, strict=True)}
            if paths:
                yield Match(nodes, kinds, partial(_paths, paths, each, index))
            else:
                yield Match(nodes, kinds)

    def refuses(self, graph: Graph, nodes: Mapping[str, str]) -> str | None:
        """Why the pattern does not match at these nodes of a graph; None where it does.

        To look again at a match that was found before an edit.

        Raises
        ------
        GraphnetError
            The names are not those of the pattern.
        """
        if set(nodes) != set(self.names):
            raise GraphnetError(f"the pattern has nodes {', '.join(self.names)}; found {', '.join(nodes) or 'none'}")
        index = index_of(graph)
        numbers: list[int] = []
        for name, test in zip(self.names, self.parts.nodes, strict=True):
            tables: list[Mapping[str, int]] = [index.place, index.group_place]
            known = [table[nodes[name]] for table in tables if nodes[name] in table]
            if not known:
                return f"{nodes[name]!r} ({name}) is not in the graph"
            fitting = [number for number in known if test.fits(index, number)]
            if not fitting:
                return f"{nodes[name]!r} is no {test.text}"
            number = next((n for n in fitting if test.holds(index, n)), fitting[0])
            failed = [each.text for each in test.conditions if not each.holds(index, number)]
            if failed or (test.exact is not None and test.exact != nodes[name]):
                return f"{nodes[name]!r} ({name}) does not meet {', '.join(failed) or f'name={test.exact}'}"
            numbers.append(number)
        if len(set(numbers)) < len(numbers):
            return "two nodes of the pattern are one of the graph"
        for link in self.parts.links:
            if not link.holds(index, numbers[link.source], numbers[link.target]):
                return f"{'; '.join(link.texts)} does not hold between {nodes[self.names[link.source]]!r} and " + (
                    f"{nodes[self.names[link.target]]!r}"
                )
        for part in self.parts.absent:
            if extensions(part, self.parts, tuple(numbers), index, Context()):
                return f"{part.text} does not hold"
        return None


def _paths(
    paths: Sequence[tuple[Link, str, PathKey]], found: Embedding, index: Index
) -> Mapping[str, tuple[str, ...]]:  # fmt: skip
    return {
        text: tuple(index.names[n] for n in index.between(path, found[link.source], found[link.target]))
        for link, text, path in paths
    }


def compile_pattern(pattern: PatternDocument | str, where: str = "pattern") -> CompiledPattern:
    """Make a pattern ready to be matched; a text is read first.

    Raises
    ------
    SchemaError
        The text is no pattern, or names a type of op or an attribute that does not exist.
    """
    if isinstance(pattern, str):
        pattern = PatternDocument.read(pattern)
    if not isinstance(pattern, PatternDocument):
        raise GraphnetError(f"a pattern is text or a graphnet.schemas.patterns.Match, not a {type(pattern).__name__}")
    return CompiledPattern(pattern, where)


def match(
    pattern: PatternDocument | CompiledPattern | str, graph: Graph, *, context: Context | None = None
) -> Matches:  # fmt: skip
    """Every place where a pattern matches a graph.

    A match gives each node of the pattern an op or unit group of its own. Two that cover the same nodes and edges,
    as those of a symmetric pattern do, are one, and the first in order is kept. Matches come in the order of the
    pattern's nodes, compared by where they stand in the graph.

    Parameters
    ----------
    pattern : pattern, text or compiled pattern
    graph : Graph
    context : Context, optional
        Limits, and nodes that may not be matched.

    Returns
    -------
    Matches
        A sequence of :class:`Match`; an empty one has a ``reason``.

    Raises
    ------
    SchemaError
        The pattern is wrong: see :func:`compile_pattern`.
    EditError
        It matches at more places than the context allows.

    Examples
    --------
    >>> import graphnet as gn
    >>> graph = gn.convnet((3, 8, 8), channels=[4, 6], classes=2, pool=None)
    >>> for found in match("a:conv2d[kernel>=3] -> ... -> b:conv2d", graph):
    ...     print(found)
    a=conv1, b=conv2
    >>> match("conv2d -> dropout", graph).reason
    'the graph has no dropout'
    """
    ready = pattern if isinstance(pattern, CompiledPattern) else compile_pattern(pattern)
    if not isinstance(graph, Graph):
        raise GraphnetError(f"a pattern is matched against a gn.Graph, not a {type(graph).__name__}")
    return ready.find(graph, context=context)
