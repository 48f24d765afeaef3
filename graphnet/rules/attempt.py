"""One attempt to apply one rule: draft, then apply, and say how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from graphnet.ir.graph import Graph
from graphnet.rules.engine import CompiledRule, Draft
from graphnet.rules.execution import Limits, Place
from graphnet.rules.guards import View
from graphnet.rules.outcome import CostChange, MatchOutcome, Outcome, Status
from graphnet.rules.remembered import Remembered
from graphnet.rules.steps import Moment
from graphnet.rules.world import World
from graphnet.schemas.policy import Budgets
from graphnet.schemas.policy import Policy as PolicyDocument

__all__ = ["NotDue", "attempt", "view_of"]


def view_of(world: World, graph: Graph, step: int, previous: int, remembered: Remembered, budgets: Budgets) -> View:
    """What the guards of a policy may look at, at one call of it."""
    return View(
        graph, step, previous, world.readings, remembered.units, {}, remembered.ages, remembered.events, budgets,
        world.accountant, world,
    )  # fmt: skip


def attempt(
    rule: CompiledRule,
    world: World,
    view: View,
    found: Sequence[Place] | Draft,
    remembered: Remembered,
    moment: Callable[[], Moment],
    limits: Limits,
    document: PolicyDocument,
) -> tuple[Outcome, tuple[str, ...]]:
    """Draft the rule at places, and apply the draft where nothing stands against it; the outcome, what was touched."""
    graph, accountant, step = world.graph, world.accountant, view.step
    draft = found if isinstance(found, Draft) else rule.draft(view, found, moment, accountant, limits)
    before = accountant.costs(graph)
    if draft.status == "applied":
        draft = world.apply(rule, draft, moment(), document.budgets, limits, document.seed)
    while draft.again:  # some matches were refused by what only tensors tell: the others go on without them
        draft = rule.draft(view, draft.places, moment, accountant, limits)
        if draft.status == "applied":
            draft = world.apply(rule, draft, moment(), document.budgets, limits, document.seed)
    applied = draft.status == "applied"
    if applied:
        accountant.refresh(None)
        remembered.follow(draft.origins)
        remembered.ages.observe(world.graph, step, document.immunity, draft.born, draft.origins)
    outcome = Outcome(
        rule.rule.name,
        draft.status,
        draft.reason,
        world.graph.version,
        CostChange(before, accountant.costs(world.graph)) if applied else accountant.unchanged(graph),
        step,
        draft.changes if applied else (),
        draft.matches,
        draft.error,
    )
    return outcome, draft.touched if applied else ()


@dataclass(frozen=True, slots=True)
class NotDue:
    """Why a rule was not asked for its matches; by itself it says so for good, its timer bounds for how long."""

    said: str
    until: float = inf
    status: Status = "not due"
    found: object = None

    def reason(self, step: int) -> str:
        """What the schedule, or a cooldown, says."""
        return self.said

    def matches(self, step: int) -> tuple[MatchOutcome, ...]:
        """None was looked for."""
        return ()
