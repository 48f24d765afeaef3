"""Matching: the fast matcher against networkx's VF2, order, images, ports, paths, and what must not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations, pairwise, permutations
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import graphnet as gn
from graphnet.ir.graph import Graph
from graphnet.ir.ops import OPS
from graphnet.ir.ops.io import Input
from graphnet.rules.matching import Context, Match, compile_pattern, match
from graphnet.rules.matching.compiled import distinct
from graphnet.rules.matching.index import Index, index_of
from graphnet.rules.matching.reference import reference_matches
from graphnet.schemas.patterns import Match as Pattern
from graphnet.testing import graphs
from graphnet.testing.patterns import dags, denying, patterns_in, patterns_like


def keys(found: Match) -> tuple[str, ...]:
    return tuple(name if found.kinds[node] == "op" else f"units:{name}" for node, name in found.nodes.items())


def places(pattern: Pattern | str, graph: Graph, **options: Any) -> list[tuple[str, ...]]:
    return [keys(found) for found in match(pattern, graph, **options)]


def named(pattern: str, graph: Graph) -> list[str]:
    return [" ".join(found.nodes.values()) for found in match(pattern, graph)]


def network(*ops: tuple[Any, ...], outputs: tuple[str, ...]) -> Graph:
    """A graph of (type, name, *inputs) with 4 features; further attributes are in a dict at the end."""
    made = [Input(name="x", shape=(4,))]
    for kind, name, *rest in ops:
        attributes = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        attributes = {"out": 4} | attributes if kind == "linear" else attributes
        made.append(OPS[kind](name=name, inputs=tuple(rest), **attributes))
    return Graph.from_ops(made, outputs)


# -- against the reference ---------------------------------------------------------------------------------------------


@given(dags(), patterns_like())
def test_any_pattern_matches_where_vf2_says(graph: Graph, pattern: Pattern) -> None:
    assert places(pattern, graph) == reference_matches(pattern, graph)


@given(st.data())
def test_a_pattern_of_a_graph_matches_there_and_where_vf2_says(data: st.DataObject) -> None:
    graph = data.draw(st.one_of(dags(), graphs()))
    pattern, where = data.draw(patterns_in(graph))
    found = places(pattern, graph)
    assert {frozenset(where.values())} <= {frozenset(place) for place in found}
    assert found == reference_matches(pattern, graph)
    denied = data.draw(denying(pattern))
    assert places(denied, graph) == reference_matches(denied, graph)


@given(dags(size=5), patterns_like(size=3))
@settings(max_examples=25)
def test_vf2_finds_every_injective_choice_that_fits(graph: Graph, pattern: Pattern) -> None:
    """The reference itself, for patterns of data edges, against trying every choice of nodes."""
    edges = [edge for edge in pattern.edges if edge.kind == "data"]
    if len(edges) < len(pattern.edges) or any(node.kind != "op" for node in pattern.nodes.values()):
        return
    pattern = Pattern(nodes=pattern.nodes, edges=pattern.edges)
    ready, index = compile_pattern(pattern), index_of(graph)
    fitting = []
    for chosen in permutations(range(index.count), len(pattern.nodes)):
        at = dict(zip(pattern.nodes, chosen, strict=True))
        if not all(test.holds(index, n) for test, n in zip(ready.parts.nodes, chosen, strict=True)):
            continue
        pairs = {(edge.source, edge.target) for edge in edges}
        ports = {
            (s, t): [
                (port, operand)
                for operand, (name, port) in enumerate(graph.nodes[index.names[at[t]]].inputs)
                if name == index.names[at[s]]
            ]
            for s, t in pairs
        }
        if all(
            any(
                all(e.port in (None, p) and e.operand in (None, o) for e, (p, o) in zip(wanted, some, strict=True))
                for wanted in [[edge for edge in edges if (edge.source, edge.target) == pair]]
                for some in permutations(ports[pair], len(wanted))
            )
            for pair in pairs
        ):
            fitting.append(frozenset(index.names[n] for n in chosen))
    assert {frozenset(place) for place in reference_matches(pattern, graph)} == set(fitting)


@given(graphs())
def test_the_index_says_of_every_edge_what_the_graph_says(graph: Graph) -> None:
    index, host = Index(graph), graph.nx
    number = {index.key(n): n for n in range(len(index.names))}
    assert list(number) == list(host.nodes)
    data = {(number[s], number[t]): e["ports"] for s, t, e in host.edges(data=True) if e["kind"] == "data"}
    member = {
        (number[s], number[t]): (e["writes"], e["reads"]) for s, t, e in host.edges(data=True) if e["kind"] == "member"
    }
    ops = range(index.count)
    assert {(s, t): found for s in ops for t in ops if (found := index.ports(s, t))} == data
    assert dict(index.membership) == member
    assert {(s, t) for s, each in enumerate(index.successors) for t in each} == set(data)
    assert {(s, t) for t, each in enumerate(index.predecessors) for s in each} == set(data)
    assert {(g, n) for g, each in enumerate(index.members) for n in each} == set(member)
    assert {(g, n) for n, each in enumerate(index.groups_of) for g in each} == set(member)


# -- order and images --------------------------------------------------------------------------------------------------


def fan(count: int) -> Graph:
    acts = [("relu", f"a{i}", "x") for i in range(count)]
    return network(*acts, ("add", "s", *(f"a{i}" for i in range(count))), outputs=("s",))


def test_matches_come_in_the_order_of_the_graph_by_the_patterns_nodes() -> None:
    graph = fan(12)  # a10 stands after a9, not after a1
    assert named("a:relu -> s:add", graph) == [f"a{i} s" for i in range(12)]
    pairs = list(combinations(range(12), 2))
    assert named("a:relu -> s:add; b:relu -> s", graph) == [f"a{i} s a{j}" for i, j in pairs]
    assert named("b:relu; s:add; a:relu; a -> s; b -> s", graph) == [f"a{i} s a{j}" for i, j in pairs]


def test_one_image_is_one_match() -> None:
    graph = fan(3)
    assert len(match("a:relu -> s:add; b:relu -> s", graph)) == 3  # of six embeddings
    assert len(match("a:relu -> s:add; b:relu -> s; c:relu -> s", graph)) == 1  # of six
    assert named("a:relu -[:1]-> s:add; b:relu -> s", graph) == ["a1 s a0", "a1 s a2"]  # two edges that are unlike


def test_the_same_nodes_with_other_edges_are_another_match() -> None:
    # b and c both read a and are read by d; the pattern's tail hangs on one of them
    graph = network(
        ("relu", "a", "x"), ("relu", "b", "a"), ("relu", "c", "a"), ("add", "d", "b", "c"), outputs=("d",)
    )  # fmt: skip
    assert named("a:relu -> b:relu -> d:add; a -> c:relu", graph) == ["a b d c", "a c d b"]


def test_a_node_of_the_graph_stands_for_one_node_of_the_pattern() -> None:
    graph = network(("linear", "f", "x"), ("relu", "g", "f"), ("add", "s", "g", "f"), outputs=("s",))
    assert named("a:linear -> s:add; b:linear -> s", graph) == []
    assert named("a:linear -> s:add; op b -> s", graph) == ["f s g"]


def test_matches_do_not_depend_on_the_hash_seed() -> None:
    code = """
