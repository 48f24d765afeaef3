"""The oracles pass right layouts, name wrong ones, and say what has no effect."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

import graphnet as gn
from graphnet.ir.graph import Graph
from graphnet.ir.layout import Layout, atom, const, join, times
from graphnet.ir.ops.base import Context, Dims, Emitter, Op
from graphnet.ir.ops.io import Input
from graphnet.testing import check_drop, check_permute, check_rules_twice, graphs, random_network
from graphnet.testing.edits import some_group, spare
from graphnet.testing.graphs import op
from graphnet.testing.oracles import Holding, _Bench, can_drop, holdings

SHUFFLE = {
    "inputs": {"x": {"shape": [2, 3, 3]}},
    "ops": [
        {"name": "stem", "op": "conv2d", "out": 6, "kernel": 1},
        {"name": "grouped", "op": "conv2d", "out": 6, "kernel": 1, "groups": 2},
        {"name": "act", "op": "tanh"},
        {"name": "flat", "op": "flatten"},
        {"name": "head", "op": "linear", "out": 2},
    ],
}
GRAPHS: dict[str, Graph] = {
    "mlp": gn.mlp([4, 5, 4, 3], norm="batch", activation="gelu"),
    "convnet": gn.convnet((2, 8, 8), channels=(3, 4), hidden=(5,), classes=2, norm="batch"),
    "resnet": gn.resnet((2, 4, 4), stages=(3, 4), blocks=1, classes=2),
    "grouped": gn.load(SHUFFLE),
    "transformer": gn.transformer(7, width=8, depth=1, heads=4, kv_heads=2, context=6, hidden=5, norm="rms"),
    "tied": gn.transformer(7, width=8, depth=1, heads=2, context=6, hidden=5, tied=True),
}


def doctored(graph: Graph, name: str, dims: dict[int, Layout]) -> Graph:
    """The graph with other layouts of one stored tensor."""
    op = name.rpartition(".")[0]
    node = graph.nodes[op]
    tensors = tuple(
        replace(spec, dims=tuple(dims.get(dim, layout) for dim, layout in enumerate(spec.dims)))
        if spec.name == name
        else spec
        for spec in node.tensors
    )
    nodes = dict(graph.nodes) | {op: replace(node, tensors=tensors)}
    return Graph(graph.name, MappingProxyType(nodes), graph.groups, graph.dynamic, graph.version)


def network_of(graph: Graph, wrong: Graph) -> Any:
    net = random_network(graph, 1)
    object.__setattr__(net, "_current", replace(net._current, graph=wrong))
    return net


@pytest.mark.parametrize("name", GRAPHS)
def test_every_group_of_every_kind_of_graph(name: str) -> None:
    graph = GRAPHS[name]
    net, inert = random_network(graph, 1), set()
    for group, held in graph.groups.items():
        if held.frozen is not None or held.size < 2:
            continue
        report = check_permute(net, group)
        assert len(report.seen) + len(report.inert) == len(holdings(graph, group))
        inert |= {place.tensor for place in report.inert}
        if can_drop(graph, group) and spare(graph, group):
            report = check_drop(net, group, [held.size - 1])
            assert report.seen
    # a softmax over keys takes a key's bias back
    assert inert == ({"blocks.0.k_proj.bias"} if name in ("transformer", "tied") else set())


@given(st.data())
@settings(max_examples=15)
def test_random_graphs(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    group = some_group(data.draw, graph)
    if group is None:
        return
    net = random_network(graph, 2)
    if graph.groups[group].size > 1:
        check_permute(net, group)
    if can_drop(graph, group) and spare(graph, group):
        check_drop(net, group, [0])


CONV = GRAPHS["convnet"]
WRONG = [
    ("fc1.weight", {1: times(const(4), atom("conv2"))}, "conv2"),  # channels last in place of channel-major
    ("norm_c1.running_var", {0: const(3)}, "conv1"),  # a buffer forgotten
    ("conv2.weight", {1: const(3)}, "conv1"),  # a reader forgotten
    ("conv1.bias", {0: const(3)}, "conv1"),
]


@pytest.mark.parametrize(("tensor", "dims", "group"), WRONG)
def test_a_wrong_layout_is_seen(tensor: str, dims: dict[int, Layout], group: str) -> None:
    wrong = doctored(CONV, tensor, dims)
    assert wrong.shape(wrong.tensors[tensor]) == CONV.shape(CONV.tensors[tensor])
    net = network_of(CONV, wrong)
    with pytest.raises(AssertionError, match=f"permuting '{group}' in all its holders"):
        check_permute(net, group)


def test_a_layout_that_claims_too_much_is_seen() -> None:
    """A dimension that has nothing to do with the group: permuting it there alone is not missed."""
    graph = gn.mlp([5, 5, 5, 2], activation="tanh")
    wrong = doctored(graph, "head.weight", {1: join(atom("fc1"))})
    with pytest.raises(AssertionError, match="permuting 'fc1' in all its holders"):
        check_permute(network_of(graph, wrong), "fc1")


class _Flipping(Op):
    """An op that turns its units round and says that it does not."""

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        return inputs[0]

    def emit(self, emit: Emitter, *args: fx.Node) -> fx.Node:
        return emit.call(torch.flip, *args, [1])


def test_a_wrong_rule_is_seen() -> None:
    ops = [
        op("linear", "fc", "x", out=4),
        _Flipping(op="flipping", name="flipped", inputs=("fc",)),
        op("linear", "head", "flipped", out=2),
    ]
    net = random_network(Graph.from_ops([Input(name="x", shape=(3,)), *ops], ["head"], name="flipping"), 1)
    with pytest.raises(AssertionError, match="permuting 'fc' in all its holders"):
        check_permute(net, "fc")
    with pytest.raises(AssertionError, match="dropping 1 units of 'fc' against masking them"):
        check_drop(net, "fc", [0])


def test_what_has_no_effect_is_reported_and_not_an_error() -> None:
    graph = gn.load(
        {
            "inputs": {"x": {"shape": [3]}},
            "ops": [
                {"name": "fc", "op": "linear", "out": 4},
                {"name": "parts", "op": "split", "sizes": [2, 2]},
                {"name": "head", "op": "linear", "inputs": ["parts"], "out": 2},
            ],
            "outputs": ["head"],
        }
    )
    unread = next(name for name in graph.groups if name.startswith("fc") and name != graph.dims("parts")[1].single)
    report = check_permute(random_network(graph, 0), unread)
    assert not report.seen
    assert set(report.inert) == {Holding("fc.weight", 0), Holding("fc.bias", 0)}


def test_an_order_means_nothing_to_a_mean() -> None:
    graph = gn.load(
        {
            "inputs": {"x": {"shape": [3]}},
            "ops": [{"name": "fc", "op": "linear", "out": 4}, {"name": "mean", "op": "mean", "dim": 1}],
        }
    )
    assert check_permute(random_network(graph, 0), "fc").seen == ()


def test_what_cannot_be_asked() -> None:
    net = random_network(GRAPHS["mlp"], 0)
    with pytest.raises(ValueError, match="moves no unit"):
        check_permute(net, "fc1", [0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="frozen, coupled or an output"):
        check_drop(net, "head", [0])
    assert not can_drop(GRAPHS["transformer"], "tok")


class _Drifting(Op):
    """An op whose rule says something else each time."""

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        _CALLS.append(0)
        return (inputs[0][0], const(len(_CALLS)))


_CALLS: list[int] = []


@given(graphs())
@settings(max_examples=20)
def test_running_the_rules_again_changes_nothing(graph: Graph) -> None:
    check_rules_twice(graph)


def test_a_rule_that_says_something_else_each_time_is_seen() -> None:
    graph = Graph.from_ops(
        [Input(name="x", shape=(3,)), _Drifting(op="drifting", name="d", inputs=("x",))], ["d"], name="drifting"
    )
    with pytest.raises(AssertionError, match="running the rules again, the layouts of op 'd' are"):
        check_rules_twice(graph)


def test_where_a_network_makes_rounding_large_the_oracles_allow_what_rounding_does() -> None:
    """A norm over groups of one unit gives nothing but rounding errors over the root of its epsilon, and its bias."""
    ops = [
        op("linear", "fc1", "x", out=8), op("tanh", "act", "fc1"), op("linear", "fc2", "act", out=4),
        op("group_norm", "norm", "fc2", groups=4, eps=1e-8), op("linear", "head", "norm", out=2),
    ]  # fmt: skip
    graph = gn.load({"inputs": {"x": {"shape": [5]}}, "ops": ops})
    net = random_network(graph, 0)
    with torch.no_grad():
        net.tensor("norm.bias").zero_()
        net.tensor("head.bias").zero_()
        net.tensor("fc2.weight").mul_(1e3)
    x = torch.randn(6, 5, dtype=torch.float64)
    order = [1, 2, 3, 4, 5, 6, 7, 0]
    plain = net(x)
    with net.edit() as edit:
        edit.permute("fc1", order=order)
    assert not torch.allclose(plain, net(x), rtol=1e-3, atol=0)
    check_permute(net, "fc1")
    check_drop(net, "fc1", [0])


@pytest.mark.parametrize("after", [0, 1, 20, None])
def test_what_never_shows_is_wrong_and_what_shows_late_is_not(after: int | None) -> None:
    net = random_network(gn.mlp([3, 4, 2], activation="tanh"), 0)
    bench, place = _Bench(net), holdings(net.graph, "fc1")[0]
    asked = 0

    def case(tensors: dict[str, Tensor]) -> tuple[gn.Graph, dict[str, Tensor]]:
        nonlocal asked
        asked += 1
        shows = after is not None and asked > after
        return net.graph, tensors | {place.tensor: -tensors[place.tensor]} if shows else tensors

    if after is None:
        with pytest.raises(AssertionError, match=r"moving it in .* changes nothing: the layout .* is wrong"):
            bench.report("test", "fc1", "moving it in", {place: case}, bench.outputs)
    else:
        assert bench.report("test", "fc1", "moving it in", {place: case}, bench.outputs).seen == (place,)
