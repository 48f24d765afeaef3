from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphnet as gn
from graphnet.rules import load_policy
from graphnet.rules.schedules import SCHEDULES, Clock
from graphnet.schemas.policy import At, Cycles, Every


def due_steps(schedule: Any, steps: list[int]) -> list[int]:
    timer = SCHEDULES.compile(schedule, "a rule")
    clocks = [Clock(b, a) for a, b in zip([steps[0] - 1, *steps], steps, strict=False)]
    return [clock.step for clock in clocks if timer(clock, 0) is None]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (At(steps=(3, 0, 7)), [0, 3, 7]),
        (Every(steps=4), [0, 4, 8, 12, 16]),
        (Every(steps=4, start=3), [3, 7, 11, 15, 19]),
        (Every(steps=4, start=3, stop=11), [3, 7]),  # before stop, so not at 11
        (Cycles(cycles=3, steps_per_cycle=6), [0, 6, 12]),
    ],
)
def test_a_schedule_is_due_at_its_steps(schedule: Any, expected: list[int]) -> None:
    assert due_steps(schedule, list(range(20))) == expected


@given(st.integers(1, 9), st.integers(0, 20), st.integers(1, 7))
def test_a_coarse_loop_misses_no_tick_that_lies_between_its_calls(period: int, start: int, stride: int) -> None:
    calls = list(range(0, 60, stride))
    ticks = range(start, 60, period)
    expected = [b for a, b in zip([-1, *calls], calls, strict=False) if any(a < tick <= b for tick in ticks)]
    assert due_steps(Every(steps=period, start=start), calls) == expected


def rule(**parts: Any) -> dict[str, Any]:
    return {"name": "r", "steps": [{"do": "grow", "units": "fc1", "count": 1}], **parts}


def applied(policy: Any, net: gn.Network, steps: Any, **options: Any) -> list[int]:
    return [step for step in steps for outcome in policy.step(net, step=step, **options) if outcome.applied]


def test_max_fires_counts_what_was_applied_and_cooldown_swallows_ticks() -> None:
    net = gn.Network(gn.mlp([3, 4, 2]), seed=0)
    schedule = {"kind": "every", "steps": 2, "max_fires": 3, "cooldown": 5}
    assert applied(load_policy([rule(schedule=schedule)]), net, range(40)) == [0, 6, 12]


def test_the_cooldown_of_a_policy_holds_between_its_rules() -> None:
    net = gn.Network(gn.mlp([3, 4, 2]), seed=0)
    rules = [rule(name="a", priority=0), rule(name="b", priority=1)]
    policy = load_policy({"rules": rules, "cooldown": 4})
    first = policy.step(net, step=0)
    assert [(o.rule, o.status) for o in first] == [("b", "applied"), ("a", "not due")]
    assert first[1].reason == "the policy's cooldown lasts until step 4"
    assert applied(policy, net, range(1, 10)) == [4, 8]


def test_cycles_of_epochs_start_with_the_epoch_metric() -> None:
    net = gn.Network(gn.mlp([3, 4, 2]), seed=0)
    policy = load_policy([rule(schedule={"kind": "cycles", "cycles": 2, "epochs": 3})])
    found = [s for s in range(40) if policy.step(net, step=s, metrics={"epoch": s // 4})[0].applied]
    assert found == [0, 12]  # epochs 0 and 3 of four steps each; epoch 6 would begin a third cycle
    (outcome,) = load_policy([rule(schedule={"kind": "cycles", "cycles": 2, "epochs": 3})]).step(net, step=0)
    assert outcome.status == "not due"
    assert "epoch" in outcome.reason


def test_a_step_is_tried_once_and_steps_do_not_go_back() -> None:
    net = gn.Network(gn.mlp([3, 4, 2]), seed=0)
    policy = load_policy([rule()])
    assert policy.step(net, step=5)[0].applied
    assert policy.step(net, step=5)[0].status == "not due"
    with pytest.raises(gn.GraphnetError, match="step 4 comes after step 5"):
        policy.step(net, step=4)
    for wrong in (True, -1, 1.0):
        with pytest.raises(gn.GraphnetError, match="whole number"):
            policy.step(net, step=wrong)  # type: ignore[arg-type]
