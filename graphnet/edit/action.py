"""The action of unit maps on tensors: the one implementation that changes a tensor's shape.

One pass for each mapped dimension, rows first: newborns at the end are filled in after a copy, units dropped at the
end leave a slice, otherwise an ``index_select`` on an (outer, n, inner) view, where a ``C*64`` dimension is gathered by
channel. Channels-last tensors are moved on their NHWC view and keep their format. Where several dimensions of a large
tensor move, they move a chunk of rows at a time, so that nothing stands beside the old tensor and the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from graphnet.ir.layout import IndexArray, Layout

__all__ = ["gather", "move", "reduce_units", "select", "sparing", "write_block"]

_Step: TypeAlias = "tuple[int, int, int, IndexArray]"
"""A dimension, what stands before and after its units, and the old position of each new one."""

_CHUNK = 1 << 19
"""Most bytes that are moved at a time where several dimensions move; of smaller tensors an eighth, down to 64 KiB."""

_sparing: ContextVar[bool] = ContextVar("sparing", default=False)


def move(
    tensor: Tensor,
    dims: Sequence[Layout],
    sources: Mapping[str, IndexArray],
    sizes: Mapping[str, int],
    *,
    newborn: float = 0.0,
) -> Tensor:
    """Act on a tensor by unit maps.

    Parameters
    ----------
    tensor : Tensor
        With one dimension for each layout.
    dims : sequence of Layout
    sources : mapping of group to array
        For each new unit its old position, or -1.
    sizes : mapping of group to int
        Sizes before the edit.
    newborn : float
        What newborn slots hold.

    Returns
    -------
    Tensor
        The tensor itself when no map touches it, else a new one that shares no memory with it.
    """
    permutation = _channels_last(tensor)
    if permutation is not None:
        view = tensor.permute(permutation)
        moved = move(view, [dims[d] for d in permutation], sources, sizes, newborn=newborn)
        return tensor if moved is view else moved.permute([permutation.index(d) for d in range(len(permutation))])
    steps: list[_Step] = []
    for dim, layout in enumerate(dims):
        touched = [key for key in dict.fromkeys(layout.atoms()) if key in sources]
        if not touched:
            continue
        block = layout.block(touched[0], sizes) if len(touched) == 1 else None
        if block is not None:
            pre, post = block
            source = sources[touched[0]]
        else:
            pre, post, source = 1, 1, layout.index(sources, sizes)
        steps.append((dim, pre, post, source))
    return _moved(tensor, steps, newborn)


def gather(tensor: Tensor, sources: Sequence[IndexArray | None], *, newborn: float = 0.0) -> Tensor:
    """Act on a tensor by the old positions of each dimension's new ones (-1: newborn; None: all stay).

    Returns
    -------
    Tensor
        The tensor itself when nothing moves, else a new one that shares no memory with it.
    """
    permutation = _channels_last(tensor)
    if permutation is not None:
        view = tensor.permute(permutation)
        moved = gather(view, [sources[d] for d in permutation], newborn=newborn)
        return tensor if moved is view else moved.permute([permutation.index(d) for d in range(len(permutation))])
    return _moved(tensor, [(dim, 1, 1, s) for dim, s in enumerate(sources) if s is not None], newborn)


def _channels_last(tensor: Tensor) -> tuple[int, ...] | None:
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return (0, 2, 3, 1)
    return None


def _moved(tensor: Tensor, steps: Sequence[_Step], newborn: float) -> Tensor:
    """Gather along one dimension after the other."""
    steps = [step for step in steps if not _stays(tensor, *step)]
    if len(steps) > 1 and steps[0][:3] == (0, 1, 1) and tensor.nbytes > _chunk(tensor):
        return _moved_in_chunks(tensor, steps[0][3], steps[1:], newborn)
    for dim, pre, post, source in steps:
        tensor = _gather(tensor, dim, pre, post, source, newborn)
    return tensor


def _moved_in_chunks(tensor: Tensor, rows: IndexArray, steps: Sequence[_Step], newborn: float) -> Tensor:
    shape = [len(rows), *tensor.shape[1:]]
    for dim, pre, post, source in steps:
        shape[dim] = pre * len(source) * post
    moved = tensor.new_empty(shape)
    row = tensor.element_size() * max(prod(shape[1:]), prod(tensor.shape[1:]))
    count = max(1, _chunk(tensor) // max(1, row))
    for start in range(0, len(rows), count):
        mine = rows[start : start + count]
        first = int(mine[0])
        if first >= 0 and np.array_equal(mine, np.arange(first, first + len(mine))):
            part = tensor.narrow(0, first, len(mine))
        else:
            part = _gather(tensor, 0, 1, 1, mine, newborn)
        for dim, pre, post, source in steps:
            part = _gather(part, dim, pre, post, source, newborn)
        moved.narrow(0, start, len(mine)).copy_(part)
    return moved


def _chunk(tensor: Tensor) -> int:
    """How many bytes of a tensor are moved at a time, so that what is in hand is little beside it."""
    least, share = (5, 7) if _sparing.get() else (3, 3)
    return min(_CHUNK, max(_CHUNK >> least, tensor.nbytes >> share))


@contextmanager
def sparing() -> Iterator[None]:
    """Move a 128th of a tensor at a time, not an eighth: less memory, and slower for those of about a megabyte."""
    token = _sparing.set(True)
    try:
        yield
    finally:
        _sparing.reset(token)


def _stays(tensor: Tensor, dim: int, pre: int, post: int, source: IndexArray) -> bool:
    old = tensor.shape[dim] // (pre * post)
    return len(source) == old and _is_ramp(source)


def _is_ramp(source: IndexArray) -> bool:
    """Whether it is 0, 1, 2 ...; where it is not, its end nearly always says so."""
    return bool(source.size == 0 or (source[-1] == source.size - 1 and (source == np.arange(source.size)).all()))


def _gather(tensor: Tensor, dim: int, pre: int, post: int, source: IndexArray, newborn: float) -> Tensor:
    shape = list(tensor.shape)
    old = shape[dim] // (pre * post)
    count = len(source)
    outer, inner = prod(shape[:dim]) * pre, prod(shape[dim + 1 :]) * post
    view = tensor.reshape(outer, old, inner)
    fill = newborn if tensor.is_floating_point() or tensor.is_complex() else int(newborn)
    if count > old and _is_ramp(source[:old]) and (source[old:] < 0).all():
        moved = view.new_empty((outer, count, inner))
        moved.narrow(1, 0, old).copy_(view)
        moved.narrow(1, old, count - old).fill_(fill)
    elif count < old and _is_ramp(source):
        moved = view.narrow(1, 0, count).clone(memory_format=torch.contiguous_format)
    else:
        born = np.flatnonzero(source < 0)
        moved = view.index_select(1, _index(np.maximum(source, 0) if born.size else source, tensor))
        if born.size:
            moved.index_fill_(1, _index(born, tensor), fill)
    shape[dim] = pre * count * post
    return moved.reshape(shape)


def _index(positions: IndexArray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(positions)).to(like.device)


def select(tensor: Tensor, index: Sequence[IndexArray | None]) -> Tensor:
    """The block of a tensor at positions of each dimension (None: all of it)."""
    given = _given(tensor, index)
    if len(given) > 1:
        shape = list(tensor.shape)
        for dim, positions in given:
            shape[dim] = len(positions)
        if prod(shape) * tensor.element_size() > _chunk(tensor):
            return _selected_in_chunks(tensor, given, shape)
    for dim, positions in given:
        tensor = tensor.index_select(dim, _index(positions, tensor))
    return tensor


def _selected_in_chunks(tensor: Tensor, given: Sequence[tuple[int, IndexArray]], shape: Sequence[int]) -> Tensor:
    block = tensor.new_empty(shape)
    last, rows = given[-1]
    count = max(1, _chunk(tensor) * tensor.shape[last] // tensor.nbytes)
    for start in range(0, len(rows), count):
        mine = rows[start : start + count]
        part = tensor.index_select(last, _index(mine, tensor))
        for dim, positions in given[:-1]:
            part = part.index_select(dim, _index(positions, tensor))
        block.narrow(last, start, len(mine)).copy_(part)
    return block


def _given(tensor: Tensor, index: Sequence[IndexArray | None]) -> list[tuple[int, IndexArray]]:
    """The dimensions that are not taken whole, the one that leaves least first: it bounds what is copied on the way."""
    given = [(dim, positions) for dim, positions in enumerate(index) if positions is not None]
    return sorted(given, key=lambda one: len(one[1]) / max(1, tensor.shape[one[0]]))


def write_block(tensor: Tensor, index: Sequence[IndexArray | None], value: Tensor) -> None:
    """Overwrite the block at positions of each dimension (None: all of it), in place."""
    given = _given(tensor, index)
    if not given:
        tensor.copy_(value)
        return
    first, positions = given[0]
    if len(given) == 1:
        tensor.index_copy_(first, _index(positions, tensor), value.to(tensor.dtype))
        return
    inside = [None if dim == first else at for dim, at in enumerate(index)]
    count = max(1, _chunk(tensor) * tensor.shape[first] // max(1, tensor.nbytes))
    for start in range(0, len(positions), count):
        rows = _index(positions[start : start + count], tensor)
        inner = tensor.index_select(first, rows)
        write_block(inner, inside, value.narrow(first, start, len(rows)))
        tensor.index_copy_(first, rows, inner)


def reduce_units(tensor: Tensor, dim: int, layout: Layout, group: str, sizes: Mapping[str, int]) -> Tensor:
    """Sum a tensor over everything but the units of one group.

    Parameters
    ----------
    tensor : Tensor
        ``dim`` has the layout.

    Returns
    -------
    Tensor
        ``[units]``: for each unit the sum of all elements that belong to it.
    """
    block = layout.block(group, sizes)
    if block is not None:
        pre, post = block
        outer, inner = prod(tensor.shape[:dim]) * pre, prod(tensor.shape[dim + 1 :]) * post
        return tensor.reshape(outer, sizes[group], inner).sum(dim=(0, 2))
    other = [d for d in range(tensor.dim()) if d != dim]
    flat = tensor.sum(dim=other) if other else tensor
    owners = layout.owners(group, sizes)
    mine = np.flatnonzero(owners >= 0)
    total = flat.new_zeros(sizes[group])
    return total.index_add_(0, _index(owners[mine], flat), flat.index_select(0, _index(mine, flat)))
