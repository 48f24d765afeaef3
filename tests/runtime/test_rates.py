"""Two-Speed, rate adaptation and age re-warmup: one factor of the update, whatever the optimizer and its kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

import graphnet as gn
from graphnet.runtime.replay import replay
from graphnet.testing import random_network, train

Make = Callable[[Any], Optimizer]
LR = 0.01

KERNELS: dict[str, Make] = {
    "sgd": lambda p: SGD(p, LR, momentum=0.9, weight_decay=0.1),
    "sgd-foreach": lambda p: SGD(p, LR, foreach=True, nesterov=True, momentum=0.9),
    "sgd-fused": lambda p: SGD(p, LR, fused=True),
    "adam": lambda p: Adam(p, LR),
    "adamw": lambda p: AdamW(p, LR, weight_decay=0.5, amsgrad=True),
    "adamw-foreach": lambda p: AdamW(p, LR, weight_decay=0.5, foreach=True),
    "adamw-fused": lambda p: AdamW(p, LR, weight_decay=0.5, fused=True),
    "nadam": lambda p: NAdam(p, LR, weight_decay=0.5, decoupled_weight_decay=True),
    "rmsprop": lambda p: RMSprop(p, LR, centered=True, maximize=True),
}


def pair(make: Make, **options: Any) -> tuple[gn.Network, gn.Network]:
    """Two networks of one state, one grown with the options and one without."""
    nets = []
    for given in (options, {}):
        net = random_network(gn.mlp([4, 6, 5, 3]), 0)
        optimizer = make(net.parameters())
        net.attach(optimizer)
        train(net, optimizer, 3)
        with net.edit(seed=1) as edit:
            edit.grow("fc1", 3, init="kaiming", state="aged", **given)
        nets.append(net)
    return nets[0], nets[1]


def deltas(net: gn.Network, plain: gn.Network, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The next updates of both, from the weights and the gradients of the first."""
    torch.manual_seed(step)
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        q.data.copy_(p.detach())
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    found = []
    for one in (net, plain):
        before = {name: p.detach().clone() for name, p in one.named_parameters()}
        one.attached[0].step()
        found.append({name: p.detach() - before[name] for name, p in one.named_parameters()})
    return found[0], found[1]


def check_factor(fast: dict[str, Tensor], slow: dict[str, Tensor], factors: dict[str, float]) -> None:
    """What newborn slices are multiplied by; everything else is as it would be."""
    slices = {
        "fc1.weight": (slice(6, None),),
        "fc1.bias": (slice(6, None),),
        "fc2.weight": (slice(None), slice(6, None)),
    }
    for name, update in fast.items():
        rest = torch.ones_like(update, dtype=torch.bool)
        if name in slices:
            rest[slices[name]] = False
            expected = factors[name] * slow[name][slices[name]]
            torch.testing.assert_close(update[slices[name]], expected, rtol=1e-9, atol=1e-15)
        assert torch.equal(update[rest], slow[name][rest]), name


ALL = ("fc1.weight", "fc1.bias", "fc2.weight")


