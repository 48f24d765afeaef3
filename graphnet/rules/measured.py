"""Guards on unit groups: age, parity, dormant units, effective rank, expressivity bottleneck, utility.

What is measured is read off the metrics where they give it (``metrics["rank.fc1"]``), else measured on the policy's
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from graphnet.ir.groups import UnitGroup
from graphnet.rules.guards import GUARDS, Check, Verdict, View, of_groups, passing, reduce_units, within
from graphnet.schemas.guards import Age, Bottleneck, Dormant, Parity, Rank, Utility
from graphnet.schemas.scalars import whole

__all__ = ["AgeCheck", "BottleneckCheck", "DormantCheck", "ParityCheck", "RankCheck", "UtilityCheck"]

T = TypeVar("T")


class OfUnits(Check):
    """A guard on groups: holds when it holds for each."""

    guard: Age | Bottleneck | Dormant | Parity | Rank | Utility

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        return of_groups(view, self.guard.of, lambda name: self.of_group(view.graph.groups[name], view))

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        raise NotImplementedError

    def _within(self, what: str, value: float | str, view: View, *, stays: bool = False) -> Verdict:
        return within(what, value, self.guard, view.step, stays=stays)


def given_or(view: View, key: str, measure: Callable[[], float | str]) -> float | str:
    """What the metrics say, else what is measured."""
    return view.metric(key) if key in view.metrics else measure()


@GUARDS.register(Age)
class AgeCheck(OfUnits):
    """Holds when the steps since units last joined a group are within bounds; without any, those of the training."""

    def __init__(self, guard: Age) -> None:
        self.guard: Age = guard
        self.names = frozenset({guard.of})

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        born = view.step - view.ages.age(group.name, view.step)
        return passing(f"the age of {group.name}", born, self.guard, view.step)


@GUARDS.register(Dormant)
class DormantCheck(OfUnits):
    """Holds when the share of a group's units that are retired, or inactive on the batch, is within bounds."""

    def __init__(self, guard: Dormant) -> None:
        self.guard: Dormant = guard
        self.names = frozenset({guard.of})
        self.effort = 2 if guard.by == "activity" else 0

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        name = group.name
        if self.guard.by == "retired":
            share: float | str = len(group.dormant) / (group.size + len(group.dormant))
            return self._within(f"the dormant share of {name}", share, view, stays=True)
        tau = self.guard.tau.at(view.step)
        share = given_or(view, f"dormant.{name}", lambda: view.measure.inactive(name, tau))
        return self._within(f"the share of inactive units of {name}", share, view)


@GUARDS.register(Parity)
class ParityCheck(OfUnits):
    """Holds when the last cohort's parity with the incumbents is within bounds, or the cohort is old enough.

    A group without newborns stands at parity 1. Parity is read off ``metrics["parity.SIGNAL.GROUP"]``, or computed
    of the units' values in ``metrics[SIGNAL]``, or measured on the policy's batch.
    """

    effort = 2

    def __init__(self, guard: Parity) -> None:
        self.guard: Parity = guard
        self.names = frozenset({guard.of})

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        guard, name = self.guard, group.name
        newborns = view.ages.newborns(group)
        if not newborns:
            return self._within(f"without newborns, the parity of {name}", 1.0, view, stays=True)
        age, most = view.ages.age(name, view.step), whole(guard.max_age.at(view.step))
        if age >= most:
            said = f"the newborns of {name} are {age} steps old, at least max_age={most}"
            return Verdict(True, said)
        value = given_or(view, f"parity.{guard.signal}.{name}", lambda: self._ratio(group, newborns, view))
        return self._within(f"the {guard.signal} parity of {name}", value, view)

    def _ratio(self, group: UnitGroup, newborns: tuple[int, ...], view: View) -> float | str:
        guard = self.guard
        values = view.units.of(guard.signal, group)
        born = [values[unit] for unit in newborns if unit in values]
        others = [value for unit, value in values.items() if unit not in set(newborns)]
        if born and others and sum(others):
            middle = np.mean if guard.statistic == "mean" else np.median
            return float(middle(born) / np.mean(others))
        return view.measure.parity(guard.signal, group.name, newborns, guard.statistic)


@GUARDS.register(Rank)
class RankCheck(OfUnits):
    """Holds when the effective rank of a group's activations is within bounds."""

    effort = 2

    def __init__(self, guard: Rank) -> None:
        self.guard: Rank = guard
        self.names = frozenset({guard.of})

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        value = given_or(view, f"rank.{group.name}", lambda: view.measure.rank(group.name))
        if isinstance(value, str) or not self.guard.relative:
            return self._within(f"the effective rank of {group.name}", value, view)
        return self._within(f"the effective rank per unit of {group.name}", value / group.size, view)


@GUARDS.register(Bottleneck)
class BottleneckCheck(OfUnits):
    """Holds when a group's expressivity bottleneck is within bounds."""

    effort = 2

    def __init__(self, guard: Bottleneck) -> None:
        self.guard: Bottleneck = guard
        self.names = frozenset({guard.of})

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        value = given_or(view, f"bottleneck.{group.name}", lambda: view.measure.bottleneck(group.name))
        return self._within(f"the bottleneck of {group.name}", value, view)


@GUARDS.register(Utility)
class UtilityCheck(OfUnits):
    """Holds when the utility of a group's units is within bounds."""

    effort = 2

    def __init__(self, guard: Utility) -> None:
        self.guard: Utility = guard
        self.names = frozenset({guard.of})

    def of_group(self, group: UnitGroup, view: View) -> Verdict:
        """The verdict for one group."""
        guard, name = self.guard, group.name
        found: Mapping[int, float] | str = view.units.of("utility", group) or view.measure.utility(name)
        if isinstance(found, str):
            return Verdict(False, found)
        if guard.reduce != "share":
            return self._within(f"the {guard.reduce} utility of {name}", reduce_units(found, guard.reduce), view)
        mean = reduce_units(found, "mean")
        if isinstance(mean, str):
            return Verdict(False, mean)
        tau = guard.tau.at(view.step)
        share = sum(value <= tau * mean for value in found.values()) / len(found)
        return self._within(f"the share of units of {name} with a utility of at most {tau:g} of the mean", share, view)
