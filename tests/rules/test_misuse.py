"""Policies in the hands of a careless user: bad numbers, nodes that are gone, networks from elsewhere, resumed runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphnet as gn
from graphnet.rules import Outcome, Policy, load_policy
from graphnet.runtime.checkpoint import load_checkpoint

HIDDEN = "units h[role=hidden]"
LOSS = nn.functional.cross_entropy


def network() -> gn.Network:
    return gn.Network(gn.mlp([3, 6, 5, 2]), seed=0)


def rule(*steps: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"name": parts.pop("name", "r"), "steps": list(steps), **parts}


def grow(units: str = "fc1", count: Any = 1, **parts: Any) -> dict[str, Any]:
    return {"do": "grow", "units": units, "count": count, **parts}


def first(policy: Policy, net: gn.Network, **options: Any) -> Outcome:
    return policy.step(net, step=0, **options)[0]


# -- steps that cannot work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "match", "words"),
    [
        ([{"do": "remove", "node": "a"}, {"do": "deepen", "after": "a"}], "a:relu -> b:linear", "no op 'act1'"),
        ([{"do": "remove", "node": "a"}, {"do": "remove", "node": "a"}], "a:relu", "no op 'act1'"),
        ([{"do": "remove", "node": "a"}, {"do": "redirect", "edge": "a -> b", "to": "b"}], "a:relu -> b:linear",
         "'fc2' does not read 'act1'"),
        ([{"do": "remove", "node": "a"}, grow("h")], "units h[name=fc2] ~[writes]~> a:linear", "tensor 'head.weight'"),
        ([{"do": "insert", "name": "n", "op": "relu", "inputs": ["b"]}, {"do": "redirect", "edge": "a -> b",
         "to": "n"}], "a:relu -> b:linear", "without a cycle"),
        ([{"do": "insert", "name": "n", "op": "relu", "inputs": ["a"]}], "a:relu", "nothing reads the inserted 'n'"),
    ],
)  # fmt: skip
def test_a_step_on_what_an_earlier_one_removed_is_refused_and_nothing_is_changed(
    steps: list[dict[str, Any]], match: str, words: str
) -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = first(load_policy([rule(*steps, match=match)]), net)
    assert (found.status, net.version) == ("rejected", 0)
    assert words in found.reason
    assert isinstance(found.error, gn.GraphnetError)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("step", [{"do": "remove", "node": "h"}, {"do": "deepen", "after": "h"},
                                  {"do": "insert", "name": "n", "op": "relu", "inputs": ["h"]}])  # fmt: skip
def test_units_are_no_op(step: dict[str, Any]) -> None:
    with pytest.raises(gn.SchemaError, match="found 'h', units of the pattern; expected an op of it"):
        load_policy([rule(step, match=HIDDEN)])


@pytest.mark.parametrize("count", [10**9, 1e300])
def test_a_slip_in_a_count_takes_no_memory(count: float) -> None:
    for step in (grow("fc1", count), {"do": "split", "units": "fc1", "highest": count}):
        found = first(load_policy([rule(step)]), network())
        assert found.status == "rejected"
        assert "at most 1,048,576 may be added" in found.reason
    assert load_policy([rule(grow("fc1", count))]).dry_run(network(), range(2))[1].status == "rejected"


def test_of_matches_that_the_live_network_refuses_the_others_are_done() -> None:
    """GradMax needs one weight that writes the units; two write the channels of a residual stream."""
    torch.manual_seed(0)
    net = gn.Network(gn.resnet((2, 6, 6), stages=[4], blocks=1, classes=3), seed=0)
    data = torch.randn(5, 2, 6, 6), torch.randint(0, 3, (5,))
    policy = load_policy([rule(grow("h", init="gradmax"), match=HIDDEN)])
    stream = [name for name, group in net.graph.groups.items() if group.role == "stream"]
    found = first(policy, net, batch=data, loss=LOSS)
    assert found.applied, found
    refused = {dict(each.nodes)["h"]: each for each in found.matches if each.status == "rejected"}
    assert list(refused) == stream
    assert "must be written by one weight" in refused[stream[0]].reason
    assert "1 of 2 matches rejected" in found.reason
    assert [each["h"] for each in net.history.latest.provenance["matches"]] == ["layer1.0.conv1"]
    assert policy.stats()["r"]["matches"][0]["nodes"] == {"h": stream[0]}
    only = first(load_policy([rule(grow(stream[0], init="gradmax"))]), net, batch=data, loss=LOSS)
    assert only.status == "rejected"


# -- numbers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("guard", [
    {"kind": "rank", "of": "fc1", "above": 0}, {"kind": "bottleneck", "of": "fc1", "above": 0},
    {"kind": "dormant", "of": "fc1", "by": "activity", "above": -1}, {"kind": "utility", "of": "fc1", "above": -1},
    {"kind": "parity", "of": "fc1", "above": -1}, {"kind": "parity", "of": "fc1", "signal": "activation", "above": -1},
], ids=lambda guard: guard["kind"] + guard.get("signal", ""))  # fmt: skip
def test_a_batch_that_is_not_finite_makes_a_guard_false(guard: dict[str, Any], value: float) -> None:
    net = network()
    data = torch.full((4, 3), value), torch.zeros(4, dtype=torch.long)
    born = rule(grow(), name="born", priority=1, schedule={"kind": "at", "steps": [0]})
    policy = load_policy([born, rule({"do": "prune", "units": "fc1", "lowest": 1}, when=guard)])
    found = policy.step(net, step=0, batch=data, loss=LOSS)[1]
    assert found.status == "guard false"
    assert "not finite" in found.reason or "is nan" in found.reason
    good = torch.randn(4, 3), data[1]
    again = policy.step(net, step=1, batch=good, loss=LOSS)[1]
    assert "not finite" not in again.reason
    assert "is nan" not in again.reason


def test_whole_numbers_of_other_libraries_are_steps() -> None:
    policy = load_policy(gn.rule("r").every(2).grow("fc1", count=1))
    found = [policy.step(network_of(policy), step=step)[0] for step in np.arange(3)]
    assert [each.applied for each in found] == [True, False, True]
    assert type(found[0].step) is int
    assert len(load_policy(gn.Rule(name="r", steps=[grow()])).dry_run(network(), np.arange(3))) == 3
    for wrong in (True, 1.0, "1", None, -1):
        with pytest.raises(gn.GraphnetError, match="whole number of optimizer steps"):
            load_policy([rule(grow())]).step(network(), step=wrong)  # type: ignore[arg-type]
    for steps in (5, "12"):
        with pytest.raises(gn.GraphnetError, match="dry_run takes the optimizer steps"):
            load_policy([rule(grow())]).dry_run(network(), steps)  # type: ignore[arg-type]
    with pytest.raises(gn.GraphnetError, match="a metric has a name, not 3"):
        load_policy([rule(grow())]).step(network(), step=0, metrics={3: 1.0})  # type: ignore[dict-item]


_NETWORKS: dict[int, gn.Network] = {}


def network_of(policy: Policy) -> gn.Network:
    return _NETWORKS.setdefault(id(policy), network())


def test_a_budget_at_its_edge() -> None:
    net = network()
    now = sum(p.numel() for p in net.parameters())
    after = now + (3 + 1) + 5 + (6 + 1 + 1) + 2  # a unit more in fc1 and fc2: rows, biases and columns
    for budget, applied in ((after, True), (after - 1, False), (after - 0.5, False), (1e-9, False)):
        fresh = network()
        policy = load_policy({"rules": [rule(grow("h"), match=HIDDEN)], "budgets": {"params": budget}})
        assert first(policy, fresh).applied == applied
        assert sum(p.numel() for p in fresh.parameters()) == (after if applied else now)


# -- networks from elsewhere ------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc, self.out = nn.Linear(4 * 36, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv1(x)).relu()
        h = h + torch.relu(self.conv2(h))
        return self.out(torch.relu(self.fc(h.flatten(1))))  # type: ignore[no-any-return]


RESIDUAL = [
    {"do": "insert", "name": "branch", "op": "conv2d", "inputs": ["src"], "like": "src", "init": "zeros"},
    {"do": "insert", "name": "sum", "op": "add", "inputs": ["src", "branch"]},
    {"do": "redirect", "edge": "src -> dst", "to": "sum"},
]


def test_policies_edit_imported_networks() -> None:
    torch.manual_seed(0)
    data = torch.randn(5, 2, 6, 6), torch.randint(0, 3, (5,))
    net = gn.from_torch(Plain(), (data[0],))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.attach(optimizer)
    document = {
        "rules": [
            rule(grow("h", 2), name="widen", match=HIDDEN, preserves="function", schedule={"kind": "at", "steps": [0]}),
            rule(*RESIDUAL, name="branch", match="src:relu -> dst:conv2d[kernel>=3]", preserves="function",
                 schedule={"kind": "at", "steps": [1]}),
            rule({"do": "deepen", "after": "a"}, name="deepen", match="a:relu -> b:linear", preserves="function",
                 schedule={"kind": "at", "steps": [2]}),
            rule({"do": "replace", "node": "c", "by": "separable", "attrs": {"rank": 1}}, name="separate", at_most=1,
                 match="c:conv2d[kernel>=3, groups=1]", schedule={"kind": "at", "steps": [3]}),
            rule({"do": "prune", "units": "h", "lowest": 1, "score": "slimming"}, name="slim",
                 match="units h ~[writes]~> n:batch_norm", schedule={"kind": "at", "steps": [4]}),
        ],
        "budgets": {"params": 1e5, "flops": 1e8, "optimizer_bytes": 1e7, "transient_bytes": 1e8},
    }  # fmt: skip
    policy = load_policy(document)
    planned = policy.dry_run(net, range(5))
    found = []
    for step in range(5):
        LOSS(net(data[0]), data[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        net.eval()
        before = net(data[0])
        found += [each for each in policy.step(net, step=step, batch=data, loss=LOSS) if each.status != "not due"]
        if step < 3:
            torch.testing.assert_close(net(data[0]), before, rtol=1e-4, atol=1e-5)
        net.train()
    assert [(each.rule, each.status) for each in found] == [
        (name, "applied") for name in ("widen", "branch", "deepen", "separate", "slim")
    ]
    assert planned == found
    assert found[-1].cost.after.params == sum(p.numel() for p in net.parameters())


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_a_run_resumed_from_a_file_in_a_cooldown_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    document = {
        "rules": [
            rule(grow("h"), name="grow", match=HIDDEN, schedule={"kind": "every", "steps": 1, "cooldown": 5}),
            rule({"do": "prune", "units": "h", "lowest": 1}, name="prune", match="units h[role=hidden, size>2]",
                 when={"kind": "plateau", "metric": "loss", "window": 2, "min_delta": 10},
                 schedule={"kind": "every", "steps": 2, "cooldown": 7}),
        ],
        "cooldown": 3, "immunity": 4, "hysteresis": 2,
    }  # fmt: skip

    def optimizer_of(net: gn.Network) -> torch.optim.Optimizer:
        return torch.optim.Adam(net.parameters(), lr=0.01)

    def train(net: gn.Network, optimizer: torch.optim.Optimizer, policy: Policy, steps: range) -> list[Outcome]:
        found = []
        for step in steps:
            loss = net(torch.randn(8, 3)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found += policy.step(net, step=step, metrics={"loss": loss.item()})
        return found

    def begin() -> tuple[gn.Network, torch.optim.Optimizer, Policy]:
        torch.manual_seed(0)
        net = network()
        optimizer = optimizer_of(net)
        net.attach(optimizer)
        return net, optimizer, load_policy(document)

    whole_net, optimizer, policy = begin()
    expected = train(whole_net, optimizer, policy, range(20))
    assert [each.step for each in expected if each.applied] == [0, 4, 7, 12, 16, 19]
    net, optimizer, policy = begin()
    found = train(net, optimizer, policy, range(6))  # grow waits until 5, and the policy after the pruning until 7
    net.save(tmp_path / "run.gn", state={"policy": policy})
    checkpoint = load_checkpoint(tmp_path / "run.gn")
    again, resumed = checkpoint.network(), load_policy(document)
    optimizer = optimizer_of(again)
    checkpoint.resume(again, optimizer, state={"policy": resumed})
    assert found + train(again, optimizer, resumed, range(6, 20)) == expected
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole_net.state_dict()[name])
