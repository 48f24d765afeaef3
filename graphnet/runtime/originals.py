"""Moving a parametrized tensor: an edit moves what it is computed from, by the same unit maps.

The originals, and the buffers and parameters of the parametrization's modules, of units that stay are moved and never
computed anew; those of newborns come from ``right_inverse``. Before anything is swapped the weight is computed from
what was moved, and must be the weight that the edit describes: bit for bit where units stay, or to rounding, which
the version then says. What does not pass is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from graphnet.edit.action import gather
from graphnet.edit.host import SlotKey
from graphnet.edit.plan import Plan, Result
from graphnet.edit.rates import NEUTRAL
from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.ir.layout import IndexArray
from graphnet.runtime.nearness import chosen, equal, far, rounding
from graphnet.runtime.parametrized import (
    Parametrized,
    Part,
    compute,
    invert,
    kinds_of,
    list_of,
    part_dims,
    read,
    refusal,
)
from graphnet.runtime.transaction import Swap

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = [
    "Moved",
    "averaged",
    "check_layers_stay",
    "forget",
    "move_originals",
    "said",
]

_WHY = {
    "_WeightNorm": "the norms of its directions run over units that come or go; only units whose weights in it are zero"
    " may, as those of init='zero-outgoing'",
    "_SpectralNorm": "its largest singular value depends on every entry, so that what stays would change too",
    "_Orthogonal": "a part of an orthogonal matrix is not orthogonal",
}
"""Why a tensor of torch's own parametrizations cannot be moved, by the name of its class."""

_WHAT = "this edit would move it"
_INIT = "give newborns others (init=); under a weight norm zeros have no direction"


@dataclass(slots=True)
class Moved:
    """A result in which parts stand in the place of parametrized tensors.

    Attributes
    ----------
    result : Result
    parts : dict
        For every parametrized tensor the names of its parts.
    notes : list of str
        What holds to rounding only.
    swaps : list of Swap
        What else changes with it.
    """

    result: Result
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)

    def names(self, graph: Graph) -> list[str]:
        """The tensors of a graph as they are stored: parts in the place of what is computed from them."""
        return [stored for name in graph.tensors for stored in self.parts.get(name, (name,))]


def move_originals(net: Network, plan: Plan, result: Result, parametrized: Collection[str]) -> Moved:
    """Put the moved parts of every parametrized tensor that an edit touches in its place.

    Parameters
    ----------
    net : Network
    plan : Plan
    result : Result
        Of the plan.
    parametrized : collection of str
        The tensors of the network that are parametrized.

    Raises
    ------
    EditError
        One cannot follow the edit; names it, says why and what to do.
    """
    moved = Moved(result)
    if not parametrized:
        return moved
    tensors, slots, cleared = dict(result.tensors), dict(result.slots), list(result.cleared)
    for name in sorted(parametrized):
        if list_of(net, name) is None:
            if name in tensors:
                raise refusal(net, name, f"{_WHAT}: its owner is not, so that the two no longer are one tensor")
            continue
        spec = plan.base.tensors[name]
        one = read(net, name, spec.dims, plan.base.shape(spec))
        moved.parts[name] = tuple(part.name for part in one.parts)
        mover = _Mover(net, plan, one)
        slots = dict(mover.slots(slots))
        if name in tensors:
            values = mover.values(tensors.pop(name))
            tensors |= {part.name: values[part.key] for part in one.parts if part.key in values}
            slots |= mover.following(values, slots)
            moved.notes += mover.notes
            moved.swaps.append(forget(net, name))
        cleared = list(_cleared(net, one, cleared))
    moved.result = replace(result, tensors=tensors, slots=slots, cleared=cleared)
    return moved


def check_layers_stay(net: Network, result: Result, parametrized: Collection[str]) -> None:
    """Where ops change the layers that are parametrized must stay, under their names.

    Raises
    ------
    EditError
        One would go, be renamed or be made anew, or something would be tied to what is computed in it.
    """
    assert result.origins is not None
    ties = {spec.shared for node in result.graph.nodes.values() for spec in node.tensors}
    for name in sorted(parametrized):
        if result.origins.get(name) != name:
            raise refusal(net, name, "this edit would remove, rename or replace its layer")
        if name in ties:
            raise refusal(net, name, "this edit would tie another tensor to it")


