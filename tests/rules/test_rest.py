"""Rules that rest: a policy does not ask again what cannot have changed, and nobody can tell but by the time."""

from __future__ import annotations

import copy
import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import graphnet as gn
from graphnet.rules import Outcome, Policy, load_policy

HIDDEN = "units h[role=hidden]"
GROW = [{"do": "grow", "units": "h", "count": 1}]
STEPS = 48


def rule(name: str, when: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"name": name, "match": HIDDEN, "when": when, "steps": GROW, **parts}


def every_guard() -> Iterator[dict[str, Any]]:
    """Each is false at most steps, and true at some."""
    ramp = {"kind": "linear", "start": 40, "end": 5, "steps": 20}
    high = {"kind": "metric", "metric": "a", "above": 0.9}
    yield rule("age", {"kind": "age", "of": "h", "above": 11})
    yield rule("between", {"kind": "age", "of": "h", "above": 3, "below": 4.5}, schedule={"kind": "every", "steps": 2})
    yield rule("age of one", {"kind": "age", "of": "fc1", "above": 13.5}, schedule={"kind": "every", "steps": 2})
    yield rule("ramp", {"kind": "age", "of": "h", "above": ramp})
    yield rule("falling", {"kind": "cost", "metric": "params", "above": ramp})
    either = [{"kind": "age", "of": "fc1", "below": 1}, {"kind": "age", "of": "fc1", "above": 40}]
    yield rule("stopped", {"kind": "any", "of": either}, schedule={"kind": "every", "steps": 1, "stop": 20})
    yield rule("quiet", {"kind": "not", "of": {"kind": "event", "event": "bell"}})
    yield rule("since", {"kind": "since", "event": "task", "above": 6, "below": 9})
    yield rule("event", {"kind": "event", "event": "bell"})
    yield rule("cost", {"kind": "cost", "metric": "params", "below": 60})
    yield rule("state", {"kind": "cost", "metric": "optimizer_bytes", "above": 1})
    yield rule("budget", {"kind": "budget", "metric": "params", "above": 0.14})
    yield rule("dormant", {"kind": "dormant", "of": "h", "above": 0.1}, schedule={"kind": "every", "steps": 1,
               "stop": 26, "cooldown": 4})  # fmt: skip
    yield rule("parity", {"kind": "parity", "of": "h", "above": 1.5, "max_age": 17})
    yield rule("all", {"kind": "all", "of": [high, {"kind": "age", "of": "h", "above": 2}, {"kind": "always"}]})
    yield rule("any", {"kind": "any", "of": [{"kind": "age", "of": "h", "above": 21}, {"kind": "event"}]})
    yield rule("not", {"kind": "not", "of": {"kind": "since", "event": "edit", "below": 5}}, at_most=1)
    yield rule("stall", {"kind": "plateau", "metric": "a", "window": 4, "min_delta": 0.01},
               schedule={"kind": "every", "steps": 1, "start": 9, "max_fires": 1})  # fmt: skip
    yield {**rule("nowhere", {"kind": "always"}), "match": "units h[role=hidden, size>=9]"}
    yield rule("on", {"kind": "age", "of": "h", "above": 1}, schedule={"kind": "on", "event": "bell", "delay": 2})
    yield rule("late", {"kind": "always"}, schedule={"kind": "milestones", "metric": "a", "values": [0.95]})
    yield rule("cycles", {"kind": "age", "of": "h", "above": 7}, schedule={"kind": "cycles", "cycles": 3,
               "steps_per_cycle": 10})  # fmt: skip


