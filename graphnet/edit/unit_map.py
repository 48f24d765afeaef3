"""Unit maps: for each new unit of a group the old position it comes from, or newborn.

Keeping, dropping, permuting, duplicating and inserting units are all unit maps; they compose. A unit map acts on
every tensor that has the group in a layout (:mod:`graphnet.edit.action`), and nothing else resizes a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphnet.ir.groups import find
from graphnet.ir.layout import NEWBORN, IndexArray

__all__ = ["UnitMap"]


@dataclass(frozen=True, slots=True, eq=False)
class UnitMap:
    """How the units of one group after an edit come from those before it.

    Attributes
    ----------
    group : str
    old : int
        Number of units before.
    source : array of int64
        For each unit after the edit its old position, or -1 for a newborn.
    """

    group: str
    old: int
    source: IndexArray

    def __post_init__(self) -> None:
        if self.source.ndim != 1 or (
            self.source.size and (self.source.min() < NEWBORN or self.source.max() >= self.old)
        ):
            raise ValueError(f"unit map of {self.group!r}: sources must lie in -1..{self.old - 1}")

    @classmethod
    def identity(cls, group: str, size: int) -> UnitMap:
        """Every unit stays where it is."""
        return cls(group, size, np.arange(size, dtype=np.int64))

    @classmethod
    def append(cls, group: str, size: int, count: int) -> UnitMap:
        """Newborns after the units that are there."""
        return cls(group, size, np.concatenate([np.arange(size), np.full(count, NEWBORN)]).astype(np.int64))

    @classmethod
    def keep(cls, group: str, size: int, positions: Sequence[int] | IndexArray) -> UnitMap:
        """Only these positions, in this order."""
        return cls(group, size, np.asarray(positions, dtype=np.int64))

    @classmethod
    def between(cls, group: str, before: Sequence[int] | IndexArray, after: Sequence[int] | IndexArray) -> UnitMap:
        """The map between two lists of unit ids; an id that is new is a newborn."""
        return cls(group, len(before), find(np.asarray(before, dtype=np.int64), np.asarray(after, dtype=np.int64)))

    @property
    def new(self) -> int:
        """Number of units after."""
        return int(self.source.size)

    @property
    def newborns(self) -> IndexArray:
        """Positions, after the edit, of the newborns."""
        return np.flatnonzero(self.source < 0)

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return self.new == self.old and bool((self.source == np.arange(self.old)).all())

    def then(self, other: UnitMap) -> UnitMap:
        """The composition: first this map, then the other."""
        if other.group != self.group or other.old != self.new:
            raise ValueError(f"unit maps do not compose: {self.group!r} {self.new} units, {other.group!r} {other.old}")
        taken = self.source[np.maximum(other.source, 0)] if self.new else other.source
        return UnitMap(self.group, self.old, np.where(other.source < 0, NEWBORN, taken).astype(np.int64))
