"""The plan of a transaction: the graph and the tensors as they will be, described step by step.

A plan never changes a live tensor. Operators advance it by unit maps and write newborn blocks; the network then
swaps in what :meth:`Plan.result` gives, or drops the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.action import move, select, write_block
from graphnet.edit.changes import Change, follow_units, ops_change, units_change
from graphnet.edit.host import Batch, Evaluation, Host, Loss, Slot, SlotKey
from graphnet.edit.staged import Maps, Staged
from graphnet.edit.unit_map import UnitMap
from graphnet.edit.view import HostView
from graphnet.errors import EditError, GraphError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.ir.layout import IndexArray, Layout
from graphnet.ir.ops.base import Op, Role, TensorSpec
from graphnet.ir.rewrite import Rewritten, rewrite

__all__ = ["Holder", "Loose", "Plan", "PlanHost", "Preserves", "Result", "Step", "weakest"]

Preserves: TypeAlias = Literal["function", "approximate", "none"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one operator did, for the journal.

    Attributes
    ----------
    operator : str
    group : str or None
    arguments : mapping
        As given, in a form that JSON holds.
    born, dropped : tuple of int
        Ids of units that joined or left the live ones.
    dormant : bool
        Whether they came from the dormant ones or went to them, rather than being new or gone for good.
    preserves : str
        What held: ``function``, ``approximate`` or ``none``.
    note : str
        Why, where it is not ``function``.
    changes : tuple of Change
        What became of units and ops, in order, where ``born`` and ``dropped`` do not say all of it; filled in when
        the operator has ended.
    """

    operator: str
    group: str | None
    arguments: Mapping[str, Any]
    born: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    preserves: Preserves = "none"
    note: str = ""
    dormant: bool = False
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """One dimension of one tensor that holds a group.

    Attributes
    ----------
    tensor : str
        The owner's name (a tied use is listed under it).
    dim : int
    layout : Layout
    role : str
        ``write`` (produces the units), ``read`` (consumes them) or ``slot`` (one entry for each).
    kind : str
        As in :class:`~graphnet.ir.ops.base.TensorSpec`.
    """

    tensor: str
    dim: int
    layout: Layout
    role: Role
    kind: str


