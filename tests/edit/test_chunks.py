"""Large tensors are moved a chunk of rows at a time: the same bits, and no memory beside the old tensor and the new."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphnet.edit import action
from graphnet.edit.action import gather, move, select, write_block
from graphnet.ir.layout import IndexArray, atom, const, times


@pytest.fixture(autouse=True)
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(action, "_chunk", lambda tensor: 96)
        yield


def taken(tensor: Tensor, sources: list[IndexArray | None], newborn: float) -> Tensor:
    """By numpy, one dimension after the other."""
    held = tensor.numpy()
    for dim, source in enumerate(sources):
        if source is not None:
            held = np.take(held, np.maximum(source, 0), axis=dim)
            held = np.moveaxis(held, dim, 0).copy()
            held[source < 0] = newborn
            held = np.moveaxis(held, 0, dim)
    return torch.from_numpy(np.ascontiguousarray(held))


def draw_source(data: st.DataObject, size: int) -> IndexArray | None:
    kind = data.draw(st.sampled_from(["stay", "append", "drop", "any"]))
    if kind == "stay":
        return data.draw(st.sampled_from([None, np.arange(size)]))
    if kind == "append":
        return np.concatenate([np.arange(size), np.full(data.draw(st.integers(1, 3)), -1)])
    if kind == "drop":
        return np.arange(data.draw(st.integers(1, size)))
    return np.array(data.draw(st.lists(st.integers(-1, size - 1), min_size=1, max_size=size + 4)))


def test_rows_may_change_places_inside_a_chunk() -> None:
    tensor = torch.arange(48.0).reshape(16, 3)  # 8 rows in a chunk
    rows = np.array([0, 2, 1, 3, 4, 6, 5, 7, *range(8, 16)])
    assert torch.equal(gather(tensor, [rows, np.array([0, 1])]), tensor[torch.from_numpy(rows)][:, :2])


@given(st.data())
def test_chunks_change_no_bit(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    if len(shape) == 4 and data.draw(st.booleans()):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    sources = [draw_source(data, size) for size in shape]
    before = tensor.clone()
    moved = gather(tensor, sources, newborn=0.5)
    assert torch.equal(moved, taken(tensor, sources, 0.5))
    assert torch.equal(tensor, before)
    stays = all(s is None or np.array_equal(s, np.arange(n)) for s, n in zip(sources, shape, strict=True))
    assert (moved is tensor) == stays
    assert stays or moved.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@given(st.data())
def test_chunks_of_products_change_no_bit(data: st.DataObject) -> None:
    """A layer after a flatten: its columns are ``c * 4``."""
    sizes = {"r": data.draw(st.integers(1, 9)), "c": data.draw(st.integers(1, 6))}
    maps = {key: draw_source(data, size) for key, size in sizes.items()}
    sources = {key: source for key, source in maps.items() if source is not None}
    rows, columns = atom("r"), times(atom("c"), const(4))
    tensor = torch.arange(float(sizes["r"] * sizes["c"] * 4)).reshape(sizes["r"], -1)
    flat = [layout.index(sources, sizes) for layout in (rows, columns)]
    assert torch.equal(move(tensor, (rows, columns), sources, sizes, newborn=2.0), taken(tensor, flat, 2.0))


def draw_positions(data: st.DataObject, size: int) -> IndexArray:
    return np.array(data.draw(st.permutations(range(size)))[: data.draw(st.integers(0, size))], dtype=np.int64)


@given(st.data())
def test_blocks_are_read_and_written_in_chunks(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    if len(shape) == 4 and data.draw(st.booleans()):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    index = [None if data.draw(st.booleans()) else draw_positions(data, n) for n in shape]
    grid = np.ix_(*[np.arange(n) if at is None else at for n, at in zip(shape, index, strict=True)])
    block = select(tensor, index)
    assert np.array_equal(block.numpy(), tensor.numpy()[grid])
    expected = tensor.numpy().copy()
    expected[grid] = -block.numpy()
    write_block(tensor, index, -block)
    assert np.array_equal(tensor.numpy(), expected)
