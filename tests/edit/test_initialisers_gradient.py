"""Initialisers that read the batch: GradMax across kinds of layers, TINY, NeST, Firefly; and the bottleneck."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import graphnet as gn
from graphnet.edit import desired
from graphnet.edit.desired import unexplained
from graphnet.edit.initialisers import bridge as bridge_module
from graphnet.edit.initialisers.bridge import bridge
from graphnet.edit.initialisers.tiny import directions
from graphnet.edit.newborns import Newborns
from graphnet.edit.plan import Plan
from graphnet.ir.ops import OPS
from graphnet.probes import growth_bottleneck
from graphnet.testing import check_preserved, random_network, sample, wave_loss

F64 = torch.float64


def op(kind: str, name: str, *inputs: str, **attributes: Any) -> Any:
    return OPS[kind](name=name, inputs=inputs, **attributes)


def target_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target)


def two_layers(kind: str, activation: str = "tanh") -> gn.Graph:
    """Two layers, the first named ``one`` and the second ``two``, joined as the kind says."""
    image = [op("input", "x", shape=(2, 6, 6))]
    conv = op("conv2d", "one", "x", out=4, kernel=3, padding=1)
    act = op(activation, "act", "one")
    flat_end = [op("flatten", "flat", "act"), op("linear", "two", "flat", out=5)]
    kinds: dict[str, list[Any]] = {
        "linear-linear": [op("input", "x", shape=(7,)), op("linear", "one", "x", out=4), act,
                          op("linear", "two", "act", out=5)],
        "sequence": [op("input", "x", shape=(3, 7)), op("linear", "one", "x", out=4), act,
                     op("linear", "two", "act", out=5)],
        "conv-conv": [*image, conv, act, op("conv2d", "two", "act", out=5, kernel=3, padding=1)],
        "strided": [*image, op("conv2d", "one", "x", out=4, kernel=3, padding=2, stride=2, dilation=2), act,
                    op("conv2d", "two", "act", out=5, kernel=2, stride=2, padding=1)],
        "conv1d": [op("input", "x", shape=(2, 9)), op("conv1d", "one", "x", out=4, kernel=3, padding=1), act,
                   op("conv1d", "two", "act", out=5, kernel=3, stride=2)],
        "conv-flat-linear": [*image, conv, act, *flat_end],
        "conv-maxpool-flat-linear": [*image, conv, act, op("max_pool", "pool", "act", kernel=2),
                                     op("flatten", "flat", "pool"), op("linear", "two", "flat", out=5)],
        "conv-avgpool-conv": [*image, conv, act, op("avg_pool", "pool", "act", kernel=3, padding=1, stride=2),
                              op("conv2d", "two", "pool", out=5, kernel=2)],
        "conv-bn-flat-linear": [*image, conv, op("batch_norm", "norm", "one"), op(activation, "act", "norm"),
                                *flat_end],
        "channels-last": [*image, conv, act, op("permute", "last", "act", order=(3, 2, 1)),
                          op("flatten", "flat", "last"), op("linear", "two", "flat", out=5)],
        "linear-conv": [op("input", "x", shape=(7,)), op("linear", "one", "x", out=4 * 9), act,
                        op("reshape", "map", "act", shape=(4, 3, 3)),
                        op("conv2d", "two", "map", out=5, kernel=2, padding=1)],
        "linear-conv-strided": [op("input", "x", shape=(7,)), op("linear", "one", "x", out=4 * 16),
                                op("reshape", "map", "one", shape=(4, 4, 4)), op(activation, "act", "map"),
                                op("avg_pool", "pool", "act", kernel=2),
                                op("conv2d", "two", "pool", out=5, kernel=2)],
        "linear-reshape-linear": [op("input", "x", shape=(7,)), op("linear", "one", "x", out=4 * 9), act,
                                  op("reshape", "map", "act", shape=(4, 3, 3)), op("max_pool", "pool", "map", kernel=3),
                                  op("flatten", "flat", "pool"), op("linear", "two", "flat", out=5)],
        "concat": [*image, conv, act, op("conv2d", "side", "x", out=3, kernel=1),
                   op("concat", "both", "side", "act"), op("flatten", "flat", "both"),
                   op("linear", "two", "flat", out=5)],
    }  # fmt: skip
    ops = kinds[kind]
    return gn.Graph.from_ops(ops, ["two"])


KINDS = (
    "linear-linear", "sequence", "conv-conv", "strided", "conv1d", "conv-flat-linear", "conv-maxpool-flat-linear",
    "conv-avgpool-conv", "conv-bn-flat-linear", "channels-last", "linear-conv", "linear-conv-strided",
    "linear-reshape-linear", "concat",
)  # fmt: skip


def group_of(graph: gn.Graph) -> str:
    """The group that ``two`` reads and ``one`` writes; where ``one`` writes a product, the channels of it."""
    (name,) = {
        key for layout in graph.tensors["one.weight"].dims[:1] for key in layout.atoms()
    } & {key for key in graph.tensors["two.weight"].dims[1].atoms() if graph.groups[key].frozen is None}  # fmt: skip
    return name


def born(net: gn.Network, before: gn.Network, tensor: str, dim: int) -> list[int]:
    """Positions of newborn slices along a dimension."""
    group = group_of(net.graph)
    owners = net.graph.tensors[tensor].dims[dim].owners(group, net.graph.sizes)
    return [int(at) for at in (owners >= before.graph.groups[group].size).nonzero()[0]]


def unit_norms(net: gn.Network, weight: Tensor, tensor: str, dim: int) -> Tensor:
    """The norm of each unit's slice."""
    owners = net.graph.tensors[tensor].dims[dim].owners(group_of(net.graph), net.graph.sizes)
    rows = weight.movedim(dim, 0).reshape(weight.shape[dim], -1)
    return torch.stack([rows[torch.from_numpy(owners == unit)].norm() for unit in range(owners.max() + 1)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("activation", "slope"), [("tanh", 1.0), ("gelu", 0.5)])
def test_gradmax_is_exact_whatever_the_layers_are(kind: str, activation: str, slope: float) -> None:
    """The newborns' squared gradient is c^2 times the squares of the bridge's singular values, and nothing beats it."""
    graph = two_layers(kind, activation)
    group, small = group_of(graph), random_network(graph, 0)
    net = random_network(graph, 0).eval()
    (x,) = sample(graph, 1, 6)
    y = net(x).detach() + torch.randn(net(x).shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    before = net(x)
    norms = unit_norms(net, net.two.weight.detach(), "two.weight", 1)
    c = 0.7 * float(norms[: graph.groups[group].size].mean())
    with net.edit() as edit:
        edit.grow(group, 3, init="gradmax", scale=0.7, preserves="function", batch=(x, y), loss=target_loss)
    check_preserved(net, before, x, what=kind)
    rows, columns = born(net, small, "one.weight", 0), born(net, small, "two.weight", 1)

    def reached() -> float:
        (gradient,) = torch.autograd.grad(target_loss(net(x), y), net.one.weight)
        return float(gradient[rows].square().sum())

    best = reached()
    assert not net.one.weight[rows].any()
    # The bridge by autograd alone: each outgoing direction in turn gives one row of the matrix.
    owners = graph_owners(net, "two.weight", 1)
    first = torch.from_numpy((owners == graph.groups[group].size).nonzero()[0])
    trained = net.two.weight.detach().clone()
    width, out = len(first), trained.shape[0]
    taps = trained[0, 0].numel()
    own = torch.from_numpy((graph_owners(net, "one.weight", 0) == graph.groups[group].size).nonzero()[0])
    matrix = []
    for place in first:
        for end in range(out):
            for tap in range(taps):
                with torch.no_grad():
                    net.two.weight.copy_(trained)
                    net.two.weight[:, columns] = 0.0
                    net.two.weight[end, place].view(-1)[tap] = 1.0
                (gradient,) = torch.autograd.grad(target_loss(net(x), y), net.one.weight)
                matrix.append(gradient[own].flatten())
    values = torch.linalg.svdvals(torch.stack(matrix))
    assert best == pytest.approx(c**2 * float(values[:3].square().sum()), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        drawn = c * torch.linalg.qr(torch.randn(width * out * taps, 3, dtype=F64, generator=generator)).Q
        with torch.no_grad():
            for unit in range(3):
                at = torch.from_numpy((owners == graph.groups[group].size + unit).nonzero()[0])
                block = drawn[:, unit].reshape(width, out, *trained.shape[2:])
                net.two.weight[:, at] = block.transpose(0, 1)
        assert reached() <= best * (1 + 1e-9)


def graph_owners(net: gn.Network, tensor: str, dim: int) -> Any:
    return net.graph.tensors[tensor].dims[dim].owners(group_of(net.graph), net.graph.sizes)


@pytest.mark.parametrize(
    "kind", ["conv-flat-linear", "conv-avgpool-conv", "conv-bn-flat-linear", "linear-conv-strided"]
)
def test_gradmax_lifts_newborns_past_a_relu_wherever_the_constant_can_be_taken_back(kind: str) -> None:
    graph = two_layers(kind, "relu")
    net = random_network(graph, 0).eval()
    (x,) = sample(graph, 1, 6)
    before = net(x)
    with net.edit() as edit:
        edit.grow(group_of(graph), 2, init="gradmax", lift=0.1, batch=(x, None), loss=wave_loss)
    step = net.history.latest.steps[0]
    if kind == "conv-avgpool-conv":  # a padded average is lower at the border: no bias takes that back
        assert step.preserves == "approximate"
        assert "another value at each position" in step.note
    else:
        assert step.preserves == "function"
        check_preserved(net, before, x, what=kind)
    rows = born(net, random_network(graph, 0), "one.weight", 0)
    (gradient,) = torch.autograd.grad(wave_loss(net(x)), net.one.weight)
    assert bool(gradient[rows].any(dim=1).all())


def test_gradmax_takes_back_what_a_sigmoid_gives_at_zero() -> None:
    net = random_network(gn.mlp([5, 6, 4], activation="sigmoid"), 0)
    (x,) = sample(net.graph, 1, 6)
    before = net(x)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="gradmax", preserves="function", batch=(x, None), loss=wave_loss)
    check_preserved(net, before, x)


# -- TINY ---------------------------------------------------------------------------------------------------------


def span_of(net: gn.Network, group: str, count: int, x: Tensor, y: Tensor) -> Any:
    """The bridge of a growth that is not committed."""
    plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
    old = plan.graph.groups[group]
    ids = tuple(range(old.next_id, old.next_id + count))
    step = plan.advance(replace(old, ids=(*old.ids, *ids), next_id=old.next_id + count))[group]
    return bridge(Newborns(plan, plan.graph.groups[group], step, (x, y), target_loss), "tiny", formal=True)


def fitted(kind: str, activation: str = "tanh", size: int = 60) -> tuple[gn.Network, Tensor, Tensor]:
    net = random_network(two_layers(kind, activation), 0).eval()
    (x,) = sample(net.graph, 1, size)
    y = net(x).detach() + torch.randn(net(x).shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    return net, x, y


@pytest.mark.parametrize(
    ("kind", "project", "size"),
    [
        *itertools.product(
            ["linear-linear", "sequence", "conv-conv", "strided", "conv1d", "conv-flat-linear"], [True, False], [200]
        ),
        ("linear-linear", False, 5),  # fewer samples than features
    ],
)
def test_tiny_directions_give_the_sum_of_squares(kind: str, project: bool, size: int) -> None:
    """E<V, X A Omega^T> = sum of s^2, with every term written out through the layers themselves."""
    net, x, y = fitted(kind, size=size)  # more rows than features, or the projection leaves nothing
    group = group_of(net.graph)
    found = directions(span_of(net, group, 2, x, y), project=project)
    root = found.values.sqrt()[:, None]
    incoming, outgoing = root * found.incoming, root * found.outgoing
    count = len(found.values)
    assert count >= 2
    total = 0.0
    for unit in range(count):  # one unit in place of the layer: its map, then what it adds to the output
        with torch.no_grad():
            first, second = net.graph.ops["one"], net.graph.ops["two"]
            weight = incoming[unit, :-1].reshape(1, *net.one.weight.shape[1:])
            if first.op == "linear":
                z = F.linear(x, weight, incoming[unit, -1:])
            else:
                function = F.conv1d if first.op == "conv1d" else F.conv2d
                z = function(x, weight, incoming[unit, -1:], first.stride, first.padding, first.dilation)
            if second.op == "linear":
                z = z.flatten(1) if kind == "conv-flat-linear" else z
                moved = F.linear(z, outgoing[unit].reshape(-1, 5).T)
            else:
                function = F.conv1d if second.op == "conv1d" else F.conv2d
                kernel = outgoing[unit].reshape(5, 1, *net.two.weight.shape[2:])
                moved = function(z, kernel, None, second.stride, second.padding, second.dilation)
            total += float((found.wanted * moved).sum())
    assert total == pytest.approx(float(found.values.square().sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("linear-linear", "tanh"), ("linear-linear", "gelu"), ("conv-conv", "tanh"), ("conv-bn-flat-linear", "tanh")],
)
def test_tiny_lowers_the_loss_as_predicted(kind: str, activation: str) -> None:
    """Without projection the loss falls by gamma^2 sum(s^2), up to the third order in gamma."""
    errors = []
    for gamma in (0.02, 0.01, 0.005):
        net, x, y = fitted(kind, activation)
        group = group_of(net.graph)
        found = directions(span_of(net, group, 2, x, y), project=False)
        gain = gamma**2 * float(found.values[:2].square().sum())
        before = float(target_loss(net(x), y).detach())
        with net.edit() as edit:
            edit.grow(group, 2, init="tiny", gamma=gamma, project=False, batch=(x, y), loss=target_loss)
        change = before - float(target_loss(net(x), y).detach())
        assert change == pytest.approx(gain, rel=0.1)
        errors.append(abs(change - gain))
    for rough, fine in itertools.pairwise(errors):
        assert fine < rough / 6  # third order gives 8, fourth (tanh is odd) 16


def test_tiny_searches_for_the_scale_and_lowers_the_loss() -> None:
    net, x, y = fitted("linear-linear")
    before = float(target_loss(net(x), y).detach())
    with net.edit() as edit:
        edit.grow("one", 3, init="tiny", batch=(x, y), loss=target_loss)
    best = float(target_loss(net(x), y).detach())
    assert best < before
    assert net.history.latest.preserves == "none"
    rows = (
        net.one.weight[4:].detach().clone(),
        net.two.weight[:, 4:].detach().clone(),
        net.one.bias[4:].detach().clone(),
    )
    for factor in (0.7, 1.4):  # the search ends near a minimum along the line
        with torch.no_grad():
            net.one.weight[4:], net.one.bias[4:] = factor * rows[0], factor * rows[2]
            net.two.weight[:, 4:] = factor * rows[1]
        assert float(target_loss(net(x), y).detach()) > best


def test_tiny_projects_out_what_the_consumer_can_do_itself() -> None:
    net, x, y = fitted("linear-linear")
    h = torch.tanh(net.one(x)).detach()
    out = net(x)
    (delta,) = torch.autograd.grad(target_loss(out, y), out)
    left = unexplained(h, -delta, net.graph.ops["two"])
    fit = torch.linalg.lstsq(torch.cat([h, torch.ones(len(h), 1, dtype=F64)], dim=1), -delta).solution
    expected = -delta - torch.cat([h, torch.ones(len(h), 1, dtype=F64)], dim=1) @ fit
    torch.testing.assert_close(left, expected, rtol=1e-10, atol=1e-14)
    with torch.no_grad():  # a change that the consumer's own weights give leaves nothing
        reachable = h @ torch.randn(4, 5, dtype=F64, generator=torch.Generator().manual_seed(1)) + 2.0
    assert float(unexplained(h, reachable, net.graph.ops["two"]).abs().max()) < 1e-10
    span = span_of(net, group_of(net.graph), 2, x, y)
    torch.testing.assert_close(directions(span).wanted, left, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(directions(span, project=False).wanted, -delta, rtol=1e-10, atol=1e-14)
    grown = []
    for project in (True, False):
        again = copy.deepcopy(net)
        with again.edit() as edit:
            edit.grow("one", 2, init="tiny", gamma=0.1, batch=(x, y), loss=target_loss, project=project)
        found = directions(span, project=project)
        expected = 0.1 * found.values[:2].sqrt()[:, None] * found.outgoing[:2]
        torch.testing.assert_close(again.two.weight[:, 4:].T.detach(), expected, rtol=1e-9, atol=1e-12)
        grown.append(expected)
    assert not torch.allclose(*grown), "the two differ here"


def test_tiny_refuses_what_it_cannot_do() -> None:
    net, x, y = fitted("linear-linear")
    with pytest.raises(gn.EditError, match="directions stand out"), net.edit() as edit:
        edit.grow("one", 30, init="tiny", batch=(x, y), loss=target_loss)
    with pytest.raises(gn.EditError, match="gamma is a number above 0"), net.edit() as edit:
        edit.grow("one", 1, init="tiny", gamma=-1.0, batch=(x, y), loss=target_loss)
    with pytest.raises(gn.EditError, match="no scale of the newborns lowers the loss"), net.edit() as edit:
        edit.grow("one", 1, init="tiny", batch=(x, net(x).detach()), loss=target_loss)  # fitted already
    assert net.version == 0


# -- the bottleneck -----------------------------------------------------------------------------------------------


def test_the_bottleneck_is_the_share_that_the_consumer_cannot_give() -> None:
    net, x, _ = fitted("linear-linear", size=40)
    h = torch.tanh(net.one(x)).detach()
    ones = torch.cat([h, torch.ones(40, 1, dtype=F64)], dim=1)
    for reachable in (True, False):
        change = ones @ torch.randn(5, 5, dtype=F64) if reachable else torch.randn(40, 5, dtype=F64)
        y = net(x).detach() + change
        rest = change - ones @ torch.linalg.lstsq(ones, change).solution
        expected = float(rest.square().sum() / change.square().sum())
        assert growth_bottleneck(net, "one", (x, y), target_loss) == pytest.approx(expected, rel=1e-8, abs=1e-16)
        assert (expected < 1e-20) is reachable
    assert growth_bottleneck(net, "one", (x, net(x).detach()), target_loss) == 0.0
    assert net.version == 0


def test_the_bottleneck_of_a_convolution_sums_over_its_consumers() -> None:
    ops = [
        op("input", "x", shape=(2, 5, 5)),
        op("conv2d", "one", "x", out=3, kernel=3, padding=1),
        op("tanh", "act", "one"),
        op("conv2d", "left", "act", out=2, kernel=3, padding=1),
        op("conv2d", "right", "act", out=2, kernel=1),
        op("concat", "both", "left", "right"),
    ]
    net = random_network(gn.Graph.from_ops(ops, ["both"]), 0)
    (x,) = sample(net.graph, 1, 10)
    h = torch.tanh(net.one(x)).detach()
    y = net(x).detach() + torch.randn(10, 4, 5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    out = net(x)
    (delta,) = torch.autograd.grad(target_loss(out, y), out)
    left = total = 0.0
    for part, kernel in ((delta[:, :2], 3), (delta[:, 2:], 1)):
        patches = F.unfold(h, kernel, padding=kernel // 2).transpose(1, 2).flatten(0, 1)
        patches = torch.cat([patches, torch.ones(len(patches), 1, dtype=F64)], dim=1)
        rows = part.flatten(2).transpose(1, 2).flatten(0, 1)
        left += float((rows - patches @ torch.linalg.lstsq(patches, rows).solution).square().sum())
        total += float(rows.square().sum())
    assert growth_bottleneck(net, "one", (x, y), target_loss) == pytest.approx(left / total, rel=1e-9)
    with pytest.raises(gn.EditError, match="needs gradients"):
        growth_bottleneck(net, "one", (x, y), None)
    with pytest.raises(gn.EditError, match="nothing reads the group"):
        growth_bottleneck(net, "left", (x, y), target_loss)


# -- NeST ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["linear-linear", "conv-conv", "conv-flat-linear", "conv-maxpool-flat-linear", "linear-conv"]
)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_nest_opposes_the_largest_bridging_gradients(kind: str, activation: str) -> None:
    net, x, y = fitted(kind, activation)
    group, small = group_of(net.graph), random_network(net.graph, 0)
    matrix = span_of(net, group, 3, x, y).matrix()
    top = matrix.abs().flatten().topk(3)
    before = float(target_loss(net(x), y).detach())
    with net.edit() as edit:
        edit.grow(group, 3, init="nest", scale=0.05, batch=(x, y), loss=target_loss)
    rows = net.one.weight[born(net, small, "one.weight", 0)].detach().reshape(3, -1)
    owners = graph_owners(net, "two.weight", 1)
    for unit in range(3):
        at = torch.from_numpy((owners == small.graph.groups[group].size + unit).nonzero()[0])
        column = net.two.weight[:, at].detach().transpose(0, 1).flatten()
        (start,), (end,) = rows[unit].nonzero(as_tuple=True)[0].tolist(), column.nonzero(as_tuple=True)[0].tolist()
        gradient = float(matrix[end, start])
        assert abs(gradient) == pytest.approx(float(top.values[unit]))
        product = float(rows[unit, start] * column[end])
        assert product == pytest.approx(-(0.05**2) * gradient)
        assert float(rows[unit, start]) == pytest.approx(0.05 * abs(gradient) ** 0.5)
    if activation == "tanh" and "maxpool" not in kind:
        gain = 0.05**2 * float(top.values.square().sum())
        assert before - float(target_loss(net(x), y).detach()) == pytest.approx(gain, rel=0.05)


# -- Firefly ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "group"),
    [
        (gn.mlp([5, 6, 3], activation="gelu"), "fc1"),
        (gn.convnet((2, 4, 4), channels=(3, 4), hidden=(), norm="batch"), "conv1"),
        (gn.transformer(7, width=8, depth=1, heads=2), "blocks.0.q_proj.heads"),
    ],
)
def test_firefly_predicts_the_change_of_the_loss(graph: gn.Graph, group: str) -> None:
    """The sum of scores is the change of the loss to first order in the outgoing weights."""
    errors = []
    for outgoing in (1e-3, 1e-4):
        net = random_network(graph, 0).eval()
        (x,) = sample(graph, 1, 16)
        before = float(wave_loss(net(x)).detach())
        with net.edit(seed=1) as edit:
            edit.grow(
                group, 2, init="firefly", candidates=20, outgoing=outgoing, steps=0, batch=(x, None), loss=wave_loss
            )
        step = net.history.latest.steps[0]
        assert step.preserves == "approximate"
        predicted = float(step.note.rpartition(" ")[2])
        change = float(wave_loss(net(x)).detach()) - before
        assert predicted < 0
        assert change < 0
        errors.append(abs(change / predicted - 1))
    assert errors[0] < 0.2
    assert errors[1] < 0.02  # the note has three digits


def test_firefly_keeps_the_best_candidates_and_learning_makes_them_better() -> None:
    changes = {}
    for steps in (0, 20):
        for candidates in (3, 60):
            net = random_network(gn.mlp([5, 6, 3], activation="tanh"), 0)
            (x,) = sample(net.graph, 1, 32)
            try:
                with net.edit(seed=1) as edit:
                    edit.grow(
                        "fc1", 2, init="firefly", candidates=candidates, steps=steps, batch=(x, None), loss=wave_loss
                    )
            except gn.EditError:  # fewer than two of them lower the loss
                changes[steps, candidates] = 0.0
                continue
            changes[steps, candidates] = float(net.history.latest.steps[0].note.rpartition(" ")[2])
    assert changes[0, 60] < changes[0, 3] <= 0
    assert changes[20, 60] < changes[0, 60]


def test_firefly_takes_no_candidate_that_raises_the_loss() -> None:
    net = random_network(gn.mlp([5, 6, 3], activation="tanh"), 0)
    (x,) = sample(net.graph, 1, 32)
    with pytest.raises(gn.EditError, match="of 40 candidates lower the loss"), net.edit(seed=1) as edit:
        edit.grow("fc1", 40, init="firefly", candidates=40, steps=0, batch=(x, None), loss=wave_loss)
    with pytest.raises(gn.EditError, match="candidates must be at least 40"), net.edit(seed=1) as edit:
        edit.grow("fc1", 40, init="firefly", candidates=39, batch=(x, None), loss=wave_loss)
    with pytest.raises(gn.EditError, match="needs data"), net.edit() as edit:
        edit.grow("fc1", 1, init="firefly")
    assert net.version == 0


def test_a_growth_from_a_batch_leaves_the_optimizer_in_place() -> None:
    net = random_network(gn.mlp([5, 6, 3], activation="tanh"), 0)
    optimizer = torch.optim.Adam(net.parameters())
    net.attach(optimizer)
    (x,) = sample(net.graph, 1, 32)
    wave_loss(net(x)).backward()
    optimizer.step()
    moments = optimizer.state[net.fc1.weight]["exp_avg"].clone()
    with net.edit() as edit:
        edit.grow("fc1", 2, init="firefly", batch=(x, None), loss=wave_loss)
    assert net.attached == (optimizer,)
    assert torch.equal(optimizer.state[net.fc1.weight]["exp_avg"][:6], moments)


def test_a_mixture_of_activations_counts_with_what_it_has_learned() -> None:
    ops = [
        op("input", "x", shape=(7,)),
        op("linear", "one", "x", out=4),
        op("blend", "act", "one", first="tanh", second="gelu"),
        op("linear", "two", "act", out=5),
    ]
    net = random_network(gn.Graph.from_ops(ops, ["two"]), 0)
    with torch.no_grad():
        net.act.mix.fill_(0.25)  # slope 0.75 * 1 + 0.25 * 0.5
    (x,) = sample(net.graph, 1, 20)
    before = net(x)
    (delta,) = torch.autograd.grad(wave_loss(before), before)
    values = 0.875 * torch.linalg.svdvals(delta.T @ x)
    norm = float(net.two.weight.detach().norm(dim=0).mean())
    with net.edit() as edit:
        edit.grow("one", 2, init="gradmax", scale=1.0, preserves="function", batch=(x, None), loss=wave_loss)
    check_preserved(net, before, x)
    (gradient,) = torch.autograd.grad(wave_loss(net(x)), net.one.weight)
    assert float(gradient[4:].square().sum()) == pytest.approx(norm**2 * float(values[:2].square().sum()), rel=1e-10)


@pytest.mark.parametrize("kind", ["linear-linear", "conv-conv", "conv1d"])
def test_a_large_batch_is_taken_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on how many samples are unfolded at a time."""
    net, x, y = fitted(kind, size=23)
    group = group_of(net.graph)
    whole = span_of(net, group, 2, x, y)
    at_once = whole.matrix(), directions(whole, project=True), growth_bottleneck(net, group, (x, y), target_loss)
    for module in (bridge_module, desired):
        monkeypatch.setattr(module, "CHUNK", 4 * whole.source[0].numel() * net.one.weight[0, 0].numel())  # 4 samples
    parts = span_of(net, group, 2, x, y)
    assert len(list(parts.chunks())) > 2
    torch.testing.assert_close(parts.matrix(), at_once[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(directions(parts, project=True).values, at_once[1].values, rtol=1e-8, atol=1e-12)
    assert growth_bottleneck(net, group, (x, y), target_loss) == pytest.approx(at_once[2], rel=1e-8, abs=1e-20)