@dataclass(slots=True)
class Result:
    """What a plan comes to; the network swaps it in.

    Attributes
    ----------
    graph : Graph
    tensors : dict
        New values of tensors that stay, by their new name.
    slots : dict
        New values of what follows those.
    reserve : dict
    steps : list of Step
    cleared : list
        Optimizer and tensor whose state goes.
    fresh : dict
        Tensors that were not there before, by name.
    origins : dict or None
        For each tensor that stays its name before; None where no op changed.
    renamed : dict
        Old names of ops that were renamed, by their new ones.
    beside : dict
        For a new parameter the one in whose parameter group it goes.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    slots: dict[SlotKey, Tensor]
    reserve: dict[str, Tensor]
    steps: list[Step]
    cleared: list[tuple[str, str]]
    fresh: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loose:
    """An op that was inserted and that nothing reads yet, with the values of its tensors."""

    op: Op
    tensors: Mapping[str, Tensor]
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Epoch:
    """The stretch of a transaction between two rewrites of its graph."""

    graph: Graph
    maps: Maps
    tensors: Mapping[str, str] = field(default_factory=dict)
    resized: Mapping[str, Mapping[int, IndexArray]] = field(default_factory=dict)


_Mark: TypeAlias = "tuple[int, tuple[int, ...], torch.dtype, torch.device, int]"

_OUTSIDE = "take steps, backward passes and conversions before the edit or after it"


def _mark(tensor: Tensor) -> _Mark:
    """What differs once a tensor has other values, other storage or another type."""
    count = -1 if tensor.is_inference() else tensor._version
    pointer = tensor.data_ptr() if tensor.layout is torch.strided else 0
    return pointer, tuple(tensor.shape), tensor.dtype, tensor.device, count


@dataclass(slots=True)
class Plan:
    """A transaction under construction."""

    host: Host
    graph: Graph
    generator: torch.Generator
    steps: list[Step] = field(default_factory=list)
    reserve: dict[str, Tensor] = field(default_factory=dict)
    cleared: list[tuple[str, str]] = field(default_factory=list)
    base: Graph = field(init=False)
    changes: list[Change | Callable[[], Change]] = field(default_factory=list)  # since the last step was recorded
    _recorded: Graph = field(init=False)
    renamed: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    loose: dict[str, Loose] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None  # who asked for the edit and why, as plain data for the journal
    _epochs: list[_Epoch] = field(init=False)
    _tensors: dict[str, Staged] = field(default_factory=dict)
    _slots: dict[str, dict[SlotKey, tuple[Slot, Staged]]] = field(default_factory=dict)
    _marks: dict[str, _Mark] = field(default_factory=dict)
    _slot_marks: dict[str, dict[SlotKey, _Mark]] = field(default_factory=dict)
    _unvalidated: bool = False
    keeps: bool = False  # whether values that are asked for are kept for the commit
    tried: tuple[Graph, tuple[Op, ...], Graph] | None = None  # the graph with loose ops that was built last

    def __post_init__(self) -> None:
        self.base = self._recorded = self.graph
        self.steps = _Steps(self, self.steps)
        self._epochs = [_Epoch(self.graph, Maps(self.graph.sizes, keeps=self.keeps))]
        for name in self.graph.tensors:
            kept = self.host.reserve_of(name)
            if kept is not None:
                self.reserve[name] = kept

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def _maps(self) -> Maps:
        return self._epochs[-1].maps

    def origin(self, name: str) -> str | None:
        """The name that a tensor had before the transaction; None where it is new."""
        for epoch in reversed(self._epochs[1:]):
            if name not in epoch.tensors:
                return None
            name = epoch.tensors[name]
        return name

    def base_spec(self, name: str) -> TensorSpec:
        """The layouts that a tensor had before the transaction.

        Raises
        ------
        EditError
            It is new.
        """
        origin = self.origin(name)
        if origin is None:
            raise EditError(f"tensor {name!r} was not there before this edit")
        return self.base.tensors[origin]

    def staged(self, name: str) -> Staged:
        """A stored tensor as it will be, for writing."""
        if name not in self._tensors:
            origin, spec = self.origin(name), self.base_spec(name)
            assert origin is not None
            live = self.host.live(name)
            self._marks[origin] = _mark(live)
            staged = Staged(live, spec.dims, self._epochs[0].maps, spec.newborn)
            self._tensors[name] = self._rebased(staged, name, None)
        return self._tensors[name]

    def _rebased(self, staged: Staged, name: str, axes: Sequence[int] | None) -> Staged:
        """Bring something that follows a tensor of before the transaction to the graph of now."""
        names = [name]
        for epoch in reversed(self._epochs[1:]):
            names.append(epoch.tensors[names[-1]])
        for epoch, then in zip(self._epochs[1:], reversed(names[:-1]), strict=True):
            _rebase(staged, epoch, then, axes)
        return staged

    def value(self, name: str) -> Tensor:
        """A stored tensor as it will be; not to be changed."""
        return self.staged(name).value()

    def values(self) -> dict[str, Tensor]:
        """Every stored tensor as it will be."""
        return {name: self.value(name) for name in self.graph.tensors}

    def slots(self, name: str) -> Mapping[SlotKey, tuple[Slot, Staged]]:
        """What follows a tensor (gradient, optimizer state, births), for writing."""
        if name not in self._slots:
            self._slots[name] = {slot.key: (slot, self._staged_slot(slot)) for slot in self.host.slots(name)}
            origin = self.origin(name)
            if origin is not None:
                self._slot_marks[origin] = self._marks_of_slots(origin)
        return self._slots[name]

    def _marks_of_slots(self, origin: str) -> dict[SlotKey, _Mark]:
        host = self.host.behind if isinstance(self.host, HostView) else self.host
        watched = ("grad", "state", "average")
        return {slot.key: _mark(slot.base) for slot in host.slots(origin) if slot.key[0] in watched}

    def _check_unchanged(self) -> None:
        """What was read for the plan must be what the commit replaces."""
        host = self.host.behind if isinstance(self.host, HostView) else self.host
        for name, mark in self._marks.items():
            if _mark(host.live(name)) != mark:
                raise EditError(f"tensor {name!r} was changed while the edit was open: {_OUTSIDE}")
        for name, marks in self._slot_marks.items():
            if self._marks_of_slots(name) != marks:
                raise EditError(
                    f"the gradient or the optimizer's state of {name!r} was changed while the edit was open: {_OUTSIDE}"
                )

    def add_slot(self, slot: Slot) -> Staged:
        """A slot that did not exist before; its base has the tensor's shape of before the transaction."""
        staged = self._staged_slot(slot)
        self.slots(slot.tensor)  # make sure the table exists
        self._slots[slot.tensor][slot.key] = (slot, staged)
        return staged

    def _staged_slot(self, slot: Slot) -> Staged:
        newborn = self.staged(slot.tensor) if slot.newborn == "weight" else slot.newborn
        return self._rebased(Staged(slot.base, slot.dims, self._epochs[0].maps, newborn), slot.tensor, _axes(slot))

    def holders(self, group: str, *, roles: Sequence[Role] = ("write", "read", "slot")) -> Iterator[Holder]:
        """Every dimension of every tensor that holds a group, tied uses included, in topological order."""
        seen = set()
        for spec in self.graph.users[group]:
            for dim, (layout, role) in enumerate(zip(spec.dims, spec.roles, strict=True)):
                place = (spec.shared or spec.name, dim, role)  # twice where a tied use repeats its owner's
                if role in roles and place not in seen and group in set(layout.atoms()):
                    seen.add(place)
                    yield Holder(spec.shared or spec.name, dim, layout, role, spec.kind)

    def spec(self, name: str) -> TensorSpec:
        """The tensor's layouts."""
        return self.graph.tensors[name]

    def evaluate(self, batch: Batch | None, loss: Loss | None, what: str, **options: Any) -> Evaluation:
        """Run the network as it will be on the caller's batch.

        Raises
        ------
        EditError
            There is no batch, or a loss is needed and there is none.
        """
        if batch is None:
            raise EditError(f"{what} needs data: pass batch=(x, y)")
        if loss is None and (options.get("parameters") or options.pop("needs_loss", False)):
            raise EditError(f"{what} needs gradients: pass batch=(x, y) and loss=f with f(output, y)")
        options.pop("needs_loss", None)
        self.validate()
        return self.host.evaluate(self.graph, self.values(), batch, loss, **options)

    # -- changing ---------------------------------------------------------------------------------------------

    def advance(self, *groups: UnitGroup) -> dict[str, UnitMap]:
        """Go on to a graph in which these groups have other units; ids say which unit is which.

        The layouts of the new graph are inferred and compared (:meth:`validate`) when the network is run on it, its ops
        change, or the transaction ends: once for any number of steps.

        Returns
        -------
        dict of str to UnitMap
            The step's maps.

        Raises
        ------
        EditError
            A group would be too small, or hold a unit twice.
        """
        before = self.graph
        after = before.resized({group.name: group for group in groups}, validate=False)
        self._unvalidated = True
        maps = {g.name: UnitMap.between(g.name, before.groups[g.name].array, g.array) for g in groups}
        for staged in self._every_staged():
            staged.advance(maps, before.sizes)
        self._advance_reserve(before, after, [group.name for group in groups])
        self._maps.advance(maps)
        self.graph = after.numbered(self.base.version + 1)
        self.changes.append(partial(units_change, self.graph, tuple(maps)))
        return maps

    def validate(self) -> None:
        """Check the layouts of the graph as it will be, where widths have changed since it was last done.

        Raises
        ------
        EditError
            These widths do not give the layouts that the graph claims.
        """
        if self._unvalidated:
            self.graph.validate()
            self._unvalidated = False

    def restructure(
        self,
        put: Sequence[Op] = (),
        *,
        remove: Sequence[str] = (),
        tensors: Mapping[str, Tensor] | None = None,
        moved: Mapping[str, str] | None = None,
        resized: Mapping[str, Mapping[int, IndexArray]] | None = None,
        beside: Mapping[str, str] | None = None,
    ) -> Rewritten:
        """Go on to a graph with other ops.

        Parameters
        ----------
        put : sequence of Op
            New ops, and new models (attributes, inputs) of ops that are there, by name.
        remove : sequence of str
            Ops that go, with their tensors and the optimizer's state of them.
        tensors : mapping of name to Tensor, optional
            Values of tensors that are new, or that start afresh under a name that was there.
        moved : mapping of new op to old op, optional
            Ops that go on under another name, with their tensors and state.
        resized : mapping of tensor to {dim: source}, optional
            Dimensions of tensors that stay whose positions change (a kernel that grows, columns for a wider input):
            for each new position its old one, or -1. State and gradient follow.
        beside : mapping of new parameter to parameter, optional
            In whose optimizer and parameter group it goes; by default the nearest one of its kind.

        Returns
        -------
        Rewritten
            With the groups' origins.

        Raises
        ------
        EditError
            The graph would not be valid, a tensor would not fit it, or a new one has no values.
        """
        before, resized = self.graph, dict(resized or {})
        given = {name: _dense(value) for name, value in (tensors or {}).items()}
        self.validate()
        try:
            found = rewrite(before, put, remove=remove, moved=moved, resized=resized, fresh=given)
        except GraphError as error:
            raise EditError(f"the edited graph is not valid: {error}") from error
        after = replace(found.graph, version=self.base.version + 1)
        _check_tensors(before, after, found.tensors, given, resized)
        reserve = self._carried_reserve(before, after, found, given, resized)
        epoch = _Epoch(after, Maps(after.sizes, keeps=self.keeps), found.tensors, resized)
        staged = {name: self._tensors[old] for name, old in found.tensors.items() if old in self._tensors}
        slots = {
            name: {
                _renamed_key(key, old, name): (_slot_under(slot, old, name), one) for key, (slot, one) in table.items()
            }
            for name, old in found.tensors.items()
            if (table := self._slots.get(old)) is not None
        }
        for name, one in staged.items():
            _rebase(one, epoch, name, None)
        for name, table in slots.items():
            for slot, one in table.values():
                _rebase(one, epoch, name, _axes(slot))
        for name, value in given.items():
            spec = after.tensors[name]
            staged[name] = Staged(value.detach(), spec.dims, epoch.maps, spec.newborn)
            slots[name] = {}
        self._tensors, self._slots, self.reserve = staged, slots, reserve
        inverse = {old: name for name, old in found.tensors.items()}
        self.cleared = [(key, inverse[old]) for key, old in self.cleared if old in inverse]
        self.beside = {inverse.get(k, k): inverse.get(v, v) for k, v in self.beside.items()} | dict(beside or {})
        self.renamed = _chained(self.renamed, moved or {}, after)
        self._epochs.append(epoch)
        if not isinstance(self.host, HostView):
            self.host = HostView(self.host, self.origin)
        self.graph = after
        self.changes.append(ops_change(put, remove, found, moved or {}, resized, given))
        return found

    def _carried_reserve(
        self,
        before: Graph,
        after: Graph,
        found: Rewritten,
        given: Mapping[str, Tensor],
        resized: Mapping[str, Mapping[int, IndexArray]],
    ) -> dict[str, Tensor]:
        """The reserve under the new graph; a rewrite may not touch tensors that hold dormant units."""
        kept: dict[str, Tensor] = {}
        lost = {name for name, group in before.groups.items() if group.dormant}
        for name, spec in after.tensors.items():
            resting = {key for dim in spec.dims for key in dim.atoms() if key in after.groups}
            resting = {key for key in resting if after.groups[key].dormant}
            lost -= {found.origins[key] for key in resting}
            old = found.tensors.get(name)
            same = (
                old is not None
                and name not in resized
                and tuple(dim.rename(found.origins) for dim in spec.dims) == before.tensors[old].dims
            )
            if old in self.reserve and same:
                kept[name] = self.reserve[old]
            elif resting or (old in self.reserve and not same):
                raise EditError(
                    f"tensor {name!r} would hold dormant units of {sorted(resting) or 'a group'} that have no weights "
                    "in it: recruit or prune them before the structure around them changes"
                )
        dropped = {key for name, spec in before.tensors.items() if name not in found.tensors.values() for key in
                   {key for dim in spec.dims for key in dim.atoms()}}  # fmt: skip
        if lost - dropped:
            raise EditError(
                f"the dormant units of {sorted(lost)} would be lost: recruit or prune them before the structure "
                "around them changes"
            )
        return kept

    def explained(self, step: Step) -> Step:
        """The step with the changes since the last one, where its ids do not say all of them."""
        changes, before = self.changes, self._recorded
        self.changes, self._recorded = [], self.graph
        if not changes or step.changes:
            return step
        if (
            step.group is not None
            and step.group in before.groups
            and all(callable(change) for change in changes)  # of units: written out where their ids do not say it
        ):
            said = follow_units(before.groups[step.group], step.born, step.dropped, dormant=step.dormant)
            differing = {
                name
                for name, group in self.graph.groups.items()
                if group is not before.groups[name] and group != before.groups[name]
            }
            if differing <= {step.group} and said == self.graph.groups[step.group]:
                return step
        return replace(step, changes=tuple(change() if callable(change) else change for change in changes))

    # -- savepoints ---------------------------------------------------------------------------------------------

    def savepoint(self) -> Plan:
        """A copy of the plan as it is now, for :meth:`restore`."""
        copy = Plan.__new__(Plan)
        for name in ("host", "graph", "base", "keeps", "_unvalidated"):
            setattr(copy, name, getattr(self, name))
        copy.generator = torch.Generator().set_state(self.generator.get_state())
        copy.steps, copy.changes, copy.cleared = _Steps(self, self.steps), list(self.changes), list(self.cleared)
        copy._recorded = self._recorded
        copy.reserve, copy.renamed, copy.beside = dict(self.reserve), dict(self.renamed), dict(self.beside)
        copy.loose = dict(self.loose)
        maps = {id(e.maps): e.maps.copied() for e in self._epochs}
        copy._epochs = [_Epoch(e.graph, maps[id(e.maps)], e.tensors, e.resized) for e in self._epochs]
        copy._tensors = {name: one.copied(maps[id(one.maps)]) for name, one in self._tensors.items()}
        copy._slots = {
            name: {key: (slot, one.copied(maps[id(one.maps)])) for key, (slot, one) in table.items()}
            for name, table in self._slots.items()
        }
        for name, table in copy._slots.items():
            for _, one in table.values():
                if isinstance(one.newborn, Staged):
                    one.newborn = copy._tensors[name]
        copy._marks = dict(self._marks)
        copy._slot_marks = {name: dict(marks) for name, marks in self._slot_marks.items()}
        return copy

    def restore(self, saved: Plan) -> None:
        """Go back to a savepoint; it can be used once."""
        self.generator.set_state(saved.generator.get_state())
        for name in (
            "host", "graph", "_recorded", "steps", "changes", "cleared", "reserve", "renamed", "beside", "loose",
            "_epochs", "_tensors",
            "_slots", "_marks", "_slot_marks", "_unvalidated",
        ):  # fmt: skip
            setattr(self, name, getattr(saved, name))

    def _every_staged(self) -> Iterator[Staged]:
        yield from self._tensors.values()
        for table in self._slots.values():
            for _, staged in table.values():
                yield staged

    # -- dormant units ----------------------------------------------------------------------------------------

    def _advance_reserve(self, before: Graph, after: Graph, groups: Sequence[str]) -> None:
        if not self.reserve:
            return
        old = {name: before.groups[name].extended for name in groups}
        new = {name: after.groups[name].extended for name in groups}
        sources = {name: UnitMap.between(name, old[name], new[name]).source for name in groups}
        sizes = extended_sizes(before)
        for name, kept in self.reserve.items():
            spec = before.tensors[name]
            moved = move(kept, spec.dims, sources, sizes, newborn=spec.newborn)
            self.reserve[name] = moved

    def sync_reserve(self, group: str) -> None:
        """Write the live weights of every tensor of a group into its reserve, made where there is none."""
        for name in {holder.tensor for holder in self.holders(group)}:
            dims = self.spec(name).dims
            kept = self.reserve.get(name)
            if kept is None:
                kept = self.value(name).clone()
            else:
                kept = kept.clone()
                write_block(kept, [self.live_in_reserve(layout) for layout in dims], self.value(name))
            self.reserve[name] = kept

    def live_in_reserve(self, layout: Layout) -> IndexArray | None:
        """Positions of the live units along an extended dimension; None where none is dormant."""
        if not any(self.graph.groups[key].dormant for key in layout.atoms() if key in self.graph.groups):
            return None
        sources = {}
        for key in set(layout.atoms()):
            group = self.graph.groups[key]
            sources[key] = group.positions(np.array(group.ids), within=group.extended)
        return layout.index(sources, extended_sizes(self.graph))

    def from_reserve(self, name: str) -> Tensor:
        """The reserve's version of a tensor for the units that are live now."""
        return select(self.reserve[name], [self.live_in_reserve(layout) for layout in self.spec(name).dims])

    # -- finishing --------------------------------------------------------------------------------------------

    def check_finished(self) -> None:
        """What was described can be committed.

        Raises
        ------
        EditError
            An inserted op is read by nothing, the network was changed while the edit was open, or widths do not give
            the layouts that the graph claims.
        """
        if self.loose:
            raise EditError(
                f"nothing reads the inserted {', '.join(map(repr, self.loose))}: redirect an edge to it, or remove it"
            )
        self._check_unchanged()
        self.validate()

    def kept_reserve(self) -> dict[str, Tensor]:
        """The weights beside the live ones of tensors that have dormant units by now."""
        return {
            name: tensor
            for name, tensor in self.reserve.items()
            if any(self.graph.groups[k].dormant for d in self.spec(name).dims for k in d.atoms())
        }

    def result(self) -> Result:
        """Build everything that the commit swaps in; what can fail fails here."""
        self.check_finished()
        tensors: dict[str, Tensor] = {}
        slots: dict[SlotKey, Tensor] = {}
        fresh: dict[str, Tensor] = {}
        origins: dict[str, str] = {}
        moving = self._moving()
        for name in self.graph.tensors:
            origin = self.origin(name)
            if origin is None:
                fresh[name] = self.value(name)
                continue
            origins[name] = origin
            if origin not in moving and name not in self._tensors and name not in self._slots:
                continue
            staged = self.staged(name)
            if staged.changed:
                tensors[name] = staged.value()
            for key, (_, slot) in self.slots(name).items():
                value = slot.value()
                if slot.changed or value is not slot.base:
                    slots[key] = value
        for name, value in {**tensors, **fresh}.items():
            if tuple(value.shape) != self.graph.shape(self.spec(name)):
                raise EditError(f"tensor {name!r} would have shape {tuple(value.shape)}: this is a bug in an operator")
        graph = self.graph.numbered(self.base.version + 1)  # also where only values change
        structural = origins if len(self._epochs) > 1 else None
        return Result(
            graph, tensors, slots, self.kept_reserve(), self.steps, self.cleared, fresh, structural,
            dict(self.renamed), dict(self.beside),
        )  # fmt: skip

    def _moving(self) -> set[str]:
        """Names, before the transaction, of the tensors that a map moves."""
        found: set[str] = set()
        origin = {name: name for name in self.base.tensors}  # name of now -> name before the transaction
        for epoch in self._epochs:
            if epoch.tensors or epoch is not self._epochs[0]:
                origin = {name: origin[old] for name, old in epoch.tensors.items() if old in origin}
            sources = set(epoch.maps.sources)
            for name, first in origin.items():
                atoms = {key for dim in epoch.graph.tensors[name].dims for key in dim.atoms()}
                if name in epoch.resized or not sources.isdisjoint(atoms):
                    found.add(first)
        return found


