"""A graph is valid by construction; what is not valid says what, where and what would fix it."""

from __future__ import annotations

import dataclasses
from typing import Any

import networkx as nx
import pytest

from graphnet.errors import EditError, FrozenGroupError, GraphError
from graphnet.ir.builders import mlp, resnet, transformer
from graphnet.ir.document import load
from graphnet.ir.graph import Graph, units_node
from graphnet.ir.groups import UnitGroup, compress, expand
from graphnet.ir.ops.activation import ReLU
from graphnet.ir.ops.arithmetic import Add
from graphnet.ir.ops.base import Context, Dims, Op
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.io import Input, Output

X = Input(name="x", shape=(4,))


def _linear(name: str, *inputs: str, out: int = 3, **attributes: Any) -> LinearOp:
    return LinearOp(name=name, inputs=inputs, out=out, **attributes)


@pytest.mark.parametrize(
    ("ops", "outputs", "words"),
    [
        ([X, _linear("fc", "x"), _linear("fc", "x")], ["fc"], ["'fc'", "unique"]),
        ([X, _linear("fc", "y")], ["fc"], ["'fc'", "'y'", "does not exist"]),
        ([X, _linear("layer", "x"), _linear("b", "layre")], ["b"], ["'layre'", "did you mean 'layer'"]),
        ([X, _linear("fc", "x:1")], ["fc"], ["'x:1'", "1 output"]),
        ([X, _linear("fc", "x:a")], ["fc"], ["'x:a'", "number of an output"]),
        ([X, _linear("fc")], ["fc"], ["'fc'", "reads 1 inputs", "it has 0"]),
        ([X, Add(name="s", inputs=("x",))], ["s"], ["'s'", "at least 2"]),
        ([X, _linear("a", "b"), _linear("b", "a")], ["b"], ["cycle", "a -> b", "b -> a"]),
        ([X, _linear("a", "x"), _linear("b", "x")], ["a"], ["no output", "'b'", "remove"]),
        ([X, _linear("a", "x")], [], ["output", "at least 1"]),
        ([_linear("a", "a")], ["a"], ["at least one input"]),
        ([X, _linear("a", "x"), _linear("b", "output")], ["a"], ["'b'", "output op"]),
        ([X, _linear("a", "x"), Output(name="result", inputs=("a",))], None, ["named 'output'"]),
        ([X, _linear("a", "x"), _linear("a.b", "a")], ["a.b"], ["'a.b'", "inside op 'a'"]),
        ([X, _linear("a", "x"), Add(name="s", inputs=("a", "x"))], ["s"], ["'s'", "3", "4", "s = add(a, x)"]),
        ([Input(name="x", shape=(0,)), _linear("a", "x")], ["a"], ["at least 1", "0"]),
        ([X, _linear("a", "x"), _linear("b", "a", tied="c")], ["b"], ["'b'", "'c.weight'", "no earlier op"]),
        ([X, _linear("a", "x"), _linear("b", "a", tied="a")], ["b"], ["'b'", "3", "4"]),
        ([X, _linear("a", "x", out=10**9)], ["a"], ["'a'", "1,000,000,000", "at most"]),
    ],
)  # fmt: skip
def test_an_invalid_graph_says_what_and_where(ops: list[Any], outputs: list[str] | None, words: list[str]) -> None:
    with pytest.raises(GraphError) as caught:
        Graph.from_ops(ops, outputs)
    for word in words:
        assert word in str(caught.value)


def test_ops_may_come_in_any_order() -> None:
    ops = [_linear("b", "act"), ReLU(name="act", inputs=("a",)), _linear("a", "x"), X]
    assert list(Graph.from_ops(ops, ["b"]).ops) == ["x", "a", "act", "b", "output"]


def test_a_group_goes_by_any_op_that_writes_it() -> None:
    graph = resnet((3, 8, 8), stages=(4, 8), blocks=1)
    assert graph.group("layer1.0.conv2") is graph.group("conv1") is graph.group("layer1.0.add")
    with pytest.raises(GraphError, match=r"did you mean 'layer1\.0\.conv2' or 'layer1\.0\.conv1' or"):
        graph.group("layer1.0.conv9")
    with pytest.raises(GraphError, match="no unit group"):
        graph.group("x")


