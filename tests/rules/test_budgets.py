"""Budgets hold at every prefix of a run, and a dry run predicts it, over random policies and small networks."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphnet as gn
from graphnet.rules import load_policy

EXAMPLES = max(120, settings().max_examples)
STEPS = 6

counts = st.integers(1, 4)
shares = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])
ramps = st.builds(
    lambda start, end: {"kind": "linear", "start": start, "end": end, "steps": STEPS},
    st.integers(1, 6),
    st.integers(0, 6),
)
amounts = counts | ramps
units = st.sampled_from(["h", "fc1", "fc2", "fc*", "*", "head"])


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    do = draw(st.sampled_from(["grow", "grow", "prune", "retire", "recruit"]))
    step: dict[str, Any] = {"do": do, "units": draw(units)}
    how = {
        "grow": {"count": amounts, "fraction": shares, "to": amounts},
        "prune": {"lowest": amounts, "fraction": shares, "keep": shares, "to": amounts},
        "retire": {"count": amounts, "fraction": shares, "to": amounts},
        "recruit": {"count": amounts, "fraction": shares, "to": amounts},
    }[do]
    key = draw(st.sampled_from(sorted(how)))
    step[key] = draw(how[key])
    if do == "recruit":
        step["select"] = "random"
    return step


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    guards = st.sampled_from(
        [
            {"kind": "always"},
            {"kind": "cost", "metric": "params", "below": 80},
            {"kind": "not", "of": {"kind": "age", "of": "fc1", "below": 2}},
            {"kind": "dormant", "of": "fc1", "below": 0.5},
        ]
    )
    rules = [
        {
            "name": f"rule {i}",
            "match": {"nodes": {"h": {"kind": "units", "role": draw(st.sampled_from(["hidden", "output", None]))}}},
            "when": draw(guards),
            "steps": draw(st.lists(steps(), min_size=1, max_size=2)),
            "schedule": {
                "kind": "every",
                "steps": draw(st.integers(1, 3)),
                "start": draw(st.integers(0, 2)),
                "cooldown": draw(st.integers(0, 2)),
            },
            "priority": draw(st.integers(0, 1)),
        }
        for i in range(draw(st.integers(1, 3)))
    ]
    limits = {"params": (20, 150), "flops": (40, 300), "optimizer_bytes": (160, 1200), "transient_bytes": (500, 5000)}
    budgets = {
        name: draw(st.integers(low, high)) for name, (low, high) in limits.items() if draw(st.integers(0, 3)) > 0
    }
    return {
        "rules": rules,
        "budgets": budgets,
        "cooldown": draw(st.integers(0, 2)),
        "immunity": draw(st.integers(0, 3)),
    }


@settings(max_examples=EXAMPLES)
@given(policies(), st.tuples(st.integers(2, 6), st.integers(2, 6)), st.sampled_from(["adam", "momentum"]))
def test_budgets_hold_at_every_prefix(data: dict[str, Any], hidden: tuple[int, int], kind: str) -> None:
    net = gn.Network(gn.mlp([3, *hidden, 2]), seed=0)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(net.parameters())
        if kind == "adam"
        else torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    )
    net.attach(optimizer)
    policy, budgets = load_policy(data), data["budgets"]
    planned = policy.dry_run(net, range(STEPS))
    found = []
    x = torch.ones(2, 3)
    costs = measure(net, optimizer, x)
    for step in range(STEPS):
        before, version = costs, net.version
        outcomes = policy.step(net, step=step)
        found += [o for o in outcomes if o.status in ("applied", "rejected")]
        assert all(o.reason for o in outcomes)
        assert len(outcomes) == len(data["rules"])
        assert net.version == version + sum(o.applied for o in outcomes)
        costs = measure(net, optimizer, x)
        for name, limit in budgets.items():
            if name != "transient_bytes":
                assert costs[name] <= max(limit, before[name]), (name, step)
        if "transient_bytes" in budgets:
            for made in [v for v in net.history if v.number > version]:
                # bytes_moved holds the new tensors alone, the budget the old ones too; births (at most four int64
                # vectors for each dimension of a tensor) are no part of the prediction.
                births = sum(4 * 8 * sum(made.graph.shape(s)) for s in made.graph.tensors.values())
                assert made.bytes_moved - births <= budgets["transient_bytes"]
    assert planned == found


def measure(net: gn.Network, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> dict[str, float]:
    """What is really there, after a training step."""
    net(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    state = [t for entry in optimizer.state.values() for key, t in entry.items() if key != "step" and t is not None]
    return {
        "params": sum(p.numel() for p in net.parameters()),
        "flops": net.graph.cost().flops,
        "optimizer_bytes": sum(t.numel() * t.element_size() for t in state),
    }