def _axes(slot: Slot) -> Sequence[int]:
    return range(len(slot.dims)) if slot.axes is None else slot.axes


def _rebase(staged: Staged, epoch: _Epoch, name: str, axes: Sequence[int] | None) -> None:
    """Take something that follows a tensor (its dimensions ``axes``; None: all) into the next epoch."""
    dims = epoch.graph.tensors[name].dims
    resized = epoch.resized.get(name, {})
    chosen = range(len(dims)) if axes is None else axes
    staged.rebase(
        [dims[axis] if axis >= 0 else staged.dims[at] for at, axis in enumerate(chosen)],  # below 0: it follows none
        epoch.maps,
        {at: resized[axis] for at, axis in enumerate(chosen) if axis in resized},
    )


def _renamed_key(key: SlotKey, old: str, new: str) -> SlotKey:
    """A slot's key under another name of its tensor (second in a gradient's key, third in others)."""
    at = 1 if key[0] == "grad" else 2
    return (*key[:at], new, *key[at + 1 :]) if key[at] == old else key


def _slot_under(slot: Slot, old: str, new: str) -> Slot:
    """A slot under another name of its tensor."""
    return slot if old == new else replace(slot, key=_renamed_key(slot.key, old, new), tensor=new)


def _chained(renamed: Mapping[str, str], moved: Mapping[str, str], after: Graph) -> dict[str, str]:
    """Ops' names before the transaction, by their names now."""
    chained = {new: old for new, old in renamed.items() if new in after.nodes and new not in moved}
    return chained | {new: renamed.get(old, old) for new, old in moved.items()}


