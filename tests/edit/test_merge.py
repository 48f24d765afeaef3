"""Merging units that do the same: exact for duplicates, approximate and measured otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.edit.newborns import visible
from graphnet.edit.rates import AGELESS
from graphnet.ir.ops import OPS
from graphnet.testing import check_close, check_preserved, graphs, random_network, sample, state_of, train, wave_loss

F64 = torch.float64


def op(kind: str, name: str, *inputs: str, **attributes: Any) -> Any:
    return OPS[kind](name=name, inputs=inputs, **attributes)


def duplicate(net: gn.Network, keep: int, drop: int, factor: float = 1.0) -> None:
    """Make one unit of fc1 a multiple of another on the way in."""
    with torch.no_grad():
        net.fc1.weight[drop] = factor * net.fc1.weight[keep]
        net.fc1.bias[drop] = factor * net.fc1.bias[keep]


@given(data=st.data())
def test_a_split_merged_again_is_what_it_was(draw_group: Any, data: st.DataObject) -> None:
    """On any graph and with any optimizer state: tensors, moments and ages come back, up to rounding."""
    graph = data.draw(graphs())
    net = random_network(graph, 1)
    optimizer = data.draw(st.sampled_from([
        lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    ]))(net.parameters())  # fmt: skip
    net.attach(optimizer)
    train(net, optimizer, 2)
    net.eval()
    inputs = sample(graph, 2)
    before, output = state_of(net), net(*inputs)
    group = draw_group(data, graph)
    units = data.draw(st.lists(st.sampled_from(group.ids), min_size=1, max_size=2, unique=True))
    copies = data.draw(st.integers(1, 2))
    refusal = ""
    try:
        with net.edit() as edit:
            born = edit.split(
                group.name, units=units, copies=copies, shares=data.draw(st.sampled_from(["equal", "random"]))
            )
    except gn.EditError as error:
        refusal = str(error)
    if refusal:
        assert "tied" in refusal
        return
    donors = [unit for unit in group.ids if unit in set(units)]
    pairs = [(donors[number // copies], unit) for number, unit in enumerate(born)]
    with net.edit() as edit:
        gone = edit.merge(group.name, pairs=pairs)
    assert gone == born
    assert net.graph.groups[group.name].ids == group.ids
    step = net.history.latest.steps[0]
    assert step.preserves == ("function" if visible(group) is None else "none")
    after = state_of(net)
    assert after.keys() >= before.keys()
    for name, tensor in before.items():
        scale = max(float(tensor.double().abs().max()), 1e-300) if tensor.numel() else 1.0
        assert float((after[name].double() - tensor.double()).abs().max()) <= 1e-12 * scale, name
    check_close(output, net(*inputs), "split and merged", tolerance=1e-12)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_duplicates_are_found_and_merged_exactly(norm: Any) -> None:
    net = random_network(gn.mlp([5, 6, 4, 3], activation="gelu", norm=norm), 0)
    (x,) = sample(net.graph, 1)
    for keep, drop in ((1, 3), (1, 5), (0, 4)):
        duplicate(net, keep, drop)
        for slot in ("weight", "bias", "running_mean", "running_var") if norm else ():
            with torch.no_grad():
                tensor = getattr(net.norm1, slot)
                tensor[drop] = tensor[keep]
    net.eval()
    before, columns = net(x), net.fc2.weight.detach().clone()
    with net.edit() as edit:
        gone = edit.merge("fc1", threshold=0.0, preserves="function")
    assert gone == (3, 4, 5)
    step = net.history.latest.steps[0]
    assert step.arguments == {"pairs": [[0, 4], [1, 3], [1, 5]], "state": "combined"}
    assert step.dropped == gone
    check_preserved(net, before, x)
    torch.testing.assert_close(net.fc2.weight[:, 1], columns[:, 1] + columns[:, 3] + columns[:, 5])
    torch.testing.assert_close(net.fc2.weight[:, 0], columns[:, 0] + columns[:, 4])
    assert torch.equal(net.fc2.weight[:, 2], columns[:, 2])


def test_units_that_differ_in_a_norm_slot_are_not_the_same() -> None:
    net = random_network(gn.mlp([5, 6, 3], norm="batch"), 0)
    duplicate(net, 1, 3)
    with pytest.raises(gn.EditError, match="no two units"), net.edit() as edit:
        edit.merge("fc1", threshold=0.0)
    with pytest.raises(gn.EditError, match="differ by up to"), net.edit() as edit:
        edit.merge("fc1", pairs=[(1, 3)], preserves="function")
    assert net.version == 0


def test_near_duplicates_are_approximate_and_say_how_far_they_are() -> None:
    net = random_network(gn.mlp([5, 6, 3], activation="tanh"), 0)
    (x,) = sample(net.graph, 1)
    duplicate(net, 1, 3)
    with torch.no_grad():
        rows = torch.cat([net.fc1.weight[3], net.fc1.bias[3:4]])
        net.fc1.bias[3] += 1e-3 * float(rows.norm())
    before = net(x).detach()
    with pytest.raises(gn.EditError, match="no two units"), net.edit() as edit:
        edit.merge("fc1", threshold=5e-4)
    with net.edit() as edit:
        assert edit.merge("fc1", threshold=2e-3) == (3,)
    step = net.history.latest.steps[0]
    assert step.preserves == "approximate"
    assert float(step.note.split("up to ")[1].split(" ")[0]) == pytest.approx(1e-3, rel=0.01)
    change = float((net(x).detach() - before).abs().max())
    assert 0 < change < 1e-2


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_positive_multiples_are_merged_under_a_homogeneous_activation(activation: str) -> None:
    net = random_network(gn.mlp([5, 6, 4, 3], activation=activation), 0)
    (x,) = sample(net.graph, 1)
    duplicate(net, 1, 3, 2.5)
    duplicate(net, 1, 4, 0.1)
    before, columns = net(x), net.fc2.weight.detach().clone()
    with net.edit() as edit:
        assert edit.merge("fc1", threshold=1e-12, scaled=True, preserves="function") == (3, 4)
    check_preserved(net, before, x)
    torch.testing.assert_close(net.fc2.weight[:, 1], columns[:, 1] + 2.5 * columns[:, 3] + 0.1 * columns[:, 4])
    with net.edit() as edit:  # a multiple is no duplicate
        duplicate_free = edit.graph.groups["fc1"].ids
    assert duplicate_free == (0, 1, 2, 5)


def test_multiples_through_pooling_and_flattening() -> None:
    graph = gn.convnet((2, 6, 6), channels=(4, 5), hidden=(6,))
    net = random_network(graph, 0)
    (x,) = sample(graph, 1)
    with torch.no_grad():
        net.conv2.weight[4], net.conv2.bias[4] = 3.0 * net.conv2.weight[0], 3.0 * net.conv2.bias[0]
    before = net(x)
    with net.edit() as edit:
        assert edit.merge("conv2", pairs=[(0, 4)], scaled=True, preserves="function") == (4,)
    check_preserved(net, before, x)


def mixed(kind: str) -> gn.Graph:
    """A network in which something between fc1 and its reader does not keep a factor."""
    ops = [op("input", "x", shape=(2, 4, 4)), op("conv2d", "fc1", "x", out=4, kernel=3, padding=1)]
    ops += {
        "tanh": [op("tanh", "mid", "fc1")],
        "batch_norm": [op("batch_norm", "mid", "fc1")],
        "depthwise": [op("conv2d", "mid", "fc1", out=4, kernel=1, depthwise=True)],
        "mul": [op("mul", "mid", "fc1", "fc1")],
    }[kind]
    return gn.Graph.from_ops([*ops, op("conv2d", "two", "mid", out=3, kernel=1)], ["two"])


@pytest.mark.parametrize("kind", ["tanh", "batch_norm", "depthwise", "mul"])
def test_multiples_are_refused_where_a_factor_does_not_stay(kind: str) -> None:
    net = random_network(mixed(kind), 0)
    duplicate(net, 0, 2, 2.0)
    with pytest.raises(gn.EditError, match="'mid'"), net.edit() as edit:
        edit.merge("fc1", pairs=[(0, 2)], scaled=True)
    assert net.version == 0


def test_negative_multiples_are_refused() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    duplicate(net, 0, 2, -2.0)
    with pytest.raises(gn.EditError, match=r"units \[2\] are no positive multiple of unit 0"), net.edit() as edit:
        edit.merge("fc1", pairs=[(0, 2)], scaled=True)


def test_negative_multiples_are_no_duplicates() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    duplicate(net, 0, 2, -2.0)
    with pytest.raises(gn.EditError, match="no two units"), net.edit() as edit:
        edit.merge("fc1", threshold=1e-9, scaled=True)
    duplicate(net, 1, 3, 2.0)
    with net.edit() as edit:
        assert edit.merge("fc1", threshold=1e-9, scaled=True) == (3,)


def test_a_survivor_is_as_old_as_the_oldest_that_goes_into_it() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    net.attach(optimizer)
    for seed in (0, 1):
        train(net, optimizer, 2, seed=seed)
        with net.edit() as edit:
            edit.grow("fc1", 1, state="aged")
    births = net._attached["0"].updates.births[net.fc1.weight].table("birth")[0]
    assert births.tolist()[6:] == [2, 4]
    with net.edit() as edit:
        edit.merge("fc1", pairs=[(7, 6), (0, 1)])
    births = net._attached["0"].updates.births[net.fc1.weight].table("birth")[0]
    assert births.tolist() == [AGELESS] * 5 + [2]


def test_merged_training_is_the_training_of_the_unit_before_the_split() -> None:
    """Split with its state scaled and its updates held to the same path, train, merge: as if nothing had been."""
    ends = []
    for split in (False, True):
        net = random_network(gn.mlp([5, 6, 4, 3], activation="tanh"), 0)
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        net.attach(optimizer)
        train(net, optimizer, 3)
        if split:
            with net.edit() as edit:
                edit.split("fc1", units=[2, 5], shares="random", state_options={"trajectory": True})
        train(net, optimizer, 5, seed=1)
        if split:
            with net.edit() as edit:
                edit.merge("fc1", pairs=[(2, 6), (5, 7)], preserves="function")
        train(net, optimizer, 5, seed=2)
        ends.append({name: p.detach().clone() for name, p in net.named_parameters()})
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-9, atol=1e-12)


def test_moments_that_were_split_are_what_they_were_after_a_merge() -> None:
    """A copy's first moments are its share of the donor's, its second ones that share's square."""
    net = random_network(gn.mlp([5, 6, 3], norm="batch"), 0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, amsgrad=True)
    net.attach(optimizer)
    train(net, optimizer, 3)
    names = {p: name for name, p in net.named_parameters()}
    before = {names[p]: {k: v.clone() for k, v in held.items()} for p, held in optimizer.state.items()}
    with net.edit() as edit:
        edit.split("fc1", units=[2, 4], shares="random")
    with net.edit() as edit:
        edit.merge("fc1", pairs=[(2, 6), (4, 7)])
    for p, held in optimizer.state.items():
        for key, value in held.items():
            torch.testing.assert_close(value, before[names[p]][key], rtol=1e-12, atol=1e-18)


