"""A tensor on its way through an edit: what it was, one composed map, and the blocks written since.

Operators describe; nothing is moved until the value is asked for. Blocks written by one operator are carried
through the maps of the next, so that a whole transaction moves each tensor once for each mapped dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.action import gather, move, select, write_block
from graphnet.edit.unit_map import UnitMap
from graphnet.ir.layout import NEWBORN, IndexArray, Layout

__all__ = ["Maps", "Staged"]

Index = Sequence[IndexArray | None]


@dataclass(slots=True)
class Maps:
    """The unit maps of a transaction so far, composed, and the sizes that they start from.

    With ``keeps`` a value that was asked for and then loses units is moved on at once: it is smaller than what it came
    from, and the commit needs it anyway.
    """

    sizes: Mapping[str, int]
    composed: dict[str, UnitMap] = field(default_factory=dict)
    keeps: bool = False
    _sources: dict[str, IndexArray] | None = field(default=None, init=False)

    def advance(self, maps: Mapping[str, UnitMap]) -> None:
        """Compose further maps after those that are there."""
        for group, step in maps.items():
            before = self.composed.get(group)
            self.composed[group] = step if before is None else before.then(step)
        self._sources = None

    @property
    def sources(self) -> Mapping[str, IndexArray]:
        """For each group that moves, the old position of each unit."""
        if self._sources is None:
            self._sources = {group: step.source for group, step in self.composed.items() if not step.is_identity}
        return self._sources

    def copied(self) -> Maps:
        """The same maps, to be advanced apart from these."""
        return Maps(self.sizes, dict(self.composed), self.keeps)


@dataclass(slots=True)
class _Patch:
    index: tuple[IndexArray | None, ...]
    value: Tensor


class Staged:
    """One tensor of a transaction.

    Parameters
    ----------
    base : Tensor
        The tensor as it is; never changed.
    dims : sequence of Layout
    maps : Maps
        Shared by the transaction.
    newborn : float or Staged
        What newborn slots hold until written: a number, or what another tensor of the same layouts holds there.
    """

    def __init__(self, base: Tensor, dims: Sequence[Layout], maps: Maps, newborn: float | Staged = 0.0) -> None:
        self.base = base
        self.dims = tuple(dims)
        self.maps = maps
        self.newborn = newborn
        self._patches: list[_Patch] = []
        self._cache: Tensor | None = None
        self._prior: list[IndexArray | None] | None = None

    def touches(self, groups: Mapping[str, object]) -> bool:
        """Whether a map of one of these groups moves the tensor."""
        return any(key in groups for layout in self.dims for key in layout.atoms())

    @property
    def changed(self) -> bool:
        """Whether the tensor differs from what it was."""
        return bool(self._patches) or self._prior is not None or self.touches(self.maps.sources)

    def advance(self, maps: Mapping[str, UnitMap], sizes: Mapping[str, int]) -> None:
        """Carry the written blocks through one more step; call it *before* the shared maps are composed."""
        if not self.touches(maps):
            return
        held, self._cache = self._cache, None
        sources = {group: step.source for group, step in maps.items()}
        for dim, layout in enumerate(self.dims):
            if self._patches and any(key in maps for key in layout.atoms()):
                source = layout.index(sources, sizes)
                size = layout.size(sizes)
                self._patches = [carried for p in self._patches if (carried := _carry(p, dim, source, size))]
        shrinks = self.maps.keeps and all(step.new < step.old and not step.newborns.size for step in maps.values())
        if shrinks and held is not None and held is not self.base and not isinstance(self.newborn, Staged):
            self._cache = move(held, self.dims, sources, sizes)

    def rebase(self, dims: Sequence[Layout], maps: Maps, resized: Mapping[int, IndexArray] | None = None) -> None:
        """Go on under other layouts: those of a rewritten graph, with maps of their own.

        Positions stay what they are, but along the dimensions in ``resized``, which gives for each new position
        its old one, or -1.
        """
        flat = self._flat()
        for dim, source in (resized or {}).items():
            known = flat[dim]
            size = self.base.shape[dim] if known is None else known.size
            self._patches = [carried for p in self._patches if (carried := _carry(p, dim, source, size))]
            flat[dim] = source if known is None else _compose(known, source)
        self._prior = flat if any(source is not None for source in flat) else None
        self.dims, self.maps, self._cache = tuple(dims), maps, None

    def copied(self, maps: Maps) -> Staged:
        """The same tensor in another plan; what is written to one is not seen by the other."""
        other = Staged(self.base, self.dims, maps, self.newborn)
        other._patches, other._cache = list(self._patches), self._cache
        other._prior = None if self._prior is None else list(self._prior)
        return other

    def _flat(self) -> list[IndexArray | None]:
        """For each dimension that is moved the old position of each new one, over all layouts so far."""
        sources, sizes = self.maps.sources, self.maps.sizes
        flat: list[IndexArray | None] = []
        for dim, layout in enumerate(self.dims):
            known = None if self._prior is None else self._prior[dim]
            if any(key in sources for key in layout.atoms()):
                step = layout.index(sources, sizes)
                known = step if known is None else _compose(known, step)
            flat.append(known)
        return flat

    def write(self, index: Index, value: Tensor) -> None:
        """Overwrite a block of the tensor as it will be; positions for each dimension, or None for all."""
        positions = tuple(index)
        if all(at is None for at in positions):
            self._patches.clear()
        self._patches.append(_Patch(positions, value.detach()))
        self._cache = None

    def value(self) -> Tensor:
        """The tensor as it will be. Do not change it: it may be the live one."""
        if self._cache is None or isinstance(self.newborn, Staged):  # the other may have been written since
            moved = self._moved()
            if self._patches and moved is self.base:
                moved = moved.clone(memory_format=torch.preserve_format)
            for patch in self._patches:
                write_block(moved, patch.index, patch.value.to(moved.device))
            self._cache = moved
        return self._cache

    def _moved(self) -> Tensor:
        if not isinstance(self.newborn, Staged):
            return self._act(self.base, self.newborn)
        moved = self._act(self.base, 0.0)
        if moved is self.base:
            return moved
        other = self.newborn.value()
        for dim, source in enumerate(self._flat()):
            born = None if source is None else np.flatnonzero(source < 0)
            if born is not None and born.size:
                index: Index = [born if at == dim else None for at in range(moved.dim())]
                write_block(moved, index, select(other, index).to(moved))
        return moved

    def _act(self, tensor: Tensor, newborn: float) -> Tensor:
        if self._prior is not None:
            return gather(tensor, self._flat(), newborn=newborn)
        return move(tensor, self.dims, self.maps.sources, self.maps.sizes, newborn=newborn)

    def block(self, index: Index) -> Tensor:
        """A copy of a block of the tensor as it will be."""
        return select(self.value(), index)


def _compose(first: IndexArray, second: IndexArray) -> IndexArray:
    """Sources of a map after another: for each position of the second its position before the first, or -1."""
    return np.where(second < 0, NEWBORN, first[np.maximum(second, 0)]).astype(np.int64)


def _carry(patch: _Patch, dim: int, source: IndexArray, size: int) -> _Patch | None:
    """A written block after a map of one dimension: dropped positions leave it, copies repeat it."""
    held = patch.index[dim]
    if held is None:
        new = np.flatnonzero(source >= 0)
        local = source[new]
    else:
        where = np.full(size, -1, dtype=np.int64)
        where[held] = np.arange(held.size)
        local = np.where(source < 0, -1, where[np.maximum(source, 0)])
        new = np.flatnonzero(local >= 0)
        local = local[new]
    if new.size == 0:
        return None
    at = None if new.size == source.size and held is None else new
    pick: list[IndexArray | None] = [None] * len(patch.index)
    pick[dim] = local
    index = tuple(at if d == dim else positions for d, positions in enumerate(patch.index))
    return _Patch(index, select(patch.value, pick))
