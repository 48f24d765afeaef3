"""Progress bars of a study: one for all cells, one for each cell that runs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console

__all__ = ["Progress"]


class Progress:
    """Shows how far a study is; says nothing where it is not shown.

    Parameters
    ----------
    cells : int
        Cells in all.
    finished : int
        Cells that were finished before.
    shown : bool
    """

    def __init__(self, cells: int, finished: int, *, shown: bool) -> None:
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.fields[state]}"),
            bars.TimeElapsedColumn(), bars.TimeRemainingColumn(), console=Console(stderr=True), disable=not shown,
        )  # fmt: skip
        self._running: dict[str, bars.TaskID] = {}
        self._done, self._cells = float(finished), cells
        self._all = self._bars.add_task("cells", total=cells, completed=finished, state=f"{finished}/{cells}")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def advance(self, cell: str, done: int, total: int, state: str) -> None:
        """A running cell has done so many of its epochs."""
        if cell not in self._running:
            self._running[cell] = self._bars.add_task(cell, total=total, state=state)
        self._bars.update(self._running[cell], completed=done, total=total, state=state)

    def finish(self, cell: str) -> None:
        """A cell has ended, well or not."""
        if cell in self._running:
            self._bars.remove_task(self._running.pop(cell))
        self._done += 1
        self._bars.update(self._all, completed=self._done, state=f"{self._done:.0f}/{self._cells}")
