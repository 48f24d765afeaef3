"""Cells in processes: each worker is given the name of a cell at a time and writes that cell's files.

Workers are started afresh (``spawn``), so they share nothing with this process but the run folder. What travels
between them is names and progress. A worker that dies costs the cell that it had, and is replaced.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from graphnet.errors import GraphnetError
from graphnet.schemas.experiment import Experiment, load_experiment_document
from graphnet.study.cells import Cell, cells_of
from graphnet.study.datasets import Dataset
from graphnet.study.progress import Progress
from graphnet.study.records import read_json, write_json
from graphnet.study.training import Tick, load_data, run_cell

__all__ = ["StudyError", "run_cells"]


class StudyError(GraphnetError):
    """Some cells of a study failed; the others are kept."""


def run_cells(
    folder: Path, experiment: Experiment, cells: Sequence[Cell], data: Dataset, processes: int, progress: Progress
) -> dict[str, str]:
    """Run cells and return why those failed that did, by name.

    Parameters
    ----------
    folder : Path
        The run folder, with the experiment in it.
    processes : int
        With one, the cells run in this process.
    """
    if not cells:
        return {}
    if processes == 1:
        return _run_here(folder, experiment, cells, data, progress)
    return _Pool(folder, [cell.name for cell in cells], progress).run(processes)


def _run_here(
    folder: Path, experiment: Experiment, cells: Sequence[Cell], data: Dataset, progress: Progress
) -> dict[str, str]:
    failures = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.threads)
    try:
        for cell in cells:
            name = cell.name
            reason = _attempt(folder, experiment, cell, data, lambda *at, name=name: progress.advance(name, *at))
            if reason is not None:
                failures[name] = reason
            progress.finish(name)
    finally:
        torch.set_num_threads(threads)
    return failures


def _attempt(folder: Path, experiment: Experiment, cell: Cell, data: Dataset, tick: Tick) -> str | None:
    """Run one cell; a failure is written to its folder, and its reason returned."""
    place = folder / "cells" / cell.name
    try:
        run_cell(place, experiment, cell, data, tick)
    except (BrokenPipeError, EOFError):  # the process that started this one is gone
        raise
    except Exception as error:
        _mark_failed(place, cell, f"{type(error).__name__}: {error}", traceback.format_exc())
        return str(error) if isinstance(error, GraphnetError) else f"{type(error).__name__}: {error}"
    (place / "error.txt").unlink(missing_ok=True)
    return None


def _mark_failed(place: Path, cell: Cell, reason: str, details: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    path = place / "cell.json"
    known = read_json(path) if path.exists() else cell.described()
    write_json(path, known | {"status": "failed", "error": reason})
    (place / "error.txt").write_text(details, encoding="utf-8")


@dataclass
class _Worker:
    process: SpawnProcess
    line: Connection
    cell: str | None = None
    ready: bool = False


class _Pool:
    """Workers and the cells that wait for one."""

    def __init__(self, folder: Path, waiting: list[str], progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self.waiting = waiting[::-1]
        self.failures: dict[str, str] = {}
        self.workers: list[_Worker] = []

    def run(self, processes: int) -> dict[str, str]:
        try:
            for _ in range(processes):
                self._start()
            while self.workers:
                for line in wait([worker.line for worker in self.workers]):
                    self._listen(next(worker for worker in self.workers if worker.line is line))
        finally:
            for worker in self.workers:  # only after an error or an interrupt; the cells go on at the next run
                worker.process.terminate()
                worker.process.join()
        return self.failures

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_work, args=(str(self.folder), theirs), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, mine))

    def _give(self, worker: _Worker) -> None:
        """Give a worker its next cell, or let it go."""
        worker.cell = self.waiting.pop() if self.waiting else None
        try:
            worker.line.send(worker.cell)
        except OSError:
            self._lost(worker)
            return
        if worker.cell is None:
            self.workers.remove(worker)
            worker.process.join()
            worker.line.close()

    def _listen(self, worker: _Worker) -> None:
        try:
            kind, *rest = worker.line.recv()
        except (EOFError, OSError):
            self._lost(worker)
            return
        if kind == "epoch" and worker.cell is not None:
            self.progress.advance(worker.cell, *rest)
            return
        if kind == "ended" and worker.cell is not None:
            if rest[0] is not None:
                self.failures[worker.cell] = rest[0]
            self.progress.finish(worker.cell)
        worker.ready = True
        self._give(worker)

    def _lost(self, worker: _Worker) -> None:
        """A worker died: its cell failed, and another worker takes its place."""
        self.workers.remove(worker)
        worker.process.join()
        worker.line.close()
        if not worker.ready:
            raise StudyError(
                f"a worker process ended with code {worker.process.exitcode} before its first cell (see above). In a "
                "script, call gn.study.run below `if __name__ == '__main__':`, since workers import the script; or use "
                "workers=1"
            )
        if worker.cell is not None:
            self.failures[worker.cell] = (
                f"its process ended with code {worker.process.exitcode} (-9: the system stopped it, often for memory); "
                "it goes on from its checkpoint at the next run"
            )
            self.progress.finish(worker.cell)
        if self.waiting:
            self._start()


def _work(folder: str, line: Connection) -> None:
    """What a worker process does: run the cells that it is told to, until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that started this one
    experiment = load_experiment_document(Path(folder) / "experiment.yaml")
    torch.set_num_threads(experiment.threads)
    cells = {cell.name: cell for cell in cells_of(experiment)}
    data: Dataset | None = None
    try:
        line.send(("ready",))
        while (name := line.recv()) is not None:
            data = data or load_data(experiment)
            reason = _attempt(Path(folder), experiment, cells[name], data, lambda *at: line.send(("epoch", *at)))
            line.send(("ended", reason))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the process that started this one is gone, and its checkpoint is on the disk
