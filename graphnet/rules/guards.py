"""Whether a rule may go ahead: guards on metrics, costs, ages and parity, each with the reason for its verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from typing import Any, ClassVar, Literal, TypeAlias

from graphnet.errors import CheckpointError, GraphError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.rules.ages import Ages
from graphnet.rules.outcome import Costs
from graphnet.rules.patterns import Binding, groups_named
from graphnet.rules.registry import Compilers
from graphnet.schemas.policy import (
    Age,
    All,
    Always,
    Any_,
    Cost,
    Dormant,
    Metric,
    Not,
    Parity,
    Plateau,
)

__all__ = ["GUARDS", "Check", "ParitySource", "Verdict", "View"]

ParitySource: TypeAlias = Callable[[Literal["gradient", "activation"], str, Sequence[int]], "float | str | None"]
"""The ratio of newborns to incumbents by signal, group and newborn ids; text says why it cannot be measured."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a guard holds, and why or why not."""

    holds: bool
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """What guards may look at.

    Attributes
    ----------
    graph : Graph
    step : int
    metrics : mapping of str to float
    binding : mapping
        What the match gave each node of the pattern.
    ages : Ages
    costs : callable
        Costs of the graph.
    parity : callable
        Measures parity where the metrics do not give it.
    """

    graph: Graph
    step: int
    metrics: Mapping[str, float]
    binding: Binding
    ages: Ages
    costs: Callable[[], Costs]
    parity: ParitySource

    def metric(self, name: str) -> float | str:
        """A finite metric, or why there is none."""
        value = self.metrics.get(name)
        if value is None:
            given = f"those given are {sorted(self.metrics)}" if self.metrics else "none was given"
            return f"there is no metric {name!r}; {given}"
        return value if isfinite(value) else f"{name} is {value}"


class Check(ABC):
    """A compiled guard."""

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

    def __init__(self, guard: Always) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        return Verdict(True, "always")


@GUARDS.register(All, Any_)
class Combined(Check):
    """Holds when each, or one, of several guards holds."""

    def __init__(self, guard: All | Any_) -> None:
        self.every = isinstance(guard, All)
        self.parts = [compile_guard(part) for part in guard.of]

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of the metrics of a step."""
        for part in self.parts:
            part.observe(step, metrics)

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        found = [part.verdict(view) for part in self.parts]
        holds = all(v.holds for v in found) if self.every else any(v.holds for v in found)
        return Verdict(holds, "; ".join(v.reason for v in found if v.holds == holds))

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

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of the metrics of a step."""
        self.part.observe(step, metrics)

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        found = self.part.verdict(view)
        return Verdict(not found.holds, f"not: {found.reason}")

    def state(self) -> Any:
        """What its part remembers."""
        return self.part.state()

    def load(self, state: Any) -> None:
        """Go on from a state."""
        self.part.load(state)


# ----------------------------------------------------------------------------------------------- training metrics