import graphnet as gn
from graphnet.rules.matching import match
graph = gn.resnet((3, 8, 8), stages=[4, 6, 8], blocks=2, classes=5)
for text in (
    "a:relu -> b:conv2d; a -> c:add", "p:batch_norm -> s:add; op q -> s", "units h ~[writes]~> a:conv2d",
    "a:conv2d -> ...(batch_norm, relu, add) -> b:conv2d", "any n -> b:add; not b -> c:conv2d", "a:dropout -> b:relu",
    "a:add -> b:relu -> c:conv2d[kernel>=5]", "units h[role in (stream, output)]",
):
    found = match(text, graph)
    print(text, [(dict(m.nodes), dict(m.paths), sorted(m.touches)) for m in found], found.reason)
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(said) == 1
    assert "layer3.1.add" in said.pop()


# -- ports -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def doubled() -> Graph:
    """A sum of one op with itself, an ordinary one, and a split whose second half is read first."""
    return network(
        ("relu", "a", "x"), ("add", "twice", "a", "a"), ("gelu", "b", "twice"), ("add", "once", "b", "a"),
        ("split", "parts", "once", {"sizes": (2, 2)}), ("concat", "joined", "parts:1", "parts:0"), outputs=("joined",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a:relu -> s:add", ["a twice", "a once"]),
        ("a:relu -[:0]-> s:add", ["a twice"]),
        ("a:relu -[:1]-> s:add", ["a twice", "a once"]),
        ("a:relu -[:0]-> s:add; a -[:1]-> s", ["a twice"]),
        ("a:relu -[0:]-> s:add; a -[:1]-> s", ["a twice"]),  # two edges are two places: once has only one
        ("a:relu -[:2]-> s:add", []),
        ("a:gelu -[:0]-> s:add", ["b once"]),
        ("a:split -[1:0]-> c:concat", ["parts joined"]),
        ("a:split -[0:0]-> c:concat", []),
        ("a:split -[1:]-> c:concat; a -[0:1]-> c", ["parts joined"]),
        ("a:split -[1:]-> c:concat; a -[:0]-> c", []),  # both edges would be the one place 1:0
    ],
)
def test_ports(doubled: Graph, pattern: str, found: list[str]) -> None:
    assert named(pattern, doubled) == found
    assert [" ".join(place) for place in reference_matches(Pattern.read(pattern), doubled)] == found


