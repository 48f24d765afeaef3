"""How each method of a study changes a network over the cycles: dense, prune, grow.

A method only decides which units come and go; the cell that trains it (:mod:`graphnet.study.training`) makes the
edits, measures and records them. One class and one entry in the experiment's schema add a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from graphnet.edit.edit import Edit
from graphnet.edit.host import Loss, Snapshot
from graphnet.edit.operators import choose
from graphnet.errors import EditError
from graphnet.runtime.network import Network
from graphnet.schemas.experiment import Dense, GrowMethod, PruneMethod
from graphnet.study import allocation

__all__ = ["METHODS", "Grow", "Keep", "Method", "Prune", "Session", "check_matched", "method", "method_for"]

Units = Mapping[str, Sequence[int]]
"""Unit ids by group."""

Config = TypeVar("Config", Dense, PruneMethod, GrowMethod)

RECRUIT = "recruit"
"""The initialiser that is none: dormant units of a masked backbone come back with the weights that they had."""


class Session(Protocol):
    """What a method may ask of the cell that trains it.

    Attributes
    ----------
    net : Network
    targets : mapping of group to int
        Units at the end, in the order of the experiment.
    cycles : int
    loss : callable
        ``loss(output, y)``.
    kept : Snapshot or None
        The weights that :attr:`Method.snapshot_epoch` asked for, once taken.
    """

    net: Network
    targets: Mapping[str, int]
    cycles: int
    loss: Loss
    kept: Snapshot | None

    @property
    def step(self) -> int:
        """Optimizer steps so far."""

    @property
    def initial(self) -> Snapshot:
        """The weights before the first edit."""

    def minibatch(self, cycle: int) -> tuple[Tensor, Tensor]:
        """The mini-batch that scores and initialisers of a cycle read; the same for every method of a seed."""

    def edit(self) -> AbstractContextManager[Edit]:
        """A transaction that is timed, recorded, and measured by its function shock."""

    def scored(self, *, group: str | None, gradients: bool) -> None:
        """Charge the compute of one look at the mini-batch; ``group`` also runs its dormant units."""

    def exiting(self, pruned: Units) -> None:
        """Record parity of the units that stay and those that are about to go."""

    def survivors(self) -> AbstractContextManager[None]:
        """Record how the survivors' activation changes over the block."""


class Method(ABC, Generic[Config]):
    """One way to change a network.

    Parameters
    ----------
    config
        The method's entry in the experiment.
    """

    snapshot_epoch: int | None = None
    """After so many epochs the session takes a snapshot of the weights."""

    def __init__(self, config: Config) -> None:
        self.config: Config = config

    def begin(self, session: Session) -> None:
        """Shape the network before it is trained."""

    @abstractmethod
    def event(self, session: Session, cycle: int) -> None:
        """Edit the network at the start of a cycle, counted from 0."""


METHODS: dict[str, Callable[[Any], Method[Any]]] = {}
"""Method classes by the ``method`` of their entry in an experiment."""


def method(name: str) -> Callable[[type[Method[Config]]], type[Method[Config]]]:
    """Register a method class."""

    def register(cls: type[Method[Config]]) -> type[Method[Config]]:
        METHODS[name] = cls
        return cls

    return register


def method_for(config: Dense | PruneMethod | GrowMethod) -> Method[Any]:
    """The method that an entry of an experiment describes."""
    return METHODS[config.method](config)


@method("dense")
class Keep(Method[Dense]):
    """All units from the start."""

    def event(self, session: Session, cycle: int) -> None:
        """Change nothing."""


