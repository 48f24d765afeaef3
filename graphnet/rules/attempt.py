"""One attempt to apply one rule: draft, then apply, and say how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from graphnet.rules.ages import Ages
from graphnet.rules.engine import CompiledRule
from graphnet.rules.guards import View
from graphnet.rules.outcome import CostChange, Outcome, Status
from graphnet.rules.patterns import Binding
from graphnet.rules.steps import Moment
from graphnet.rules.world import World
from graphnet.schemas.policy import Policy as PolicyDocument

__all__ = ["Metrics", "attempt", "outcome_of"]

Metrics: TypeAlias = Mapping[str, float]


def attempt(
    rule: CompiledRule,
    world: World,
    step: int,
    metrics: Metrics,
    ages: Ages,
    moment: Moment,
    document: PolicyDocument,
) -> Outcome:
    """Draft the rule, and apply the draft where nothing stands against it."""
    graph, accountant = world.graph, world.accountant

    def look(binding: Binding) -> View:
        return View(graph, step, metrics, binding, ages, lambda: accountant.costs(graph), world.parity)

    before = accountant.costs(graph)
    draft = rule.draft(graph, look, moment, accountant, document.budgets)
    if draft.status == "applied":
        draft = world.apply(rule, draft, moment, document.budgets, document.seed)
    if draft.status == "applied":
        ages.observe(world.graph, step, document.immunity, draft.born)
    after = accountant.costs(world.graph) if draft.status == "applied" else before
    changes = draft.changes if draft.status == "applied" else ()
    return Outcome(
        rule.rule.name,
        draft.status,
        draft.reason,
        world.graph.version,
        CostChange(before, after),
        step,
        changes,
        draft.error,
    )


def outcome_of(rule: CompiledRule, status: Status, reason: str, world: World, step: int) -> Outcome:
    """An outcome that changed nothing."""
    costs = world.accountant.costs(world.graph)
    return Outcome(rule.rule.name, status, reason, world.graph.version, CostChange(costs, costs), step)
