"""Resets: units start afresh where they stand, and nothing of the old ones is left."""

from __future__ import annotations

import copy
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

import graphnet as gn
from graphnet.edit.plan import Plan
from graphnet.edit.states import AGELESS
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.io import Input
from graphnet.testing import (
    check_bits,
    check_lowering,
    check_preserved,
    graphs,
    optimizers,
    random_network,
    sample,
    state_of,
    train,
    wave_loss,
)
from graphnet.testing.graphs import op


def trained(graph: gn.Graph, kind: Any = Adam, steps: int = 5) -> tuple[gn.Network, torch.optim.Optimizer]:
    net = random_network(graph, 0)
    optimizer = kind(net.parameters(), lr=0.01)
    net.attach(optimizer)
    train(net, optimizer, steps)
    return net, optimizer


def conv() -> gn.Graph:
    return gn.convnet((2, 4, 4), channels=(4, 3), hidden=(5,), norm="batch", activation="gelu")


def output(net: gn.Network, *inputs: Tensor) -> Any:
    net.eval()
    with torch.no_grad():
        return net(*inputs)


# -- what a reset leaves ----------------------------------------------------------------------------------------


def test_units_keep_their_place_and_get_ids_of_their_own() -> None:
    net, _ = trained(gn.mlp([3, 6, 2]))
    with net.edit() as edit:
        assert edit.reset("fc1", units=[4, 1]) == (6, 7)
    group = net.graph.groups["fc1"]
    assert group.ids == (0, 6, 2, 3, 7, 5)
    assert group.next_id == 8
    step = net.history.latest.steps[0]
    assert (step.operator, step.born, step.dropped, step.dormant) == ("reset", (6, 7), (1, 4), False)
    assert step.arguments == {"units": [1, 4], "init": "kaiming", "state": "aged"}
    with net.edit() as edit:
        assert edit.reset("fc1", units=[7]) == (8,)
    assert net.graph.groups["fc1"].ids == (0, 6, 2, 3, 8, 5)
    assert net.history.birth_versions("fc1") == {0: 0, 6: 1, 2: 0, 3: 0, 8: 2, 5: 0}


def test_slices_are_fresh_and_all_else_keeps_its_bits() -> None:
    net, _ = trained(conv())
    before = state_of(net)
    with net.edit() as edit:
        edit.reset("conv1", units=[2])
    after = state_of(net)
    others = [0, 1, 3]
    for name, dim in (("conv1.weight", 0), ("conv1.bias", 0), ("norm_c1.weight", 0), ("conv2.weight", 1)):
        for key in (name, f"grad {name}", f"state 0 {name} exp_avg", f"state 0 {name} exp_avg_sq"):
            kept = torch.tensor(others)
            assert torch.equal(before[key].index_select(dim, kept), after[key].index_select(dim, kept)), key
            if key != name:
                assert not after[key].select(dim, 2).any(), key
    bound = sqrt(6 / (2 * 9))
    fresh = after["conv1.weight"][2]
    assert 0.5 * bound < float(fresh.abs().max()) <= bound
    assert float(after["conv1.bias"][2]) == 0.0
    assert not after["conv2.weight"][:, 2].any()
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        assert float(after[f"norm_c1.{name}"][2]) == value
    untouched = {k: v for k, v in before.items() if "conv1" not in k and "norm_c1" not in k and "conv2.weight" not in k}
    check_bits(untouched, {k: after[k] for k in untouched}, "all else")


def test_a_flattened_consumer_is_reset_over_the_channels_whole_block() -> None:
    net, _ = trained(conv())
    with net.edit() as edit:
        (born,) = edit.reset("conv2", units=[1])
    columns = net.fc1.weight.detach().reshape(5, 3, -1)
    assert not columns[:, 1].any()
    assert bool(columns[:, [0, 2]].any())
    assert net.graph.groups["conv2"].ids == (0, born, 2)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_the_first_step_of_a_reset_unit_is_that_of_a_newborn(kind: Any) -> None:
    """No step count is left behind: exactly lr in every element with a gradient, whatever the optimizer's count."""
    net, optimizer = trained(gn.mlp([3, 6, 2], activation="gelu"), lambda p, lr: kind(p, lr=lr, weight_decay=0.0), 40)
    with net.edit() as edit:
        (born,) = edit.reset("fc1", units=[2], state="aged")
    births = {key[3]: slot.base for slot in net.slots("fc1.weight") if (key := slot.key)[0] == "birth"}
    assert births["0"].tolist() == [AGELESS, AGELESS, 40, AGELESS, AGELESS, AGELESS]
    before = net.head.weight.detach().clone()
    train(net, optimizer, 1, seed=3)
    moved = (net.head.weight.detach() - before).abs()[:, 2]  # incoming ones have no gradient yet
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-5, atol=0)
    assert net.graph.groups["fc1"].ids[2] == born


