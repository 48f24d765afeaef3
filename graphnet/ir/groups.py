"""Unit groups: ordered sets of units with stable ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphnet.errors import EditError
from graphnet.ir.layout import IndexArray

__all__ = ["UnitGroup", "compress", "expand", "find"]


@dataclass(frozen=True)
class UnitGroup:
    """Units (neurons, channels, heads, features) that live and die together by name.

    Attributes
    ----------
    name : str
        Named after the first op that writes the group.
    ids : tuple of int
        The live units in order; an id is never used twice.
    kind : str
        ``neurons``, ``channels``, ``heads``, ``features`` or ``units``.
    role : str
        Where it stands: ``hidden``, ``stream`` (a residual sum runs through it), ``heads`` or ``output``.
    frozen : str or None
        Why structure forbids any edit.
    output : bool
        Whether a model output reads the group.
    coupled : str or None
        Which ops compute a statistic along the group.
    contracted : str or None
        Which ops sum over the group with no stored weight on it.
    dormant : tuple of int
        Units that have weights and an id but take no part in the forward pass, in order of id.
    minimum : int
        The fewest live units that the structure allows.
    next_id : int
        The id of the next newborn.
    no_growth : str or None
        Why no unit can be added, where others may go.
    """

    name: str
    ids: tuple[int, ...]
    kind: str = "units"
    role: str = "hidden"
    frozen: str | None = None
    output: bool = False
    coupled: str | None = None
    contracted: str | None = None
    dormant: tuple[int, ...] = ()
    minimum: int = 1
    next_id: int = 0
    no_growth: str | None = None

    @property
    def size(self) -> int:
        """Number of live units."""
        return len(self.ids)

    @cached_property
    def array(self) -> IndexArray:
        """The live ids as an array; not to be changed."""
        return np.array(self.ids, dtype=np.int64)

    @property
    def extended(self) -> tuple[int, ...]:
        """Live and dormant ids: live order when none is dormant, else in order of id."""
        return tuple(sorted((*self.ids, *self.dormant))) if self.dormant else self.ids

    def positions(self, ids: object, *, within: tuple[int, ...] | None = None) -> IndexArray:
        """Positions of units by id, in the order given.

        Raises
        ------
        EditError
            An id is not in the group, or is named twice.
        """
        try:
            wanted = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))  # type: ignore[call-overload]
        except (TypeError, ValueError, RuntimeError):
            wanted = np.empty((0, 0))
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise EditError(f"group {self.name!r}: units are named by a flat list of integer ids, not {ids!r}")
        found = find(self.array if within is None else np.asarray(within, dtype=np.int64), wanted.astype(np.int64))
        if (found < 0).any():
            missing = wanted[found < 0][:8].tolist()
            raise EditError(
                f"group {self.name!r} has no unit {missing}: its ids are "
                f"{_ranges(self.ids if within is None else within)} "
                "(an id is a name, not a position, and is never used again)"
            )
        if found.size and np.bincount(found).max() > 1:
            raise EditError(f"group {self.name!r}: a unit is named twice in {wanted.tolist()[:12]}")
        return found

    def __str__(self) -> str:
        marks = [f"frozen: {self.frozen}" if self.frozen else "", "output" if self.output else ""]
        marks += [f"coupled: {self.coupled}" if self.coupled else ""]
        marks += [f"cannot grow: {self.no_growth}" if self.no_growth else ""]
        marks += [f"{len(self.dormant)} dormant" if self.dormant else ""]
        extra = "; ".join(mark for mark in marks if mark)
        return f"{self.name}: {self.size} {self.kind}" + (f" ({extra})" if extra else "")


def find(ids: IndexArray, wanted: IndexArray) -> IndexArray:
    """For each wanted id its position among ids that are all different, or -1."""
    if ids.size == 0:
        return np.full(wanted.shape, -1, dtype=np.int64)
    if (ids[1:] > ids[:-1]).all():  # as long as none was put elsewhere
        at = np.minimum(np.searchsorted(ids, wanted), ids.size - 1)
    else:
        order = np.argsort(ids, kind="stable")
        at = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), ids.size - 1)]
    return np.where(ids[at] == wanted, at, -1).astype(np.int64, copy=False)


def _ranges(ids: tuple[int, ...]) -> str:
    """Ids as text, runs shortened."""
    parts: list[str] = []
    for first, last in compress(ids):
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ", ".join(parts[:12]) + (" ..." if len(parts) > 12 else "")


def compress(ids: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ids as runs of consecutive numbers, first and last of each, order kept."""
    if not ids:
        return []
    held = np.array(ids, dtype=np.int64)
    ends = np.flatnonzero(held[1:] != held[:-1] + 1)
    firsts, lasts = held[np.concatenate(([0], ends + 1))], held[np.concatenate((ends, [held.size - 1]))]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def expand(runs: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """The inverse of :func:`compress`."""
    return tuple(unit for first, last in runs for unit in range(first, last + 1))
