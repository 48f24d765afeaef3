"""A policy at work: rules, budgets and what they remember, stepped beside the training loop."""

from __future__ import annotations

import operator
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, isfinite, nan
from typing import Any, SupportsIndex

from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.errors import CheckpointError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.probes.utility import Utility
from graphnet.rules.ages import Ages
from graphnet.rules.attempt import NotDue, attempt, view_of
from graphnet.rules.costs import Accountant
from graphnet.rules.engine import CompiledRule, Draft, Waiting
from graphnet.rules.events import check_events
from graphnet.rules.execution import Limits, Place
from graphnet.rules.guards import View
from graphnet.rules.lineage import renamed_groups, steps_since
from graphnet.rules.memory import Directions, RuleMemory
from graphnet.rules.metrics import Metrics, check_metrics
from graphnet.rules.outcome import Outcome
from graphnet.rules.remembered import Remembered, reads_utility
from graphnet.rules.schedules import Clock
from graphnet.rules.steps import Moment
from graphnet.rules.world import Live, Sketch, World, plainly
from graphnet.runtime.network import Network
from graphnet.schemas.policy import Budgets, Rewind, Rule
from graphnet.schemas.policy import Policy as PolicyDocument
from graphnet.schemas.scalars import whole

__all__ = ["Policy"]

_FORMAT = 2
_TAKEN_AT_START = ("init", "initial")
"""Names of the snapshot that a policy takes by itself at its first step, where a rule rewinds to it."""