few = st.one_of(st.none(), st.integers(0, 1))


@given(
    st.lists(st.tuples(few, few), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=4, unique=True),
)
@example([(None, None), (0, None)], [(0, 0), (1, 1)])  # whoever comes first must make room
def test_each_edge_has_a_place_of_its_own(wanted: list[Any], ports: list[tuple[int, int]]) -> None:
    tried = any(
        all(p in (None, a) and o in (None, b) for (p, o), (a, b) in zip(wanted, some, strict=True))
        for some in permutations(ports, len(wanted))
    )
    assert distinct(wanted, ports) == tried


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chain() -> Graph:
    """f -> r1 -> r2 -> g, f -> g's other operand, and a linear op in the way of a second route."""
    return network(
        ("linear", "f", "x"), ("relu", "r1", "f"), ("gelu", "r2", "r1"), ("linear", "l", "f"),
        ("add", "g", "r2", "f", "l"), outputs=("g",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a:linear -> ... -> b:add", ["f g", "l g"]),
        ("a:linear -> ...{1,} -> b:add", ["f g"]),
        ("a:linear -> ...{2} -> b:add", ["f g"]),
        ("a:linear -> ...{1,1} -> b:add", []),
        ("a:linear -> ...{3,} -> b:add", []),
        ("a:linear -> ...{,0} -> b:add", ["f g", "l g"]),
        ("a:linear -> ...(linear){1,} -> b:add", ["f g"]),
        ("a:linear -> ...(relu){1,} -> b:gelu", ["f r2"]),
        ("a:linear -> ...(gelu){1,} -> b:add", []),
        ("a:linear -> ...{1,} -[:0]-> b:add", ["f g"]),
        ("a:linear -> ...{1,} -[:1]-> b:add", []),
        ("a:linear -> ... -[:1]-> b:add", ["f g"]),
        ("a:linear -[1:]-> ... -> b:add", []),
        ("a:input -> ... -> b:add", []),  # a linear op is in the way
        ("a:relu -> ... -> b:gelu", ["r1 r2"]),
    ],
)
def test_paths(chain: Graph, pattern: str, found: list[str]) -> None:
    assert named(pattern, chain) == found
    assert [" ".join(place) for place in reference_matches(Pattern.read(pattern), chain)] == found


def test_a_match_has_the_ops_of_the_shortest_path(chain: Graph) -> None:
    (direct, _) = match("a:linear -> ... -> b:add", chain)
    assert dict(direct.paths) == {"a -> ... -> b": ()}
    (long,) = match("a:linear -> ...{1,} -> b:add", chain)
    assert dict(long.paths) == {"a -> ...{1,} -> b": ("r1", "r2")}
    assert long.touches == {"f", "g", "r1", "r2"}
    (through,) = match("a:linear -> ...(linear){1,} -> b:add", chain)
    assert dict(through.paths) == {"a -> ...(linear){1,} -> b": ("l",)}


