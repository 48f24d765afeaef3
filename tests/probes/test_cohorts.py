"""Newborns are followed by id, whatever happens to the network."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from graphnet.edit.plan import Plan, Step
from graphnet.errors import CheckpointError, EditError, GraphnetError
from graphnet.ir.builders import mlp
from graphnet.probes import Cohorts, Duration, Probe, probe
from graphnet.runtime.network import Network

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3


def network() -> Network:
    return Network(mlp([6, 8, 5, 3]), seed=1)


def probed(net: Network) -> Probe:
    return probe(net, (X, Y), F.cross_entropy)


def reverse(plan: Plan, group: str) -> None:
    """An operator that only changes the order of units."""
    before = plan.graph.groups[group]
    plan.advance(replace(before, ids=before.ids[::-1]))
    plan.steps.append(Step("permute", group, {}, preserves="function"))


def drop_silently(plan: Plan, group: str, unit: int) -> None:
    """An operator that drops a unit whose absence changes nothing, as it says."""
    before = plan.graph.groups[group]
    plan.advance(replace(before, ids=tuple(i for i in before.ids if i != unit)))
    plan.steps.append(Step("drop", group, {}, dropped=(unit,), preserves="function"))


def test_births_and_ages() -> None:
    net = network()
    cohorts = Cohorts(net)
    cohorts.record(10)
    with net.edit() as edit:
        first = edit.grow("fc1", 2)
    cohorts.record(11)
    cohorts.record(25)
    with net.edit() as edit:
        second = edit.grow("fc1", 3)
        other = edit.grow("fc2", 1)
    cohorts.record(30)
    assert [(c.group, c.version, c.step, c.ids) for c in cohorts.cohorts] == [
        ("fc1", 1, 10, first), ("fc1", 2, 25, second), ("fc2", 2, 25, other),
    ]  # fmt: skip
    assert cohorts.age("fc1", 0) is None
    assert cohorts.age("fc1", first[0]) == 20
    assert cohorts.age("act1", second[2]) == 5
    assert cohorts.newborns("fc1") == second
    assert cohorts.newborns("head") == ()
    with pytest.raises(EditError, match="no unit"):
        cohorts.age("fc1", 99)
    with pytest.raises(GraphnetError, match="only go up"):
        cohorts.record(29)


def test_units_that_were_there_are_incumbents() -> None:
    net = network()
    with net.edit() as edit:
        early = edit.grow("fc1", 2)
    cohorts = Cohorts(net, step=100)
    assert cohorts.cohorts == ()
    assert cohorts.age("fc1", early[0]) is None


def test_pruned_units_drop_out_and_order_does_not_matter() -> None:
    net = network()
    cohorts = Cohorts(net)
    with net.edit() as edit:
        born = edit.grow("fc1", 3)
    cohorts.record(5)
    with net.edit() as edit:
        edit.apply(reverse, "fc1")
    (cohort,) = cohorts.cohorts
    assert cohorts.live(cohort) == born[::-1]
    assert cohort.curve.end is None  # an order is no event
    with net.edit() as edit:
        edit.prune("fc1", units=[0, born[1]])
    cohorts.record(6)
    assert cohorts.live(cohort) == (born[2], born[0])
    assert cohorts.age("fc1", born[0]) == 6
    assert cohort.curve.end == 5
    with net.edit() as edit:
        edit.prune("fc1", units=[born[0], born[2]])
    assert cohorts.live(cohort) == ()
    assert cohorts.newborns("fc1") == ()


def test_other_units_are_an_event_even_where_the_function_is_preserved() -> None:
    net = network()
    cohorts = Cohorts(net)
    with net.edit() as edit:
        edit.grow("fc1", 3)
    cohorts.record(5)
    with net.edit() as edit:
        edit.apply(drop_silently, "fc1", 0)
    (cohort,) = cohorts.cohorts
    assert cohort.curve.end == 5


def test_a_unit_that_is_recruited_again_is_born_again() -> None:
    net = network()
    cohorts = Cohorts(net)
    with net.edit() as edit:
        edit.retire("fc1", units=[2, 4, 6])
    assert cohorts.cohorts == ()
    cohorts.record(3)
    with net.edit() as edit:
        edit.recruit("fc1", units=[2, 4])
    cohorts.record(7)
    with net.edit() as edit:
        edit.retire("fc1", units=[4])
    cohorts.record(8)
    with net.edit() as edit:
        edit.recruit("fc1", units=[4])
    cohorts.record(10)
    older, younger = cohorts.cohorts
    assert (cohorts.live(older), cohorts.live(younger)) == ((2,), (4,))
    assert (cohorts.age("fc1", 2), cohorts.age("fc1", 4)) == (7, 2)


def test_edits_between_two_steps_make_one_cohort() -> None:
    """Layers edited one after the other must not end each other's curves at age 0."""
    net = network()
    cohorts = Cohorts(net)
    cohorts.record(4)
    for group in ("fc1", "fc2", "fc1"):
        with net.edit() as edit:
            edit.grow(group, 1)
    first, second = cohorts.cohorts
    assert (first.group, len(first.ids), second.group, len(second.ids)) == ("fc1", 2, "fc2", 1)
    assert first.curve.end is None
    assert len(cohorts.live(first)) == 2


def test_curves_end_at_the_next_edit() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net.attach(optimizer)
    cohorts = Cohorts(net, step=10)
    with net.edit() as edit:
        born = edit.grow("fc1", 3, init="zero-outgoing")
    found = cohorts.observe(probed(net))
    assert [(cohort.group, parity.censored) for cohort, parity in found] == [("fc1", True)]
    for step in range(11, 15):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
        cohorts.record(step)
        cohorts.observe(probed(net))
    (cohort,) = cohorts.cohorts
    assert [point.age for point in cohort.curve.points] == [0, 1, 2, 3, 4]
    expected = probed(net).parity("fc1", born)
    assert cohort.curve.points[-1].gradient == expected.ratio_gradient
    assert cohort.curve.points[-1].activation == expected.ratio_activation
    stale = probed(net)
    with net.edit() as edit:
        edit.prune("fc2", lowest=1)
    assert cohorts.observe(probed(net)) == []
    assert cohort.curve.end == 4
    with pytest.raises(GraphnetError, match="version 1, the network is at version 2"):
        cohorts.observe(stale)
    reached = [p.age for p in cohort.curve.points if p.gradient is not None and p.gradient >= 0.5]
    duration = Duration(reached[0], True) if reached else Duration(4, False)
    assert cohorts.durations("fc1") == [duration]
    assert cohorts.durations("fc2") == []
    assert cohorts.median_time_to_parity() == (duration.age if duration.observed else None)


def test_tracking_resumes_from_plain_data() -> None:
    net = network()
    cohorts = Cohorts(net)
    for step in (3, 9):
        cohorts.record(step)
        with net.edit() as edit:
            edit.grow("fc1", 2)
        cohorts.observe(probed(net))
    state = json.loads(json.dumps(cohorts.state_dict()))
    again = Cohorts(net)
    again.load_state_dict(state)
    assert again.state_dict() == cohorts.state_dict()
    for follower in (cohorts, again):
        follower.record(12)
    with net.edit() as edit:
        edit.grow("fc1", 1)
    assert again.state_dict() == cohorts.state_dict()
    assert again.age("fc1", 8) == 9
    for wrong in ({}, state | {"cohorts": [{}]}, state | {"version": 99}):
        with pytest.raises(CheckpointError):
            again.load_state_dict(wrong)
    assert again.state_dict() == cohorts.state_dict()
