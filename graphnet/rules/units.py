"""Steps that change how many units a group has, or go back to a snapshot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.plan import Step
from graphnet.edit.scores import SCORES
from graphnet.edit.states import STATES
from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.rules.arguments import arguments_of
from graphnet.rules.choosing import chosen_below, lowest_mature, most_that_go
from graphnet.rules.outcome import Change
from graphnet.rules.sketch import UnpredictableError
from graphnet.rules.steps import (
    BY_METRIC,
    STEPS,
    Data,
    Done,
    Runner,
    Stage,
    UnitRunner,
    check_choice,
    check_count,
    refuse_promise,
    refuse_visible,
)
from graphnet.schemas.scalars import whole
from graphnet.schemas.steps import Grow, Prune, Recruit, Retire, Rewind

__all__ = ["GrowRunner", "RecruitRunner", "RemoveRunner", "RewindRunner"]

_AMOUNTS = ("units", "count", "fraction", "to", "restore", "lowest", "keep", "below", "ids")


@STEPS.register(Grow)
class GrowRunner(UnitRunner):
    """Adds units."""

    def __init__(self, step: Grow, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(INITIALISERS, step.init, where)
        check_choice(STATES, step.state, where)

    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """How many units the group gets."""
        step, at = self.step, stage.moment.step
        if step.count is not None:
            count = whole(step.count.at(at))
        elif step.fraction is not None:
            count = whole(group.size * step.fraction.at(at))
        elif step.restore:
            count = stage.taken(group)
        else:
            assert step.to is not None
            count = whole(step.to.at(at)) - group.size
        if count < 1:
            return f"{group.name} has {group.size} units and none to add"
        check_count("grow", group, count)
        if stage.moment.preserves == "function" and group.output:
            raise EditError(f"grow {group.name!r} cannot promise preserves='function': a model output reads it")
        born = tuple(range(group.next_id, group.next_id + count))
        after = replace(group, ids=(*group.ids, *born), next_id=group.next_id + count)
        return after, Step("grow", group.name, {}, born)

    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Add them."""
        given = arguments_of(self.step, {}, stage.moment.step, but=_AMOUNTS)
        stage.edit.grow(
            group.name, len(step.born), preserves=stage.moment.preserves, batch=data.batch, loss=data.loss, **given
        )
        return None


