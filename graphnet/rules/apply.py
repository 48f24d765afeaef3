"""Apply one rule to a network, without a policy around it: what ``net.apply`` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.errors import GraphnetError
from graphnet.rules.attempt import attempt, view_of
from graphnet.rules.engine import Waiting
from graphnet.rules.execution import Limits
from graphnet.rules.fluent import as_rule
from graphnet.rules.metrics import Metrics, check_metrics
from graphnet.rules.outcome import Outcome
from graphnet.rules.policy import Policy
from graphnet.rules.world import Live, plainly
from graphnet.runtime.network import Network
from graphnet.schemas.policy import Budgets, Rule
from graphnet.schemas.policy import Policy as PolicyDocument

__all__ = ["apply_rule"]


def apply_rule(
    net: Network,
    rule: Rule,
    *,
    metrics: Metrics | None = None,
    step: int | None = None,
    batch: Batch | None = None,
    loss: Loss | None = None,
    budgets: Budgets | None = None,
    snapshots: Mapping[str, Snapshot] | None = None,
) -> Outcome:
    """Apply one rule now, as one transaction.

    Without ``step`` the schedule is not asked; with it the rule must be due at that step. Nothing is remembered: a
    plateau guard needs a policy.

    Raises
    ------
    GraphnetError
        The rule cannot be executed by this version; a metric is no number. A refused edit is a rejected outcome.

    Examples
    --------
    >>> import graphnet as gn
    >>> net = gn.Network(gn.mlp([4, 8, 3]), seed=0)
    >>> rule = Rule(name="wider", steps=[{"do": "grow", "units": "fc1", "count": 2}])
    >>> apply_rule(net, rule).reason
    'grow fc1 8 -> 10'
    """
    rule = as_rule(rule)
    if not isinstance(rule, Rule):
        raise GraphnetError(f"net.apply takes a gn.Rule, not a {type(rule).__name__}")
    policy = Policy(PolicyDocument(rules=(rule,), budgets=budgets or Budgets()))
    for name, snapshot in (snapshots or {}).items():
        policy.keep(name, snapshot)
    now = policy._check_step(0 if step is None else step)
    step = None if step is None else now
    accountant = policy._accountant(net)
    numbers, units = check_metrics(metrics, net.graph)
    remembered = policy._remembered
    world = Live(net, accountant, now, numbers, batch, loss, policy._snapshots, remembered)
    remembered.ages.recall(net.history)
    for name, groups in units.items():
        for group, values in groups.items():
            remembered.units.update(name, group, values)
    (compiled,) = policy._order
    compiled.guard.observe(now, world.readings)
    if step is not None:
        waiting = policy._not_due(compiled, policy._advance(step, world.readings))
        if waiting is not None:
            graph = net.graph
            return Outcome.told_by(waiting, rule.name, graph.version, accountant.unchanged(graph), step)
    with plainly(accountant.device):
        remembered.measure_utility(net, batch)
        view = view_of(world, net.graph, now, now - 1, remembered, policy.budgets)
        found = compiled.look(view)
        if isinstance(found, Waiting):
            outcome = Outcome.told_by(found, rule.name, net.version, accountant.unchanged(net.graph), now)
            return replace(outcome, step=step)
        outcome, _ = attempt(
            compiled, world, view, found, remembered, lambda: policy._moment(compiled, now), Limits(), policy.document
        )
    return replace(outcome, step=step)
