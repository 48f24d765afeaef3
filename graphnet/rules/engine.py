"""A compiled rule: it drafts what it would do on the graph alone, and performs the draft as one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graphnet.errors import EditError, GraphError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.rules.costs import Accountant, check_budgets, check_transient
from graphnet.rules.guards import View, compile_guard
from graphnet.rules.outcome import Change, Status
from graphnet.rules.patterns import Binding, compile_match
from graphnet.rules.schedules import SCHEDULES
from graphnet.rules.steps import STEPS, Data, Moment, Runner, Task
from graphnet.runtime.network import Network
from graphnet.schemas.policy import Budgets, Rule

__all__ = ["CompiledRule", "Draft", "perform"]

_SHOWN = 3  # reasons of one kind in one message


@dataclass(frozen=True, slots=True)
class Draft:
    """What a rule would do.

    Attributes
    ----------
    status, reason : str
        As in an outcome; ``applied`` stands for "may be performed".
    graph : Graph
        The graph as it would be, with the ids of pruned units guessed.
    tasks : tuple of Task
    born : mapping of group to ids
        Units that join the live ones; a guess where a score recruits them, until it has been performed.
    error : GraphnetError or None
    """

    status: Status
    reason: str
    graph: Graph
    tasks: tuple[Task, ...] = ()
    born: Mapping[str, Collection[int]] = field(default_factory=dict)
    error: GraphnetError | None = None

    @property
    def changes(self) -> tuple[Change, ...]:
        """What its tasks do."""
        return tuple(change for task in self.tasks for change in task.changes)

    def rejected(self, graph: Graph, error: GraphnetError) -> Draft:
        """The draft of a rule that was refused."""
        return Draft("rejected", str(error), graph, error=error.with_traceback(None))


class CompiledRule:
    """A rule as matcher, guard, timer and runners.

    Parameters
    ----------
    rule : Rule

    Raises
    ------
    GraphnetError
        The rule has a part that this version cannot execute, or names something that is not registered.
    """

    def __init__(self, rule: Rule) -> None:
        where = f"rule {rule.name!r}"
        self.rule = rule
        self.matcher = compile_match(rule.match, where)
        self.guard = compile_guard(rule.when)
        self.timer = SCHEDULES.compile(rule.schedule, where)
        self.runners: list[Runner] = []
        for i, step in enumerate(rule.steps):
            place = f"{where}, step {i + 1} ({step.do})"
            self.runners.append(STEPS.compile(step, place, place))

    def draft(
        self,
        graph: Graph,
        look: Callable[[Binding], View],
        moment: Moment,
        accountant: Accountant,
        budgets: Budgets,
    ) -> Draft:
        """What the rule would do to a graph now; no tensor is read but by a guard that measures."""
        bindings = list(self.matcher(graph))
        if not bindings:
            return Draft("no match", "no unit group matches the pattern", graph)
        verdicts = [self.guard.verdict(look(binding)) for binding in bindings]
        passing = [binding for binding, verdict in zip(bindings, verdicts, strict=True) if verdict.holds]
        if not passing:
            return Draft("guard false", _some([verdict.reason for verdict in verdicts]), graph)
        try:
            tasks, born, idle = self._resolve(graph, passing, moment)
        except GraphError as error:
            return Draft("no match", str(error), graph)
        except EditError as error:
            return Draft("rejected", str(error), graph, error=error.with_traceback(None))
        if not tasks:
            return Draft("no match", f"nothing to do: {_some(idle)}", graph)
        after = replace(tasks[-1].after, version=graph.version + 1)
        draft = Draft("applied", "", after, tuple(tasks), born)
        try:
            check_budgets(budgets, accountant.costs(graph), accountant.costs(after))
            check_transient(budgets, _peak(accountant, graph, tasks))
        except EditError as error:
            return draft.rejected(graph, error)
        return replace(draft, reason="; ".join(map(str, draft.changes)))

    def _resolve(
        self, graph: Graph, bindings: Sequence[Binding], moment: Moment
    ) -> tuple[list[Task], dict[str, set[int]], list[str]]:
        """Tasks in order, each against the graph that the ones before leave; newborns; what has nothing to do."""
        tasks: list[Task] = []
        idle: list[str] = []
        born: dict[str, set[int]] = {}
        for runner in self.runners:  # a step is done on every match before the next step begins
            for at, binding in enumerate(bindings):
                if at > 0 and runner.units not in binding:
                    continue  # it names groups directly, and has been done once
                for groups in runner.targets(graph, binding):
                    known = born.setdefault(groups[0], set()) if groups else set()
                    found = runner.resolve(groups, graph, moment, known)
                    if isinstance(found, str):
                        idle.append(found)
                    else:
                        tasks.append(found)
                        known.update(found.born)
                        graph = found.after
        return tasks, born, idle

    def seed(self, net: Network, policy_seed: int, step: int) -> int:
        """The seed of the edit's random numbers: that of a step where one is given, else of network and policy."""
        given = [seed for each in self.rule.steps if (seed := getattr(each, "seed", None)) is not None]
        mixed: tuple[Any, ...] = (self.rule.name, step, *given)
        if not given:
            mixed = (*mixed, "policy", policy_seed, net.history.versions[0].seed, net.version)
        digest = hashlib.blake2b(repr(mixed).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


def perform(
    net: Network,
    draft: Draft,
    moment: Moment,
    data: Data,
    *,
    accountant: Accountant,
    budgets: Budgets,
    seed: int,
) -> Draft:
    """Make the draft's tasks one version of the network; the draft comes back rejected where that is refused."""
    before = net.graph
    try:
        with net.edit(seed=seed) as edit:
            for task in draft.tasks:
                task.perform(edit, moment, data)
            for name, group in draft.graph.groups.items():
                planned = edit.graph.groups[name]
                if (planned.size, len(planned.dormant)) != (group.size, len(group.dormant)):
                    raise EditError(f"{name!r} would have {planned.size} units where the rule planned {group.size}")
            check_budgets(budgets, accountant.costs(before), accountant.costs(edit.graph))
    except GraphnetError as error:
        return draft.rejected(before, error)
    joined: dict[str, set[int]] = {}
    for step in net.history.latest.steps:
        if step.group is not None:
            joined.setdefault(step.group, set()).update(step.born)
    return replace(draft, graph=net.graph, born=joined)


def _peak(accountant: Accountant, graph: Graph, tasks: Sequence[Task]) -> int:
    peak = 0
    rewritten: set[str] = set()
    for task in tasks:
        rewritten.update(task.rewritten)
        peak = max(peak, accountant.transient_bytes(graph, task.after, rewritten))
    return peak


def _some(reasons: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(reasons))
    more = f"; and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return "; ".join(distinct[:_SHOWN]) + more