class Policy:
    """Rules with budgets, applied to one network as its training goes on.

    Parameters
    ----------
    document : graphnet.schemas.policy.Policy
    source : str
        Where the document came from, for messages and :meth:`stats`.

    Raises
    ------
    GraphnetError
        A rule names something that is not registered, or gives it arguments that it does not take.

    Examples
    --------
    >>> import graphnet as gn
    >>> from graphnet.rules import load_policy
    >>> policy = load_policy([{"name": "wider", "steps": [{"do": "grow", "units": "fc1", "count": 2}],
    ...                        "schedule": {"kind": "every", "steps": 10, "start": 10, "max_fires": 2}}])
    >>> net = gn.Network(gn.mlp([4, 8, 3]), seed=0)
    >>> for step in range(40):
    ...     for outcome in policy.step(net, step=step):
    ...         if outcome.applied:
    ...             print(outcome)
    step 10: wider: applied (grow fc1 8 -> 10)
    step 20: wider: applied (grow fc1 10 -> 12)
    """

    def __init__(self, document: PolicyDocument, *, source: str = "policy") -> None:
        self.document, self.source = document, source
        rules = [CompiledRule(rule) for rule in document.rules]
        self._owes = any(rule.owes for rule in rules)
        self._order = sorted(rules, key=lambda rule: -rule.rule.priority)  # stable: then in the document's order
        self._memory = {rule.name: RuleMemory() for rule in document.rules}
        self._entries = [(rule, self._memory[rule.name]) for rule in self._order]
        self._remembered = self._nothing()
        self._directions = Directions(document.hysteresis, document.max_growth)
        self._version: int | None = None
        self._step: int | None = None
        self._epoch: int | None = None
        self._applied_at: int | None = None
        self._snapshots: dict[str, Snapshot] = {}
        named = {step.snapshot for rule in document.rules for step in rule.steps if isinstance(step, Rewind)}
        self._wanted = [name for name in _TAKEN_AT_START if name in named]
        self._taken: set[str] = set()
        self._bound: tuple[weakref.ref[Network], Accountant] | None = None

    def _nothing(self) -> Remembered:
        """What is known before the first step."""
        return Remembered(utility=Utility() if reads_utility(self.document.rules) else None)

    @property
    def _ages(self) -> Ages:
        return self._remembered.ages

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the document's order."""
        return self.document.rules

    @property
    def budgets(self) -> Budgets:
        """The limits."""
        return self.document.budgets

    # -- running ----------------------------------------------------------------------------------------------

    def step(
        self,
        net: Network,
        *,
        step: int,
        metrics: Metrics | None = None,
        batch: Batch | None = None,
        loss: Loss | None = None,
        events: Iterable[str] = (),
    ) -> list[Outcome]:
        """Try every rule, in order of priority; call it after each optimizer step, or every few.

        Parameters
        ----------
        net : Network
        step : int
            Optimizer steps taken so far; never less than at the call before. What became due since then is due now.
        metrics : mapping of str to float, optional
            What guards read; ``epoch`` drives cycles of epochs, and a change of ``epoch`` or ``task`` is an event. A
            metric of units is a mapping from group to a mapping from unit id to number, or to one number a unit.
        batch, loss : optional
            ``(x, y)`` and ``f(output, y)``, for initialisers, scores and guards that need data, and to check promises.
        events : iterable of str, optional
            What happened since the call before, for rules and guards that wait for it.

        Returns
        -------
        list of Outcome
            One for each rule, in the order in which they were tried.

        Raises
        ------
        GraphnetError
            The step goes backwards, a metric is no number, the policy already runs another network.
        """
        accountant = self._accountant(net)
        numbers, units = check_metrics(metrics, net.graph)
        named = check_events(events)
        step = self._check_step(step)
        world = Live(net, accountant, step, numbers, batch, loss, self._snapshots, self._remembered)
        remembered = self._remembered
        if net.version != self._version:
            origins = renamed_groups(steps_since(net.history, self._version))
            remembered.ages.observe(net.graph, step, self.document.immunity, origins=origins)
            remembered.follow(origins)
        for name, groups in units.items():
            for group, values in groups.items():
                remembered.units.update(name, group, values)
        remembered.units.forget(net.graph)
        with plainly(accountant.device):
            remembered.measure_utility(net, batch)
            return self._tick(world, step, named)

    def dry_run(
        self,
        net: Network,
        steps: Iterable[int],
        metrics: Metrics | Callable[[int], Metrics] | None = None,
        events: Callable[[int], Iterable[str]] | None = None,
    ) -> list[Outcome]:
        """What the policy would do to the network from here on, without touching a tensor or remembering anything.

        Sizes, costs, budgets, ages and schedules are those of the run. What only tensors tell is not known: a guard
        on a metric that is not given is false, a refusal by an initialiser or score does not show.

        Parameters
        ----------
        steps : iterable of int
            The optimizer steps at which the policy would be stepped.
        metrics : mapping, or function of the step, optional
            What guards would read.
        events : function of the step, optional
            What the loop would report.

        Returns
        -------
        list of Outcome
            Those that would be applied or rejected.
        """
        if not isinstance(net, Network):
            raise GraphnetError(f"a policy works on a gn.Network, not on a {type(net).__name__}")
        planned = Policy(self.document, source=self.source)
        planned.load_state_dict(self.state_dict())
        planned._snapshots = dict(self._snapshots)
        world = Sketch(net, Accountant(net))
        found: list[Outcome] = []
        if not isinstance(steps, Iterable) or isinstance(steps, str):
            raise GraphnetError(f"dry_run takes the optimizer steps, such as range(1000), not {steps!r}")
        for each in steps:
            step = planned._check_step(each)
            numbers, units = check_metrics(metrics(step) if callable(metrics) else metrics, world.graph)
            for name, groups in units.items():
                for group, values in groups.items():
                    planned._remembered.units.update(name, group, values)
            world.read(numbers)
            named = check_events(() if events is None else events(step))
            outcomes = planned._tick(world, step, named)
            found += [outcome for outcome in outcomes if outcome.status in ("applied", "rejected")]
        return found

    def _accountant(self, net: Network) -> Accountant:
        if not isinstance(net, Network):
            raise GraphnetError(f"a policy works on a gn.Network, not on a {type(net).__name__}")
        if self._bound is not None:
            known = self._bound[0]()
            if known is net:
                return self._bound[1]
            if known is not None:
                raise GraphnetError(
                    "this policy already runs another network, whose units and metrics it remembers: load one policy "
                    "for each network"
                )
        accountant = Accountant(net)
        self._bound = weakref.ref(net), accountant
        return accountant

    def _check_step(self, step: SupportsIndex) -> int:
        found = step if type(step) is int else None if isinstance(step, bool) else _index(step)  # numpy's integers too
        if found is None or found < 0:
            raise GraphnetError(f"policy.step: step is a whole number of optimizer steps, not {step!r}")
        if self._step is not None and found < self._step:
            raise GraphnetError(f"policy.step: step {found} comes after step {self._step}: steps only go up")
        return found

    def _tick(self, world: World, step: int, events: Sequence[str]) -> list[Outcome]:
        remembered, metrics = self._remembered, world.readings
        log = remembered.events
        graph, told_by = world.graph, Outcome.told_by
        log.observe(step, graph.version, metrics)
        for event in events:
            log.note(event, step)
        clock = self._advance(step, metrics)
        remembered.ages.observe(graph, step, self.document.immunity)
        if self._wanted:
            self._take_snapshots(world)
        if self._owes:
            self._accrue(graph, clock)
        taken: dict[str, str] = {}
        view: View | None = None
        cost = world.accountant.unchanged(graph)
        anew = clock.previous >= step  # the second call at one step: nothing is due again
        outcomes = []
        for rule, memory in self._entries:
            if rule.watches and not anew:
                rule.guard.observe(step, metrics)
            stays = memory.cost is cost and memory.noted == log.noted and not anew  # all that it depends on but time
            if stays and step < memory.until:
                assert memory.rest is not None
                found = memory.again(step)
                if found is not None:
                    outcomes.append(found)
                    continue
                started = time.perf_counter()
                outcome = told_by(memory.rest, rule.name, graph.version, cost, step)
            else:
                started = time.perf_counter()
                waiting: NotDue | Waiting | list[Place] | Draft | None = None
                if not (stays and step < memory.due):
                    waiting = self._not_due(rule, clock)
                due = waiting is None
                if waiting is None:
                    if view is None:
                        view = view_of(world, graph, step, clock.previous, remembered, self.document.budgets)
                    waiting = rule.look(view)
                if isinstance(waiting, NotDue | Waiting):
                    outcome = told_by(waiting, rule.name, graph.version, cost, step)
                else:
                    assert view is not None
                    outcome = self._try(rule, world, view, waiting, taken)
                    if outcome.status == "applied":
                        graph = view.graph = world.graph
                        cost = world.accountant.unchanged(graph)
                memory.keep(outcome.teller, due, rule.timer.until, cost, log.noted)
            memory.count(outcome, time.perf_counter() - started)
            outcomes.append(outcome)
        self._version = graph.version
        return outcomes

    def _accrue(self, graph: Graph, clock: Clock) -> None:
        """Add what the steps since the last call owe to the groups of rules that reset a share at every step."""
        for rule in self._order:
            for name, share in rule.owing(graph, clock.step):
                spared = self._ages.immune(graph.groups[name], clock.step, self.document.immunity)
                owed = share * (graph.groups[name].size - len(spared)) * (clock.step - clock.previous)
                key = rule.rule.name, name
                self._remembered.owed[key] = self._remembered.owed.get(key, 0.0) + owed

    def _advance(self, step: int, metrics: Mapping[str, float]) -> Clock:
        previous = step - 1 if self._step is None else self._step
        value = metrics.get("epoch", nan)
        epoch = floor(value) if isfinite(value) else None
        before = self._epoch if self._epoch is not None or epoch is None else epoch - 1
        self._step = step
        self._epoch = self._epoch if epoch is None else epoch
        return Clock(step, previous, epoch, before, metrics, self._remembered.events)

    def _try(
        self, rule: CompiledRule, world: World, view: View, found: Sequence[Place] | Draft, taken: dict[str, str]
    ) -> Outcome:
        before, step = world.graph, view.step
        outcome, touched = attempt(
            rule, world, view, found, self._remembered, lambda: self._moment(rule, step),
            self._limits(taken, step), self.document,
        )  # fmt: skip
        if outcome.status == "applied":
            memory = self._memory[rule.rule.name]
            memory.fires += 1
            memory.applied_at = self._applied_at = step
            taken |= dict.fromkeys(touched, rule.rule.name)
            owed = self._remembered.owed
            for key in [(rule.rule.name, each.partition(":")[2]) for each in touched]:
                if key in owed:
                    owed[key] -= int(owed[key])
            self._directions.note(before, world.graph, step)
            self._remembered.events.edited(step, world.graph.version)
            self._remembered.events.note(rule.rule.name, step)
        return outcome

    def _limits(self, taken: Mapping[str, str], step: int) -> Limits:
        directions, ages, immunity = self._directions, self._ages, self.document.immunity
        return Limits(
            taken,
            lambda name, before, after: directions.refusal(name, before, after, step),
            lambda: min(directions.until(step), ages.until(step, immunity)),
        )

    def _not_due(self, rule: CompiledRule, clock: Clock) -> NotDue | None:
        memory = self._memory[rule.name]
        reason = rule.timer(clock, memory.fires)
        if reason is not None:
            return NotDue(reason)
        if memory.applied_at is not None:
            until = memory.applied_at + whole(rule.rule.schedule.cooldown.at(memory.applied_at))
            if clock.step < until:
                return NotDue(f"its cooldown lasts until step {until}", until)
        if self._applied_at is not None:
            until = self._applied_at + whole(self.document.cooldown.at(self._applied_at))
            if clock.step < until:
                return NotDue(f"the policy's cooldown lasts until step {until}", until)
        return None

    def _moment(self, rule: CompiledRule, step: int) -> Moment:
        immunity, ages = self.document.immunity, self._ages
        return Moment(
            step,
            rule.rule.preserves,
            lambda group, born: ages.immune(group, step, immunity, born),
            {name: snapshot.graph for name, snapshot in self._snapshots.items()},
            tuple(self._taken - set(self._snapshots)),
            lambda group: self._remembered.owed.get((rule.rule.name, group), 0.0),
        )

    # -- snapshots --------------------------------------------------------------------------------------------

    def keep(self, name: str, snapshot: Snapshot) -> None:
        """Hold a snapshot (``net.snapshot()``) that ``rewind`` steps go back to by this name.

        The one named ``initial`` (or ``init``) is taken at the policy's first step, where a rule rewinds to it.
        Snapshots are tensors and no part of :meth:`state_dict`: after resuming, give them back here.
        """
        if not isinstance(snapshot, Snapshot):
            raise GraphnetError(f"policy.keep takes a snapshot (net.snapshot()), not a {type(snapshot).__name__}")
        self._snapshots[name] = snapshot
        self._taken.add(name)

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """The snapshots that are held, by name."""
        return dict(self._snapshots)

    def _take_snapshots(self, world: World) -> None:
        for name in self._wanted:
            if name not in self._taken:
                self.keep(name, world.snapshot())

    # -- looking and resuming ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, Any]]:
        """For each rule how often it was applied, why it was not, and the time that it took.

        Returns
        -------
        dict
            By rule: ``hits``; ``misses``, by status a ``count`` and the last ``reason``; ``matches``, those that came
            to nothing, each with its ``nodes``, ``reason`` and ``count``; ``seconds``; ``source``.
        """
        return {name: {**memory.stats(), "source": self.source} for name, memory in self._memory.items()}

    def state_dict(self) -> dict[str, Any]:
        """What the policy remembers, as plain data for JSON; snapshots are named, without their tensors."""
        return {
            "format": _FORMAT,
            "step": self._step,
            "epoch": self._epoch,
            "applied_at": self._applied_at,
            "version": self._version,
            "rules": {
                rule.rule.name: {
                    "fires": self._memory[rule.rule.name].fires,
                    "applied_at": self._memory[rule.rule.name].applied_at,
                    "guard": rule.guard.state(),
                    "timer": rule.timer.state(),
                }
                for rule in self._order
            },
            **self._remembered.state_dict(),
            "directions": self._directions.state_dict(),
            "snapshots": sorted(self._taken),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            The state is of another policy, or none; nothing was changed.
        """
        try:
            if state["format"] != _FORMAT:
                raise CheckpointError(f"the policy state has format {state['format']!r}; this version reads {_FORMAT}")
            if set(state["rules"]) != set(self._memory):
                raise CheckpointError(
                    f"the state has rules {sorted(state['rules'])}, the policy has {sorted(self._memory)}"
                )
            memory = {
                name: RuleMemory(int(state["rules"][name]["fires"]), _whole(state["rules"][name]["applied_at"]))
                for name in self._memory
            }
            fresh = {rule.rule.name: CompiledRule(rule.rule) for rule in self._order}
            for name, rule in fresh.items():
                rule.guard.load(state["rules"][name]["guard"])
                rule.timer.load(state["rules"][name]["timer"])
            remembered = self._nothing()
            remembered.load_state_dict(state)
            directions = Directions(self.document.hysteresis, self.document.max_growth)
            directions.load_state_dict(state["directions"])
            counts = [_whole(state[key]) for key in ("step", "epoch", "applied_at", "version")]
            taken = {str(name) for name in state["snapshots"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is not a policy's state (policy.state_dict()): {error!r}") from error
        self._memory, self._remembered, self._taken, self._snapshots = memory, remembered, taken, {}
        self._step, self._epoch, self._applied_at, self._version = counts
        self._directions, self._order = directions, [fresh[rule.rule.name] for rule in self._order]
        self._entries = [(rule, memory[rule.name]) for rule in self._order]


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