def test_a_cold_reset_keeps_the_optimizers_count_and_no_earlier_age() -> None:
    net, optimizer = trained(gn.mlp([3, 6, 2], activation="gelu"), Adam, 40)
    with net.edit() as edit:
        (first,) = edit.reset("fc1", units=[2], state="aged")
    with net.edit() as edit:
        edit.reset("fc1", units=[first], state="cold")
    births = {slot.key[3]: slot.base for slot in net.slots("fc1.weight") if slot.key[0] == "birth"}
    assert (births["0"] == AGELESS).all()
    before = net.head.weight.detach().clone()
    train(net, optimizer, 1, seed=3)
    moved = (net.head.weight.detach() - before).abs()[:, 2]
    # Adam's cold start at a count of 41: (1 - b1)/(1 - b1^41) over sqrt((1 - b2)/(1 - b2^41))
    rate = 0.01 * (0.1 / (1 - 0.9**41)) / sqrt(0.001 / (1 - 0.999**41))
    torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-4, atol=0)


def test_speed_multiplies_the_updates_of_reset_units() -> None:
    net, optimizer = trained(gn.mlp([3, 6, 2], activation="gelu"), SGD, 3)
    twin = copy.deepcopy(net)
    other = SGD(twin.parameters(), lr=0.01)
    twin.attach(other)
    for one, speed in ((net, (5.0, 1)), (twin, None)):
        with one.edit(seed=1) as edit:
            edit.reset("fc1", units=[2], speed=speed)
    before = net.head.weight.detach().clone()
    train(net, optimizer, 1, seed=3)
    train(twin, other, 1, seed=3)
    fast, slow = net.head.weight.detach() - before, twin.head.weight.detach() - before
    torch.testing.assert_close(fast[:, 2], 5 * slow[:, 2], rtol=1e-10, atol=0)
    torch.testing.assert_close(fast[:, :2], slow[:, :2], rtol=1e-10, atol=0)


@given(st.data())
@settings(max_examples=20)
def test_resets_of_random_graphs(data: st.DataObject) -> None:
    """The lowering holds, survivors keep every bit of tensors and state, and outgoing weights are zero."""
    graph = data.draw(graphs())
    net = random_network(graph, 1)
    optimizer = data.draw(optimizers())(net.parameters())
    net.attach(optimizer)
    train(net, optimizer, 2)
    names = sorted(n for n, g in graph.groups.items() if g.frozen is None)
    if not names:
        return
    group = data.draw(st.sampled_from(names))
    size = graph.groups[group].size
    units = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    before = state_of(net)
    try:
        with net.edit() as edit:
            born = edit.reset(group, units=units)
    except gn.EditError as error:
        check_bits(before, state_of(net), "a refused reset")
        if "tied weights" in str(error):
            return
        raise
    check_lowering(net)
    live = net.graph.groups[group].ids
    assert [live[unit] for unit in sorted(units)] == list(born)
    assert all(live[unit] == unit for unit in range(size) if unit not in units)
    after = state_of(net)
    for name, spec in graph.tensors.items():
        index = []
        for layout in spec.dims:
            owners = torch.from_numpy(layout.owners(group, graph.sizes))
            index.append(torch.nonzero(~torch.isin(owners, torch.tensor(units))).flatten())
        for key, value in before.items():
            if key in (name, f"grad {name}") or (key.startswith(f"state 0 {name} ") and not key.endswith(" step")):
                one, two = value, after[key]
                for dim, at in enumerate(index):
                    one, two = one.index_select(dim, at), two.index_select(dim, at)
                assert torch.equal(one, two), key
        for dim, (layout, role) in enumerate(zip(spec.dims, spec.roles, strict=True)):
            owners = torch.from_numpy(layout.owners(group, graph.sizes))
            mine = torch.nonzero(torch.isin(owners, torch.tensor(units))).flatten()
            if role == "read" and mine.numel():
                assert not after[name].index_select(dim, mine).any(), name
            for key in (f"state 0 {name} exp_avg", f"state 0 {name} exp_avg_sq", f"state 0 {name} momentum_buffer"):
                if key in after and mine.numel():
                    assert not after[key].index_select(dim, mine).any(), key
    train(net, optimizer, 2, seed=9)


