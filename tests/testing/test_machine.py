"""The machine runs, finds what is broken, and is a class to build on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, reject, settings
from hypothesis.stateful import RULE_MARKER, RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from torch.optim import Optimizer

import graphnet as gn
from graphnet.testing import COUNTS, SurgeryMachine
from graphnet.testing.machine import counted

# Not made smaller: what is broken on purpose need only be found.
SHORT = settings(
    max_examples=6, stateful_step_count=12, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate], report_multiple_bugs=False,
)  # fmt: skip

TestSurgery = SurgeryMachine.TestCase


class OnMyNetwork(SurgeryMachine):
    """A network and an optimizer of one's own, and a rule more."""

    def make_graph(self) -> gn.Graph:
        return gn.mlp([4, 6, 3], norm="batch")

    def make_optimizer(self, net: gn.Network) -> Optimizer:
        return torch.optim.AdamW(net.parameters(), lr=0.01)

    @rule()
    def halve_the_rate(self) -> None:
        for group in self.optimizers[0].param_groups:
            group["lr"] *= 0.5


def run(machine: Callable[[], RuleBasedStateMachine], **changes: Any) -> None:
    run_state_machine_as_test(machine, settings=settings(SHORT, **changes))


def test_a_subclass_runs_and_is_checked() -> None:
    before = COUNTS.laws.copy()
    run(OnMyNetwork)
    assert COUNTS.laws["valid"] > before["valid"] + 20
    assert COUNTS.laws["lowering"] > before["lowering"] + 20


# -- every rule is reached ------------------------------------------------------------------------------------


def unreached(machine: type[SurgeryMachine], examples: int) -> set[str]:
    """Rules of a machine that did not once run to their end, in so many runs that are always the same."""
    names = {name for name, member in inspect.getmembers(machine) if hasattr(member, RULE_MARKER)}
    COUNTS.rules.clear()
    run(machine, max_examples=examples, stateful_step_count=20, derandomize=True)
    return names - set(COUNTS.rules)


class Reluctant(OnMyNetwork):
    """A rule that is never due, and one that gives up."""

    @precondition(lambda self: False)
    @rule()
    @counted
    def never(self) -> None:
        raise AssertionError

    @rule()
    @counted
    def give_up(self) -> None:
        reject()


def test_rules_that_are_not_reached_are_seen() -> None:
    assert {"never", "give_up"} <= unreached(Reluctant, 2)


def test_every_rule_is_reached() -> None:
    assert not unreached(OnMyNetwork, 8) - {"halve_the_rate"}  # which does not count itself
    assert sum(COUNTS.rules.values()) >= 100
    for law in ("failed block unchanged", "rolled back", "saved and loaded", "copies", "plain copy", "compiled"):
        assert COUNTS.laws[law] > 0


# -- what is wrong is found -----------------------------------------------------------------------------------


class Meddling(OnMyNetwork):
    """A rule that resizes a parameter behind the network's back."""

    @rule()
    def meddle(self) -> None:
        self.net.fc1.bias.data = torch.zeros(self.net.fc1.bias.shape[0] + 1, dtype=torch.float64)


def test_what_a_rule_breaks_is_found() -> None:
    # whichever invariant is checked first: the shape, or a forward pass that cannot run
    with pytest.raises((AssertionError, RuntimeError), match=r"fc1\.bias has shape|must match the existing size"):
        run(Meddling, max_examples=30)


class Forgetting(OnMyNetwork):
    """An optimizer that loses a parameter."""

    @rule()
    def forget(self) -> None:
        params = self.optimizers[0].param_groups[0]["params"]
        if len(params) > 1:
            params.pop()


def test_a_parameter_that_no_optimizer_holds_is_found() -> None:
    with pytest.raises(AssertionError, match="no attached optimizer holds"):
        run(Forgetting, max_examples=30)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_is_the_network(backend: str) -> None:
    machine = OnMyNetwork()
    machine.net = machine.make_network(machine.make_graph(), 0)

    before = COUNTS.laws["compiled"]
    machine.compile(backend)
    assert COUNTS.laws["compiled"] == before + 1
