"""What a rule does: each step is resolved to tasks on the graph alone, then performed in an edit.

The same tasks serve the dry run, the budgets and the edit. Only which units a score picks is left to the edit; the
graph-only version drops the oldest that may go in their place, so sizes are right and ids of pruned units are not.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Any

from graphnet.edit.edit import Edit
from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.operators.prune import lowest_first
from graphnet.edit.plan import Plan, Preserves
from graphnet.edit.registry import Registry
from graphnet.edit.scores import SCORES
from graphnet.edit.scores.base import Scoring
from graphnet.edit.states import STATES
from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.rules.outcome import Change
from graphnet.rules.patterns import Binding, groups_named
from graphnet.rules.registry import Compilers
from graphnet.schemas.policy import Choice, Grow, Prune, Recruit, Retire, Rewind

__all__ = ["STEPS", "Moment", "Runner", "Task"]


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
    """

    step: int
    preserves: Preserves | None
    immune: Callable[[UnitGroup, Collection[int]], frozenset[int]]
    snapshots: Mapping[str, Graph] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Data:
    """What an edit may use besides: the caller's batch and loss, and the tensors of snapshots."""

    batch: Batch | None = None
    loss: Loss | None = None
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """One step on one group (a rewind: on several), resolved against the graph.

    Attributes
    ----------
    runner : Runner
    groups : tuple of str
    count : int
    after : Graph
    changes : tuple of Change
    born : tuple of int
        Units that join the live ones; which ones are recruited is a guess.
    rewritten : tuple of str
        Tensors that get other values without a change of shape.
    """

    runner: Runner
    groups: tuple[str, ...]
    count: int
    after: Graph
    changes: tuple[Change, ...]
    born: tuple[int, ...] = ()
    rewritten: tuple[str, ...] = ()

    def perform(self, edit: Edit, moment: Moment, data: Data) -> None:
        """Do it."""
        self.runner.perform(self, edit, moment, data)


class Runner(ABC):
    """A compiled step."""

    def targets(self, graph: Graph, binding: Binding) -> list[tuple[str, ...]]:
        """The groups of each task; a :class:`GraphError` where the step's name stands for none."""
        return [(name,) for name in groups_named(graph, self.units, binding)]

    units: str

    @abstractmethod
    def resolve(self, groups: tuple[str, ...], graph: Graph, moment: Moment, born: Collection[int]) -> Task | str:
        """The task on these groups, or why there is nothing to do; ``born`` are the group's newborns of this edit.

        Raises
        ------
        EditError
            It cannot be done.
        """

    @abstractmethod
    def perform(self, task: Task, edit: Edit, moment: Moment, data: Data) -> None:
        """Do it."""


STEPS: Compilers[Runner] = Compilers("the step")


