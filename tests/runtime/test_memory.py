"""What a commit takes in memory, by the counts of ``benchmarks/bench_commit_memory.py``: bounded in both modes."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graphnet.edit import action
from graphnet.runtime import low_memory

BENCH: dict[str, Any] = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks/bench_commit_memory.py"))
CHUNK = 1 << 13
SLACK = 6 * CHUNK
"""Chunks that are being moved, indices of 8 bytes a unit, births of rows and columns."""


@pytest.fixture(autouse=True)
def _small_chunks() -> Iterator[None]:
    """So that small layers show what large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(action, "_CHUNK", CHUNK)
        patch.setattr(low_memory, "_CHUNK", CHUNK // 2)
        yield


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("kind", BENCH["KINDS"])
def test_a_commit_takes_no_more_than_the_bytes_that_it_touches(kind: str, optimizer: str) -> None:
    found = BENCH["measure"](kind, low=False, layers=4, width=192, optimizer=optimizer)
    assert found.peak - found.before <= found.touched + SLACK
    assert found.peak - found.before >= 0.9 * found.touched  # all new tensors are there before any old one goes


@pytest.mark.parametrize("optimizer", ["Adam", "RMSprop", "SGD"])
@pytest.mark.parametrize("kind", BENCH["KINDS"])
def test_with_low_memory_it_takes_no_more_than_the_largest_tensor_with_its_state(kind: str, optimizer: str) -> None:
    """Beside old, new, and what an undo needs."""
    found = BENCH["measure"](kind, low=True, layers=4, width=192, optimizer=optimizer)
    assert found.peak - max(found.before, found.ending) <= found.largest + SLACK
    assert found.peak - found.before < 0.8 * found.touched  # what the default takes
