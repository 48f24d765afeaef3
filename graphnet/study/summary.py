"""The table of a study: accuracy of every method at every compactness, beside what it cost, over seeds.

ACC is the accuracy at the last checkpoint, TAA the mean over checkpoints, delta the ticket's ACC minus the cycles'
(Lillo and Cheney, 2605.15435). The result is plain data; rich renders it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from graphnet.errors import DataError
from graphnet.study.records import read_cells, read_records
from graphnet.study.statistics import Estimate, WelchTest, acc, delta, mean_interval, taa, welch_test

__all__ = ["Comparison", "Row", "Summary", "summarise"]

COSTS = ("flops_total", "flops_total_nominal", "param_steps", "optimizer_bytes", "wall_seconds", "edit_seconds")


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one backbone at one compactness, over its seeds.

    Attributes
    ----------
    backbone, method, label : str
    compactness : float
        1 for a dense network.
    seeds : tuple of int
    units : mapping of group to int
        At the end.
    params : int
        Parameters at the end.
    cycle_acc, cycle_taa : Estimate
        While the structure changes.
    ticket_acc, ticket_taa, delta : Estimate or None
        None where tickets are not trained.
    costs : mapping of str to float
        Of the cycles, mean over seeds: executed and nominal training FLOPs, parameters summed over steps, the most
        bytes of optimizer state, seconds of training and of edits.
    """

    backbone: str
    compactness: float
    method: str
    label: str
    seeds: tuple[int, ...]
    units: Mapping[str, int]
    params: int
    cycle_acc: Estimate
    cycle_taa: Estimate
    ticket_acc: Estimate | None
    ticket_taa: Estimate | None
    delta: Estimate | None
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A grown against a pruned network at equal final units: Welch's test on one measure.

    Attributes
    ----------
    backbone : str
    compactness : float
    first, second : str
        Labels; the difference is first minus second.
    measure : str
        ``cycle_acc``, ``cycle_taa``, ``ticket_acc``, ``ticket_taa``, ``delta``.
    test : WelchTest
    """

    backbone: str
    compactness: float
    first: str
    second: str
    measure: str
    test: WelchTest


@dataclass(frozen=True, slots=True)
class Summary:
    """The tables of a study.

    Attributes
    ----------
    rows : tuple of Row
    comparisons : tuple of Comparison
    """

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    def data(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        rows = [asdict(row) | {"seeds": list(row.seeds)} for row in self.rows]
        return {"rows": rows, "comparisons": [asdict(comparison) for comparison in self.comparisons]}

    def __rich__(self) -> Group:
        return Group(*self._accuracies(), *self._tests())

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=150, color_system=None)
        console.print(self)
        text = console.file.getvalue() if isinstance(console.file, StringIO) else ""
        return text.rstrip()

    def _accuracies(self) -> Iterable[Table]:
        for backbone in dict.fromkeys(row.backbone for row in self.rows):
            rows = [row for row in self.rows if row.backbone == backbone]
            table = Table(title=f"{backbone}: accuracy in % and cost of the cycles", title_justify="left")
            for name in ("compactness", "method"):
                table.add_column(name)
            for name in ("cycle ACC", "cycle TAA", "ticket ACC", "ticket TAA", "delta"):
                table.add_column(name, justify="right", no_wrap=True)
            for name in ("params", "GFLOPs", "nominal", "train s", "edit s", "seeds"):
                table.add_column(name, justify="right")
            before = None
            for row in rows:
                if before not in (None, row.compactness):
                    table.add_section()
                costs, before = row.costs, row.compactness
                table.add_row(
                    f"{row.compactness:g}", row.label,
                    *(percent(e) for e in (row.cycle_acc, row.cycle_taa, row.ticket_acc, row.ticket_taa, row.delta)),
                    f"{row.params:,}", f"{costs['flops_total'] / 1e9:.2f}", f"{costs['flops_total_nominal'] / 1e9:.2f}",
                    f"{costs['wall_seconds']:.2f}", f"{costs['edit_seconds']:.3f}", str(len(row.seeds)),
                )  # fmt: skip
            yield table

    def _tests(self) -> Iterable[Table]:
        if not self.comparisons:
            return
        table = Table(title="Difference in points of % (Welch's test over seeds)", title_justify="left")
        measures = tuple(dict.fromkeys(c.measure for c in self.comparisons))
        for name in ("backbone", "compactness", "methods"):
            table.add_column(name)
        for name in measures:
            table.add_column(name.replace("_acc", " ACC").replace("_taa", " TAA"), justify="right", no_wrap=True)
        found: dict[tuple[str, float, str], dict[str, WelchTest]] = {}
        for c in self.comparisons:
            found.setdefault((c.backbone, c.compactness, f"{c.first} - {c.second}"), {})[c.measure] = c.test
        for (backbone, compactness, pair), tests in found.items():
            cells = [_tested(tests[name]) if name in tests else "" for name in measures]
            table.add_row(backbone, f"{compactness:g}", pair, *cells)
        yield table


def summarise(folder: Path | str) -> Summary:
    """The tables of a run folder, over the cells that are done.

    Raises
    ------
    DataError
        The folder holds no finished cell, records are damaged, or scipy, of the extra ``study``, is missing.
    """
    cells: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for cell in read_cells(Path(folder)):
        if cell["status"] == "done":
            key = (cell["backbone"], cell["compactness"], cell["label"])
            cells.setdefault(key, []).append(cell | _measures(Path(folder) / "cells" / cell["cell"] / "metrics.jsonl"))
    if not cells:
        raise DataError(f"{folder} holds no cell that is done: run the study first")
    ranks = {"dense": 0, "prune": 1, "grow": 2}

    def place(key: tuple[str, float, str]) -> tuple[Any, ...]:
        backbone, compactness, label = key
        return backbone, compactness == 1.0, compactness, ranks.get(cells[key][0]["method"], 3), label

    order = sorted(cells, key=place)
    return Summary(tuple(_row(cells[key]) for key in order), tuple(_comparisons(cells, order)))


def _measures(path: Path) -> dict[str, Any]:
    """The measures of one cell."""
    records = read_records(path, "checkpoint", "epoch")
    accuracies: dict[str, list[float]] = {"cycle": [], "ticket": []}
    for record in records:
        if record["kind"] == "checkpoint":
            accuracies[record["phase"]].append(record["accuracy"])
    epochs = [record for record in records if record["kind"] == "epoch" and record["phase"] == "cycle"]
    last = epochs[-1]
    found: dict[str, Any] = {name: last[name] for name in COSTS} | {"units": last["units"], "params": last["params"]}
    found["optimizer_bytes"] = max(record["optimizer_bytes"] for record in epochs)
    for phase, values in accuracies.items():
        if values:
            found |= {f"{phase}_acc": acc(values), f"{phase}_taa": taa(values)}
    if accuracies["ticket"]:
        found["delta"] = delta(found["ticket_acc"], found["cycle_acc"])
    return found


MEASURES = ("cycle_acc", "cycle_taa", "ticket_acc", "ticket_taa", "delta")


def _row(cells: Sequence[Mapping[str, Any]]) -> Row:
    cells = sorted(cells, key=lambda cell: int(cell["seed"]))
    first = cells[0]
    estimates: dict[str, Any] = {
        name: mean_interval([cell[name] for cell in cells]) if name in first else None for name in MEASURES
    }
    return Row(
        first["backbone"], first["compactness"], first["method"], first["label"],
        tuple(cell["seed"] for cell in cells), first["units"], first["params"],
        costs={name: sum(cell[name] for cell in cells) / len(cells) for name in COSTS}, **estimates,
    )  # fmt: skip


def _comparisons(
    cells: Mapping[tuple[str, float, str], Sequence[Mapping[str, Any]]], order: Sequence[tuple[str, float, str]]
) -> Iterable[Comparison]:
    """Every grown network against every pruned one of the same backbone and compactness."""
    for first in order:
        for second in order:
            kinds = cells[first][0]["method"], cells[second][0]["method"]
            if first[:2] == second[:2] and kinds == ("grow", "prune"):
                for name in MEASURES:
                    samples = [[cell[name] for cell in cells[key] if name in cell] for key in (first, second)]
                    if all(samples):
                        yield Comparison(*first, second[2], name, welch_test(*samples))


def percent(estimate: Estimate | None) -> str:
    """A mean with its interval, in %."""
    if estimate is None:
        return ""
    half = "" if estimate.half_width is None else f" ± {100 * estimate.half_width:.1f}"
    return f"{100 * estimate.mean:.1f}{half}"


def _tested(test: WelchTest) -> str:
    p = "" if test.p is None else " (p < 0.001)" if test.p < 0.001 else f" (p = {test.p:.3f})"
    return f"{100 * test.difference:+.1f}{p}"