@given(dags(), st.integers(0, 2), st.one_of(st.none(), st.integers(0, 2)))
def test_the_ops_of_a_path_lead_from_its_source_to_its_target(graph: Graph, least: int, more: int | None) -> None:
    bounds = f"{{{least},{'' if more is None else least + more}}}"
    for found in match(f"op a -> ...{bounds} -> op b", graph):
        (between,) = found.paths.values()
        assert least <= len(between)
        assert more is None or len(between) <= least + more
        way = [found["a"], *between, found["b"]]
        assert all(graph.nx.has_edge(*step) for step in pairwise(way))
        assert all(graph.ops[name].elementwise for name in between)


# -- membership --------------------------------------------------------------------------------------------------------


def test_membership_tells_writers_from_readers() -> None:
    graph = gn.mlp([4, 8, 6, 3])
    assert named("units h[name=fc1] ~> op a", graph) == ["fc1 fc1", "fc1 act1", "fc1 fc2"]
    assert named("units h[name=fc1] ~[writes, !reads]~> op a", graph) == ["fc1 fc1"]
    assert named("units h[name=fc1] ~[reads, !writes]~> op a", graph) == ["fc1 fc2"]
    assert named("units h ~[writes]~> a:linear -> ... -> b:linear; h ~[reads]~> b", graph) == [
        "fc1 fc1 fc2",
        "fc2 fc2 head",
    ]


def test_an_op_and_a_group_of_one_name_are_two_nodes() -> None:
    graph = gn.mlp([4, 8, 3])
    found = match("any n[name=fc1]", graph)
    assert [keys(each) for each in found] == [("fc1",), ("units:fc1",)]
    assert [each.touches for each in found] == [{"fc1"}, {"units:fc1"}]


# -- what must not be there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a:linear -> b:relu; not a -> c:add", []),
        ("a:linear -> b:relu; not b -> c:add", ["f r1"]),
        ("b:gelu -> c:add; not a:linear -> c", []),
        ("op a -> c:add; not a -[:1]-> c", ["r2 g", "l g"]),
        ("op a -> c:add; not op d -> a", []),
        ("a:linear -> b:relu; not a -> ...{1,} -> c:add", []),
        ("a:linear -> b:relu; not b -> ...{2,} -> c:add", ["f r1"]),
        ("a:linear -> b:relu; not (a -> c:linear; c -> d:gelu)", ["f r1"]),
        ("a:linear -> b:relu; not (a -> c:linear; c -> d:add)", []),
        ("a:linear -> b:relu; not a -> c:linear; not b -> d:add", []),
        ("a:gelu -> b:add; not c:gelu -> b", ["r2 g"]),  # only another gelu would stand against it
        ("a:linear -> g:add; not b:linear -> g", []),
        ("units h ~[writes]~> a:linear[name=f]; not h ~[writes]~> b:add", []),
        ("op a -> g:add; not units h[output] ~[writes]~> a", []),
    ],
)
def test_what_must_not_be_there(chain: Graph, pattern: str, found: list[str]) -> None:
    assert named(pattern, chain) == found
    wanted = [tuple(place) for place in reference_matches(Pattern.read(pattern), chain)]
    assert [keys(each) for each in match(pattern, chain)] == wanted


def test_frozen_groups_match_only_where_they_are_asked_for() -> None:
    graph = gn.transformer(7, width=4, depth=1, heads=2, context=6, hidden=5)
    frozen = [name for name, group in graph.groups.items() if group.frozen is not None]
    assert frozen
    for text, wanted in (
        ("units h", [name for name in graph.groups if name not in frozen]),
        ("units h[frozen]", frozen),
        ("units h[role=frozen]", frozen),
        ("units h[role in (frozen, output)]", [n for n, g in graph.groups.items() if n in frozen or g.output]),
        ("units h[frozen in (true, false)]", list(graph.groups)),
        ("units h[!(role==output)]", [n for n, g in graph.groups.items() if n not in frozen and not g.output]),
    ):
        assert named(text, graph) == wanted


