"""The commit: everything is built first, then pointers are swapped under an undo log, the version last."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Swap", "commit", "deferred_interrupts"]


@dataclass(frozen=True, slots=True)
class Swap:
    """One pointer to change, and how to put it back; both may run more than once."""

    do: Callable[[], object]
    undo: Callable[[], object]


def commit(swaps: Sequence[Swap]) -> None:
    """Do every swap, or none: whatever is raised on the way, all of them are put back."""
    with deferred_interrupts():
        done = 0
        try:
            for swap in swaps:
                done += 1
                swap.do()
        except BaseException:
            for swap in reversed(swaps[:done]):
                swap.undo()
            raise


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Hold back SIGINT until the block has ended (main thread only; elsewhere it does not arrive)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, Any]] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            before(*held[0])
