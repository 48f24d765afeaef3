"""Strategies draw what they say: every structure, every operator of an edit, every optimizer."""

from __future__ import annotations

import inspect
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import graphnet as gn
from graphnet.edit.edit import Edit
from graphnet.testing import (
    EDITS,
    EditCall,
    Given,
    attach,
    batches,
    check_lowering,
    concat_nets,
    dags,
    edit_strategy,
    edits,
    graphs,
    multi_nets,
    optimizers,
    random_network,
    sample,
    shared_nets,
    shuffled_nets,
    train,
    transformers,
    unets,
)
from graphnet.testing.data import probe_batch
from graphnet.testing.optimizers import MIXING, supported_optimizers

NO_OPERATORS = {"graph", "plan", "steps", "cost", "apply", "nested"}
"""What else is public on an edit."""


def examples(strategy: st.SearchStrategy[gn.Graph], count: int = 40) -> list[gn.Graph]:
    found: list[gn.Graph] = []

    @settings(max_examples=count, database=None, derandomize=True, phases=[Phase.generate], deadline=None)
    @given(strategy)
    def draw(graph: gn.Graph) -> None:
        found.append(graph)

    draw()
    return found


def kinds(graph: gn.Graph) -> set[str]:
    return {node.op.op for node in graph.nodes.values()}