# -- which units --------------------------------------------------------------------------------------------------


def test_the_lowest_and_those_below_a_threshold() -> None:
    net, _ = trained(gn.mlp([3, 6, 2]))
    (x,) = sample(net.graph, 4, 30)
    h = torch.relu(net.fc1(x)).detach().mean(0)
    lowest = int((h * net.head.weight.detach().abs().sum(0)).argmin())
    with net.edit() as edit:
        edit.reset("fc1", lowest=1, batch=(x, None))
    assert net.history.latest.steps[0].dropped == (lowest,)
    net, _ = trained(gn.mlp([3, 6, 2]))
    below = [unit for unit in range(6) if float(h[unit] / h.mean()) <= 0.6]
    assert 0 < len(below) < 6
    with net.edit() as edit:
        edit.reset("fc1", below=0.6, score="redo", batch=(x, None))
    step = net.history.latest.steps[0]
    assert list(step.dropped) == below
    assert step.arguments == {"below": 0.6, "score": "redo", "init": "kaiming", "state": "aged"}


def test_every_unit_may_be_reset_and_none() -> None:
    net, _ = trained(gn.mlp([3, 6, 2]))
    with net.edit() as edit:
        assert edit.reset("fc1", lowest=6, score="random") == tuple(range(6, 12))
    version = net.version
    with net.edit() as edit:
        assert edit.reset("fc1", below=-1.0, score="magnitude") == ()
    assert net.version == version


# -- what holds of the function -------------------------------------------------------------------------------------


def test_redo_with_a_threshold_of_zero() -> None:
    """Silent on the batch is approximate; silent because of the weights is exact."""
    net = random_network(gn.mlp([3, 6, 2]), 0)
    with torch.no_grad():
        net.fc1.bias[1] = -50.0
    (x,) = sample(net.graph, 4, 10)
    before = output(net, x)
    with net.edit() as edit:
        edit.reset("fc1", below=0.0, score="redo", batch=(x, None), preserves="approximate")
    step = net.history.latest.steps[0]
    assert (step.dropped, step.preserves) == ((1,), "approximate")
    assert "changed by 0 " in step.note
    check_preserved(net, before, x)
    with torch.no_grad():
        net.fc1.weight[2], net.fc1.bias[2] = 0.0, -1.0
    before = output(net, x)
    (other,) = sample(net.graph, 5, 10)
    elsewhere = output(net, other)
    with net.edit() as edit:
        edit.reset("fc1", below=0.0, score="redo", batch=(x, None), preserves="function")
    assert net.history.latest.steps[0].dropped == (2,)
    check_preserved(net, before, x)
    check_preserved(net, elsewhere, other)


def test_a_unit_that_speaks_changes_the_function_unless_its_mean_is_kept() -> None:
    net = random_network(gn.mlp([3, 6, 2], activation="gelu"), 0)
    (x,) = sample(net.graph, 4, 50)
    before = output(net, x)
    with pytest.raises(gn.EditError, match="outgoing weights"), net.edit() as edit:
        edit.reset("fc1", units=[1], batch=(x, None), preserves="approximate")
    plain = copy.deepcopy(net)
    with plain.edit() as edit:
        edit.reset("fc1", units=[1])
    assert plain.history.latest.preserves == "none"
    mean = torch.nn.functional.gelu(net.fc1(x)).mean(0).detach()
    bias = net.head.bias.detach() + net.head.weight.detach()[:, 1] * mean[1]
    with net.edit() as edit:
        edit.reset("fc1", units=[1], batch=(x, None), preserves="approximate", compensate=True)
    torch.testing.assert_close(net.head.bias.detach(), bias, rtol=1e-13, atol=0)
    kept, lost = (output(one, x) - before for one in (net, plain))
    assert float(kept.square().mean()) < float(lost.square().mean())
    torch.testing.assert_close(kept.mean(0), torch.zeros_like(kept.mean(0)), rtol=0, atol=1e-12)
    with torch.no_grad():
        net.fc1.weight[3] = 0.0
    before = output(net, x)
    with net.edit() as edit:
        edit.reset("fc1", units=[3], batch=(x, None), preserves="function", compensate="all")
    check_preserved(net, before, x)