def test_gradients_of_the_survivor_are_those_of_all_of_them() -> None:
    net = random_network(gn.mlp([5, 6, 4, 3]), 0)
    (x,) = sample(net.graph, 1)
    duplicate(net, 1, 3, 2.0)
    net.eval()
    wave_loss(net(x)).backward()
    with net.edit() as edit:
        edit.merge("fc1", pairs=[(1, 3)], scaled=True)
    carried = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    wave_loss(net(x)).backward()
    for name, gradient in carried.items():
        torch.testing.assert_close(gradient, net.get_parameter(name).grad, rtol=1e-10, atol=1e-14)


def test_the_survivor_may_keep_its_own_state() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    net.attach(optimizer)
    train(net, optimizer, 2)
    held = {k: v.clone() for k, v in optimizer.state[net.fc1.weight].items()}
    with net.edit() as edit:
        edit.merge("fc1", pairs=[(1, 3)], state="survivor")
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[net.fc1.weight][key], held[key][[0, 1, 2, 4, 5]])


def test_an_averaged_copy_follows_a_merge() -> None:
    net = random_network(gn.mlp([5, 6, 3], activation="tanh"), 0)
    (x,) = sample(net.graph, 1)
    duplicate(net, 1, 3)
    average = torch.optim.swa_utils.AveragedModel(net)
    net.attach(average)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    duplicate(net, 1, 3)
    average.update_parameters(net)
    before = average(x)
    with net.edit() as edit:
        edit.merge("fc1", pairs=[(1, 3)])
    check_close(before, average(x), "the average", tolerance=1e-12)


