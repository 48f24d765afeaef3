"""How long ago units joined: read off the ids of successive graphs, so that a dry run ages units as a run does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from typing import Any

from graphnet.errors import CheckpointError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup, compress, expand
from graphnet.runtime.history import History

__all__ = ["Ages"]


class Ages:
    """The cohorts of a network: which units joined the live ones at which step.

    Units of the first graph that is seen are incumbents, as old as the training. A recruited unit is a newborn
    again.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._live: dict[str, tuple[int, ...]] | None = None
        self._cohorts: dict[str, list[tuple[int, tuple[int, ...]]]] = {}

    def observe(
        self,
        graph: Graph,
        step: int,
        immunity: int,
        born: Mapping[str, Collection[int]] | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        """Take note of units that are live now and were not before; forget cohorts past the immunity but the last.

        ``born`` names units that joined, by group: one that was retired and recruited at once shows in no ids.
        ``origins`` names groups that go on under another name, with their old one.
        """
        if graph is self._graph:
            return
        if origins:
            self._follow(origins)
        named = born or {}
        live = {name: group.ids for name, group in graph.groups.items()}
        for name, ids in live.items() if self._live is not None else ():
            known = set((self._live or {}).get(name, ()))
            joined = tuple(unit for unit in ids if unit not in known or unit in named.get(name, ()))
            if joined:
                cohorts = self._cohorts.setdefault(name, [])
                if cohorts and cohorts[-1][0] == step:
                    joined = tuple(dict.fromkeys((*cohorts.pop()[1], *joined)))
                young = [cohort for cohort in cohorts if step - cohort[0] < immunity]
                self._cohorts[name] = [*young, (step, joined)]
        self._live, self._graph = live, graph

    def _follow(self, origins: Mapping[str, str]) -> None:
        gone = set(origins.values())
        cohorts, live = self._cohorts, self._live
        self._cohorts = {name: found for name, found in cohorts.items() if name not in gone}
        self._cohorts |= {new: cohorts[old] for new, old in origins.items() if old in cohorts}
        if live is not None:
            self._live = {name: ids for name, ids in live.items() if name not in gone}
            self._live |= {new: live[old] for new, old in origins.items() if old in live}

    def recall(self, history: History) -> None:
        """Take the units that joined last in each group from a history, as born at step 0: it holds no steps."""
        for version in history:
            for step in version.steps:
                if step.group is not None and step.born:
                    self._cohorts[step.group] = [(0, step.born)]

    def age(self, group: str, step: int) -> int:
        """Steps since units joined the group last; the step itself where none has joined."""
        cohorts = self._cohorts.get(group)
        return step - cohorts[-1][0] if cohorts else step

    def newborns(self, group: UnitGroup) -> tuple[int, ...]:
        """The last cohort's units that are still live."""
        cohorts = self._cohorts.get(group.name)
        born = set(cohorts[-1][1]) if cohorts else set()
        return tuple(unit for unit in group.ids if unit in born)

    def immune(self, group: UnitGroup, step: int, immunity: int, born: Collection[int] = ()) -> frozenset[int]:
        """Live units of a group that are younger than ``immunity`` steps; those ``born`` in the edit under way are."""
        if immunity == 0:
            return frozenset()
        young = set(born)
        for joined, ids in self._cohorts.get(group.name, ()):
            if step - joined < immunity:
                young.update(ids)
        return frozenset(young & set(group.ids))

    def until(self, step: int, immunity: int) -> float:
        """The next step at which units stop being immune."""
        ends = (joined + immunity for cohorts in self._cohorts.values() for joined, _ in cohorts)
        return min((end for end in ends if end > step), default=inf)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        live = None
        if self._live is not None:
            live = {name: [list(run) for run in compress(ids)] for name, ids in self._live.items()}
        return {
            "live": live,
            "cohorts": {
                name: [[step, [list(run) for run in compress(ids)]] for step, ids in cohorts]
                for name, cohorts in self._cohorts.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; a :class:`CheckpointError` where it is none, and nothing is changed."""
        try:
            live = state["live"]
            found = None if live is None else {name: _ids(runs) for name, runs in live.items()}
            cohorts = {
                name: [(int(step), _ids(runs)) for step, runs in listed] for name, listed in state["cohorts"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is not a state of unit ages (policy.state_dict()): {error!r}") from error
        self._graph, self._live, self._cohorts = None, found, cohorts


def _ids(runs: Any) -> tuple[int, ...]:
    return expand([(int(first), int(last)) for first, last in runs])