@given(graphs())
@settings(max_examples=25)
def test_every_graph_can_be_run_and_trained(graph: gn.Graph) -> None:
    net = random_network(graph, 1)
    check_lowering(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    train(net, optimizer, 1)
    assert gn.load(graph.to_document()).to_document() == graph.to_document()


def test_the_structures_that_are_promised() -> None:
    assert any(graph.groups[name].size for graph in examples(shuffled_nets()) for name in graph.groups)
    for graph in examples(shuffled_nets(), 10):
        assert {"reshape", "transpose", "conv2d"} <= kinds(graph)
        assert any(node.op.op == "conv2d" and node.op.depthwise for node in graph.nodes.values())
        assert any(node.op.op == "conv2d" and node.op.groups > 1 for node in graph.nodes.values())
    assert all({"concat", "add"} <= kinds(graph) for graph in examples(unets(), 5))
    decoders = examples(transformers())
    assert any(name.endswith("queries_per_kv") for graph in decoders for name in graph.groups)
    assert any(spec.shared for graph in decoders for node in graph.nodes.values() for spec in node.tensors)
    several = examples(multi_nets(), 20)
    assert all(len(graph.inputs) == 2 for graph in several)
    assert {len(graph.outputs) for graph in several} == {2, 3}
    shared = examples(shared_nets(), 20)
    assert all(any(spec.shared for node in graph.nodes.values() for spec in node.tensors) for graph in shared)
    assert {len(graph.inputs) for graph in shared} == {1, 2}
    layouts = [d for graph in examples(concat_nets()) for spec in graph.tensors.values() for d in spec.dims]
    assert any("(" in str(layout) for layout in layouts)  # a sum inside a product: channels last


def test_random_compositions_are_worth_drawing() -> None:
    found = examples(dags(), 70)
    seen = Counter(kind for graph in found for kind in kinds(graph))
    wanted = {"linear", "add", "concat", "reshape", "permute", "split", "mean", "batch_norm"}
    assert wanted <= set(seen), sorted(wanted - set(seen))
    assert {"attention", "conv2d", "conv1d"} & set(seen)
    sizes = sorted(len(graph.nodes) for graph in found)
    assert sizes[-1] >= 10
    assert any(group.frozen for graph in found for group in graph.groups.values())
    assert any("." in name for graph in found for name, group in graph.groups.items() if not group.frozen)


def test_every_operator_of_an_edit_has_a_generator() -> None:
    operators = {name for name, _ in inspect.getmembers(Edit) if not name.startswith("_")} - NO_OPERATORS
    assert operators == set(EDITS)


@pytest.mark.parametrize("operator", sorted(EDITS))
def test_a_generator_draws_calls_that_are_committed(operator: str) -> None:
    """Of the calls drawn for graphs of every kind, some are right."""
    committed = 0

    @settings(max_examples=25, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        nonlocal committed
        net = random_network(data.draw(graphs(composed=False)), 0)
        if operator == "recruit":
            rest(net)
        call = EDITS[operator](data.draw, net.graph)
        if call is None:
            return
        version = net.version
        try:
            with net.edit() as edit:
                call.apply(edit)
        except gn.GraphnetError:
            return
        committed += net.version > version

    run()
    assert committed >= (1 if operator in ("merge", "tie", "untie", "redirect") else 5)


def rest(net: gn.Network) -> None:
    """Let a unit of some group be dormant."""
    for name, group in net.graph.groups.items():
        if group.frozen is None and group.size > max(group.minimum, 2):
            with net.edit() as edit:
                edit.retire(name, lowest=1)
            return


@given(st.data())
@settings(max_examples=6)
def test_a_sequence_can_be_run_in_one_transaction_or_in_many(data: st.DataObject) -> None:
    graph = data.draw(graphs(composed=False))
    calls = data.draw(edits(graph, operators=["grow", "prune", "retire", "insert", "kernel", "deepen"], max_size=4))
    assert 1 <= len(calls) <= 4
    net = random_network(graph, 0)  # the network that they were tried on
    for call in calls:
        with net.edit() as edit:
            call.apply(edit)
    assert net.version == len(calls)


def test_sequences_reach_their_length() -> None:
    lengths: list[int] = []

    @settings(max_examples=6, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(edits(gn.mlp([3, 4, 2]), min_size=15, max_size=30))
    def run(calls: list[EditCall]) -> None:
        lengths.append(len(calls))

    run()
    assert max(lengths) > 15


def test_a_call_is_a_line_of_python() -> None:
    call = EditCall("grow", ("fc1", 2), {"init": "gradmax", "batch": Given.BATCH, "loss": Given.LOSS})
    assert call.code() == "edit.grow('fc1', 2, init='gradmax', batch=probe_batch(edit), loss=wave_loss)"
    assert call.needs_data
    assert not EditCall("prune", ("fc1",), {"units": [1]}).needs_data
    assert EditCall("rewind", ("fc1", Given.SNAPSHOT)).code() == "edit.rewind('fc1', snapshot)"


def test_an_operator_of_ones_own_joins_the_edits() -> None:
    @edit_strategy("prune_first")
    def _first(draw: st.DrawFn, graph: gn.Graph) -> EditCall | None:
        return EditCall("prune", ("fc1",), {"units": [graph.groups["fc1"].ids[0]]})

    try:
        calls = []

        @settings(max_examples=5, database=None, deadline=None)
        @given(edits(gn.mlp([3, 6, 2]), operators=["prune_first"], max_size=2))
        def run(drawn: list[EditCall]) -> None:
            calls.extend(drawn)

        run()
        assert {call.operator for call in calls} == {"prune"}
    finally:
        del EDITS["prune_first"]


@pytest.mark.parametrize("kind", supported_optimizers())
def test_every_optimizer_is_attached_and_steps(kind: str) -> None:
    @settings(max_examples=3, database=None, derandomize=True, deadline=None)
    @given(optimizers(kinds=[kind]))
    def run(spec: object) -> None:
        net = random_network(gn.mlp([3, 4, 2], norm="batch"), 0)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        held = attach(net, spec.kind, **spec.options)  # type: ignore[attr-defined]
        assert net.attached == tuple(held)
        train(net, held, 2)
        assert all(not torch.equal(before[name], p) for name, p in net.named_parameters() if name.endswith("weight"))

    run()


def test_optimizers_hold_every_parameter_and_update_elements_by_themselves() -> None:
    seen = set()

    @settings(max_examples=80, database=None, derandomize=True, deadline=None)
    @given(optimizers())
    def run(spec: object) -> None:
        seen.add(spec.kind)  # type: ignore[attr-defined]

    run()
    assert seen == set(supported_optimizers()) - set(MIXING)


@given(st.data())
@settings(max_examples=10)
def test_batches_fit(data: st.DataObject) -> None:
    graph = data.draw(graphs(composed=False))
    random_network(graph, 0)(*data.draw(batches(graph)))
    assert sample(graph, 3)[0].shape[0] == 4


def test_a_probe_batch_fits_a_network_from_which_a_layer_was_taken() -> None:
    net = random_network(gn.resnet((2, 4, 4), stages=[2], blocks=1, classes=3, norm="group"), 0)
    with net.plan() as edit:
        edit.remove("conv1")
        (x,), _ = probe_batch(edit)
    assert (x.dtype, x.shape[1:]) == (torch.float64, (2, 4, 4))
