"""Splitting units: exact copies, Firefly splits, splitting steepest descent."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.edit.newborns import visible
from graphnet.edit.plan import Plan
from graphnet.edit.splitters.base import Candidates
from graphnet.edit.splitters.steepest import splitting_curvature
from graphnet.ir.ops import OPS
from graphnet.testing import check_preserved, graphs, random_network, sample, train, wave_loss

F64 = torch.float64


def op(kind: str, name: str, *inputs: str, **attributes: Any) -> Any:
    return OPS[kind](name=name, inputs=inputs, **attributes)


def gradients(net: gn.Network, *inputs: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(wave_loss(net(*inputs)), parameters), strict=True))


# -- copies -------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_copies_preserve_the_function_wherever_they_promise_it(draw_group: Any, data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 1)
    inputs = sample(graph, 2)
    group = draw_group(data, graph)
    units = data.draw(st.lists(st.sampled_from(group.ids), min_size=1, max_size=3, unique=True))
    copies = data.draw(st.integers(1, 2))
    shares = data.draw(st.sampled_from(["equal", "random"]))
    net.eval()
    before = net(*inputs)
    refusal = ""
    try:
        with net.edit() as edit:
            born = edit.split(group.name, units=units, copies=copies, shares=shares, noise=0.0)
    except gn.EditError as error:
        refusal = str(error)
    if refusal:
        assert "tied" in refusal
        return
    assert len(born) == copies * len(units)
    assert net.graph.groups[group.name].ids == (*group.ids, *born)
    step = net.history.latest.steps[0]
    assert step.operator == "split"
    assert step.arguments["units"] == [unit for unit in group.ids if unit in set(units)]
    if step.preserves == "function":  # all units copied equally often leave the statistics of norms alone, too
        assert visible(group) is None or set(units) == set(group.ids)
        check_preserved(net, before, *inputs, what=f"split {group.name}")
    else:
        assert (step.preserves, step.note) == ("none", visible(group))


@pytest.mark.parametrize("shares", ["equal", "random"])
def test_copies_have_their_share_of_the_donors_gradient(shares: str) -> None:
    net = random_network(gn.mlp([5, 6, 4, 3], activation="gelu", norm="batch"), 0).eval()
    (x,) = sample(net.graph, 1, 16)
    before, columns = gradients(net, x), net.fc2.weight.detach().clone()
    with net.edit() as edit:
        born = edit.split("fc1", units=[4, 1], copies=2, shares=shares)
    assert born == (6, 7, 8, 9)
    after = gradients(net, x)
    scale = {name: 1e-12 * float(found.abs().max()) for name, found in before.items()}
    totals = dict.fromkeys((1, 4), 0.0)
    for unit, donor in {1: 1, 4: 4, 6: 1, 7: 1, 8: 4, 9: 4}.items():
        at = int(columns[:, donor].abs().argmax())
        share = float(net.fc2.weight.detach()[at, unit] / columns[at, donor])
        totals[donor] += share
        if shares == "equal":
            assert share == pytest.approx(1 / 3, rel=1e-14)
        for name in ("fc1.weight", "fc1.bias", "norm1.weight", "norm1.bias"):
            assert float((after[name][unit] - share * before[name][donor]).abs().max()) <= scale[name]
        gap = (after["fc2.weight"][:, unit] - before["fc2.weight"][:, donor]).abs().max()
        assert float(gap) <= scale["fc2.weight"]
    assert list(totals.values()) == pytest.approx([1.0, 1.0], rel=1e-13)
    for unit in (0, 2, 3, 5):  # the others' gradients and weights are what they were
        assert torch.equal(net.fc2.weight[:, unit], columns[:, unit])
        assert float((after["fc1.weight"][unit] - before["fc1.weight"][unit]).abs().max()) <= scale["fc1.weight"]


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
])  # fmt: skip
def test_the_optimizer_of_copies_holds_what_their_gradients_would_have_made(make: Any) -> None:
    """Incoming gradients are shares of the donor's, so moments are too; outgoing ones are the donor's."""
    net = random_network(gn.mlp([5, 6, 4, 3], activation="tanh"), 0)
    optimizer = make(net.parameters())
    net.attach(optimizer)
    train(net, optimizer, 4)
    before = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in net.named_parameters()}
    gradient = net.fc1.weight.grad[2].clone()
    with net.edit() as edit:
        edit.split("fc1", units=[2], shares="random")
    column = net.fc2.weight.detach()[0]
    share = {unit: float(column[unit] / (column[2] + column[6])) for unit in (2, 6)}
    for key, power in (("exp_avg", 1), ("exp_avg_sq", 2), ("max_exp_avg_sq", 2), ("momentum_buffer", 1)):
        if key not in before["fc1.weight"]:
            continue
        for unit in (2, 6):
            now, then = optimizer.state[net.fc1.weight][key][unit], before["fc1.weight"][key][2]
            torch.testing.assert_close(now, then * share[unit] ** power, rtol=1e-10, atol=0)
            out = optimizer.state[net.fc2.weight][key][:, unit]
            assert torch.equal(out, before["fc2.weight"][key][:, 2])
    for unit in (2, 6):  # gradients in flight follow like first moments
        torch.testing.assert_close(net.fc1.weight.grad[unit], gradient * share[unit], rtol=1e-10, atol=0)


def test_units_to_copy_are_chosen_by_score_and_recorded_by_id() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    with torch.no_grad():
        net.fc1.weight[3] *= 10
        net.fc1.weight[5] *= 5
    with net.edit(seed=4) as edit:
        edit.split("fc1", highest=2, score="magnitude", shares="random")
    step = net.history.latest.steps[0]
    assert step.arguments == {"units": [3, 5], "by": "net2wider", "state": "scaled", "shares": "random"}
    again = random_network(gn.mlp([5, 6, 3]), 0)
    with torch.no_grad():
        again.fc1.weight[3] *= 10
        again.fc1.weight[5] *= 5
    with again.edit(seed=4) as edit:  # the recorded step draws the same shares, whatever chose the units
        edit.split("fc1", **step.arguments)
    assert torch.equal(again.head.weight, net.head.weight)


def test_copies_have_their_donors_place_in_a_norm() -> None:
    net = random_network(gn.mlp([4, 5, 3], norm="batch"), 0)
    (x,) = sample(net.graph, 1)
    net.eval()
    before = net(x)
    with net.edit() as edit:
        assert edit.split("fc1", units=[2, 4], preserves="function") == (5, 6)
    for slot in ("weight", "bias", "running_mean", "running_var"):
        values = net.tensor(f"norm1.{slot}").detach()
        assert torch.equal(values[5:], values[[2, 4]]), slot
    check_preserved(net, before, x)


def test_the_copies_of_a_unit_stand_together_in_the_order_of_units() -> None:
    net = random_network(gn.mlp([4, 5, 3]), 0)
    with net.edit() as edit:
        born = edit.split("fc1", units=[3, 1], copies=2)
    assert born == (5, 6, 7, 8)
    assert torch.equal(net.fc1.weight[5:], net.fc1.weight[[1, 1, 3, 3]])


def test_a_split_unit_is_shared_among_copies_once_under_tied_readers() -> None:
    ops = [op("input", "x", shape=(4,)), op("linear", "a", "x", out=5), op("tanh", "h", "a")]
    ops += [op("linear", "b", "h", out=3), op("linear", "c", "h", out=3, tied="b")]
    ops += [op("mul", "m", "b", "c"), op("linear", "d", "m", out=2)]
    net = random_network(gn.Graph.from_ops(ops, ["d"]), 0)
    (x,) = sample(net.graph, 1)
    before = net(x)
    with net.edit() as edit:
        edit.split("a", units=[0, 3], shares="random", preserves="function")
    check_preserved(net, before, x)


def test_noise_makes_copies_approximate() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    with pytest.raises(gn.EditError, match="noise on the newborns"), net.edit() as edit:
        edit.split("fc1", units=[0], noise=0.1, preserves="function")
    with net.edit() as edit:
        edit.split("fc1", units=[0], noise=0.1)
    assert net.history.latest.preserves == "approximate"
    assert not torch.equal(net.fc1.weight[0], net.fc1.weight[6])


def test_the_dormant_readers_of_a_split_unit_come_back_to_the_same_function() -> None:
    net = random_network(gn.mlp([5, 6, 4, 3], activation="tanh"), 0)
    (x,) = sample(net.graph, 1)
    with net.edit() as edit:
        edit.retire("fc2", units=[1, 3])
    with net.edit() as edit:
        edit.recruit("fc2", units=[1, 3])
    before = net(x)
    with net.edit() as edit:
        edit.retire("fc2", units=[1, 3])
        edit.split("fc1", units=[0, 2], shares="random")
        edit.recruit("fc2", units=[1, 3])
    check_preserved(net, before, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of units"),
        ({"units": [0], "highest": 1}, "give one of units"),
        ({"units": []}, "no unit is named"),
        ({"units": [9]}, "has no unit"),
        ({"units": [0, 0]}, "named twice"),
        ({"highest": 7}, "7 units of 6"),
        ({"highest": True}, "True units of 6"),
        ({"units": [0], "by": "halving"}, "no way to split 'halving'"),
        ({"units": [0], "copies": 0}, "copies is a whole number"),
        ({"units": [0], "by": "steepest", "copies": 2}, "copies is a whole number"),
        ({"units": [0], "score": "magnitude"}, "leave it out where units are named"),
        ({"units": [0], "noise": -1.0}, "noise must be a number of at least 0"),
        ({"units": [0], "shares": "half"}, "'equal' or 'random'"),
        ({"units": [0], "state": "hot"}, "no state policy"),
        ({"units": [0], "by": "steepest"}, "needs data"),
        ({"units": [0], "by": "firefly"}, "needs data"),
        ({"units": [0], "by": "steepest", "epsilon": 0.0, "batch": (torch.zeros(2, 5), None), "loss": wave_loss},
         "epsilon and beta"),
        ({"highest": 1, "score_options": 3}, "score_options"),
    ],
)  # fmt: skip
def test_what_a_split_refuses(options: dict[str, Any], message: str) -> None:
    net = gn.Network(gn.mlp([5, 6, 3]))
    with pytest.raises(gn.EditError, match=message), net.edit() as edit:
        edit.split("fc1", **options)
    assert net.version == 0


# -- steepest -----------------------------------------------------------------------------------------------------


def regression(graph: gn.Graph, size: int = 40) -> tuple[gn.Network, Tensor, Tensor]:
    net = random_network(graph, 0).eval()
    (x,) = sample(graph, 1, size)
    y = net(x).detach() + torch.randn(net(x).shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    return net, x, y


def image_net(activation: str, norm: bool) -> gn.Graph:
    ops = [
        op("input", "x", shape=(2, 5, 5)),
        op("conv2d", "fc1", "x", out=5, kernel=3, padding=1, stride=2),
        *([op("batch_norm", "norm1", "fc1")] if norm else []),
        op(activation, "act1", "norm1" if norm else "fc1"),
        op("conv2d", "two", "act1", out=4, kernel=3, padding=1),
        op("flatten", "flat", "two"),
        op("linear", "head", "flat", out=2),
    ]
    return gn.Graph.from_ops(ops, ["head"])


SPLIT_NETS = {
    "linear": gn.mlp([5, 6, 3], activation="softplus"),
    "linear-bn": gn.mlp([5, 6, 3], activation="softplus", norm="batch"),
    "conv": image_net("softplus", norm=False),
    "conv-bn": image_net("gelu", norm=True),
}


@pytest.mark.parametrize("kind", sorted(SPLIT_NETS))
def test_steepest_splits_change_the_loss_by_half_the_eigenvalue(kind: str) -> None:
    """dL / eps^2 tends to lambda_min / 2, with an error of the order of eps^2."""
    net, x, y = regression(SPLIT_NETS[kind])
    group = net.graph.groups["fc1"]
    plan = Plan(net, net.graph, torch.Generator())
    every = np.arange(group.size)
    found = splitting_curvature(Candidates(plan, group, every, group.size, 1, (x, y), F.mse_loss))
    unit = int(found.values.argmin())
    limit = 0.5 * float(found.values[unit])
    assert limit < 0
    before, errors = float(F.mse_loss(net(x), y).detach()), []
    for epsilon in (0.04, 0.02, 0.01):
        net, x, y = regression(SPLIT_NETS[kind])
        with net.edit() as edit:
            edit.split("fc1", units=[unit], by="steepest", epsilon=epsilon, batch=(x, y), loss=F.mse_loss)
        step = net.history.latest.steps[0]
        assert step.preserves == "approximate"
        predicted = float(step.note.split("predicted change ")[1].rstrip(")"))
        assert predicted == pytest.approx(limit * epsilon**2, rel=1e-2)  # the note has three digits
        errors.append(abs((float(F.mse_loss(net(x), y).detach()) - before) / epsilon**2 - limit))
    assert errors[-1] < 0.02 * abs(limit)
    for rough, fine in itertools.pairwise(errors):
        assert fine < rough / 3  # the second order gives 4


@pytest.mark.parametrize("size", [20, 3])
def test_the_splitting_matrix_is_the_curvature_by_autograd(size: int) -> None:
    """Against the Hessian of the loss along a split of one unit: w + v and w - v with halved outgoing weights.

    With fewer samples than weights the curvature is zero in some directions, and what is not below zero is not said.
    """
    net, x, y = regression(gn.mlp([3, 4, 2], activation="softplus"), size)
    plan = Plan(net, net.graph, torch.Generator())
    group = net.graph.groups["fc1"]
    found = splitting_curvature(Candidates(plan, group, np.arange(4), 4, 1, (x, y), F.mse_loss))
    first, second = net.fc1, net.head
    for unit in range(4):

        def loss(v: Tensor, unit: int = unit) -> Tensor:
            h = F.softplus(F.linear(x, first.weight, first.bias))
            ones = torch.cat([x, torch.ones(len(x), 1, dtype=F64)], dim=1)
            w = torch.cat([first.weight[unit], first.bias[unit : unit + 1]])
            pair = F.softplus(ones @ (w + v)) / 2 + F.softplus(ones @ (w - v)) / 2
            out = second(h) + (pair - h[:, unit])[:, None] * second.weight[:, unit]
            return F.mse_loss(out, y)

        hessian = torch.autograd.functional.hessian(loss, torch.zeros(4, dtype=F64))
        values, vectors = torch.linalg.eigh(hessian)
        if size < 4 and float(values[0]) > -1e-12:
            assert float(found.values[unit]) >= -1e-12
            continue
        assert float(found.values[unit]) == pytest.approx(float(values[0]), rel=1e-10)
        assert abs(float(found.vectors[unit] @ vectors[:, 0])) == pytest.approx(1.0, rel=1e-10)


def test_steepest_takes_the_most_negative_and_only_negative_eigenvalues() -> None:
    graph = gn.mlp([5, 12, 3], activation="softplus")
    net, x, y = regression(graph)
    plan = Plan(net, net.graph, torch.Generator())
    values = splitting_curvature(
        Candidates(plan, net.graph.groups["fc1"], np.arange(12), 12, 1, (x, y), F.mse_loss)
    ).values
    order = values.argsort().tolist()
    with net.edit() as edit:
        edit.split("fc1", highest=3, by="steepest", batch=(x, y), loss=F.mse_loss)
    assert net.history.latest.steps[0].arguments["units"] == sorted(order[:3])
    net, x, y = regression(graph)
    with torch.no_grad():  # a unit whose output the loss wants larger everywhere: convexity makes splitting harmful
        net.head.weight[:, 4] = 0.0
    y = net(x).detach() - 1.0
    with torch.no_grad():
        net.head.weight[:, 4] = 0.01
    with pytest.raises(gn.EditError, match=r"lambda_min is not negative for units \[4\]"), net.edit() as edit:
        edit.split("fc1", units=[4], by="steepest", batch=(x, y), loss=F.mse_loss)
    assert net.version == 0


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_kinks_are_softened_to_see_their_curvature(activation: str) -> None:
    net, x, y = regression(gn.mlp([5, 12, 3], activation=activation), 200)
    before = float(F.mse_loss(net(x), y).detach())
    with net.edit() as edit:
        edit.split("fc1", highest=3, by="steepest", epsilon=0.3, batch=(x, y), loss=F.mse_loss)
    assert float(F.mse_loss(net(x), y).detach()) < before


def test_steepest_refuses_what_has_no_single_layer_and_activation() -> None:
    batch: dict[str, Any] = {"batch": sample(gn.transformer(7, width=8, depth=1, heads=2), 0) * 2, "loss": wave_loss}
    for group, message in (("blocks.0.q_proj.heads", "one weight"), ("tok", "one weight|straight to an activation")):
        net = gn.Network(gn.transformer(7, width=8, depth=1, heads=2)).double()
        with pytest.raises(gn.EditError, match=message), net.edit() as edit:
            edit.split(group, highest=1, by="steepest", **batch)
    net, x, y = regression(gn.mlp([5, 6, 3], activation="softplus"))
    with pytest.raises(gn.EditError, match="straight to an activation"), net.edit() as edit:
        edit.split("head", highest=1, by="steepest", batch=(x, y), loss=F.mse_loss)
    net, x, y = regression(gn.mlp([5, 6, 3], activation="softplus", norm="layer"))
    with pytest.raises(gn.EditError, match=r"'norm1' \(layer_norm\)"), net.edit() as edit:
        edit.split("fc1", highest=1, by="steepest", batch=(x, y), loss=F.mse_loss)


# -- firefly ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv-bn"])
def test_firefly_splits_part_by_v_and_predict_the_change(kind: str) -> None:
    errors = []
    for size in (0.02, 0.01):
        net, x, y = regression(SPLIT_NETS[kind], 60)
        before = float(F.mse_loss(net(x), y).detach())
        weight = net.fc1.weight.detach().clone()
        with net.edit(seed=3) as edit:
            born = edit.split("fc1", highest=1, by="firefly", size=size, steps=0, batch=(x, y), loss=F.mse_loss)
        step = net.history.latest.steps[0]
        (unit,) = step.arguments["units"]
        assert step.preserves == "approximate"
        first, second = net.fc1.weight.detach()[unit], net.fc1.weight.detach()[born[0]]
        torch.testing.assert_close((first + second) / 2, weight[unit], rtol=1e-12, atol=1e-14)
        assert float((first - second).norm()) > 0
        predicted = float(step.note.split("predicted change ")[1].rstrip(")"))
        change = float(F.mse_loss(net(x), y).detach()) - before
        assert predicted < 0
        errors.append(abs(change / predicted - 1))
    assert errors[-1] < 0.2  # all candidates are scored together, and the error is of the order of v


def test_firefly_without_perturbation_is_a_copy_and_change_is_of_second_order() -> None:
    changes = []
    for size in (0.2, 0.1):
        net, x, y = regression(gn.mlp([5, 6, 3], activation="tanh"))
        before = net(x).detach()
        with net.edit(seed=3) as edit:
            edit.split("fc1", highest=1, by="firefly", size=size, steps=0, batch=(x, y), loss=F.mse_loss)
        changes.append(float((net(x).detach() - before).norm()))
    assert changes[0] / changes[1] == pytest.approx(4.0, rel=0.1)


def test_firefly_learns_better_splits() -> None:
    found = {}
    for steps in (0, 30):
        net, x, y = regression(gn.mlp([5, 6, 3], activation="tanh"), 100)
        with net.edit(seed=3) as edit:
            edit.split("fc1", highest=1, by="firefly", steps=steps, batch=(x, y), loss=F.mse_loss)
        found[steps] = float(net.history.latest.steps[0].note.split("predicted change ")[1].rstrip(")"))
    assert found[30] < found[0] < 0


def test_firefly_splits_only_what_lowers_the_loss() -> None:
    net, x, y = regression(gn.mlp([5, 6, 3], activation="tanh"))
    with pytest.raises(gn.EditError, match="is not negative for units"), net.edit(seed=3) as edit:
        edit.split("fc1", highest=6, by="firefly", steps=0, batch=(x, y), loss=F.mse_loss)
    assert net.version == 0