def test_zero_outgoing_units_are_reset_exactly() -> None:
    net = random_network(conv(), 0)
    with torch.no_grad():
        net.conv2.weight[:, 1] = 0.0
    (x,) = sample(net.graph, 4)
    before = output(net, x)
    with net.edit() as edit:
        edit.reset("conv1", units=[1], preserves="function")
    check_preserved(net, before, x)
    layered = random_network(gn.mlp([4, 6, 2], norm="layer"), 0)
    with pytest.raises(gn.EditError, match="coupled"), layered.edit() as edit:
        edit.reset("fc1", units=[1], preserves="approximate")


# -- initialisers ---------------------------------------------------------------------------------------------------


def test_outgoing_weights_are_zero_or_the_initialisers() -> None:
    for init in ("kaiming", "copy-std", "zero-outgoing"):
        net = random_network(gn.mlp([3, 6, 2]), 0)
        with net.edit() as edit:
            edit.reset("fc1", units=[1], init=init)
        assert not net.head.weight[:, 1].any()
        assert bool(net.fc1.weight[1].any())
    net = random_network(gn.mlp([3, 6, 2]), 0)
    with net.edit() as edit:
        edit.reset("fc1", units=[1], init="kaiming", outgoing="init")
    assert bool(net.head.weight[:, 1].any())
    assert net.history.latest.steps[0].arguments["outgoing"] == "init"


def test_a_replica_takes_its_share_of_a_donor() -> None:
    net = random_network(gn.mlp([3, 6, 2]), 0)
    with torch.no_grad():
        net.head.weight[:, 1] = 0.0
    (x,) = sample(net.graph, 4)
    before = output(net, x)
    with net.edit() as edit:
        edit.reset("fc1", units=[1], init="net2wider", outgoing="init", preserves="function")
    check_preserved(net, before, x)
    assert bool(net.head.weight[:, 1].any())
    with pytest.raises(gn.EditError, match="shares its donors"), net.edit() as edit:
        edit.reset("fc1", units=[2], init="net2wider")


def test_replicas_in_the_place_of_units_copy_those_that_stay() -> None:
    net = random_network(gn.mlp([3, 6, 2]), 0)
    stay = net.fc1.weight.detach()[3:].clone()
    with net.edit() as edit:
        edit.reset("fc1", units=[0, 1, 2], init="net2wider", outgoing="init")
    assert torch.equal(net.fc1.weight[3:], stay)
    for row in net.fc1.weight.detach()[:3]:
        assert any(torch.equal(row, donor) for donor in stay)


def test_units_that_would_never_train_are_refused() -> None:
    net = random_network(gn.mlp([3, 6, 2], activation="gelu"), 0)
    (x,) = sample(net.graph, 4)
    with pytest.raises(gn.EditError, match="never train"), net.edit() as edit:
        edit.reset("fc1", units=[1], init="gradmax", batch=(x, None), loss=wave_loss)
    with net.edit() as edit:
        edit.reset("fc1", units=[1], init="gradmax", outgoing="init", batch=(x, None), loss=wave_loss)
    assert bool(net.head.weight[:, 1].any())


def test_tied_weights_are_refused() -> None:
    ops: list[Op] = [
        Input(name="x", shape=("time",), dtype="int64", high=7), op("embedding", "tok", "x", count=7, dim=4),
        op("linear", "head", "tok", out=7, tied="tok", bias=False),
    ]  # fmt: skip
    net = random_network(gn.Graph.from_ops(ops, ["head"]), 0)
    with pytest.raises(gn.EditError, match="tied weights"), net.edit() as edit:
        edit.reset("tok", units=[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"units": [0], "lowest": 1}, {"units": [9]}, {"lowest": 7, "score": "random"}, {"lowest": 1},
        {"units": [0], "init": "size"}, {"units": [0], "state": "warm"}, {"units": [0], "outgoing": "none"},
        {"units": [0], "compensate": True}, {"units": [0], "speed": (0.0, 1)}, {"units": [0], "init_options": 3},
        {"units": [0], "init_options": {"colour": 1}}, {"units": [0], "preserves": "all"}, {"below": "low"},
        {"units": [0], "init": "gradmax"}, {"units": list(range(6)), "state": "transplant"},
        {"units": [0], "rewarm": 0},
    ],
)  # fmt: skip
def test_wrong_arguments_are_edit_errors_and_change_nothing(wrong: dict[str, Any]) -> None:
    net, _ = trained(gn.mlp([3, 6, 2]))
    before = state_of(net)
    with pytest.raises(gn.EditError), net.edit() as edit:
        edit.reset("fc1", **wrong)
    assert net.version == 0
    check_bits(before, state_of(net), "a refused reset")