@STEPS.register(Prune, Retire)
class RemoveRunner(UnitRunner):
    """Removes units for good, or makes them dormant."""

    def __init__(self, step: Prune | Retire, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(SCORES, step.score, where)

    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """How many units go, and which may not."""
        step, moment = self.step, stage.moment
        rests = isinstance(step, Retire)
        if rests:
            refuse_promise("retire", group.name, moment, "its units leave the forward pass")
        if step.below is not None:
            if stage.data is None:
                raise UnpredictableError(f"how many units of {group.name!r} score so low depends on their weights")
            return group, Step(step.do, group.name, {}, dormant=rests)
        if isinstance(step, Prune) and step.ids is not None:
            group.positions(step.ids)
            gone = set(step.ids)
        else:
            count = self._count(group, moment.step)
            if count < 1:
                return f"{group.name} has {group.size} units and none to {step.do}"
            gone = set(most_that_go(step.do, group, stage, count)[:count])
        if not rests:
            refuse_visible("prune", group, moment)
        live = tuple(unit for unit in group.ids if unit not in gone)
        dormant = tuple(sorted((*group.dormant, *gone))) if rests else group.dormant
        after = replace(group, ids=live, dormant=dormant)
        return after, Step(step.do, group.name, {}, (), tuple(sorted(gone)), dormant=rests)

    def _count(self, group: UnitGroup, at: int) -> int:
        step = self.step
        if step.fraction is not None:
            return whole(group.size * step.fraction.at(at))
        if step.to is not None:
            return group.size - whole(step.to.at(at))
        if isinstance(step, Prune) and step.keep is not None:
            return group.size - whole(group.size * step.keep.at(at))
        fixed = step.lowest if isinstance(step, Prune) else step.count
        assert fixed is not None
        return whole(fixed.at(at))

    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Remove the lowest by the score that may go."""
        given, name, at = self.step, group.name, stage.moment.step
        options: dict[str, Any] = {"batch": data.batch, "loss": data.loss}
        if isinstance(given, Prune):
            options |= {"preserves": stage.moment.preserves, "compensate": given.compensate}
            remove: Any = stage.edit.prune
        else:
            remove = stage.edit.retire
        spared = stage.moment.immune(group, stage.born(name))
        scored = arguments_of(given, {}, at, but=(*_AMOUNTS, "compensate"))
        if isinstance(given, Prune) and given.ids is not None:
            remove(name, units=given.ids, **options)
        elif given.below is not None:
            chosen = chosen_below(stage.edit.plan, name, given.below.at(at), spared, given.score, data)
            if not chosen:
                return f"no unit of {name} that may go scores at most {given.below.at(at):g} by {given.score.name}"
            remove(name, units=chosen, **options)
        elif spared or given.score.name == BY_METRIC:
            chosen = lowest_mature(stage.edit.plan, name, len(step.dropped), spared, given.score, data)
            remove(name, units=chosen, **options)
        else:
            remove(name, lowest=len(step.dropped), **options, **scored)
        return None


@STEPS.register(Recruit)
class RecruitRunner(UnitRunner):
    """Brings dormant units back."""

    def __init__(self, step: Recruit, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(SCORES, step.select, where)
        check_choice(STATES, step.state, where)

    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """How many units come back."""
        step, at = self.step, stage.moment.step
        refuse_promise("recruit", group.name, stage.moment, "units come back with their weights")
        if step.count is not None:
            count = whole(step.count.at(at))
        elif step.fraction is not None:
            count = whole(len(group.dormant) * step.fraction.at(at))
        elif step.restore:
            count = stage.taken(group)
        else:
            assert step.to is not None
            count = whole(step.to.at(at)) - group.size
        if count < 1:
            return f"{group.name} has {group.size} live units, {len(group.dormant)} dormant ones and none to recruit"
        if count > len(group.dormant):
            raise EditError(f"recruit {group.name!r}: {count} units of {len(group.dormant)} dormant ones")
        back = group.dormant[:count]
        ordered = list(group.ids) == sorted(group.ids)
        live = tuple(sorted((*group.ids, *back))) if ordered else (*group.ids, *back)
        after = replace(group, ids=live, dormant=group.dormant[count:])
        return after, Step("recruit", group.name, {}, back, dormant=True)

    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Bring the highest by the score back."""
        given = arguments_of(self.step, {}, stage.moment.step, but=_AMOUNTS)
        stage.edit.recruit(group.name, highest=len(step.born), batch=data.batch, loss=data.loss, **given)
        return None


@STEPS.register(Rewind)
class RewindRunner(Runner):
    """Gives units the values of a snapshot; ``units: "*"`` rewinds every tensor."""

    def __init__(self, step: Rewind, where: str) -> None:
        self.step = step

    def refers(self, names: Collection[str]) -> bool:
        """Whether its units are a node of the match."""
        return self.step.units in names

    def run(self, stage: Stage) -> Iterable[Done | str]:
        """Restore the tensors that the groups write, or every one."""
        graph, moment, name = stage.graph, stage.moment, self.step.snapshot
        every = self.step.units == "*"
        groups = () if every else stage.groups(self.step.units, outputs=True)
        refuse_promise("rewind", ", ".join(groups) or "*", moment, "weights take the values of a snapshot")
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
        if stage.data is not None:
            stage.edit.rewind(groups or None, stage.data.snapshots[name], clear_state=self.step.clear_state)
        sizes = [graph.groups[group].size for group in groups] or [0]
        changes = [Change("rewind", group, size, size) for group, size in zip(groups or ("*",), sizes, strict=True)]
        yield Done(tuple(changes), tuple(f"units:{group}" for group in groups or graph.groups), tensors)


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
