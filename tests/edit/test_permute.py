"""Permuting the units of a group: nothing changes but their order."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import graphnet as gn
from graphnet.runtime.replay import replay, replay_graph
from graphnet.testing import check_bits, check_preserved, graphs, random_network, sample, state_of, train


@given(st.data())
def test_a_permutation_changes_nothing_but_order_and_undoes_itself(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 1)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    net.attach(optimizer)
    train(net, optimizer, 1)
    with net.edit() as edit:  # newborns, so that there are ages to carry
        for name, group in sorted(graph.groups.items()):
            if group.frozen is None and group.no_growth is None and not group.output:
                edit.grow(name, 1, init="copy-std")
    train(net, optimizer, 1)
    names = sorted(name for name, group in net.graph.groups.items() if group.frozen is None and not group.output)
    assume(names)
    name = data.draw(st.sampled_from(names))
    ids = net.graph.groups[name].ids
    order = data.draw(st.permutations(ids))
    net.eval()
    inputs = sample(graph, 2)
    before, state = net(*inputs), state_of(net)
    with net.edit() as edit:
        assert edit.permute(name, order=order, preserves="function") == tuple(order)
    assert net.graph.groups[name].ids == tuple(order)
    step = net.history.latest.steps[0]
    assert (step.preserves, step.arguments) == ("function", {"order": list(order)})
    check_preserved(net, before, *inputs, what=f"permute {name}")
    with net.edit() as edit:
        edit.permute(name, order=ids)
    check_bits(state, state_of(net), f"permute {name} and back")


def test_units_are_ordered_by_a_score_highest_first() -> None:
    net = random_network(gn.mlp([5, 6, 4, 3]), 0)
    scores = net.fc1.weight.detach().abs().mean(dim=1)
    rows = net.fc1.weight.detach().clone()
    with net.edit() as edit:
        order = edit.permute("fc1", by="magnitude")
    assert list(order) == scores.argsort(descending=True).tolist()
    assert torch.equal(net.fc1.weight, rows[list(order)])
    assert net.history.latest.steps[0].arguments == {"order": list(order)}  # enough to run it again without the score


def test_everything_that_follows_a_unit_moves_with_it() -> None:
    net = random_network(gn.mlp([5, 6, 4, 3], norm="batch"), 0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    net.attach(optimizer)
    train(net, optimizer, 2)
    before = state_of(net)
    order = [3, 1, 5, 0, 4, 2]
    with net.edit() as edit:
        edit.permute("fc1", order=order)
    after = state_of(net)
    moved = {
        name: 1 if "fc2.weight" in name else 0
        for name in before
        if "fc1" in name or "norm1" in name or "fc2.weight" in name
    }
    for name, dim in moved.items():
        if before[name].dim() > dim:
            assert torch.equal(after[name], before[name].index_select(dim, torch.tensor(order))), name
    untouched = {name: tensor for name, tensor in before.items() if name not in moved}
    check_bits(untouched, {name: after[name] for name in untouched}, "the rest")


def test_dormant_units_come_back_as_they_were() -> None:
    net = random_network(gn.mlp([5, 6, 4, 3]), 0)
    (x,) = sample(net.graph, 1)
    before = net(x)
    with net.edit() as edit:
        edit.retire("fc1", units=[1, 4])
    with net.edit() as edit:
        edit.permute("fc1", order=[5, 0, 3, 2])
        edit.permute("fc2", order=[2, 0, 3, 1])
    with net.edit() as edit:
        edit.recruit("fc1", units=[1, 4])
    assert sorted(net.graph.groups["fc1"].ids) == [0, 1, 2, 3, 4, 5]
    check_preserved(net, before, x)


def test_outputs_are_reordered_only_when_named() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    (x,) = sample(net.graph, 1)
    before = net(x).detach()
    with pytest.raises(gn.EditError, match="another order; say outputs=True"), net.edit() as edit:
        edit.permute("head", order=[2, 0, 1])
    with pytest.raises(gn.EditError, match="cannot promise"), net.edit() as edit:
        edit.permute("head", order=[2, 0, 1], outputs=True, preserves="function")
    assert net.version == 0
    with net.edit() as edit:
        edit.permute("head", order=[2, 0, 1], outputs=True)
    assert net.history.latest.preserves == "none"
    assert torch.equal(net(x), before[:, [2, 0, 1]])


def test_frozen_groups_stay_in_order() -> None:
    graph = gn.transformer(7, width=8, depth=1, heads=2)
    frozen = next(name for name, group in graph.groups.items() if group.frozen)
    net = gn.Network(graph)
    with pytest.raises(gn.FrozenGroupError, match=frozen), net.edit() as edit:
        edit.permute(frozen, order=graph.groups[frozen].ids[::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of order"),
        ({"order": [0, 1, 2, 3], "by": "magnitude"}, "give one of order"),
        ({"order": [0, 1, 2]}, r"leaves out \[3\]"),
        ({"order": [0, 1, 2, 2]}, "named twice"),
        ({"order": [0, 1, 2, 9]}, "has no unit"),
        ({"order": 3}, "flat list"),
        ({"by": "beauty"}, "no score"),
        ({"by": "gradient"}, "needs"),
        ({"order": [3, 2, 1, 0], "outputs": 1}, "outputs is True or False"),
    ],
)
def test_what_a_permutation_refuses(options: dict[str, Any], message: str) -> None:
    net = gn.Network(gn.mlp([5, 4, 3]))
    with pytest.raises(gn.EditError, match=message), net.edit() as edit:
        edit.permute("fc1", **options)
    assert net.version == 0


def test_the_journal_of_unit_operators_gives_the_same_network_again() -> None:
    """Splits, merges, permutations and exact growth hold what they need in their records."""
    net = random_network(gn.mlp([5, 6, 4, 3], norm="batch"), 0)
    first = copy.deepcopy(net)
    with net.edit() as edit:
        born = edit.split("fc1", highest=2, score="random", shares="random", copies=2)
        edit.permute("fc2", by="magnitude")
    with net.edit() as edit:
        edit.permute("fc1", order=[9, 3, 1, 8, 0, 2, 7, 4, 5, 6])
        edit.grow("fc2", 4, init="pair-cancel")
        edit.grow("fc1", 2, init="variance-transfer")
        edit.retire("fc2", lowest=1)
    with net.edit() as edit:
        edit.merge("fc1", pairs=[(born[0], born[1])], state="survivor")
        edit.permute("head", order=[2, 0, 1], outputs=True)
        edit.recruit("fc2", units=edit.graph.groups["fc2"].dormant)
    journal = json.loads(json.dumps(net.history.journal()))
    graph = replay_graph(first.graph, journal)
    assert graph.to_document() == net.graph.to_document()
    again = replay(first, journal)
    assert again.graph.to_document() == net.graph.to_document()
    check_bits(state_of(net), state_of(again), "replayed")


def test_a_factor_that_was_one_from_the_start_is_permuted_like_any_other() -> None:
    """It may not become 1, for that is another layout; this one always was."""
    ops = [
        {"name": "wide", "op": "linear", "inputs": ["x"], "out": 4},
        {"name": "parts", "op": "reshape", "inputs": ["wide"], "shape": [4, 1, 4]},
    ]
    net = gn.Network(gn.load({"inputs": {"x": {"shape": [4, 6]}}, "ops": ops}), seed=0)
    single = next(name for name, group in net.graph.groups.items() if group.size == 1 and not group.frozen)
    x = torch.randn(2, 4, 6)
    before = net(x)
    with net.edit() as edit:
        edit.permute(single, order=[0], outputs=True)
    assert torch.equal(net(x), before)