def metrics(step: int) -> dict[str, Any]:
    part = {"fc1": float(step % 2), "fc2": float((step + 1) % 2)}
    return {"a": (step % 11) / 10 if step % 7 else 0.97, "part": part, "task": step // 16, "epoch": step // 24}


def disturb(net: gn.Network, step: int) -> None:
    """What a loop may do between two calls."""
    if step == 14:
        with net.edit() as edit:
            edit.retire("fc2", lowest=2)
    if step == 22:
        net.attach(torch.optim.Adam(net.parameters()))
    if step == 33:
        with net.edit() as edit:
            edit.deepen("act1")


@pytest.mark.parametrize("document", [[each] for each in every_guard()] + [list(every_guard())],
                         ids=lambda document: document[0]["name"] if len(document) == 1 else "together")  # fmt: skip
def test_a_resting_policy_says_what_one_that_forgets_everything_says(document: list[dict[str, Any]]) -> None:
    """The other is loaded anew from its state before every call, and read at once; this one is read at the end."""
    whole = {"rules": document, "budgets": {"params": 300}, "cooldown": 1 if len(document) > 1 else 0}
    resting, net, other_net = load_policy(whole), network(), network()
    other = load_policy(whole)
    kept: list[Outcome] = []
    expected = []
    for step in [*range(STEPS), STEPS + 5, STEPS + 5]:
        for each in (net, other_net):
            disturb(each, step)
        events = ["bell"] if step % 13 == 5 else []
        state = json.loads(json.dumps(other.state_dict(), allow_nan=False))
        other = load_policy(whole)
        other.load_state_dict(state)
        kept += resting.step(net, step=step, metrics=metrics(step), events=events)
        found = other.step(other_net, step=step, metrics=metrics(step), events=events)
        expected += [outcome.record() for outcome in found]
        assert resting.state_dict() == other.state_dict()
    assert [outcome.record() for outcome in kept] == expected
    if len(document) == 1:
        statuses = {outcome.status for outcome in kept}
        assert "applied" in statuses or document[0]["name"] == "nowhere"
        assert statuses & {"guard false", "not due", "no match"}


def network() -> gn.Network:
    return gn.Network(gn.mlp([3, 4, 3, 2]), seed=0)


def calls(policy: Policy, net: gn.Network, step: int) -> int:
    """Python functions that one call of a policy calls; unlike its time, this is the same on every machine."""
    count = 0
    given = {"a": 0.5, "loss": 1.0 / (1 + step)}

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    gc.collect()
    gc.disable()  # what it would call is none of the policy's business
    sys.setprofile(note)
    try:
        outcomes = policy.step(net, step=step, metrics=given)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert not any(outcome.applied for outcome in outcomes)
    return count


REFUSED: dict[str, dict[str, Any]] = {
    "budget": {"rules": [rule("grow", {"kind": "always"})], "budgets": {"params": 60}},
    "budget, by what a metric says": {
        "rules": [rule("grow", {"kind": "metric", "metric": "a", "above": 0.4})], "budgets": {"params": 60},
    },
    "another match each time": {
        "rules": [rule("grow", {"kind": "metric", "metric": "part", "of": "h", "above": 0.5})],
        "budgets": {"params": 60},
    },
    "newborns": {"immunity": 9, "rules": [
        rule("grow", {"kind": "always"}, schedule={"kind": "every", "steps": 13}),
        rule("prune", {"kind": "always"}, steps=[{"do": "prune", "units": "h", "lowest": 3}]),
    ]},
    "no turning round": {"hysteresis": 7, "rules": [
        rule("grow", {"kind": "always"}, schedule={"kind": "every", "steps": 11}),
        rule("prune", {"kind": "always"}, steps=[{"do": "prune", "units": "h", "lowest": 1}]),
    ]},
    "another goes first": {"rules": [
        rule("first", {"kind": "event", "event": "bell"}),
        rule("second", {"kind": "always"}, steps=[{"do": "grow", "units": "h", "count": 2}]),
    ], "max_growth": 0.4, "budgets": {"params": 120}},
    "a count that changes": {"budgets": {"params": 60}, "rules": [rule("grow", {"kind": "always"}, steps=[
        {"do": "grow", "units": "h", "count": {"kind": "linear", "start": 9, "end": 1, "steps": 30}}])]},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_rule_is_refused_again_until_it_would_not_be(name: str) -> None:
    """The other policy is loaded anew before every call, so that it drafts each time."""
    document, kept, expected = REFUSED[name], [], []
    resting, other, net, other_net = load_policy(document), load_policy(document), network(), network()
    for step in range(STEPS):
        for each in (net, other_net) if step > 14 else ():
            disturb(each, step)
        events = ["bell"] if step % 13 == 5 else []
        state = json.loads(json.dumps(other.state_dict(), allow_nan=False))
        other = load_policy(document)
        other.load_state_dict(state)
        kept += resting.step(net, step=step, metrics=metrics(step), events=events)
        expected += [found.record() for found in other.step(other_net, step=step, metrics=metrics(step), events=events)]
    assert [outcome.record() for outcome in kept] == expected
    assert {"applied", "rejected"} <= {outcome.status for outcome in kept}


def test_a_refused_rule_does_not_plan_again() -> None:
    net = network()
    policy = load_policy({"rules": [rule(f"r{i}", {"kind": "always"}) for i in range(10)], "budgets": {"params": 36}})
    first, again = (calls(policy, net, step) for step in (0, 1))
    assert again < first / 15
    assert again <= 35 + 10 * 50


@pytest.mark.parametrize(("when", "most"), [({"kind": "age", "of": "h", "above": 1e9}, 3),
                                            ({"kind": "metric", "metric": "a", "above": 2}, 17)])  # fmt: skip
def test_a_rule_whose_guard_is_false_costs_a_few_calls(when: dict[str, Any], most: int) -> None:
    """The benchmark of the time is benchmarks/bench_policy.py; ten rules that are due take under 1% of a step."""
    net = network()
    few = load_policy([rule(f"r{i}", when) for i in range(10)])
    many = load_policy([rule(f"r{i}", when) for i in range(30)])
    for policy in (few, many):
        policy.step(net, step=0, metrics={"a": 0.5, "loss": 1.0})
    assert (calls(many, net, 1) - calls(few, net, 1)) / 20 <= most
    assert calls(few, net, 2) <= 35 + 10 * most


def test_outcomes_are_values_whether_they_were_read_or_not() -> None:
    policy = load_policy([rule("r", {"kind": "age", "of": "h", "above": 5})])
    net = network()
    first, second = (policy.step(net, step=step)[0] for step in (1, 2))
    assert first != second
    assert "reason" not in first.__dict__ or first.reason  # equality reads the words of both
    (again,) = load_policy([rule("r", {"kind": "age", "of": "h", "above": 5})]).step(net, step=1)
    assert again == first
    assert hash(again) == hash(first)
    assert repr(again) == repr(first)
    for twin in (copy.copy(again), copy.deepcopy(again)):
        assert twin == first
    assert first.reason == "the age of fc1 is 1, not above 5; the age of fc2 is 1, not above 5"
    with pytest.raises(AttributeError, match="no attribute 'reasons'"):
        first.reasons  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError):
        first.status = "applied"  # type: ignore[misc]
    unread = policy.step(net, step=3)[0]
    assert copy.copy(unread).matches[0].reason == "the age of fc1 is 3, not above 5"
    assert copy.deepcopy(policy.step(net, step=4)[0]).reason.startswith("the age of fc1 is 4")


def test_stats_count_what_was_not_read() -> None:
    policy = load_policy([rule("r", {"kind": "age", "of": "h", "above": 5}, schedule={"kind": "every", "steps": 2})])
    net = network()
    for step in range(6):
        policy.step(net, step=step)
    stats = policy.stats()["r"]
    assert (stats["hits"], stats["misses"]["guard false"]["count"], stats["misses"]["not due"]["count"]) == (0, 3, 3)
    assert stats["matches"] == [
        {"nodes": {"h": "fc1"}, "reason": "the age of fc1 is 4, not above 5", "count": 3},
        {"nodes": {"h": "fc2"}, "reason": "the age of fc2 is 4, not above 5", "count": 3},
    ]
    policy.step(net, step=8)
    assert policy.stats()["r"]["hits"] == 1
