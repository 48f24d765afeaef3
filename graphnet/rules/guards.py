"""Whether a rule may go ahead: guards and what they may look at, each with the reason for its verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import floor, inf, isfinite
from typing import Any, Protocol

import numpy as np

from graphnet.errors import CheckpointError, GraphError
from graphnet.ir.graph import Graph
from graphnet.rules.ages import Ages
from graphnet.rules.costs import Accountant
from graphnet.rules.events import EventLog
from graphnet.rules.measure import Measurements
from graphnet.rules.metrics import METRICS, UnitValues, finite
from graphnet.rules.outcome import Costs
from graphnet.rules.patterns import Binding, groups_named
from graphnet.rules.registry import Compilers
from graphnet.schemas.guards import All, Always, Any_, Budget, Cost, Event, Metric, Not, Since
from graphnet.schemas.policy import Budgets
from graphnet.schemas.scalars import Scalar

__all__ = [
    "GUARDS",
    "Bounded",
    "Check",
    "Verdict",
    "View",
    "compile_guard",
    "of_groups",
    "passing",
    "reduce_units",
    "within",
]


class Verdict:
    """Whether a guard holds, and why or why not; the words are made when somebody reads them.

    Parameters
    ----------
    holds : bool
    said : str, or function of the step that gives it
    until : float
        The step before which the verdict stays, if neither the network nor the events seen have changed.
    """

    __slots__ = ("holds", "said", "until")

    def __init__(self, holds: bool, said: str | Callable[[int], str], until: float = -1.0) -> None:
        self.holds, self.said, self.until = holds, said, until

    def reason(self, step: int) -> str:
        """Why, or why not, at a step before ``until``, or at that of the verdict."""
        return self.said if isinstance(self.said, str) else self.said(step)


class Measured(Protocol):
    """What has measurements, made when they are first asked for."""

    @property
    def measure(self) -> Measurements:
        """The measurements."""


@dataclass(slots=True)
class View:
    """What guards may look at, at one call of the policy; one view serves all of its rules.

    Attributes
    ----------
    graph : Graph
    step, previous : int
        This optimizer step, and the one at which the policy ran last.
    metrics : mapping of str to float
    units : UnitValues
        Metrics of units.
    binding : mapping
        What the match at hand gave each node of the pattern.
    ages : Ages
    events : EventLog
    budgets : Budgets
    accountant : Accountant
        Knows what the graph costs.
    measured : Measured
        Where :attr:`measure` comes from.
    shared : dict
        Verdicts, by guard, that are the same for every match of the rule at hand.
    """

    graph: Graph
    step: int
    previous: int
    metrics: Mapping[str, float]
    units: UnitValues
    binding: Binding
    ages: Ages
    events: EventLog
    budgets: Budgets
    accountant: Accountant
    measured: Measured
    shared: dict[Check, Verdict] = field(default_factory=dict)

    @property
    def measure(self) -> Measurements:
        """Measures what the metrics do not give."""
        return self.measured.measure

    def costs(self) -> Costs:
        """Costs of the graph."""
        return self.accountant.costs(self.graph)

    def metric(self, name: str) -> float | str:
        """A finite metric, or why there is none."""
        value = self.metrics.get(name)
        if value is not None:
            return finite(name, value)
        if name in METRICS:
            return str(self.measure.registered(name, None))
        return self.missing(name)

    def missing(self, name: str) -> str:
        """What to say of a metric that was not given."""
        given = f"those given are {sorted(self.metrics)}" if self.metrics else "none was given"
        return f"there is no metric {name!r}; {given}"

    def groups(self, name: str) -> tuple[str, ...]:
        """The groups that a guard's ``of`` stands for; a :class:`GraphError` where it stands for none."""
        bound = self.binding.get(name)
        if bound is not None and bound in self.graph.groups:
            return (bound,)
        return groups_named(self.graph, name, self.binding)

    def of_unit_group(self, metric: str, group: str) -> float | Mapping[int, float] | str:
        """A metric of a group's units: reported as one number or by unit, registered, or why there is none."""
        key = f"{metric}.{group}"
        if key in self.metrics:
            return finite(key, self.metrics[key])
        values = self.units.of(metric, self.graph.groups[group])
        if values:
            return values
        if metric in METRICS:
            return self.measure.registered(metric, self.graph.groups[group])
        return self.missing(key)