@pytest.mark.parametrize("kernel", KERNELS)
def test_rewarm_is_linear_in_age(kernel: str) -> None:
    net, plain = pair(KERNELS[kernel], rewarm=4)
    for age in range(1, 7):
        fast, slow = deltas(net, plain, age)
        check_factor(fast, slow, dict.fromkeys(ALL, min(1.0, age / 4)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_speed_is_for_so_many_steps(kernel: str) -> None:
    net, plain = pair(KERNELS[kernel], speed=(3.0, 2))
    for age in range(1, 5):
        fast, slow = deltas(net, plain, age)
        check_factor(fast, slow, dict.fromkeys(ALL, 3.0 if age <= 2 else 1.0))


def ratios(net: gn.Network) -> dict[str, float]:
    """The norms of the newborn weights over those of the others, from the definition."""
    rows, columns = net.fc1.weight.detach(), net.fc2.weight.detach()
    return {
        "fc1.weight": float(rows[6:].norm() / rows[:6].norm()),
        "fc2.weight": float(columns[:, 6:].norm() / columns[:, :6].norm()),
        "fc1.bias": 1.0,
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_adapted_rate_is_the_ratio_of_norms(kernel: str) -> None:
    net, plain = pair(KERNELS[kernel], rate="adapted")
    for step in range(5):
        factors = ratios(net)
        assert all(value > 0.1 for value in factors.values())
        fast, slow = deltas(net, plain, step)
        check_factor(fast, slow, factors)
    assert abs(factors["fc1.weight"] - 1.0) > 0.01


@pytest.mark.parametrize("kernel", ["sgd", "adamw", "adamw-foreach", "adamw-fused"])
def test_the_rules_are_multiplied(kernel: str) -> None:
    net, plain = pair(KERNELS[kernel], speed=(3.0, 2), rewarm=4, rate="adapted")
    for age in range(1, 7):
        expected = {name: ratio * (3.0 if age <= 2 else 1.0) * min(1.0, age / 4) for name, ratio in ratios(net).items()}
        fast, slow = deltas(net, plain, age)
        check_factor(fast, slow, expected)


@pytest.mark.parametrize(("floor", "given"), [(0.1, "adapted"), (0.25, ("adapted", 0.25)), (0.25, ["adapted", 0.25])])
def test_a_block_of_zeros_moves_at_the_floor(floor: float, given: Any) -> None:
    nets = []
    for options in ({"rate": given}, {}):
        net = random_network(gn.mlp([4, 6, 5, 3]), 0)
        net.attach(SGD(net.parameters(), lr=LR))
        with net.edit(seed=1) as edit:
            edit.grow("fc1", 3, init="zero-outgoing", **options)
        nets.append(net)
    fast, slow = deltas(nets[0], nets[1], 0)
    torch.testing.assert_close(fast["fc2.weight"][:, 6:], floor * slow["fc2.weight"][:, 6:], rtol=1e-12, atol=0)


def test_stages_are_versions_and_an_element_belongs_to_the_later_of_row_and_column() -> None:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    optimizer = SGD(net.parameters(), lr=0.0)
    net.attach(optimizer)
    for group, count in (("fc1", 3), ("fc2", 2), ("fc1", 1)):
        with net.edit() as edit:
            edit.grow(group, count, init="kaiming", rate=("adapted", 1e-6))
    weight = net.fc2.weight.detach()
    stage = torch.zeros(7, 10, dtype=torch.int64)
    stage[:, 6:9] = 1
    stage[5:] = 2
    stage[:, 9] = 3
    optimizer.param_groups[0]["lr"] = LR
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = weight.clone()
    optimizer.step()
    base = before[stage == 0].norm()
    expected = torch.stack([before[stage == s].norm() / base for s in range(4)])[stage]
    torch.testing.assert_close((before - weight) / LR, expected, rtol=1e-9, atol=0)


def test_the_floor_is_that_of_the_later_growth() -> None:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    optimizer = SGD(net.parameters(), lr=LR)
    net.attach(optimizer)
    for group, count, floor in (("fc1", 3, 0.2), ("fc2", 2, 0.7), ("fc1", 1, 0.4)):
        with net.edit() as edit:
            edit.grow(group, count, init="kaiming", rate=("adapted", floor))
    weight = net.fc2.weight.detach()
    floors = torch.ones(7, 10, dtype=torch.float64)
    floors[:, 6:9] = 0.2
    floors[5:] = 0.7
    floors[:, 9] = 0.4
    weight.mul_(torch.where(floors < 1, 1e-6, 1.0))  # in place of the floor there would be a ratio of about 1e-6
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = weight.clone()
    optimizer.step()
    torch.testing.assert_close((before - weight) / LR, floors, rtol=1e-9, atol=0)


def test_without_the_oldest_weights_the_next_oldest_are_the_measure() -> None:
    net = random_network(gn.mlp([4, 6, 3]), 0)
    optimizer = SGD(net.parameters(), lr=LR)
    net.attach(optimizer)
    for _ in range(2):
        with net.edit() as edit:
            edit.grow("fc1", 3, init="kaiming", rate="adapted")
    with net.edit() as edit:
        edit.prune("fc1", units=range(6))
    weight = net.fc1.weight.detach()
    before, ratio = weight.clone(), float(weight[3:].norm() / weight[:3].norm())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close((before - weight)[:3], torch.full((3, 4), LR, dtype=torch.float64))
    torch.testing.assert_close((before - weight)[3:], torch.full((3, 4), LR * ratio, dtype=torch.float64))


def test_a_warm_up_follows_its_units_and_the_younger_of_row_and_column_decides() -> None:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    optimizer = SGD(net.parameters(), lr=LR)
    net.attach(optimizer)

    def step() -> Tensor:
        before = net.fc2.weight.detach().clone()
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return (before - net.fc2.weight.detach()) / LR

    with net.edit() as edit:
        edit.grow("fc1", 2, rewarm=10)
    step()
    step()
    with net.edit() as edit:
        edit.prune("fc1", units=[0, 6])
        edit.retire("fc2", units=[1])
    with net.edit() as edit:
        edit.recruit("fc2", units=[1], rewarm=5)
    expected = torch.ones(5, 6, dtype=torch.float64)
    expected[:, 5] = 0.3
    expected[1] = 0.2
    torch.testing.assert_close(step(), expected)
    expected[:, 5] = 0.4
    expected[1] = 0.4
    torch.testing.assert_close(step(), expected)


def test_an_aged_newborn_with_two_speed_moves_at_its_speed() -> None:
    """And a cold one at 6.6 times that, which is why the version warns of it."""
    moved = {}
    for state in ("aged", "cold"):
        net = random_network(gn.mlp([4, 6, 3]), 0)
        optimizer = Adam(net.parameters(), LR)
        net.attach(optimizer)
        train(net, optimizer, 1)
        for p in net.parameters():
            optimizer.state[p]["step"].fill_(100_000.0)
        with net.edit() as edit:
            edit.grow("fc1", 2, init="kaiming", state=state, speed=(5.0, 20))
        largest = 0.0
        for _ in range(20):
            before = net.fc1.weight.detach().clone()
            for p in net.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            largest = max(largest, float((net.fc1.weight.detach() - before)[6:].abs().max()))
        moved[state] = largest / LR
    assert moved["aged"] == pytest.approx(5.0, rel=1e-5)
    assert moved["cold"] == pytest.approx(5.0 * 6.57, rel=1e-2)


def test_the_journal_holds_the_rules_and_replays_them() -> None:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    first = copy.deepcopy(net)
    with net.edit() as edit:
        edit.grow("fc1", 2, speed=(2.0, 7), rate="adapted", rewarm=5)
        edit.retire("fc2", units=[1])
    with net.edit() as edit:
        edit.recruit("fc2", units=[1], rate=("adapted", 0.5))
    grow, _ = (step.arguments for step in net.history[1].steps)
    assert grow["speed"] == [2.0, 7]
    assert grow["rate"] == ["adapted", 0.1]
    assert grow["rewarm"] == 5
    assert net.history[2].steps[0].arguments["rate"] == ["adapted", 0.5]
    again = replay(first, net.history.journal())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert [v.steps for v in again.history] == [v.steps for v in net.history]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "fast"}, "rate is 'adapted'"),
        ({"rate": 0.5}, "rate is 'adapted'"),
        ({"rate": ("adapted", 0.0)}, "floor above 0"),
        ({"rate": ("adapted", 1.5)}, "up to 1"),
        ({"rate": ("adapted", float("nan"))}, "rate is"),
        ({"rate": ("adapted", True)}, "rate is"),
        ({"rate": ("adapted", 0.1, 3)}, "rate is"),
        ({"rewarm": 0}, "rewarm is a number of optimizer steps"),
        ({"rewarm": 2.5}, "rewarm is"),
        ({"rewarm": True}, "rewarm is"),
        ({"rewarm": "long"}, "rewarm is"),
    ],
)
def test_wrong_rules_are_refused(options: dict[str, Any], message: str) -> None:
    net = gn.Network(gn.mlp([4, 6, 3]))
    net.attach(SGD(net.parameters(), lr=LR))
    with pytest.raises(gn.EditError, match=message), net.edit() as edit:
        edit.grow("fc1", 1, **options)
    assert net.version == 0


def test_the_hooks_let_go_when_a_rule_has_ended() -> None:
    net = random_network(gn.mlp([4, 6, 3]), 0)
    optimizer = SGD(net.parameters(), lr=LR)
    net.attach(optimizer)
    births = net._attached["0"].updates.births
    with net.edit() as edit:
        edit.grow("fc1", 2, speed=(2.0, 2), rewarm=3)
    train(net, optimizer, 2)
    assert births
    train(net, optimizer, 1)  # the third update is whole
    assert not births
    with net.edit() as edit:
        edit.grow("fc1", 2, rate="adapted")
    train(net, optimizer, 5)
    assert births  # for good
