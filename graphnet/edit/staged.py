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

from graphnet.edit.action import move, select, write_block
from graphnet.edit.unit_map import UnitMap
from graphnet.ir.layout import IndexArray, Layout

__all__ = ["Maps", "Staged"]

Index = Sequence[IndexArray | None]


@dataclass(slots=True)
class Maps:
    """The unit maps of a transaction so far, composed, and the sizes that they start from."""

    sizes: Mapping[str, int]
    composed: dict[str, UnitMap] = field(default_factory=dict)

    def advance(self, maps: Mapping[str, UnitMap]) -> None:
        """Compose further maps after those that are there."""
        for group, step in maps.items():
            before = self.composed.get(group)
            self.composed[group] = step if before is None else before.then(step)

    @property
    def sources(self) -> dict[str, IndexArray]:
        """For each group that moves, the old position of each unit."""
        return {group: step.source for group, step in self.composed.items() if not step.is_identity}


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

    def touches(self, groups: Mapping[str, object]) -> bool:
        """Whether a map of one of these groups moves the tensor."""
        return any(key in groups for layout in self.dims for key in layout.atoms())

    @property
    def changed(self) -> bool:
        """Whether the tensor differs from what it was."""
        return bool(self._patches) or self.touches(self.maps.sources)

    def advance(self, maps: Mapping[str, UnitMap], sizes: Mapping[str, int]) -> None:
        """Carry the written blocks through one more step; call it *before* the shared maps are composed."""
        if not self.touches(maps):
            return
        self._cache = None
        sources = {group: step.source for group, step in maps.items()}
        for dim, layout in enumerate(self.dims):
            if self._patches and any(key in maps for key in layout.atoms()):
                source = layout.index(sources, sizes)
                size = layout.size(sizes)
                self._patches = [carried for p in self._patches if (carried := _carry(p, dim, source, size))]

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
        sources, sizes = self.maps.sources, self.maps.sizes
        if not isinstance(self.newborn, Staged):
            return move(self.base, self.dims, sources, sizes, newborn=self.newborn)
        moved = move(self.base, self.dims, sources, sizes)
        if moved is self.base:
            return moved
        old = move(torch.ones_like(self.base, dtype=torch.bool), self.dims, sources, sizes)
        return torch.where(old, moved, self.newborn.value().to(moved))

    def block(self, index: Index) -> Tensor:
        """A copy of a block of the tensor as it will be."""
        return select(self.value(), index)


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