@GUARDS.register(Plateau)
class PlateauCheck(Check):
    """Holds while the smoothed metric has improved by less than a share over the window.

    ``(L[t-w] - L[t]) / |L[t-w]| < min_delta`` with ``L`` the exponential moving average of the metric, of time
    constant ``w / 4`` steps. The window is kept in at most 64 samples.
    """

    SAMPLES: ClassVar[int] = 64

    def __init__(self, guard: Plateau) -> None:
        self.guard = guard
        self._average: float | None = None
        self._last = 0
        self._samples: list[tuple[int, float]] = []
        self._since: int | None = None
        self._trouble: str | None = None

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Advance the average; a metric that is left out or not finite leaves it as it is."""
        guard = self.guard
        value = metrics.get(guard.metric)
        self._trouble = None
        if value is None:
            return
        if not isfinite(value):
            self._trouble, self._since = f"{guard.metric} is {value}", None
            return
        if self._average is None:
            self._average = value
        else:
            weight = 1.0 - exp(-4.0 * (step - self._last) / guard.window)
            self._average += weight * (value - self._average)
        self._last = step
        if not self._samples or step - self._samples[-1][0] >= guard.window / self.SAMPLES:
            self._samples.append((step, self._average))
        while len(self._samples) > 1 and self._samples[1][0] <= step - guard.window:
            del self._samples[0]
        improvement = self._improvement()
        if improvement is None or improvement >= guard.min_delta.at(step):
            self._since = None
        elif self._since is None:
            self._since = step

    def _improvement(self) -> float | None:
        """Relative improvement over the window; None while the window is not full."""
        if self._average is None or self._samples[0][0] > self._last - self.guard.window:
            return None
        then = self._samples[0][1]
        gained = then - self._average if self.guard.mode == "min" else self._average - then
        return gained / abs(then) if then else (0.0 if gained == 0 else float("inf") * gained)

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        guard = self.guard
        if self._trouble is not None:
            return Verdict(False, self._trouble)
        if self._average is None:
            return Verdict(False, f"no {guard.metric!r} has been given to the policy")
        improvement = self._improvement()
        if improvement is None:
            seen = self._last - self._samples[0][0]
            return Verdict(False, f"{guard.metric} has been seen for {seen} of the {guard.window} steps of its window")
        text = f"{guard.metric} improved by {improvement:.3g} over {guard.window} steps"
        least = guard.min_delta.at(view.step)
        if self._since is None:
            return Verdict(False, f"{text}, no less than {least:g}")
        held = self._last - self._since
        if held < guard.patience:
            return Verdict(False, f"{text}, less than {least:g} for {held} of {guard.patience} steps")
        return Verdict(True, f"{text}, less than {least:g}")

    def state(self) -> Any:
        """The average, its samples and since when it holds."""
        return {
            "average": self._average,
            "last": self._last,
            "samples": [list(sample) for sample in self._samples],
            "since": self._since,
            "trouble": self._trouble,
        }

    def load(self, state: Any) -> None:
        """Go on from a state."""
        try:
            average, since, trouble = state["average"], state["since"], state["trouble"]
            last, samples = int(state["last"]), [(int(at), float(value)) for at, value in state["samples"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"this is not the state of a plateau guard: {error!r}") from error
        self._average, self._since, self._trouble, self._last, self._samples = average, since, trouble, last, samples


@GUARDS.register(Metric)
class MetricCheck(Check):
    """Holds when a metric of this step is within bounds."""

    def __init__(self, guard: Metric) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        value = view.metric(self.guard.metric)
        if isinstance(value, str):
            return Verdict(False, value)
        return _within(self.guard.metric, value, self.guard, view.step)


# ----------------------------------------------------------------------------------------------- the network


@GUARDS.register(Cost)
class CostCheck(Check):
    """Holds when a predicted cost of the current version is within bounds."""

    def __init__(self, guard: Cost) -> None:
        self.guard = guard

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        value = getattr(view.costs(), self.guard.metric)
        if value is None:
            return Verdict(False, f"{self.guard.metric} is not known: an input's size changes, give batch=(x, y)")
        return _within(self.guard.metric, value, self.guard, view.step)


class _OfGroups(Check):
    """A guard on groups: holds when it holds for each."""

    guard: Parity | Age | Dormant

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        try:
            names = groups_named(view.graph, self.guard.of, view.binding)
        except GraphError as error:
            return Verdict(False, str(error))
        found = [self.of_group(view.graph.groups[name], view) for name in names]
        holds = all(verdict.holds for verdict in found)
        return Verdict(holds, "; ".join(verdict.reason for verdict in found if verdict.holds == holds))

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        raise NotImplementedError


@GUARDS.register(Age)
class AgeCheck(_OfGroups):
    """Holds when the steps since units last joined a group are within bounds; without any, those of the training."""

    def __init__(self, guard: Age) -> None:
        self.guard: Age = guard

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        return _within(f"the age of {group.name}", view.ages.age(group.name, view.step), self.guard, view.step)


@GUARDS.register(Dormant)
class DormantCheck(_OfGroups):
    """Holds when the share of a group's units that are dormant is within bounds."""

    def __init__(self, guard: Dormant) -> None:
        self.guard: Dormant = guard

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        share = len(group.dormant) / (group.size + len(group.dormant))
        return _within(f"the dormant share of {group.name}", share, self.guard, view.step)


@GUARDS.register(Parity)
class ParityCheck(_OfGroups):
    """Holds when the last cohort's parity with the incumbents is within bounds, or the cohort is old enough.

    A group without newborns stands at parity 1. Parity is read off ``metrics["parity.SIGNAL.GROUP"]``, else measured
    on the policy's batch.
    """

    def __init__(self, guard: Parity) -> None:
        self.guard: Parity = guard

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        guard, name = self.guard, group.name
        newborns = view.ages.newborns(group)
        if not newborns:
            return _within(f"without newborns, the parity of {name}", 1.0, guard, view.step)
        age = view.ages.age(name, view.step)
        if guard.max_age is not None and age >= guard.max_age:
            return Verdict(True, f"the newborns of {name} are {age} steps old, at least max_age={guard.max_age}")
        key = f"parity.{guard.signal}.{name}"
        value = view.metric(key) if key in view.metrics else view.parity(guard.signal, name, newborns)
        if value is None:
            return Verdict(False, f"the {guard.signal} parity of {name} cannot be measured: no incumbents are left")
        if isinstance(value, str):
            return Verdict(False, value)
        return _within(f"the {guard.signal} parity of {name}", value, guard, view.step)


def _within(what: str, value: float, bounds: Metric | Cost | Parity | Age | Dormant, step: int) -> Verdict:
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    for bound, sign in ((bounds.above, 1), (bounds.below, -1)):
        if bound is None:
            continue
        limit = bound.at(step)
        if not sign * value > sign * limit:
            return Verdict(False, f"{what} is {shown}, not {'above' if sign > 0 else 'below'} {limit:,g}")
    return Verdict(True, f"{what} is {shown}")


def check_metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """Metrics as floats.

    Raises
    ------
    GraphnetError
        One is no number.
    """
    found = {}
    if metrics is not None and not isinstance(metrics, Mapping):
        raise GraphnetError(f"metrics are a mapping from a name to a number, not {metrics!r}")
    for name, value in (metrics or {}).items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as error:
            raise GraphnetError(f"the metric {name!r} must be a number, not {value!r}") from error
    return found