def test_dormant_readers_read_the_survivor_as_they_read_both() -> None:
    net = random_network(gn.mlp([5, 6, 4, 3], activation="tanh"), 0)
    (x,) = sample(net.graph, 1)
    duplicate(net, 1, 3)
    before = net(x)
    with net.edit() as edit:
        edit.retire("fc2", units=[0, 2])
        edit.merge("fc1", pairs=[(1, 3)])
        edit.recruit("fc2", units=[0, 2])
    check_preserved(net, before, x)


def test_a_depthwise_kernel_is_part_of_what_a_unit_is() -> None:
    net = random_network(mixed("depthwise"), 0)
    (x,) = sample(net.graph, 1)
    duplicate(net, 0, 2)
    with pytest.raises(gn.EditError, match="differ by up to"), net.edit() as edit:
        edit.merge("fc1", pairs=[(0, 2)], preserves="function")
    with torch.no_grad():
        net.mid.weight[2], net.mid.bias[2] = net.mid.weight[0], net.mid.bias[0]
    before: Tensor = net(x)
    with net.edit() as edit:
        edit.merge("fc1", pairs=[(0, 2)], preserves="function")
    check_preserved(net, before, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of pairs"),
        ({"pairs": [(0, 1)], "threshold": 0.1}, "give one of pairs"),
        ({"pairs": []}, "no pair|no two units"),
        ({"pairs": [(0, 9)]}, "has no unit"),
        ({"pairs": [(9, 0)]}, "has no unit"),
        ({"pairs": [(0, 1), (2, 1)]}, "named twice"),
        ({"pairs": [(0, 1), (1, 2)]}, "unit 1 is to be kept in one pair and to go in another"),
        ({"pairs": [(0, 0)]}, "unit 0 is to be kept in one pair and to go in another"),
        ({"pairs": [(0, 1, 2)]}, "list of"),
        ({"pairs": 3}, "list of"),
        ({"pairs": [(0.5, 1)]}, "list of"),
        ({"threshold": -0.1}, "threshold is a distance"),
        ({"threshold": float("nan")}, "threshold is a distance"),
        ({"threshold": True}, "threshold is a distance"),
        ({"threshold": 0.0, "scaled": 1}, "scaled is True or False"),
        ({"threshold": 0.0, "state": "warm"}, "state is 'combined' or 'survivor'"),
        ({"threshold": 1e-6}, "no two units"),
        ({"pairs": [(0, 1)], "preserves": "maybe"}, "preserves is"),
    ],
)
def test_what_a_merge_refuses(options: dict[str, Any], message: str) -> None:
    net = gn.Network(gn.mlp([5, 6, 3]))
    with pytest.raises(gn.EditError, match=message), net.edit() as edit:
        edit.merge("fc1", **options)
    assert net.version == 0


def test_a_merge_of_everything_leaves_what_the_structure_needs() -> None:
    net = gn.Network(gn.mlp([5, 3, 3]))
    with net.edit() as edit:
        assert edit.merge("fc1", threshold=100.0) == (1, 2)
    assert net.graph.groups["fc1"].ids == (0,)


def test_tied_and_output_and_coupled_groups() -> None:
    ops = [
        op("input", "x", shape=(3,), dtype="int64", high=5),
        op("embedding", "tok", "x", count=5, dim=4),
        op("tanh", "act", "tok"),
        op("linear", "head", "act", out=5, bias=False, tied="tok"),
    ]
    net = random_network(gn.Graph.from_ops(ops, ["head"]), 0)
    with pytest.raises(gn.EditError, match="tied"), net.edit() as edit:
        edit.merge("tok", pairs=[(0, 1)])
    net = random_network(gn.mlp([5, 6, 3], norm="layer"), 0)
    for group in ("fc1", "head"):
        with pytest.raises(gn.EditError, match=r"coupled|output"), net.edit() as edit:
            edit.merge(group, pairs=[(0, 1)], preserves="approximate")
        with net.edit() as edit:
            edit.merge(group, pairs=[(0, 1)])
        assert net.history.latest.preserves == "none"