@STEPS.register(Grow)
class GrowRunner(Runner):
    """Adds units."""

    def __init__(self, step: Grow, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(INITIALISERS, step.init, where)
        check_choice(STATES, step.state, where)

    def resolve(self, groups: tuple[str, ...], graph: Graph, moment: Moment, born: Collection[int]) -> Task | str:
        """How many units the group gets."""
        step, group = self.step, graph.editable(groups[0])
        at = moment.step
        if step.count is not None:
            count = _round(step.count.at(at))
        elif step.fraction is not None:
            count = _round(group.size * step.fraction.at(at))
        else:
            assert step.to is not None
            count = _round(step.to.at(at)) - group.size
        if count < 1:
            return f"{group.name} has {group.size} units and none to add"
        if moment.preserves == "function" and group.output:
            raise EditError(f"grow {group.name!r} cannot promise preserves='function': a model output reads it")
        born_ids = range(group.next_id, group.next_id + count)
        after = replace(group, ids=(*group.ids, *born_ids), next_id=group.next_id + count)
        return _task(self, "grow", graph, group, after, count, tuple(born_ids))

    def perform(self, task: Task, edit: Edit, moment: Moment, data: Data) -> None:
        """Add them."""
        init, state = self.step.init, self.step.state
        options: dict[str, Any] = dict(init.args)
        edit.grow(
            task.groups[0], task.count, init=init.name, state=state.name, preserves=moment.preserves,
            batch=data.batch, loss=data.loss, state_options=dict(state.args), **options,
        )  # fmt: skip


@STEPS.register(Prune, Retire)
class RemoveRunner(Runner):
    """Removes units for good, or makes them dormant."""

    def __init__(self, step: Prune | Retire, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(SCORES, step.score, where)

    def resolve(self, groups: tuple[str, ...], graph: Graph, moment: Moment, born: Collection[int]) -> Task | str:
        """How many units go, and which may not."""
        step, group = self.step, graph.editable(groups[0])
        if isinstance(step, Retire):
            _refuse_promise("retire", group.name, moment, "its units leave the forward pass")
        if isinstance(step, Prune) and step.ids is not None:
            group.positions(step.ids)
            gone = set(step.ids)
        else:
            count = self._count(group, moment.step)
            if count < 1:
                return f"{group.name} has {group.size} units and none to {step.do}"
            spared = moment.immune(group, born)
            able = [unit for unit in group.ids if unit not in spared]
            most = min(len(able), group.size - group.minimum)
            if count > most:
                why = f" and {len(spared)} are newborns still immune" if spared else ""
                raise EditError(
                    f"{step.do} {group.name!r}: {count} of {group.size} units cannot go: "
                    f"it keeps at least {group.minimum}{why}"
                )
            gone = set(able[:count])
        live = tuple(unit for unit in group.ids if unit not in gone)
        dormant = tuple(sorted((*group.dormant, *gone))) if isinstance(step, Retire) else group.dormant
        after = replace(group, ids=live, dormant=dormant)
        return _task(self, step.do, graph, group, after, len(gone))

    def _count(self, group: UnitGroup, at: int) -> int:
        step = self.step
        if step.fraction is not None:
            return _round(group.size * step.fraction.at(at))
        if step.to is not None:
            return group.size - _round(step.to.at(at))
        if isinstance(step, Prune) and step.keep is not None:
            return group.size - _round(group.size * step.keep.at(at))
        fixed = step.lowest if isinstance(step, Prune) else step.count
        assert fixed is not None
        return _round(fixed.at(at))

    def perform(self, task: Task, edit: Edit, moment: Moment, data: Data) -> None:
        """Remove the lowest by the score that may go."""
        step, group = self.step, task.groups[0]
        promise: dict[str, Any] = {"preserves": moment.preserves} if isinstance(step, Prune) else {}
        remove: Callable[..., Any] = edit.prune if isinstance(step, Prune) else edit.retire
        if isinstance(step, Prune) and step.ids is not None:
            remove(group, units=step.ids, **promise)
            return
        born = {unit for done in edit.plan.steps if done.group == group for unit in done.born}
        spared = moment.immune(edit.graph.groups[group], born)
        if spared:
            chosen = edit.apply(_lowest_mature, group, task.count, spared, step.score, data)
            remove(group, units=chosen, **promise)
        else:
            remove(
                group, lowest=task.count, score=step.score.name, batch=data.batch, loss=data.loss,
                **promise, **step.score.args,
            )  # fmt: skip


@STEPS.register(Recruit)
class RecruitRunner(Runner):
    """Brings dormant units back."""

    def __init__(self, step: Recruit, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(SCORES, step.select, where)
        check_choice(STATES, step.state, where)

    def resolve(self, groups: tuple[str, ...], graph: Graph, moment: Moment, born: Collection[int]) -> Task | str:
        """How many units come back."""
        step, group = self.step, graph.editable(groups[0])
        _refuse_promise("recruit", group.name, moment, "units come back with their weights")
        at = moment.step
        if step.count is not None:
            count = _round(step.count.at(at))
        elif step.fraction is not None:
            count = _round(len(group.dormant) * step.fraction.at(at))
        else:
            assert step.to is not None
            count = _round(step.to.at(at)) - group.size
        if count < 1:
            return f"{group.name} has {group.size} live units, {len(group.dormant)} dormant ones and none to recruit"
        if count > len(group.dormant):
            raise EditError(f"recruit {group.name!r}: {count} units of {len(group.dormant)} dormant ones")
        back = group.dormant[:count]
        ordered = list(group.ids) == sorted(group.ids)
        live = tuple(sorted((*group.ids, *back))) if ordered else (*group.ids, *back)
        after = replace(group, ids=live, dormant=group.dormant[count:])
        return _task(self, "recruit", graph, group, after, count, back)

    def perform(self, task: Task, edit: Edit, moment: Moment, data: Data) -> None:
        """Bring the highest by the score back."""
        select, state = self.step.select, self.step.state
        options: dict[str, Any] = dict(select.args)
        edit.recruit(
            task.groups[0], highest=task.count, score=select.name, state=state.name, batch=data.batch,
            loss=data.loss, state_options=dict(state.args), **options,
        )  # fmt: skip


@STEPS.register(Rewind)
class RewindRunner(Runner):
    """Gives units the values of a snapshot; ``units: "*"`` rewinds every tensor."""

    def __init__(self, step: Rewind, where: str) -> None:
        self.step, self.units = step, step.units

    def targets(self, graph: Graph, binding: Binding) -> list[tuple[str, ...]]:
        """One task on all groups."""
        return [() if self.units == "*" else groups_named(graph, self.units, binding, outputs=True)]

    def resolve(self, groups: tuple[str, ...], graph: Graph, moment: Moment, born: Collection[int]) -> Task | str:
        """Which tensors get their values back."""
        label = ", ".join(groups) or "*"
        _refuse_promise("rewind", label, moment, "weights take the values of a snapshot")
        name = self.step.snapshot
        then = moment.snapshots.get(name)
        if then is None:
            if name in moment.lost:
                raise EditError(
                    f"rewind: the snapshot {name!r} was taken before the checkpoint, whose policy state holds no "
                    "tensors: give it back with policy.keep(name, snapshot)"
                )
            raise EditError(
                f"rewind: there is no snapshot {name!r}; those there are: {sorted(moment.snapshots)}. Take it with "
                "policy.keep(name, net.snapshot())"
            )
        tensors = _written(graph, groups)
        held = {key for tensor in tensors for layout in graph.tensors[tensor].dims for key in layout.atoms()}
        for key in sorted(held & set(graph.groups)):
            late = sorted(set(graph.groups[key].ids) - set(then.groups[key].ids)) if key in then.groups else []
            if key not in then.groups or late:
                raise EditError(f"rewind: units {late[:8]} of {key!r} were born after the snapshot {name!r}")
        sizes = [graph.groups[group].size for group in groups] or [0]
        changes = tuple(
            Change("rewind", group, size, size) for group, size in zip(groups or ("*",), sizes, strict=True)
        )
        return Task(self, groups, 0, graph, changes, rewritten=tensors)

    def perform(self, task: Task, edit: Edit, moment: Moment, data: Data) -> None:
        """Restore them."""
        edit.rewind(task.groups or None, data.snapshots[self.step.snapshot])


def check_choice(registry: Registry[Any], choice: Choice, where: str) -> None:
    """Refuse a name that nothing is registered under, and arguments that what is there does not take.

    Raises
    ------
    GraphnetError
        Names where it stands and what there is.
    """
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


def _lowest_mature(
    plan: Plan, group: str, count: int, spared: frozenset[int], score: Choice, data: Data
) -> tuple[int, ...]:
    """Ids of the lowest units by a score, those that are spared left out."""
    found = plan.graph.groups[group]
    values = SCORES.call(score.name, Scoring(plan, found, data.batch, data.loss), **score.args)
    order = [found.ids[position] for position in lowest_first(plan, values).tolist()]
    return tuple([unit for unit in order if unit not in spared][:count])


def _task(
    runner: Runner,
    operator: str,
    graph: Graph,
    before: UnitGroup,
    after: UnitGroup,
    count: int,
    born: tuple[int, ...] = (),
) -> Task:
    change = Change(operator, before.name, before.size, after.size)
    return Task(runner, (before.name,), count, graph.resized({before.name: after}), (change,), born)


def _refuse_promise(operator: str, group: str, moment: Moment, why: str) -> None:
    if moment.preserves not in (None, "none"):
        raise EditError(f"{operator} {group!r} cannot promise preserves={moment.preserves!r}: {why}")


def _written(graph: Graph, groups: Sequence[str]) -> tuple[str, ...]:
    """The tensors that groups write; every one where no group is named."""
    if not groups:
        return tuple(graph.tensors)
    found: dict[str, None] = {}
    for group in groups:
        for spec in graph.users[graph.editable(group).name]:
            for layout, role in zip(spec.dims, spec.roles, strict=True):
                if role in ("write", "slot") and group in set(layout.atoms()):
                    found[spec.shared or spec.name] = None
    return tuple(found)


def _round(value: float) -> int:
    """Half up, so that what a schedule gives does not depend on whether it is even."""
    return floor(value + 0.5)
