"""Committing one tensor after the other, so that old and new ones need not all exist at once.

The default commit builds every new tensor and then swaps pointers, with the old ones as its way back. Here a tensor
is built, swapped in and its old storage let go before the next one is touched. The way back is the inverse map: what
the new tensor still holds is taken from it, and only what an edit drops or overwrites is saved. So beside the larger
of the network before and after, memory is bounded by the largest touched tensor with its optimizer state, plus what
the edit drops where it also adds.

A commit that fails leaves everything as it was, as in the default mode, but for one thing: a loss from before it
raises where it would have worked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.action import gather, select, sparing, write_block
from graphnet.edit.forecast import staged_bytes, touched
from graphnet.edit.host import SlotKey
from graphnet.edit.plan import Plan, Result
from graphnet.edit.rates import NEUTRAL
from graphnet.edit.staged import Staged
from graphnet.errors import EditError
from graphnet.ir.layout import IndexArray
from graphnet.runtime.births import Births
from graphnet.runtime.optimizers import Attached
from graphnet.runtime.resize import set_data
from graphnet.runtime.swaps import swaps_of
from graphnet.runtime.transaction import Swap

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = ["Inverse", "outline", "tensor_swaps"]

Sources = Sequence["IndexArray | None"]

_CHUNK = 1 << 16
"""Bytes that are compared at a time."""


def outline(net: Network, plan: Plan) -> Result:
    """A plan's result with nothing in place of the tensors and slots that will change; only new tensors are built.

    Raises
    ------
    EditError
        The plan does not hold together, or something follows the network that cannot be moved tensor by tensor.
    """
    if net._averages:
        raise EditError(
            "low_memory=True cannot carry an attached averaged model: net.detach() it, or edit without low_memory"
        )
    plan.check_finished()
    origins = {name: plan.origin(name) for name in plan.graph.tensors}
    kept = {name: origin for name, origin in origins.items() if origin is not None}
    changing = {name: plan.staged(name) for name in touched(plan)}
    for name, staged in changing.items():
        shape = plan.graph.shape(plan.spec(name))
        if staged_bytes(staged) != prod(shape) * staged.base.element_size():
            raise EditError(f"tensor {name!r} would not have the shape {list(shape)}: this is a bug in an operator")
    return Result(
        replace(plan.graph, version=plan.base.version + 1),
        {name: torch.empty(0) for name, staged in changing.items() if staged.changed},
        {},
        plan.kept_reserve(),
        plan.steps,
        plan.cleared,
        {name: plan.value(name) for name, origin in origins.items() if origin is None},
        kept if len(plan._epochs) > 1 else None,
        dict(plan.renamed),
        dict(plan.beside),
    )


def tensor_swaps(
    plan: Plan, result: Result, find: Callable[[str], Tensor], attached: Mapping[str, Attached]
) -> Iterator[Swap]:
    """One swap for each touched tensor with all that follows it, the largest first; then what goes altogether.

    The largest comes first so that none needs more memory on its way back than it had.
    """
    for staged in plan._every_staged():
        staged._cache = None  # what operators looked at is not kept beside the tensors
    sizes = touched(plan)
    moving = {key: holder for key, holder in attached.items() if holder.rule.resets is None}
    for name in sorted(sizes, key=lambda key: -sizes[key]):
        for keys in list(_parts(plan, name, find, moving)):
            piece = _Piece(plan, name, keys, find, moving)
            yield Swap(sparing()(piece.do), piece.undo)
    resets: dict[str, str] | None = {} if result.tensors or result.origins is not None else None
    yield from swaps_of(replace(result, tensors={}, slots={}, origins=resets), find, attached)


# -- one tensor -----------------------------------------------------------------------------------------------------


def _parts(
    plan: Plan, name: str, find: Callable[[str], Tensor], attached: Mapping[str, Attached]
) -> Iterator[tuple[SlotKey, ...]]:
    """What can be swapped apart from the rest: the data with its gradient and what reads it, then each moment."""
    cleared = set(plan.cleared)
    with_data: list[SlotKey] = [("data", name)]
    alone: list[SlotKey] = []
    for key, (_, staged) in plan.slots(name).items():
        if not staged.changed or (key[0] != "grad" and (key[1], key[2]) in cleared):
            continue
        moment = key[0] == "state" and not isinstance(staged.newborn, Staged) and attached[key[1]].rule.settle is None
        if moment and attached[key[1]].optimizer.state[find(name)][key[3]].shape == staged.base.shape:
            alone.append(key)
        else:
            with_data.append(key)
    yield tuple(with_data)
    for key in alone:
        yield (key,)


@dataclass(slots=True)
class _Cell:
    """One place that holds a tensor: a parameter's data, its gradient, an entry of an optimizer's state.

    ``sources`` are those of the unit maps, and ``written`` is whether an operator wrote values too; without sources
    what it held is kept as it was.
    """

    get: Callable[[], Any]
    put: Callable[[Any], object]
    sources: Sources | None = None
    written: bool = False


class _Piece:
    """The swap of a part of a tensor and what follows it."""

    def __init__(
        self, plan: Plan, name: str, keys: Sequence[SlotKey], find: Callable[[str], Tensor],
        attached: Mapping[str, Attached],
    ) -> None:  # fmt: skip
        self.plan, self.name, self.keys, self.find, self.attached = plan, name, keys, find, attached
        self.back: Callable[[], None] = lambda: None  # one attribute, so that it is one way back or the other

    def do(self) -> None:
        """Build, swap in, and let go of what the way back does not need."""
        plan, name = self.plan, self.name
        slots = {key: plan.slots(name)[key][1] for key in self.keys if key[0] != "data"}
        staged = plan.staged(name) if ("data", name) in self.keys else None
        values = {name: staged.value()} if staged is not None and staged.changed else {}
        moved = {key: one.value() for key, one in slots.items()}
        cells = list(self._cells(staged, slots))
        before = [cell.get() for cell in cells]
        if staged is None:
            (moment,) = cells
            inner = [Swap(partial(moment.put, *moved.values()), partial(moment.put, *before))]
        else:
            inner = list(swaps_of(Result(plan.graph, values, moved, {}, [], []), self.find, self.attached))
        self.back = partial(_undo, inner)
        for swap in inner:
            swap.do()
        for key in slots:
            plan._slots[name].pop(key)
        if staged is not None:
            plan._tensors.pop(name)
        del slots, staged, values, moved, inner  # and with them what operators wrote, before the way back is kept
        backwards: list[tuple[_Cell, Any]] = []
        for cell, old in zip(cells, before, strict=True):
            new = cell.get()
            both = isinstance(old, Tensor) and isinstance(new, Tensor)
            if both and cell.sources is not None and not _same_memory(old, new):
                backwards.append((cell, Inverse.of(old, new, cell.sources, written=cell.written)))
            else:
                backwards.append((cell, old))
        self.back = partial(_rebuild, backwards)

    def undo(self) -> None:
        """Put everything back as it was."""
        self.back()

    def _cells(self, staged: Staged | None, slots: Mapping[SlotKey, Staged]) -> Iterator[_Cell]:
        tensor = self.find(self.name)
        if staged is not None and staged.changed:
            yield _Cell(
                lambda: tensor.data, lambda data: set_data(tensor, data, []), staged._flat(), bool(staged._patches)
            )
        if staged is not None:
            gradient = slots.get(("grad", self.name))
            dense = gradient is not None and tensor.grad is not None and not tensor.grad.is_sparse
            yield _Cell(
                lambda: tensor.grad, lambda value: setattr(tensor, "grad", value),
                gradient._flat() if gradient is not None and dense else None,
                gradient is not None and bool(gradient._patches),
            )  # fmt: skip
            for holder in {key[1]: self.attached[key[1]] for key in slots if key[0] in NEUTRAL}.values():
                yield _Cell(partial(_births, holder, tensor), partial(_put_births, holder, tensor))
            for holder in {key[1]: self.attached[key[1]] for key in slots if key[0] == "state"}.values():
                state = holder.optimizer.state[tensor]
                for entry in state:  # an optimizer may settle all of it together
                    yield _Cell(partial(state.get, entry), partial(state.__setitem__, entry))
            return
        for key, slot in slots.items():
            state = self.attached[key[1]].optimizer.state[tensor]
            yield _Cell(
                partial(state.get, key[3]), partial(state.__setitem__, key[3]), slot._flat(), bool(slot._patches)
            )


def _undo(swaps: Sequence[Swap]) -> None:
    for swap in reversed(swaps):
        swap.undo()


def _rebuild(backwards: Sequence[tuple[_Cell, Any]]) -> None:
    """Everything first, then the pointers; data before its gradient, which must have its shape."""
    values = [held.rebuild(cell.get()) if isinstance(held, Inverse) else held for cell, held in backwards]
    for (cell, _), value in zip(backwards, values, strict=True):
        cell.put(value)


def _births(holder: Attached, tensor: Tensor) -> dict[str, dict[int, Tensor]] | None:
    held = holder.updates.births.get(tensor)
    return None if held is None else {kind: dict(held.table(kind)) for kind in NEUTRAL}


def _put_births(holder: Attached, tensor: Tensor, held: dict[str, dict[int, Tensor]] | None) -> None:
    table = holder.updates.births
    if held is None:
        table.pop(tensor, None)
        return
    births = table.setdefault(tensor, Births())
    for kind, vectors in held.items():
        births.table(kind).clear()
        births.table(kind).update(vectors)


def _same_memory(one: Tensor, two: Tensor) -> bool:
    return one.data_ptr() == two.data_ptr() and one.shape == two.shape and one.stride() == two.stride()


# -- the way back ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Inverse:
    """A tensor as the one that took its place still has it, and what that one has not.

    Attributes
    ----------
    sources : sequence of array or None
        For each dimension, for each old position the new one, or -1.
    dropped : list
        Blocks that the new tensor lacks, with their positions.
    written : (array, Tensor) or None
        Flat positions that were overwritten, and what they held.
    """

    sources: Sources
    dropped: list[tuple[tuple[IndexArray | None, ...], Tensor]]
    written: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, old: Tensor, new: Tensor, sources: Sources, *, written: bool = True) -> Inverse | Tensor:
        """What the way back from ``new`` to ``old`` needs; ``old`` itself where that is not less.

        Parameters
        ----------
        old, new : Tensor
        sources : sequence of array or None
            For each dimension, for each new position the old one, or -1; None where all stay.
        written : bool
            Whether what the new tensor holds of the old one may have other values.
        """
        backwards = [
            None if source is None else _inverted(source, size) for source, size in zip(sources, old.shape, strict=True)
        ]
        dropped: list[tuple[tuple[IndexArray | None, ...], Tensor]] = []
        for dim, source in enumerate(backwards):
            if source is None or (source >= 0).all():
                continue
            at = tuple(
                None if other is None or d > dim else np.flatnonzero(other >= 0 if d < dim else other < 0)
                for d, other in enumerate(backwards)
            )
            dropped.append((at, _own(select(old, at), old)))
        if not written:
            return cls(backwards, dropped, None)
        most = (old.numel() - sum(block.numel() for _, block in dropped)) // 4
        overwritten = _overwritten(old, new, backwards, most)
        return old if overwritten is None else cls(backwards, dropped, overwritten)

    def rebuild(self, new: Tensor) -> Tensor:
        """The tensor as it was, bit for bit."""
        old = gather(new, self.sources)
        if old is new or _same_memory(old, new):
            old = new.clone(memory_format=torch.preserve_format)
        for at, block in self.dropped:
            write_block(old, at, block)
        if self.written is not None and self.written[0].numel():
            places, values = self.written
            old[torch.unravel_index(places, old.shape)] = values
        return old


def _inverted(source: IndexArray, size: int) -> IndexArray:
    """For each old position the first new one that holds it, or -1."""
    found = np.full(size, -1, dtype=np.int64)
    held = np.flatnonzero(source >= 0)[::-1]
    found[source[held]] = held
    return found


def _own(block: Tensor, whole: Tensor) -> Tensor:
    return block.clone() if block is whole else block


def _overwritten(old: Tensor, new: Tensor, backwards: Sources, most: int) -> tuple[Tensor, Tensor] | None:
    """Flat places of the old tensor that the new one holds with other bits, and their values; None: more than most.

    They are compared a chunk of rows at a time.
    """
    if old.dim() == 0:
        old, new, backwards = old.reshape(1), new.reshape(1), [None]
    rows = np.arange(old.shape[0]) if backwards[0] is None else np.flatnonzero(backwards[0] >= 0)
    width = max(1, old[:1].numel())
    step = max(1, _CHUNK // (width * old.element_size()))
    inner = [None if other is None else np.flatnonzero(other >= 0) for other in backwards[1:]]
    there = [None if other is None else other[other >= 0] for other in backwards[1:]]
    places: list[Tensor] = []
    values: list[Tensor] = []
    for start in range(0, len(rows), step):
        mine = rows[start : start + step]
        theirs = mine if backwards[0] is None else backwards[0][mine]
        here = select(old, [mine, *inner])
        differs = _bits(here) != _bits(select(new, [theirs, *there]))
        if here.is_complex():
            differs = differs.any(dim=-1)
        at = differs.nonzero(as_tuple=True)
        if at[0].numel() == 0:
            continue
        values.append(here[at])
        flat = torch.zeros_like(at[0])
        for size, index, kept in zip(old.shape, at, [mine, *inner], strict=True):
            own = index if kept is None else torch.from_numpy(kept).to(index.device)[index]
            flat = flat * size + own
        places.append(flat)
        most -= at[0].numel()
        if most < 0:
            return None
    none = torch.empty(0, dtype=torch.int64, device=old.device)
    return torch.cat([none, *places]), torch.cat([old.new_empty(0), *values])


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, so that -0 and 0 differ and NaN equals itself."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.contiguous().view(_WORDS[tensor.element_size()])
