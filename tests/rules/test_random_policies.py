"""Random policies on random networks: no invalid graph, no budget exceeded at any prefix, a reason for every no."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphnet as gn
from graphnet.rules import Outcome, load_policy
from graphnet.rules.costs import Accountant
from graphnet.testing.data import dtype_of, sample, wave_loss
from graphnet.testing.graphs import graphs

STEPS = 5
MOST_OPS = 80
"""A rule that deepens every layer at every step doubles their number each time: no further step beyond this."""

counts = st.integers(1, 3)
shares = st.sampled_from([0.1, 0.25, 0.5])
UNITS = "units h[role=hidden]"


@st.composite
def unit_steps(draw: st.DrawFn) -> dict[str, Any]:
    do = draw(st.sampled_from(["grow", "grow", "prune", "retire", "recruit", "split", "permute", "reset", "merge"]))
    how: dict[str, dict[str, Any]] = {
        "grow": {"count": counts, "fraction": shares, "to": st.integers(2, 8)},
        "prune": {"lowest": counts, "fraction": shares, "keep": shares, "below": st.just(0.1)},
        "retire": {"count": counts, "fraction": shares},
        "recruit": {"count": counts, "fraction": shares, "to": st.integers(2, 6)},
        "split": {"highest": counts, "fraction": shares},
        "permute": {"by": st.just("random")},
        "reset": {"lowest": counts, "fraction": shares, "per_step": shares},
        "merge": {"threshold": st.sampled_from([0.0, 0.5])},
    }
    key = draw(st.sampled_from(sorted(how[do])))
    step = {"do": do, "units": "h", key: draw(how[do][key])}
    if do == "grow":
        step["init"] = draw(st.sampled_from(["kaiming", "zero-outgoing", "net2wider", "gradmax"]))
    if do in ("prune", "retire", "reset"):
        step["score"] = draw(st.sampled_from(["random", "magnitude", "taylor"]))
    if do == "recruit":
        step["select"] = "random"
    return step


@st.composite
def structural(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """A pattern with steps on its nodes; many of them fit nowhere, or are refused."""
    kind = draw(st.sampled_from(["linear", "relu", "conv2d", "identity", "add", "dropout", "layer_norm"]))
    op = draw(st.sampled_from(["relu", "linear", "conv2d", "gelu", "tanh", "add"]))
    made: dict[str, Any] = {"do": "insert", "name": "new", "op": kind, "inputs": ["a"]}
    if kind in ("linear", "conv2d"):
        made |= {"like": "a", "init": draw(st.sampled_from(["default", "zeros", "identity", "kaiming"]))}
    if kind == "add":
        made["inputs"] = ["a", "a"]
    found: list[tuple[str, list[dict[str, Any]]]] = [
        (f"a:{op} -> any b", [{**made, "before": ["b"]}]),
        (f"a:{op} -> any b", [made, {"do": "redirect", "edge": "a -> b", "to": "new"}]),
        (f"a:{op} -> any b", [made, {"do": "insert", "name": "sum", "op": "add", "inputs": ["a", "new"]},
                              {"do": "redirect", "edge": "a -> b", "to": "sum"}]),
        (f"any z -> a:{op} -> any b", [{"do": "redirect", "edge": "a -> b", "to": "z"}]),
        (f"a:{op}", [{"do": "remove", "node": "a"}]),
        (f"a:{op}", [{"do": "deepen", "after": "a", "form": draw(st.sampled_from(["identity", "residual"]))}]),
        (f"a:{op}", [{"do": "replace", "node": "a", "by": draw(st.sampled_from(["gelu", "low-rank", "separable"]))}]),
        ("a:conv2d", [{"do": "kernel", "node": "a", "size": draw(st.sampled_from([1, 3, 5]))}]),
        ("a:linear", [{"do": "untie", "node": "a"}]),
        ("a:linear -> ... -> b:linear", [{"do": "tie", "node": "b", "to": "a"}]),
        (f"units h[role=hidden] ~> a:{op}", [draw(unit_steps()), {"do": "deepen", "after": "a"}]),
    ]  # fmt: skip
    return draw(st.sampled_from(found))


@st.composite
def rules(draw: st.DrawFn, number: int) -> dict[str, Any]:
    guards = st.sampled_from([
        {"kind": "always"},
        {"kind": "always"},
        {"kind": "since", "event": "edit", "above": 0},
        {"kind": "not", "of": {"kind": "budget", "metric": "params", "above": 0.9}},
        {"kind": "any", "of": [{"kind": "metric", "metric": "loss", "above": 0.1}, {"kind": "event", "event": "task"}]},
    ])  # fmt: skip
    match, steps = draw(st.tuples(st.just(UNITS), st.lists(unit_steps(), min_size=1, max_size=2)) | structural())
    schedules = st.sampled_from([
        {"kind": "every", "steps": 1}, {"kind": "every", "steps": 2, "start": 1}, {"kind": "at", "steps": [1, 3]},
        {"kind": "on", "event": "edit", "delay": 1}, {"kind": "milestones", "metric": "loss", "values": [0.0]},
    ])  # fmt: skip
    rule = {
        "name": f"rule {number}",
        "match": match,
        "when": draw(guards),
        "steps": steps,
        "schedule": draw(schedules),
        "priority": draw(st.integers(0, 1)),
        "preserves": draw(st.sampled_from([None, None, "function", "approximate"])),
    }
    at_most = draw(st.sampled_from([None, 1, 2]))
    return rule if at_most is None else {**rule, "at_most": at_most}


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """A policy whose budgets are multiples of what the network costs at first."""
    listed = [draw(rules(number)) for number in range(draw(st.integers(1, 3)))]
    budgets = {
        name: draw(st.sampled_from([0.9, 1.0, 1.2, 2.0]))
        for name in ("params", "flops", "optimizer_bytes")
        if draw(st.booleans())
    }
    return {
        "rules": listed,
        "budgets": budgets,
        "immunity": draw(st.integers(0, 2)),
        "hysteresis": draw(st.integers(0, 2)),
        "max_growth": draw(st.sampled_from([None, 0.5])),
    }


def measure(net: gn.Network, optimizer: torch.optim.Optimizer, x: Any) -> dict[str, float]:
    """What is really there, after a training step."""
    loss = wave_loss(net(*x))
    if loss.requires_grad:  # a rule may have removed the last layer that has weights
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = [t for entry in optimizer.state.values() for key, t in entry.items() if key != "step" and t is not None]
    found = {
        "params": sum(p.numel() for p in net.parameters()),
        "optimizer_bytes": sum(t.numel() * t.element_size() for t in state),
    }
    costs = Accountant(net)
    costs.refresh((x, None) if len(x) > 1 else x)
    flops = costs.costs(net.graph).flops
    return found if flops is None else {**found, "flops": flops}


def check(outcome: Outcome) -> None:
    assert outcome.reason
    assert all(match.reason for match in outcome.matches)
    if outcome.status == "applied":
        assert outcome.changes
        assert not outcome.matches or any(match.status == "applied" for match in outcome.matches)
    else:
        assert not outcome.changes
        assert outcome.cost.before == outcome.cost.after
        assert all(match.status != "applied" for match in outcome.matches)
    if outcome.status == "rejected":
        assert isinstance(outcome.error, gn.GraphnetError)


def run(data: dict[str, Any], graph: gn.Graph) -> None:
    net = gn.Network(graph, seed=0).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.attach(optimizer)
    x = sample(graph, dtype=dtype_of(net))
    batch = (x, None) if len(x) > 1 else (x[0], None)
    costs = measure(net, optimizer, x)
    budgets = {name: share * costs[name] for name, share in data["budgets"].items() if costs.get(name)}
    policy = load_policy({**data, "budgets": budgets})
    for step in range(STEPS):
        if len(net.graph.nodes) > MOST_OPS:
            break
        before, version = costs, net.version
        outcomes = policy.step(
            net, step=step, metrics={"loss": 1.0 - step / 4, "task": step // 2}, batch=batch, loss=wave_loss
        )
        for outcome in outcomes:
            check(outcome)
        assert len(outcomes) == len(data["rules"])
        assert net.version == version + sum(o.applied for o in outcomes)
        net.graph.validate()
        assert {name: tuple(net.tensor(name).shape) for name in net.graph.tensors} == {
            name: net.graph.shape(spec) for name, spec in net.graph.tensors.items()
        }
        costs = measure(net, optimizer, x)
        for name, limit in budgets.items():
            assert costs[name] <= max(limit, before[name]) + 1e-9, (name, step, [str(o) for o in outcomes])


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=25, deadline=None, suppress_health_check=CHECKS)
@given(policies(), graphs())
def test_random_policies_keep_networks_valid_and_within_budgets(data: dict[str, Any], graph: gn.Graph) -> None:
    run(data, graph)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=CHECKS)
@given(policies(), graphs())
def test_five_hundred_random_policies(data: dict[str, Any], graph: gn.Graph) -> None:
    run(data, graph)
