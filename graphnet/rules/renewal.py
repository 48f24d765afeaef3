"""Steps on units that leave a group's structure as it is, or divide and join its units."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.plan import Step
from graphnet.edit.scores import SCORES
from graphnet.edit.splitters import SPLITTERS
from graphnet.edit.states import STATES
from graphnet.errors import EditError
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
from graphnet.schemas.steps import Merge, Permute, Reset, ShrinkAndPerturb, Split

__all__ = ["MergeRunner", "PermuteRunner", "ResetRunner", "ShrinkRunner", "SplitRunner"]


@STEPS.register(Reset)
class ResetRunner(UnitRunner):
    """Starts units afresh where they stand."""

    def __init__(self, step: Reset, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(SCORES, step.score, where)
        check_choice(INITIALISERS, step.init, where)
        check_choice(STATES, step.state, where)

    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """How many units are reset; the group keeps its size."""
        step, moment = self.step, stage.moment
        if step.below is not None:
            return group, Step("reset", group.name, {})
        if step.ids is not None:
            group.positions(step.ids)
            gone: Collection[int] = step.ids
        else:
            count = self._count(group, stage)
            if count < 1:
                if step.per_step is None:
                    return f"{group.name} has {group.size} units and none to reset"
                return f"{group.name} is owed {moment.owed(group.name):.3g} units, not a whole one"
            gone = most_that_go("reset", group, stage, count, least=0)[:count]
        refuse_visible("reset", group, moment)
        fresh = dict(zip(gone, range(group.next_id, group.next_id + len(gone)), strict=True))
        ids = tuple(fresh.get(unit, unit) for unit in group.ids)
        after = replace(group, ids=ids, next_id=group.next_id + len(gone))
        return after, Step("reset", group.name, {}, tuple(fresh.values()), tuple(gone))

    def _count(self, group: UnitGroup, stage: Stage) -> int:
        step, at = self.step, stage.moment.step
        if step.per_step is not None:
            mature = group.size - len(stage.moment.immune(group, stage.born(group.name)))
            return min(int(stage.moment.owed(group.name)), mature)
        if step.fraction is not None:
            return whole(group.size * step.fraction.at(at))
        assert step.lowest is not None
        return whole(step.lowest.at(at))

    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Reset the lowest by the score that may be."""
        given, at, plan = self.step, stage.moment.step, stage.edit.plan
        spared = stage.moment.immune(group, stage.born(group.name))
        but = ("units", "lowest", "fraction", "below", "per_step", "ids")
        options = arguments_of(given, {}, at, but=but)
        if given.ids is not None:
            chosen = given.ids
        elif given.below is not None:
            chosen = chosen_below(plan, group.name, given.below.at(at), spared, given.score, data)
            if not chosen:
                return (
                    f"no unit of {group.name} that may go scores at most {given.below.at(at):g} by {given.score.name}"
                )
        elif spared or given.score.name == BY_METRIC:
            chosen = lowest_mature(plan, group.name, len(step.dropped), spared, given.score, data)
        else:
            stage.edit.reset(
                group.name, lowest=len(step.dropped), preserves=stage.moment.preserves, batch=data.batch,
                loss=data.loss, **options,
            )  # fmt: skip
            return None
        for name in ("score", *given.score.args):
            options.pop(name, None)
        stage.edit.reset(
            group.name, units=chosen, preserves=stage.moment.preserves, batch=data.batch, loss=data.loss, **options
        )
        return None


