"""The plan of a transaction: the graph and the tensors as they will be, described step by step.

A plan never changes a live tensor. Operators advance it by unit maps and write newborn blocks; the network then
swaps in what :meth:`Plan.result` gives, or drops the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.action import move, select, write_block
from graphnet.edit.host import Batch, Evaluation, Host, Loss, Slot, SlotKey
from graphnet.edit.staged import Maps, Staged
from graphnet.edit.unit_map import UnitMap
from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.ir.layout import IndexArray, Layout
from graphnet.ir.ops.base import Role, TensorSpec

__all__ = ["Holder", "Plan", "PlanHost", "Preserves", "Result", "Step", "weakest"]

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
    """

    operator: str
    group: str | None
    arguments: Mapping[str, Any]
    born: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    preserves: Preserves = "none"
    note: str = ""
    dormant: bool = False


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
    """What a plan comes to; the network swaps it in."""

    graph: Graph
    tensors: dict[str, Tensor]
    slots: dict[SlotKey, Tensor]
    reserve: dict[str, Tensor]
    steps: list[Step]
    cleared: list[tuple[str, str]]


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
    _maps: Maps = field(init=False)
    _tensors: dict[str, Staged] = field(default_factory=dict)
    _slots: dict[str, dict[SlotKey, tuple[Slot, Staged]]] = field(default_factory=dict)
    _marks: dict[str, _Mark] = field(default_factory=dict)
    _slot_marks: dict[str, dict[SlotKey, _Mark]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = self.graph
        self._maps = Maps(self.graph.sizes)
        for name in self.graph.tensors:
            kept = self.host.reserve_of(name)
            if kept is not None:
                self.reserve[name] = kept

    # -- reading ----------------------------------------------------------------------------------------------

    def staged(self, name: str) -> Staged:
        """A stored tensor as it will be, for writing."""
        if name not in self._tensors:
            spec = self.base.tensors[name]
            live = self.host.live(name)
            self._marks[name] = _mark(live)
            self._tensors[name] = Staged(live, spec.dims, self._maps, spec.newborn)
        return self._tensors[name]

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
            self._slot_marks[name] = self._marks_of_slots(name)
        return self._slots[name]

    def _marks_of_slots(self, name: str) -> dict[SlotKey, _Mark]:
        return {slot.key: _mark(slot.base) for slot in self.host.slots(name) if slot.key[0] in ("grad", "state")}

    def _check_unchanged(self) -> None:
        """What was read for the plan must be what the commit replaces."""
        for name, mark in self._marks.items():
            if _mark(self.host.live(name)) != mark:
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
        return Staged(slot.base, slot.dims, self._maps, newborn)

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
        return self.host.evaluate(self.graph, self.values(), batch, loss, **options)

    # -- changing ---------------------------------------------------------------------------------------------

    def advance(self, *groups: UnitGroup) -> dict[str, UnitMap]:
        """Go on to a graph in which these groups have other units; ids say which unit is which.

        Returns
        -------
        dict of str to UnitMap
            The step's maps.

        Raises
        ------
        EditError
            The graph would not be valid.
        """
        before = self.graph
        after = before.resized({group.name: group for group in groups})
        maps = {g.name: UnitMap.between(g.name, before.groups[g.name].ids, g.ids) for g in groups}
        for staged in self._every_staged():
            staged.advance(maps, before.sizes)
        self._advance_reserve(before, after, [group.name for group in groups])
        self._maps.advance(maps)
        self.graph = replace(after, version=self.base.version + 1)
        return maps

    def _every_staged(self) -> Iterator[Staged]:
        yield from self._tensors.values()
        for table in self._slots.values():
            for _, staged in table.values():
                yield staged

    # -- dormant units ----------------------------------------------------------------------------------------

    def _advance_reserve(self, before: Graph, after: Graph, groups: Sequence[str]) -> None:
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

    def result(self) -> Result:
        """Build everything that the commit swaps in; what can fail fails here."""
        self._check_unchanged()
        moving = set(self._maps.sources)
        tensors: dict[str, Tensor] = {}
        slots: dict[SlotKey, Tensor] = {}
        for name, spec in self.base.tensors.items():
            touched = any(key in moving for layout in spec.dims for key in layout.atoms())
            if not touched and name not in self._tensors and name not in self._slots:
                continue
            staged = self.staged(name)
            if staged.changed:
                tensors[name] = staged.value()
            for key, (_, slot) in self.slots(name).items():
                if slot.changed or slot.base is not slot.value():
                    slots[key] = slot.value()
        kept = {
            name: tensor
            for name, tensor in self.reserve.items()
            if any(self.graph.groups[k].dormant for d in self.spec(name).dims for k in d.atoms())
        }
        for name, value in tensors.items():
            if tuple(value.shape) != self.graph.shape(self.spec(name)):
                raise EditError(f"tensor {name!r} would have shape {tuple(value.shape)}: this is a bug in an operator")
        graph = replace(self.graph, version=self.base.version + 1)  # also where only values change
        return Result(graph, tensors, slots, kept, self.steps, self.cleared)


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
