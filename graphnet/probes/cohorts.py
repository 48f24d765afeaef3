"""Cohorts: the units that joined a network together, followed by id through every later edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphnet.errors import CheckpointError, GraphnetError
from graphnet.probes.parity import Curve, Duration, Parity, Point, median_time, time_to_parity
from graphnet.probes.statistics import Probe
from graphnet.runtime.history import Version
from graphnet.runtime.network import Network

__all__ = ["Cohort", "Cohorts"]


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Units of one group that joined the live ones at the same optimizer step.

    Attributes
    ----------
    group : str
    version : int
        The version in which the first of them joined.
    step : int
        Optimizer steps that had been taken when they joined.
    ids : tuple of int
        As born; :meth:`Cohorts.live` says which are left.
    curve : Curve
        Parity as the cohort ages, from :meth:`Cohorts.observe`.
    """

    group: str
    version: int
    step: int
    ids: tuple[int, ...]
    curve: Curve = field(default_factory=Curve)


class Cohorts:
    """Follows the newborns of a network by unit id: when each was born, its age, its parity as it ages.

    Units that are there when the tracking starts are incumbents. A unit that is pruned or retired drops out; one
    that is recruited again is a newborn again. The order of units does not matter.

    An edit of any group, made after a cohort's first step, ends the observation of its parity; one that preserves the
    function and keeps every unit does not.

    Parameters
    ----------
    net : Network
    step : int
        Optimizer steps taken so far.

    Examples
    --------
    >>> from graphnet.ir.builders import mlp
    >>> net = Network(mlp([4, 8, 3]), seed=0)
    >>> cohorts = Cohorts(net)
    >>> cohorts.record(100)
    >>> with net.edit() as edit:
    ...     newborns = edit.grow("fc1", 2)
    >>> cohorts.record(130)
    >>> cohorts.newborns("fc1"), cohorts.age("fc1", 8), cohorts.age("fc1", 0)
    ((8, 9), 30, None)
    """

    def __init__(self, net: Network, *, step: int = 0) -> None:
        self._net = net
        self._step = step
        self._seen = net.version
        self._graph = net.graph
        self._cohorts: list[Cohort] = []
        self._owner: dict[str, dict[int, Cohort]] = {}

    # -- following ----------------------------------------------------------------------------------------------

    def record(self, step: int) -> None:
        """Say how many optimizer steps have been taken; call it after each, since an edit's births get the last one.

        Raises
        ------
        GraphnetError
            Steps run backwards.
        """
        if self._net.version != self._seen:
            self._sync()
        if step < self._step:
            raise GraphnetError(f"cohorts: step {step} comes after step {self._step}: steps only go up")
        self._step = step

    def _sync(self) -> None:
        for version in self._net.history:
            if version.number > self._seen:
                self._follow(version)
                self._seen = version.number

    def _follow(self, version: Version) -> None:
        before, self._graph = self._graph, version.graph
        born: dict[str, tuple[int, ...]] = {}
        changed = any(step.preserves != "function" for step in version.steps)
        for name, group in version.graph.groups.items():
            old = before.groups.get(name)
            known = set() if old is None else set(old.ids)
            born[name] = tuple(unit for unit in group.ids if unit not in known)
            changed = changed or bool(born[name]) or len(known) != group.size
        if changed:
            for cohort in self._cohorts:
                if cohort.curve.end is None and cohort.step < self._step:
                    cohort.curve.end = self._step - cohort.step
        for name, ids in born.items():
            if ids:
                self._add(name, version.number, ids)

    def _add(self, group: str, version: int, ids: tuple[int, ...]) -> None:
        for at, cohort in enumerate(self._cohorts):  # several edits between two steps make one cohort
            if cohort.group == group and cohort.step == self._step:
                cohort = Cohort(group, cohort.version, cohort.step, (*cohort.ids, *ids), cohort.curve)
                self._cohorts[at] = cohort
                break
        else:
            cohort = Cohort(group, version, self._step, ids)
            self._cohorts.append(cohort)
        self._owner.setdefault(group, {}).update(dict.fromkeys(cohort.ids, cohort))

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps taken, as last recorded."""
        return self._step

    @property
    def cohorts(self) -> Sequence[Cohort]:
        """Every cohort in the order of birth, those without a live unit included."""
        self._sync()
        return tuple(self._cohorts)

    def live(self, cohort: Cohort) -> tuple[int, ...]:
        """Ids of a cohort's units that are still live, in the group's order."""
        self._sync()
        group = self._net.graph.groups.get(cohort.group)
        owner = self._owner.get(cohort.group, {})
        return () if group is None else tuple(unit for unit in group.ids if owner.get(unit) is cohort)

    def newborns(self, group: str) -> tuple[int, ...]:
        """Live units of a group's youngest cohort that has any; none where nothing was born."""
        name = self._net.graph.group(group).name
        for cohort in reversed(self.cohorts):
            if cohort.group == name and (ids := self.live(cohort)):
                return ids
        return ()

    def birth(self, group: str, unit: int) -> Cohort | None:
        """The cohort of a live unit; None for one that was there when the tracking started.

        Raises
        ------
        EditError
            The group has no such live unit.
        """
        self._sync()
        found = self._net.graph.group(group)
        found.positions([unit])
        return self._owner.get(found.name, {}).get(unit)

    def age(self, group: str, unit: int) -> int | None:
        """Optimizer steps since a live unit joined; None for one that was there when the tracking started."""
        cohort = self.birth(group, unit)
        return None if cohort is None else self._step - cohort.step

    # -- parity as they age -------------------------------------------------------------------------------------

    def observe(self, probe: Probe) -> list[tuple[Cohort, Parity]]:
        """Measure every cohort that no later edit has ended against the other live units of its group.

        Adds a point to each cohort's curve, at its age at the last recorded step.

        Raises
        ------
        GraphnetError
            The probe is of another version than the network's.
        """
        self._sync()
        if probe.version != self._net.version:
            raise GraphnetError(
                f"the probe saw version {probe.version}, the network is at version {self._net.version}: probe it again"
            )
        found = []
        for cohort in self._cohorts:
            ids = self.live(cohort)
            if cohort.curve.end is None and ids and cohort.group in probe.groups:
                parity = probe.parity(cohort.group, ids)
                cohort.curve.points.append(
                    Point(self._step - cohort.step, parity.ratio_gradient, parity.ratio_activation)
                )
                found.append((cohort, parity))
        return found

    def durations(self, group: str | None = None, **options: Any) -> list[Duration]:
        """The time to parity of every observed cohort (see :func:`time_to_parity`)."""
        return [
            time_to_parity(cohort.curve, **options)
            for cohort in self.cohorts
            if cohort.curve.points and group in (None, cohort.group)
        ]

    def median_time_to_parity(self, group: str | None = None, **options: Any) -> int | None:
        """The median over cohorts, with censoring; None where half never reach parity."""
        return median_time(self.durations(group, **options))

    # -- resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        self._sync()
        return {
            "step": self._step,
            "version": self._seen,
            "cohorts": [
                {
                    "group": c.group,
                    "version": c.version,
                    "step": c.step,
                    "ids": list(c.ids),
                    "end": c.curve.end,
                    "points": [[p.age, p.gradient, p.activation] for p in c.curve.points],
                }
                for c in self._cohorts
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            The state is not one of cohorts, or the network does not know its version; nothing was changed.
        """
        try:
            step, seen = int(state["step"]), int(state["version"])
            cohorts = [
                Cohort(
                    entry["group"], int(entry["version"]), int(entry["step"]), tuple(map(int, entry["ids"])),
                    Curve([Point(int(age), gradient, activation) for age, gradient, activation in entry["points"]],
                          entry["end"]),
                )
                for entry in state["cohorts"]
            ]  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"this is not a state of cohorts (Cohorts.state_dict): {error!r}") from error
        graphs = {version.number: version.graph for version in self._net.history}
        if seen not in graphs:
            raise CheckpointError(f"the state saw version {seen}, the network's history has {sorted(graphs)}")
        self._step, self._seen, self._graph, self._cohorts, self._owner = step, seen, graphs[seen], cohorts, {}
        for cohort in cohorts:
            self._owner.setdefault(cohort.group, {}).update(dict.fromkeys(cohort.ids, cohort))