class Check(ABC):
    """A compiled guard; one that ``watches`` is shown the metrics of every step.

    Attributes
    ----------
    names : frozenset of str or None
        What it is ``of``: where none of them is a node of the rule's pattern, its verdict is the same for every match.
        None where that is not known.
    effort : int
        Those that take less are asked first: 0 for what changes with the network alone, 1 for what the loop tells at
        every step, 2 for what may take a pass over the batch.
    """

    watches = False
    effort = 0
    names: frozenset[str] | None = None

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: B027 - most guards have no memory
        """Take note of the metrics of a step; called once for each, whether or not the rule is due."""

    @abstractmethod
    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""

    def state(self) -> Any:
        """What it remembers, as plain data."""
        return None

    def load(self, state: Any) -> None:  # noqa: B027 - most guards have no memory
        """Go on from a state."""


GUARDS: Compilers[Check] = Compilers("the guard")


def compile_guard(guard: Any) -> Check:
    """Compile a guard of a document."""
    return GUARDS.compile(guard, "a rule's guard")


# ----------------------------------------------------------------------------------------------- combinations


@GUARDS.register(Always)
class AlwaysCheck(Check):
    """Holds."""

    names = frozenset()

    def __init__(self, guard: Always) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        return Verdict(True, "always", inf)


@GUARDS.register(All, Any_)
class Combined(Check):
    """Holds when each, or one, of several guards holds."""

    def __init__(self, guard: All | Any_) -> None:
        self.every = isinstance(guard, All)
        self.parts = [compile_guard(part) for part in guard.of]
        self.watches = any(part.watches for part in self.parts)
        self.effort = max(part.effort for part in self.parts)
        self.names = _names_of(self.parts)
        self._asked = sorted(self.parts, key=lambda part: part.effort)  # stable

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of the metrics of a step."""
        for part in self.parts:
            part.observe(step, metrics)

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        asked = []
        until = inf
        for part in self._asked:  # what decides ends the search, so that nothing is measured in vain
            if part.names is not None and view.binding.keys().isdisjoint(part.names):
                found = view.shared.get(part)
                if found is None:
                    found = view.shared[part] = part.verdict(view)
            else:
                found = part.verdict(view)
            until = min(until, found.until)
            if found.holds != self.every:
                return Verdict(found.holds, found.said, until)
            asked.append(found)
        return Verdict(self.every, lambda step: "; ".join(each.reason(step) for each in asked), until)

    def state(self) -> Any:
        """What its parts remember."""
        return [part.state() for part in self.parts]

    def load(self, state: Any) -> None:
        """Go on from a state."""
        if not isinstance(state, list) or len(state) != len(self.parts):
            raise CheckpointError("the guards of the policy are not those of the state")
        for part, each in zip(self.parts, state, strict=True):
            part.load(each)


@GUARDS.register(Not)
class NotCheck(Check):
    """Holds when a guard does not."""

    def __init__(self, guard: Not) -> None:
        self.part = compile_guard(guard.of)
        self.watches, self.effort, self.names = self.part.watches, self.part.effort, self.part.names

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of the metrics of a step."""
        self.part.observe(step, metrics)

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        found = self.part.verdict(view)
        return Verdict(not found.holds, lambda step: f"not: {found.reason(step)}", found.until)

    def state(self) -> Any:
        """What its part remembers."""
        return self.part.state()

    def load(self, state: Any) -> None:
        """Go on from a state."""
        self.part.load(state)


# ----------------------------------------------------------------------------------------------- training metrics


@GUARDS.register(Metric)
class MetricCheck(Check):
    """Holds when a metric of this step, or the values of units, are within bounds."""

    def __init__(self, guard: Metric) -> None:
        self.guard = guard
        self.effort = 2 if guard.metric in METRICS else 1
        self.names = frozenset() if guard.of is None else frozenset({guard.of})

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        guard = self.guard
        if guard.of is not None:
            return of_groups(view, guard.of, lambda group: self._of_group(group, view))
        value = view.metric(guard.metric)
        return within(guard.metric, value, guard, view.step)

    def _of_group(self, group: str, view: View) -> Verdict:
        reduce = self.guard.reduce or "mean"
        found = view.of_unit_group(self.guard.metric, group)
        value = reduce_units(found, reduce) if isinstance(found, Mapping) else found
        return within(f"the {reduce} {self.guard.metric} of {group}", value, self.guard, view.step)


# ----------------------------------------------------------------------------------------------- costs and events


@GUARDS.register(Cost)
class CostCheck(Check):
    """Holds when a predicted cost of the current version is within bounds."""

    names = frozenset()

    def __init__(self, guard: Cost) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        name = self.guard.metric
        value = getattr(view.costs(), name)
        return within(name, _unknown(name) if value is None else value, self.guard, view.step, stays=True)


