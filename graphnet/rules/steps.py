"""What a rule does: each step of a document becomes a runner that performs it in an edit.

The same runner works on a sketch (:mod:`graphnet.rules.sketch`), for a dry run and for budgets, and on the live
network. On a sketch only sizes are right: which units a score picks is left to the live edit, and the oldest that may
go stand in for them.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphnet.edit.edit import Edit
from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.edit.newborns import visible
from graphnet.edit.plan import Preserves, Step
from graphnet.edit.registry import Registry
from graphnet.edit.scores import SCORES
from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.rules.outcome import Change
from graphnet.rules.patterns import groups_named
from graphnet.rules.registry import Compilers
from graphnet.schemas.choices import Choice

__all__ = [
    "BY_METRIC",
    "STEPS",
    "Data",
    "Done",
    "Moment",
    "Runner",
    "Stage",
    "UnitRunner",
    "check_choice",
    "check_count",
    "refuse_promise",
    "refuse_visible",
]


_MOST_NEWBORNS = 2**20

BY_METRIC = "metric"
"""The score that is a metric of units: reported by the loop, registered, or the running ``utility``."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a step may use.

    Attributes
    ----------
    step : int
        The optimizer step, for scalars that are schedules.
    preserves : str or None
        What the rule promises.
    immune : callable
        Units of a group that may not be removed by a score, given those born in the edit so far.
    snapshots : mapping of str to Graph
        The graph of each snapshot that can be gone back to.
    lost : tuple of str
        Snapshots that a resumed policy took before its checkpoint.
    owed : callable
        Units of a group that the rule owes to be reset by now: the sum of a share for every optimizer step.
    """

    step: int
    preserves: Preserves | None
    immune: Callable[[UnitGroup, Collection[int]], frozenset[int]]
    snapshots: Mapping[str, Graph] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    owed: Callable[[str], float] = field(default=lambda group: 0.0)


@dataclass(frozen=True, slots=True)
class Data:
    """What an edit may use besides.

    Attributes
    ----------
    batch, loss : optional
        The caller's.
    snapshots : mapping of str to Snapshot
    values : callable
        A metric of a group's units by id, or why there is none; for the score ``metric``.
    """

    batch: Batch | None = None
    loss: Loss | None = None
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    values: Callable[[str, UnitGroup], Mapping[int, float] | str] = field(default=lambda metric, group: "no metrics")


@dataclass(frozen=True, slots=True)
class Done:
    """What one step did in one place.

    Attributes
    ----------
    changes : tuple of Change
    nodes : tuple of str
        The ops and groups that it was given, as ``op:NAME`` and ``units:NAME``.
    rewritten : tuple of str
        Tensors that get other values without a change of shape.
    """

    changes: tuple[Change, ...]
    nodes: tuple[str, ...]
    rewritten: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a step is performed.

    Attributes
    ----------
    edit : Edit
    names : dict
        What the match gave each node of the pattern, and the nodes that earlier steps made, by their name in the rule.
    moment : Moment
    data : Data or None
        None on a sketch.
    """

    edit: Edit
    names: dict[str, str]
    moment: Moment
    data: Data | None

    @property
    def graph(self) -> Graph:
        """The graph as the steps so far leave it."""
        return self.edit.graph

    def groups(self, name: str, *, outputs: bool = False) -> tuple[str, ...]:
        """The groups that a name stands for: a node of the match, a group, an op that writes one, or a glob."""
        return groups_named(self.graph, name, self.names, outputs=outputs)

    def taken(self, group: UnitGroup) -> int:
        """How many units the group has less than when the edit began."""
        before = self.edit.plan.base.groups.get(group.name)
        return 0 if before is None else before.size - group.size

    def born(self, group: str) -> set[int]:
        """Units that joined the live ones in this edit."""
        return {unit for done in self.edit.plan.steps if done.group == group for unit in done.born}


class Runner(ABC):
    """A compiled step."""

    @abstractmethod
    def refers(self, names: Collection[str]) -> bool:
        """Whether it names a node of the match; if not, it is done once for all matches."""

    @abstractmethod
    def run(self, stage: Stage) -> Iterable[Done | str]:
        """Do it; text says why there is nothing to do in one place.

        Raises
        ------
        GraphError
            A name stands for nothing.
        EditError
            It cannot be done.
        """


STEPS: Compilers[Runner] = Compilers("the step")


class UnitRunner(Runner):
    """A step on the units of each group that a name stands for."""

    units: str

    def refers(self, names: Collection[str]) -> bool:
        """Whether its units are a node of the match."""
        return self.units in names

    def run(self, stage: Stage) -> Iterable[Done | str]:
        """Do it on every group."""
        for name in stage.groups(self.units):
            group = stage.graph.editable(name)
            found = self.resolve(group, stage)
            if isinstance(found, str):
                yield found
                continue
            after, step = found
            if stage.data is None:
                stage.edit.plan.advance(after)
                stage.edit.plan.steps.append(step)
            else:
                idle = self.perform(group, step, stage, stage.data)
                if idle is not None:
                    yield idle
                    continue
            change = Change(step.operator, name, group.size, stage.graph.groups[name].size)
            yield Done((change,), (f"units:{name}",))

    @abstractmethod
    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """The group afterwards, with its ids guessed, and the step; or why there is nothing to do."""

    @abstractmethod
    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Do it on the live network; text says why there was nothing to do after all."""


def check_count(operator: str, group: UnitGroup, count: int) -> None:
    """Refuse more newborns than a list of them can be made for: such a count is a slip.

    Raises
    ------
    EditError
        There are more than a million.
    """
    if count > _MOST_NEWBORNS:
        raise EditError(
            f"{operator} {group.name!r}: {count:.4g} units at once; at most {_MOST_NEWBORNS:,} may be added"
        )


def check_choice(registry: Registry[Any], choice: Choice, where: str) -> None:
    """Refuse a name that nothing is registered under, and arguments that what is there does not take.

    Raises
    ------
    GraphnetError
        Names where it stands and what there is.
    """
    if registry is SCORES and choice.name == BY_METRIC:
        if set(choice.args) != {"metric"} or not isinstance(choice.args["metric"], str):
            raise GraphnetError(f"{where}: the score 'metric' takes a name: {{name: metric, args: {{metric: NAME}}}}")
        return
    try:
        function = registry.get(choice.name)
    except EditError as error:
        raise GraphnetError(f"{where}: {error}") from error
    parameters = inspect.signature(function).parameters.values()
    takes = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    wrong = [name for name in choice.args if name not in takes]
    if wrong:
        raise GraphnetError(
            f"{where}: the {registry.kind} {choice.name!r} does not take {', '.join(wrong)}; "
            f"it takes {', '.join(takes) or 'no arguments'}"
        )


def refuse_promise(operator: str, group: str, moment: Moment, why: str) -> None:
    """Refuse a step that changes the function where the rule promises that it does not."""
    if moment.preserves not in (None, "none"):
        raise EditError(f"{operator} {group!r} cannot promise preserves={moment.preserves!r}: {why}")


def refuse_visible(operator: str, group: UnitGroup, moment: Moment) -> None:
    """Refuse a promise about units that go, of a group whose structure shows that the function changes with them.

    Raises
    ------
    EditError
        Something is promised, and an output, a norm or a sum without a weight tells how many units there are.
    """
    reason = visible(group)
    if reason is not None:
        refuse_promise(operator, group.name, moment, reason)