def forget(net: Network, name: str) -> Swap:
    """Inside ``parametrize.cached()`` the weight of before would be used on."""
    path, _, attribute = name.rpartition(".")
    key = id(net.get_submodule(path)), attribute

    def clear() -> None:
        parametrize._cache.pop(key, None)

    return Swap(clear, clear)


def _cleared(net: Network, one: Parametrized, cleared: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for optimizer, name in cleared:
        if name != one.name:
            yield optimizer, name
        else:
            yield from ((optimizer, part.name) for part in one.held_by(net._attached[optimizer]))


class _Mover:
    """The parts of one parametrized tensor on their way through one edit."""

    def __init__(self, net: Network, plan: Plan, one: Parametrized) -> None:
        self.net, self.plan, self.one = net, plan, one
        self.base = plan.staged(one.name).base
        self.flat = [
            source if source is not None and not _is_identity(source, size) else None
            for source, size in zip(plan.staged(one.name)._flat(), self.base.shape, strict=True)
        ]
        self.notes: list[str] = []

    def refused(self, why: str, *, known: bool = True) -> EditError:
        """The error that says so, with what is known of torch's own parametrizations."""
        more = [_WHY[kind] for kind in kinds_of(self.one.held) if known and kind in _WHY]
        return refusal(self.net, self.one.name, ": ".join([_WHAT, why, *more[:1]]))

    # -- values ---------------------------------------------------------------------------------------------------

    def values(self, wanted: Tensor) -> dict[str, Tensor]:
        """The parts that an edit changes, by key, such that they give the weight that it wants."""
        one, base = self.one, self.base
        for dim, why in one.stuck.items():
            if self.flat[dim] is not None:
                raise self.refused(why)
        self._check_alone()
        if not equal(self._computed({}), base):
            raise self.refused("it is not the same each time that it is computed, or was changed during the edit")
        carried = gather(base, self.flat)
        stays = _stays(self.flat, range(base.dim()), wanted)
        if not equal(chosen(stays, wanted, carried), carried):
            raise self.refused(
                "the edit gives other values to units that stay, and originals are moved, not computed anew"
            )
        moving = [part for part in one.parts if any(source is not None for source in part.sources(self.flat))]
        moved = {part.key: gather(part.tensor.detach(), part.sources(self.flat)) for part in moving}
        moved |= self._newborn_parts(moved, wanted, stays)
        originals = [part for part in one.parts if part.original and self._born(part)]
        if originals:
            moved |= self._newborn_originals(moved, wanted, originals)
        self._check(moved, wanted, carried, stays, [part.key for part in originals])
        return moved

    def _computed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        try:
            return compute(self.one.held, tensors)
        except Exception as error:
            raise self.refused(f"it cannot be computed from what was moved ({said(error)})") from error

    def _born(self, part: Part) -> bool:
        return any(source is not None and bool((source < 0).any()) for source in part.sources(self.flat))

    def _check_alone(self) -> None:
        """No part may be used elsewhere too."""
        holders: dict[int, int] = {}
        for _, tensor in (
            *self.net.named_parameters(remove_duplicate=False), *self.net.named_buffers(remove_duplicate=False)
        ):  # fmt: skip
            holders[id(tensor)] = holders.get(id(tensor), 0) + 1
        for part in self.one.parts:
            if holders[id(part.tensor)] > 1:
                raise self.refused(f"{part.name!r}, from which it is computed, is used elsewhere too")

    def _newborn_originals(
        self, moved: Mapping[str, Tensor], wanted: Tensor, originals: Sequence[Part]
    ) -> dict[str, Tensor]:
        """Originals with those of newborns from ``right_inverse``; units that stay keep theirs."""
        try:
            given = invert(self.one.held, moved, wanted)
        except Exception as error:
            raise self.refused(f"right_inverse fails on the values of newborns ({said(error)})") from error
        if given is None:
            raise self.refused(
                "newborns need originals, and a parametrization of it has no right_inverse that would say which: give "
                "its class one"
            )
        every = [part for part in self.one.parts if part.original]
        if len(given) != len(every) or not all(isinstance(value, Tensor) for value in given):
            raise self.refused(f"right_inverse does not give the {len(every)} originals that it has")
        found = {}
        for part, value in zip(every, given, strict=True):
            if part not in originals:
                continue
            old = moved[part.key]
            if value.shape != old.shape:
                raise self.refused(
                    f"right_inverse gives {part.key!r} the shape {list(value.shape)}, and it would be {list(old.shape)}"
                )
            found[part.key] = chosen(_stays(part.sources(self.flat), range(old.dim()), old), old, value.to(old))
        return found

    def _newborn_parts(self, moved: Mapping[str, Tensor], wanted: Tensor, stays: Tensor | None) -> dict[str, Tensor]:
        """Buffers and parameters of the modules in which newborns get entries: those that leave newborns free.

        What all have, newborns have too; in a mask they are not masked. Tried on values other than zero.
        """
        gaining = [part for part in self.one.parts if not part.original and self._born(part)]
        if not gaining:
            return {}
        known = self.base[self.base != 0]
        drawn = torch.randint(max(1, known.numel()), wanted.shape, generator=torch.Generator().manual_seed(0))
        values = known[drawn.to(known.device)] if known.numel() else torch.ones_like(wanted)
        trial = chosen(stays, wanted, values)
        for rank in range(3):
            given = {part.key: self._filled(part, moved[part.key], rank) for part in gaining}
            try:
                tried = {**moved, **given}
                originals = [part for part in self.one.parts if part.original and self._born(part)]
                tried |= self._newborn_originals(tried, trial, originals)
                found = self._computed(tried)
            except EditError:
                if rank == 2:
                    raise
                continue
            if found.shape == trial.shape and far(found, trial, _born(stays, trial)) <= rounding(trial.dtype, 4):
                return given
        raise self.refused(f"it is not known what newborns have in {', '.join(repr(part.name) for part in gaining)}")

    def _filled(self, part: Part, moved: Tensor, rank: int) -> Tensor:
        old = part.tensor.detach()
        first = old.reshape(-1)[:1]
        constant, mask = bool((old == first).all()), bool(((old == 0) | (old == 1)).all())
        if not (constant or mask):
            raise self.refused(f"it is not known what newborns have in {part.name!r}, whose entries differ")
        fill = ([first] if constant else []) + ([torch.ones_like(first), torch.zeros_like(first)] if mask else [])
        stays = _stays(part.sources(self.flat), range(moved.dim()), moved)
        return chosen(stays, moved, fill[min(rank, len(fill) - 1)])

    def _check(
        self, moved: Mapping[str, Tensor], wanted: Tensor, carried: Tensor, stays: Tensor | None, given: Sequence[str]
    ) -> None:
        found = self._computed(moved)
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise self.refused(f"moved, it would be of shape {list(found.shape)}, not {list(wanted.shape)}")
        for key in given:
            if not bool(torch.isfinite(moved[key]).all()) and bool(torch.isfinite(wanted).all()):
                raise self.refused(f"some values of newborns have no finite original, {_INIT}", known=False)
        for mask, target, what, known in (
            (stays, carried, "the values of units that stay would change", True),
            (_born(stays, wanted), wanted, f"right_inverse does not give the values of newborns back, {_INIT}", False),
        ):
            apart = far(found, target, mask)
            if not apart <= rounding(wanted.dtype):
                change = "are not numbers" if np.isnan(apart) else f"differ by {apart:.2g} of what stands beside them"
                raise self.refused(f"{what} (they {change})", known=known)
        if not equal(chosen(stays, found, carried), carried):
            kinds = ", ".join(kinds_of(self.one.held))
            self.notes.append(f"{self.one.name}: units that stay keep their values to rounding ({kinds})")

    # -- what follows the parts -------------------------------------------------------------------------------------

    def slots(self, slots: Mapping[SlotKey, Tensor]) -> Iterator[tuple[SlotKey, Tensor]]:
        """The slots of an edit, where ages of the weight are those of its parts."""
        mine = self.plan._slots.get(self.one.name, {})
        for key, value in slots.items():
            if key not in mine:
                yield key, value
                continue
            slot, _ = mine[key]
            axes = range(len(slot.dims)) if slot.axes is None else slot.axes
            flat = [self.flat[axis] if axis >= 0 else None for axis in axes]
            old = gather(slot.base, flat)
            if not equal(chosen(_stays(flat, range(value.dim()), value), value, old), old):
                raise self.refused(
                    "the edit gives the optimizer's state or the gradient of units that stay other values (merge, or "
                    "state='scaled'), which fit a weight that is not computed"
                )
            if key[0] not in NEUTRAL:
                yield key, value
                continue
            holder = self.net._attached[key[1]]
            trained = [part for part in self.one.held_by(holder) if part.tensor.requires_grad]
            if len({holder.step_of(part.tensor) for part in trained}) > 1:
                raise self.refused("its originals have taken different numbers of steps, so that ages fit none of them")
            for part in trained:
                for dim, axis in enumerate(part.axes):
                    if axis == int(key[3]):
                        yield (key[0], key[1], part.name, str(dim)), value

    def following(self, values: Mapping[str, Tensor], slots: Mapping[SlotKey, Tensor]) -> dict[SlotKey, Tensor]:
        """State that newborns share with the part itself (averages of it), and attached averaged models."""
        found: dict[SlotKey, Tensor] = {}
        dims = self.plan.base.tensors[self.one.name].dims
        for part in self.one.parts:
            if part.key not in values:
                continue
            value, flat = values[part.key], part.sources(self.flat)
            stays = _stays(flat, range(value.dim()), value)
            for holder in self.net._attached.values():
                if holder.holds(part.tensor):
                    for slot in holder.slots(part.tensor, part.name, part_dims(part, dims)):
                        if slot.newborn == "weight" and slot.key in slots:
                            found[slot.key] = chosen(stays, slots[slot.key], value.to(slots[slot.key]))
            for key, average in self.net._averages.items():
                copied = averaged(average.copy, part)
                found["average", key, part.name] = gather(copied.detach(), flat)
                found["carried", key, part.name] = chosen(stays, value, _other(value))
        return found


def averaged(copied: Network, part: Part) -> Tensor:
    """The part of an averaged copy.

    Raises
    ------
    EditError
        It has none like it.
    """
    path, _, attribute = part.name.rpartition(".")
    try:
        found = getattr(copied.get_submodule(path), attribute)
    except AttributeError:
        found = None
    if not isinstance(found, Tensor) or found.shape != part.tensor.shape:
        raise EditError(
            f"the averaged copy has no {part.name!r}: it was made before the parametrization was registered; make it "
            "anew from the network as it is"
        )
    return found


def _other(value: Tensor) -> Tensor:
    """Something that equals the value nowhere."""
    if value.is_floating_point() or value.is_complex():
        return torch.full_like(value, float("nan"))
    return ~value if value.dtype == torch.bool else value + 1


def _stays(flat: Sequence[IndexArray | None], dims: range, like: Tensor) -> Tensor | None:
    """Which entries of a moved tensor were there before; None: all of them."""
    mask: Tensor | None = None
    for dim in dims:
        source = flat[dim]
        if source is not None and bool((source < 0).any()):
            along = torch.from_numpy(source >= 0).to(like.device)
            along = along.reshape([-1 if at == dim else 1 for at in dims])
            mask = along if mask is None else mask & along
    return None if mask is None else mask.expand(like.shape)


def _born(stays: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.bool, device=like.device) if stays is None else ~stays


def _is_identity(source: IndexArray, size: int) -> bool:
    return len(source) == size and np.array_equal(source, np.arange(size))


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