@method("prune")
class Prune(Method[PruneMethod]):
    """Iterative pruning with rewinding (Frankle and Carbin, 1803.03635; schedule of Lillo and Cheney, 2605.15435)."""

    def __init__(self, config: PruneMethod) -> None:
        super().__init__(config)
        self.snapshot_epoch = config.snapshot_epoch

    def event(self, session: Session, cycle: int) -> None:
        """Remove the lowest units by score, then give the survivors their earlier weights."""
        pruned = self._lowest(session, cycle)
        session.exiting(pruned)
        with session.survivors():
            for group, units in pruned.items():
                with session.edit() as edit:
                    edit.prune(group, units=units)
        snapshot = self._snapshot(session)
        if pruned and snapshot is not None and session.step > 0:  # before the first step there is nothing to rewind
            with session.edit() as edit:
                edit.rewind(None, snapshot)

    def _lowest(self, session: Session, cycle: int) -> dict[str, tuple[int, ...]]:
        """Ids of the units that go, all scored on the network as it is."""
        groups, score, batch = session.net.graph.groups, self.config.score, session.minibatch(cycle)
        found = {}
        with session.net.edit() as look:  # reads only: an edit without operators commits nothing
            for group, target in session.targets.items():
                count = allocation.prune_schedule(groups[group].size, target, cycle, session.cycles)
                if count:
                    found[group] = choose(
                        look.plan, groups[group], "prune", None, count, None,
                        score.name, batch, session.loss, score.args,
                    )  # fmt: skip
                    if score.name not in ("magnitude", "random"):
                        session.scored(group=None, gradients=score.name != "activation-frequency")
        return found

    def _snapshot(self, session: Session) -> Snapshot | None:
        if self.config.rewind == "none":
            return None
        return session.initial if self.config.rewind == "init" else session.kept


@method("grow")
class Grow(Method[GrowMethod]):
    """Growth from a seed of active units without rewinding (Lillo and Cheney, 2605.15435).

    With ``init: recruit`` units come from a masked backbone and are chosen among the dormant; with any other
    initialiser they are new.
    """

    def begin(self, session: Session) -> None:
        """Leave the first units of each group live, and make the others dormant or take them away."""
        for group, size in self._seed(session).items():
            rest = session.net.graph.groups[group].ids[size:]
            if rest:
                with session.edit() as edit:
                    if self.config.init.name == RECRUIT:
                        edit.retire(group, units=rest)
                    else:
                        edit.prune(group, units=rest)

    def event(self, session: Session, cycle: int) -> None:
        """Bring every group to its width of this cycle."""
        seed = self._seed(session)
        widths = allocation.interpolate(list(seed.values()), list(session.targets.values()), session.cycles)[cycle]
        for group, width in zip(seed, widths, strict=True):
            count = width - session.net.graph.groups[group].size
            if count > 0:
                self._add(session, group, count, session.minibatch(cycle))

    def _seed(self, session: Session) -> dict[str, int]:
        full = session.initial.graph.groups
        widths = [full[group].size for group in session.targets]
        seeds = allocation.seed_widths(widths, list(session.targets.values()), self.config.seed_share)
        return dict(zip(session.targets, seeds, strict=True))

    def _add(self, session: Session, group: str, count: int, batch: tuple[Tensor, Tensor]) -> None:
        how = self._newborn_options()
        if self.config.init.name == RECRUIT:
            select = self.config.select
            options: dict[str, Any] = {"tau": self.config.tau} if select == "activation-frequency" else {}
            with session.edit() as edit:
                edit.recruit(group, highest=count, score=select, batch=batch, loss=session.loss, **how, **options)
            if select != "random":
                session.scored(group=group, gradients=select != "activation-frequency")
        else:
            init, options = self.config.init.name, dict(self.config.init.args)
            with session.edit() as edit:
                edit.grow(group, count, init=init, batch=batch, loss=session.loss, **how, **options)
            if init == "gradmax":
                session.scored(group=None, gradients=True)

    def _newborn_options(self) -> dict[str, Any]:
        """State policy and speed of newborns; a transplant of moments is a state policy."""
        chosen: dict[str, Any] = {"state": self.config.state}
        interventions = self.config.interventions
        if interventions.moment_transplant is not None:
            both = interventions.moment_transplant.moments == "both"
            chosen = {"state": "transplant", "state_options": {"first_moments": both}}
        if interventions.two_speed is not None:
            chosen["speed"] = (interventions.two_speed.rate, interventions.two_speed.steps)
        return chosen


def check_matched(net: Network, targets: Mapping[str, int]) -> None:
    """Raise unless every editable group ended with the units that all methods were to end with."""
    found = {group: net.graph.groups[group].size for group in targets}
    if found != dict(targets):
        raise EditError(f"the cycles end with the units {found}, not with the {dict(targets)} that methods share")