def test_frozen_groups_are_refused() -> None:
    net = random_network(gn.transformer(7, width=4, depth=1, heads=2, context=6, hidden=5), 0)
    with pytest.raises(gn.FrozenGroupError), net.edit() as edit:
        edit.reset("tok.entries", units=[0])


# -- beside other edits ---------------------------------------------------------------------------------------------


def test_dormant_units_come_back_as_they_were_beside_reset_ones() -> None:
    net = random_network(gn.mlp([3, 6, 4, 2]), 0)
    row, column = net.fc1.weight.detach()[1].clone(), net.fc2.weight.detach()[:, 1].clone()
    with net.edit() as edit:
        edit.retire("fc1", units=[1])
    with net.edit() as edit:
        (born,) = edit.reset("fc1", units=[3])
        (other,) = edit.reset("fc2", units=[0])
    fresh = net.fc1.weight.detach()[2].clone()
    with net.edit() as edit:
        edit.recruit("fc1", units=[1])
    ids = list(net.graph.groups["fc1"].ids)
    assert set(ids) == {0, 1, 2, born, 4, 5}
    assert torch.equal(net.fc1.weight.detach()[ids.index(1)], row)
    assert torch.equal(net.fc1.weight.detach()[ids.index(born)], fresh)
    back = net.fc2.weight.detach()[:, ids.index(1)]
    assert torch.equal(back[1:], column[1:])
    assert float(back[0]) == 0.0  # the reset unit of fc2 never read it
    assert net.graph.groups["fc2"].ids[0] == other
    check_lowering(net)


def test_a_grown_unit_can_be_reset_in_the_same_edit() -> None:
    net, optimizer = trained(gn.mlp([3, 6, 2]))
    with net.edit() as edit:
        (born,) = edit.grow("fc1", 1)
        (again,) = edit.reset("fc1", units=[born])
        edit.prune("fc1", units=[0])
    assert net.graph.groups["fc1"].ids == (1, 2, 3, 4, 5, again)
    assert not net.head.weight[:, 5].any()
    train(net, optimizer, 1)


# -- shrink and perturb ---------------------------------------------------------------------------------------------


def test_shrink_and_perturb() -> None:
    net, _ = trained(conv())
    before = state_of(net)
    with net.edit() as edit:
        names = edit.shrink_and_perturb("conv1", shrink=0.5, noise=0.0)
    assert names == ("conv1.weight", "conv1.bias")
    after = state_of(net)
    assert torch.equal(after["conv1.weight"], 0.5 * before["conv1.weight"])
    assert torch.equal(after["conv1.bias"], 0.5 * before["conv1.bias"])
    rest = {k: v for k, v in before.items() if k not in names}
    check_bits(rest, {k: after[k] for k in rest}, "all else, optimizer state included")
    with net.edit(seed=5) as edit:
        names = edit.shrink_and_perturb(shrink=0.9, noise=0.1)
    weights = {name for name, spec in net.graph.tensors.items() if spec.kind in ("weight", "bias")}
    assert set(names) == weights
    noise = torch.cat([(net.tensor(name).detach() - 0.9 * after[name]).flatten() for name in names])
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(net.norm_c1.weight, after["norm_c1.weight"])
    version = net.history.latest
    assert version.steps[0].arguments == {"shrink": 0.9, "noise": 0.1}
    assert version.preserves == "none"


@pytest.mark.parametrize(
    "wrong", [{"shrink": 1.5}, {"shrink": -0.1}, {"noise": -1.0}, {"noise": float("nan")}, {"shrink": True}]
)
def test_wrong_shrinking_is_an_edit_error(wrong: dict[str, Any]) -> None:
    net = random_network(gn.mlp([3, 6, 2]), 0)
    with pytest.raises(gn.EditError), net.edit() as edit:
        edit.shrink_and_perturb(**wrong)
    with pytest.raises(gn.GraphnetError), net.edit() as edit:
        edit.shrink_and_perturb("fc9")
    assert net.version == 0


def test_the_plan_of_a_reset_is_one_unit_map() -> None:
    net = random_network(gn.mlp([3, 6, 2]), 0)
    plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
    from graphnet.edit.operators import reset

    reset(plan, "fc1", units=[1, 4])
    assert plan._maps.composed["fc1"].source.tolist() == [0, -1, 2, 3, -1, 5]