@GUARDS.register(Budget)
class BudgetCheck(Check):
    """Holds when the share of a budget that is used is within bounds."""

    names = frozenset()

    def __init__(self, guard: Budget) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        name = self.guard.metric
        limit, value = getattr(view.budgets, name), getattr(view.costs(), name)
        if limit is None:
            return Verdict(False, f"the policy has no budget of {name}", inf)
        share = _unknown(name) if value is None else value / limit
        return within(f"the used share of the budget of {name}", share, self.guard, view.step, stays=True)


@GUARDS.register(Since)
class SinceCheck(Check):
    """Holds when the steps since an event are within bounds."""

    names = frozenset()

    def __init__(self, guard: Since) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        event = self.guard.event
        known = "the event" if event in view.events.last else "step 0, as it was never seen: the event"
        what = f"the number of steps since {known} {event!r}"
        return passing(what, view.step - view.events.since(event, view.step), self.guard, view.step)


@GUARDS.register(Event)
class EventCheck(Check):
    """Holds when an event was seen since the policy ran last."""

    names = frozenset()

    def __init__(self, guard: Event) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        event = self.guard.event
        at = view.events.last.get(event)
        if at is None:
            return Verdict(False, f"the event {event!r} was never seen", inf)
        now = at > view.previous
        return Verdict(now, lambda step: f"the event {event!r} was seen at step {at}", -1.0 if now else inf)


# ----------------------------------------------------------------------------------------------- helpers


class Bounded(Protocol):
    """A guard with bounds."""

    @property
    def above(self) -> Scalar | None:
        """The value must be greater."""

    @property
    def below(self) -> Scalar | None:
        """The value must be less."""


def of_groups(view: View, name: str, judge: Callable[[str], Verdict]) -> Verdict:
    """The verdict on every group that a name stands for: it holds when it holds for each."""
    try:
        names = view.groups(name)
    except GraphError as error:
        return Verdict(False, str(error))
    if len(names) == 1:
        return judge(names[0])
    found = [judge(group) for group in names]
    holds = all(verdict.holds for verdict in found)
    return Verdict(
        holds,
        lambda step: "; ".join(verdict.reason(step) for verdict in found if verdict.holds == holds),
        min(verdict.until for verdict in found),
    )


def _names_of(parts: Sequence[Check]) -> frozenset[str] | None:
    """What several guards are of; None where that is not known of one."""
    known = [part.names for part in parts if part.names is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None


def reduce_units(values: Mapping[int, float], how: str) -> float | str:
    """One number of the values of units."""
    listed = np.array(list(values.values()), dtype=np.float64)
    if not listed.size:
        return "no unit has a value"
    if not np.isfinite(listed).all():
        return f"the value of unit {list(values)[int(np.flatnonzero(~np.isfinite(listed))[0])]} is not finite"
    how_of: Mapping[str, Callable[[Any], Any]] = {"mean": np.mean, "median": np.median, "min": np.min, "max": np.max}
    return float(how_of[how](listed))


def within(what: str, value: float | str, bounds: Bounded, step: int, *, stays: bool = False) -> Verdict:
    """Whether a value is within bounds; text in place of the value is the reason why it is not.

    Parameters
    ----------
    stays : bool
        Whether the value changes with the network alone.
    """
    until = inf if stays and _constant(bounds) else -1.0
    if isinstance(value, str):
        return Verdict(False, value, until)
    above, below = bounds.above, bounds.below
    if above is not None and not value > (limit := above.at(step)):
        return Verdict(False, partial(_outside, what, value, "above", limit), until)
    if below is not None and not value < (limit := below.at(step)):
        return Verdict(False, partial(_outside, what, value, "below", limit), until)
    return Verdict(True, partial(_inside, what, value), until)


def passing(what: str, begin: int, bounds: Bounded, step: int) -> Verdict:
    """Whether the steps since one are within bounds: known for as long as nothing begins anew."""
    found = within(what, step - begin, bounds, step)
    if not _constant(bounds):
        return found
    edges = [each.at(step) + begin for each in (bounds.above, bounds.below) if each is not None]
    # a bound is passed at it, or at the first step after it: what is said now holds before both
    until = min([floor(edge) if isfinite(edge) else edge for edge in edges if edge >= step], default=inf)
    return Verdict(found.holds, lambda now: within(what, now - begin, bounds, now).reason(now), until)


def _constant(bounds: Bounded) -> bool:
    return all(each is None or each.kind == "constant" for each in (bounds.above, bounds.below))


def _inside(what: str, value: float, step: int) -> str:
    return f"{what} is {value:,}" if isinstance(value, int) else f"{what} is {value:.4g}"


def _outside(what: str, value: float, side: str, limit: float, step: int) -> str:
    return f"{_inside(what, value, step)}, not {side} {limit:,g}"


def _unknown(cost: str) -> str:
    return f"{cost} is not known: an input's size changes, give batch=(x, y)"