@STEPS.register(Split)
class SplitRunner(UnitRunner):
    """Splits units in two or more."""

    def __init__(self, step: Split, where: str) -> None:
        self.step, self.units = step, step.units
        check_choice(SPLITTERS, step.by, where)
        check_choice(STATES, step.state, where)
        if step.score is not None:
            check_choice(SCORES, step.score, where)

    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """How many newborns there will be."""
        step = self.step
        if step.ids is not None:
            group.positions(step.ids)
        count = self._count(group, stage.moment.step) * step.copies
        if count < 1:
            return f"{group.name} has {group.size} units and none to split"
        check_count("split", group, count)
        born = tuple(range(group.next_id, group.next_id + count))
        after = replace(group, ids=(*group.ids, *born), next_id=group.next_id + count)
        return after, Step("split", group.name, {}, born)

    def _count(self, group: UnitGroup, at: int) -> int:
        step = self.step
        if step.ids is not None:
            return len(step.ids)
        amount = step.highest.at(at) if step.fraction is None else group.size * step.fraction.at(at)  # type: ignore[union-attr]
        return whole(amount)

    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Split them."""
        given = self.step
        options = arguments_of(given, {}, stage.moment.step, but=("units", "highest", "fraction", "ids"))
        which = {"units": given.ids} if given.ids is not None else {"highest": len(step.born) // given.copies}
        stage.edit.split(
            group.name, preserves=stage.moment.preserves, batch=data.batch, loss=data.loss, **which, **options
        )
        return None


@STEPS.register(Merge)
class MergeRunner(UnitRunner):
    """Merges units that do the same."""

    def __init__(self, step: Merge, where: str) -> None:
        self.step, self.units = step, step.units

    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """Which units go."""
        if self.step.pairs is None:
            if stage.data is None:
                raise UnpredictableError(f"how many units of {group.name!r} do the same depends on their weights")
            return group, Step("merge", group.name, {})
        gone = tuple(dict.fromkeys(other for _, other in self.step.pairs))
        group.positions(gone)
        after = replace(group, ids=tuple(unit for unit in group.ids if unit not in gone))
        return after, Step("merge", group.name, {}, (), gone)

    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Merge them."""
        options = arguments_of(self.step, {}, stage.moment.step, but=("units",))
        stage.edit.merge(group.name, preserves=stage.moment.preserves, **options)
        return None


@STEPS.register(Permute)
class PermuteRunner(UnitRunner):
    """Puts units in another order."""

    def __init__(self, step: Permute, where: str) -> None:
        self.step, self.units = step, step.units
        if step.by is not None:
            check_choice(SCORES, step.by, where)

    def resolve(self, group: UnitGroup, stage: Stage) -> tuple[UnitGroup, Step] | str:
        """The group keeps its units."""
        order = group.ids if self.step.order is None else self.step.order
        if sorted(order) != sorted(group.ids):
            raise EditError(f"permute {group.name!r}: the order must name each of its {group.size} units once")
        return replace(group, ids=order), Step("permute", group.name, {})

    def perform(self, group: UnitGroup, step: Step, stage: Stage, data: Data) -> str | None:
        """Permute them."""
        options = arguments_of(self.step, {}, stage.moment.step, but=("units",))
        stage.edit.permute(
            group.name, preserves=stage.moment.preserves, batch=data.batch, loss=data.loss, **options
        )  # fmt: skip
        return None


@STEPS.register(ShrinkAndPerturb)
class ShrinkRunner(Runner):
    """Scales weights and adds noise; ``units: "*"`` is every tensor."""

    def __init__(self, step: ShrinkAndPerturb, where: str) -> None:
        self.step = step

    def refers(self, names: Collection[str]) -> bool:
        """Whether its units are a node of the match."""
        return self.step.units in names

    def run(self, stage: Stage) -> Iterable[Done | str]:
        """Do it on every group at once."""
        every = self.step.units == "*"
        groups = () if every else stage.groups(self.step.units, outputs=True)
        refuse_promise("shrink_and_perturb", ", ".join(groups) or "*", stage.moment, "weights are scaled and get noise")
        options = arguments_of(self.step, {}, stage.moment.step, but=("units",))
        tensors = [name for group in groups or (None,) for name in stage.edit.shrink_and_perturb(group, **options)]
        changes = [Change("shrink_and_perturb", name) for name in groups or ("*",)]
        yield Done(tuple(changes), tuple(f"units:{name}" for name in groups or stage.graph.groups), tuple(tensors))