def test_a_name_that_means_several_groups_lists_them() -> None:
    graph = transformer(7, width=8, depth=1, heads=2, context=4)
    with pytest.raises(GraphError, match=r"blocks\.0\.q_proj\.head_dim, blocks\.0\.q_proj\.heads"):
        graph.group("blocks.0.q_proj")


def test_frozen_groups_are_listed_with_op_and_reason_and_refused() -> None:
    graph = transformer(7, width=8, depth=1, heads=2, context=4, tied=True)
    frozen = {name: group.frozen for name, group in graph.groups.items() if group.frozen}
    assert set(frozen) == {"tok.entries", "pos.entries", "head"}
    assert "picked by index" in (frozen["tok.entries"] or "")
    assert "'tok'" in (frozen["tok.entries"] or "")
    with pytest.raises(FrozenGroupError, match="picked by index"):
        graph.editable("tok.entries")
    group = graph.groups["tok.entries"]
    with pytest.raises(FrozenGroupError):
        graph.resized({"tok.entries": dataclasses.replace(group, ids=group.ids[:3])})


def test_a_graph_does_not_change() -> None:
    graph = mlp([4, 3, 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.name = "other"  # type: ignore[misc]
    for mapping in (graph.ops, graph.nodes, graph.groups, graph.sizes, graph.tensors, graph.users):
        with pytest.raises(TypeError):
            mapping["new"] = None  # type: ignore[index]
    with pytest.raises(nx.NetworkXError):
        graph.nx.add_node("new")


def test_the_networkx_graph_holds_ops_groups_data_and_membership() -> None:
    graph = Graph.from_ops([X, _linear("a", "x"), Add(name="twice", inputs=("a", "a")), _linear("b", "twice")], ["b"])
    found = graph.nx
    assert found.edges["a", "twice"]["ports"] == ((0, 0), (0, 1))
    assert found.nodes["a"]["kind"] == "op"
    assert found.nodes["a"]["op"] == "linear"
    assert found.nodes[units_node("a")]["group"] is graph.groups["a"]
    written = found.edges[units_node("a"), "a"]
    assert (written["kind"], written["writes"], written["reads"]) == ("member", True, False)
    assert written["tensors"] == ("a.weight", "a.bias")
    read = found.edges[units_node("a"), "b"]
    assert (read["writes"], read["reads"], read["tensors"]) == (False, True, ("b.weight",))
    assert nx.is_directed_acyclic_graph(found)


def test_resizing_gives_the_next_version_and_leaves_the_first() -> None:
    graph = mlp([4, 3, 2], norm="batch")
    group = graph.groups["fc1"]
    wider = graph.resized({"fc1": dataclasses.replace(group, ids=(*group.ids, 3, 4), next_id=5)})
    assert (graph.version, wider.version) == (0, 1)
    assert (graph.groups["fc1"].size, wider.groups["fc1"].size) == (3, 5)
    assert wider.shape(wider.tensors["head.weight"]) == (2, 5)
    assert wider.shape(wider.tensors["norm1.running_mean"]) == (5,)
    assert wider.op_sizes("fc1") == {"in": 4, "out": 5}
    assert wider.ops["fc1"].out == 5  # type: ignore[attr-defined]
    assert graph.ops["fc1"].out == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ids", "dormant", "words"), [((), (), "at least 1"), ((0, 0, 1), (), "twice"), ((0, 1), (1,), "twice")]
)
def test_a_group_that_is_empty_or_repeats_a_unit_is_refused(
    ids: tuple[int, ...], dormant: tuple[int, ...], words: str
) -> None:
    graph = mlp([4, 3, 2])
    with pytest.raises(EditError, match=words):
        graph.resized({"fc1": dataclasses.replace(graph.groups["fc1"], ids=ids, dormant=dormant)})


def test_a_layer_that_starts_afresh_has_units_of_its_own() -> None:
    graph = mlp([4, 3, 5, 2])
    wider = graph.ops["fc2"].model_copy(update={"out": 7})
    after = graph.rewritten([wider], fresh=["fc2.weight", "fc2.bias", "head.weight"])
    assert after.groups["fc2"].ids == tuple(range(5, 12))
    assert after.groups["fc2"].next_id == 12
    assert after.groups["fc1"].ids == (0, 1, 2)


class _Unsteady(Op):
    """An op whose rule fixes what it reads from the second time on."""

    def infer(self, ctx: Context, *inputs: Dims) -> Dims:
        _CALLS.append(0)
        if len(_CALLS) > 1:
            ctx.freeze(inputs[0][1], "it was called before")
        return inputs[0]


_CALLS: list[int] = []


def test_a_rule_that_is_not_stable_is_noticed() -> None:
    with pytest.raises(GraphError, match="layout inference is not stable"):
        Graph.from_ops([X, _linear("a", "x"), _Unsteady(op="unsteady", name="u", inputs=("a",))], ["u"])


def test_an_unstable_rule_of_our_own_is_noticed_where_layouts_were_made_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def infer(self: Op, ctx: Context, *inputs: Dims) -> Dims:
        calls.append(0)
        ctx.unify(*(dims[1] for dims in inputs))
        if len(calls) > 1:
            ctx.freeze(inputs[0][1], "it was called before")
        return inputs[0]

    monkeypatch.setattr(Add, "infer", infer)
    with pytest.raises(GraphError, match="layout inference is not stable"):
        Graph.from_ops([X, _linear("a", "x"), _linear("b", "x"), Add(name="s", inputs=("a", "b"))], ["s"])


def test_what_writes_a_group_says_whose_units_they_are() -> None:
    ops = [X, _linear("a", "x"), _linear("b", "x"), _linear("d", "b"), _linear("c", "a"), _linear("e", "b")]
    graph = Graph.from_ops([*ops, Add(name="s", inputs=("c", "d", "e"))], ["s"])
    other = dataclasses.replace(graph.groups["b"], ids=(1, 2, 3), next_id=4)
    graph = graph.resized({"b": other})
    after = graph.rewritten([graph.ops["d"].model_copy(update={"inputs": ("a",)})])
    assert after.groups["a"].ids == (0, 1, 2), "a reader that came from elsewhere brings no units"
    assert after.groups["b"].ids == (1, 2, 3)


def test_depthwise_convolutions_follow_their_channels() -> None:
    graph = load(
        {
            "inputs": {"x": {"shape": [3, 5, 5]}},
            "ops": [
                {"name": "c", "op": "conv2d", "out": 4, "kernel": 1},
                {"name": "dw", "op": "conv2d", "out": 4, "kernel": 3, "groups": 4},
                {"name": "h", "op": "conv2d", "out": 2, "kernel": 1},
            ],
        }
    )
    assert graph.group("dw") is graph.group("c")
    group = graph.groups["c"]
    wider = graph.resized({"c": dataclasses.replace(group, ids=(*group.ids, 4), next_id=5)})
    assert wider.op_sizes("dw")["group_count"] == 5


def test_units_are_found_by_id() -> None:
    group = UnitGroup("fc", (4, 0, 9), next_id=10, dormant=(2,))
    assert group.positions([9, 4]).tolist() == [2, 0]
    assert group.extended == (0, 2, 4, 9)
    for wrong, words in (([1], "no unit"), ([4, 4], "twice"), ([0.5], "integer ids"), ([[4]], "integer ids")):
        with pytest.raises(EditError, match=words):
            group.positions(wrong)
    assert expand(compress((4, 5, 6, 0, 9, 8))) == (4, 5, 6, 0, 9, 8)


def test_the_text_shows_ops_and_groups() -> None:
    text = str(mlp([4, 3, 2]))
    assert "fc1 = linear(x) -> [<batch>, fc1]" in text
    assert "fc1: 3 neurons" in text
    assert "head: 2 neurons (output)" in text