# -- context and looking again -----------------------------------------------------------------------------------------


def test_limits_are_errors_that_say_what_to_do() -> None:
    graph = fan(30)
    with pytest.raises(gn.EditError, match="matches at 435 places, and at most 400 are allowed: say more"):
        match("a:relu -> s:add; b:relu -> s", graph, context=Context(max_matches=400))
    with pytest.raises(gn.EditError, match="more than 1,000 partial matches"):
        match("a:relu -> s:add; b:relu -> s; c:relu -> s", graph, context=Context(max_partial=1000))
    assert len(match("a:relu -> s:add; b:relu -> s", graph, context=Context(max_matches=435))) == 435


def test_excluded_nodes_are_not_matched() -> None:
    graph = gn.mlp([4, 8, 6, 3])
    pattern = compile_pattern("units h ~[writes]~> a:linear")
    without = Context(exclude=frozenset({"units:fc1", "head"}))
    assert [found["h"] for found in pattern.find(graph)] == ["fc1", "fc2", "head"]
    assert [found["h"] for found in pattern.find(graph, context=without)] == ["fc2"]
    assert [found["h"] for found in pattern.find(graph)] == ["fc1", "fc2", "head"]
    none = pattern.find(graph, context=Context(exclude=frozenset(graph.nx.nodes)))
    assert not none
    assert "excluded" in none.reason


@given(st.data())
def test_looking_again_agrees_with_matching(data: st.DataObject) -> None:
    graph, other = data.draw(dags()), data.draw(dags())
    pattern = data.draw(patterns_like())
    ready = compile_pattern(pattern)
    for found in match(pattern, graph):
        assert ready.refuses(graph, found.nodes) is None
        why = ready.refuses(other, found.nodes)
        assert (why is None) == any(each.nodes == found.nodes for each in match(_pinned(pattern, found), other)), why


def _pinned(pattern: Pattern, found: Match) -> Pattern:
    """The pattern with a name for each node, so that images do not merge embeddings."""
    nodes = {name: node.model_copy(update={"name": found[name]}) for name, node in pattern.nodes.items()}
    return pattern.model_copy(update={"nodes": nodes})


def test_looking_again_says_what_changed() -> None:
    before = gn.mlp([4, 8, 3])
    ready = compile_pattern("units h[size<=8] ~[writes]~> a:linear -> b:relu; not b -> d:dropout")
    (found,) = ready.find(before)
    assert ready.refuses(before, found.nodes) is None
    for after, why in (
        (gn.mlp([4, 9, 3]), "'fc1' (h) does not meet size<=8"),
        (gn.mlp([4, 8, 3], activation="gelu"), "'act1' is no b:relu"),
        (gn.mlp([4, 8, 3], norm="batch"), "a -> b does not hold between 'fc1' and 'act1'"),
        (gn.mlp([4, 3]), "'fc1' (h) is not in the graph"),
    ):
        assert ready.refuses(after, found.nodes) == why
    with pytest.raises(gn.GraphnetError, match="the pattern has nodes h, a, b; found a"):
        ready.refuses(before, {"a": "fc1"})


def test_an_answer_is_kept_until_the_graph_changes() -> None:
    ready = compile_pattern("units h")
    one, two = gn.mlp([4, 8, 3]), gn.mlp([4, 8, 6, 3])
    first = ready.find(one)
    assert ready.find(one) is first
    assert len(ready.find(two)) == 3
    assert len(ready.find(one)) == 2


@pytest.mark.parametrize("wrong", [3, None, {"nodes": {}}])
def test_what_is_no_pattern_or_graph_is_refused(wrong: Any) -> None:
    with pytest.raises(gn.GraphnetError, match="a pattern is text or"):
        match(wrong, gn.mlp([4, 8, 3]))
    with pytest.raises(gn.GraphnetError, match=r"matched against a gn\.Graph"):
        match("units h", wrong)