def _dense(value: Tensor) -> Tensor:
    """A tensor in one of torch's memory formats: LBFGS flattens gradients by a view, and they lie as parameters do."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not isinstance(value, Tensor) or value.is_contiguous():
        return value
    if value.dim() in formats and value.is_contiguous(memory_format=formats[value.dim()]):
        return value
    return value.contiguous()


def _check_tensors(
    before: Graph,
    after: Graph,
    carried: Mapping[str, str],
    given: Mapping[str, Tensor],
    resized: Mapping[str, Mapping[int, IndexArray]],
) -> None:
    """Every stored tensor of the new graph has values of its shape."""
    for name in given:
        if name not in after.tensors:
            raise EditError(f"values are given for {name!r}, which is no stored tensor of the edited graph")
    for name in resized:
        if name not in carried:
            raise EditError(f"{name!r} is to be resized, but it is no tensor that stays")
    for name, spec in after.tensors.items():
        shape = after.shape(spec)
        if name in given:
            if tuple(given[name].shape) != shape:
                raise EditError(f"new tensor {name!r} has shape {list(shape)}, not {list(given[name].shape)}")
        elif name not in carried:
            raise EditError(f"the edited graph stores a tensor {name!r} {list(shape)}, for which there are no values")
        else:
            old = before.tensors[carried[name]]
            then = list(before.shape(old))
            for dim, source in resized.get(name, {}).items():
                then[dim] = len(source)
            if tuple(then) != shape or old.buffer != spec.buffer:
                raise EditError(
                    f"tensor {name!r} has shape {then} and the edited graph wants {list(shape)}: grow or prune its "
                    "groups first, or replace the op with a new one"
                )


class _Steps(list[Step]):
    """The steps of a plan: one that is appended gets the changes that it does not say by itself."""

    def __init__(self, plan: Plan, steps: Sequence[Step] = ()) -> None:
        super().__init__(steps)
        self._plan = plan

    def append(self, step: Step) -> None:
        """Record a step of an operator that has ended."""
        super().append(self._plan.explained(step))


class PlanHost:
    """A plan seen as the network under another plan: for trying a further edit that is then dropped."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def live(self, name: str) -> Tensor:
        """The tensor as the plan has it."""
        return self.plan.value(name)

    def slots(self, name: str) -> Sequence[Slot]:
        """Nothing: a trial carries no optimizer state."""
        return ()

    def step_of(self, optimizer: str, name: str) -> int | None:
        """No optimizer."""
        return None

    def steps_taken(self, optimizer: str) -> int:
        """No optimizer."""
        return 0

    def optimizer_kind(self, optimizer: str) -> Literal["adam", "sgd"]:
        """No optimizer."""
        return "sgd"

    def optimizers_of(self, name: str) -> Sequence[str]:
        """No optimizer."""
        return ()

    def reserve_of(self, name: str) -> Tensor | None:
        """The plan's reserve."""
        return self.plan.reserve.get(name)

    def evaluate(
        self, graph: Graph, tensors: Mapping[str, Tensor], batch: Batch, loss: Loss | None = None, **options: Any
    ) -> Evaluation:
        """Run on the network under the plan."""
        return self.plan.host.evaluate(graph, tensors, batch, loss, **options)


def extended_sizes(graph: Graph) -> dict[str, int]:
    """Sizes with dormant units counted."""
    return dict(graph.sizes) | {name: group.size + len(group.dormant) for name, group in graph.groups.items()}


_ORDER: tuple[Preserves, ...] = ("none", "approximate", "function")


def weakest(*claims: Preserves) -> Preserves:
    """What still holds when all of these were done."""
    return min(claims, key=_ORDER.index, default="function")
