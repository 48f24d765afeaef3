"""The table of a study, from records written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from graphnet.errors import DataError
from graphnet.study.records import RecordFile, write_json
from graphnet.study.summary import Summary, summarise

COSTS = {
    "flops_total": 2e9, "flops_total_nominal": 4e9, "param_steps": 100, "optimizer_bytes": 8,
    "wall_seconds": 1.5, "edit_seconds": 0.25,
}  # fmt: skip


def write_cell(folder: Path, method: str, seed: int, cycle: list[float], ticket: list[float], **changes: Any) -> None:
    cell = {"backbone": "mlp", "method": method, "label": method, "compactness": 0.2, "seed": seed, "status": "done"}
    place = folder / "cells" / f"{method}-{seed}-{changes.get('compactness', 0.2)}"
    place.mkdir(parents=True)
    write_json(place / "cell.json", cell | changes)
    file = RecordFile(place / "metrics.jsonl")
    for phase, values in (("cycle", cycle), ("ticket", ticket)):
        for at, value in enumerate(values, 1):
            file.append({"kind": "epoch", "phase": phase, "units": {"fc1": 9 - at}, "params": 50 * at} | COSTS)
            file.append({"kind": "checkpoint", "phase": phase, "cycle": at, "accuracy": value})
    file.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, shift in enumerate((0.0, 0.02, 0.04)):
        write_cell(tmp_path, "grow", seed, [0.5, 0.7 + shift], [0.8, 0.9])
        write_cell(tmp_path, "prune", seed, [0.9, 0.9 + shift], [0.8, 0.9])
        write_cell(tmp_path, "dense", seed, [0.9, 0.96], [0.8, 0.95], compactness=1.0)
    return tmp_path


def test_measures_are_those_of_the_protocol(folder: Path) -> None:
    rows = {row.label: row for row in summarise(folder).rows}
    grow = rows["grow"]
    assert grow.cycle_acc.mean == pytest.approx(0.72)
    assert grow.cycle_taa.mean == pytest.approx((0.5 + 0.72) / 2)
    assert grow.ticket_acc is not None
    assert grow.ticket_acc.mean == pytest.approx(0.9)
    assert grow.ticket_taa is not None
    assert grow.ticket_taa.mean == pytest.approx(0.85)
    assert grow.delta is not None
    assert grow.delta.mean == pytest.approx(0.9 - 0.72)
    # t(0.975, 2 degrees) = 4.3027; the standard deviation of 0.70, 0.72, 0.74 is 0.02
    assert grow.cycle_acc.half_width == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert (grow.units, grow.params, grow.seeds) == ({"fc1": 7}, 100, (0, 1, 2))
    assert grow.costs["flops_total"] == pytest.approx(2e9)


def test_rows_go_by_compactness_and_end_with_dense(folder: Path) -> None:
    write_cell(folder, "grow", 0, [0.5], [0.6], compactness=0.5)
    found = [(row.compactness, row.label) for row in summarise(folder).rows]
    assert found == [(0.2, "prune"), (0.2, "grow"), (0.5, "grow"), (1.0, "dense")]


def test_grown_networks_are_tested_against_pruned_ones(folder: Path) -> None:
    comparisons = summarise(folder).comparisons
    assert {(c.first, c.second, c.compactness) for c in comparisons} == {("grow", "prune", 0.2)}
    tests = {c.measure: c.test for c in comparisons}
    assert tests["cycle_acc"].difference == pytest.approx(0.72 - 0.92)
    assert tests["cycle_acc"].p == pytest.approx(0.000256, rel=0.01)
    assert tests["ticket_acc"].p is None  # no spread at all: no test


def test_without_tickets_there_is_no_delta(tmp_path: Path) -> None:
    write_cell(tmp_path, "grow", 0, [0.5, 0.6], [])
    (row,) = summarise(tmp_path).rows
    assert row.ticket_acc is None
    assert row.ticket_taa is None
    assert row.delta is None
    assert row.cycle_acc.half_width is None  # one seed


def test_cells_that_are_not_done_do_not_count(folder: Path) -> None:
    write_cell(folder, "grow", 3, [0.0, 0.0], [0.0, 0.0], status="failed")
    rows = {row.label: row for row in summarise(folder).rows}
    assert rows["grow"].seeds == (0, 1, 2)
    (folder / "none" / "cells").mkdir(parents=True)
    with pytest.raises(DataError, match="no cell that is done"):
        summarise(folder / "none")


def test_data_is_json_and_the_table_shows_percent(folder: Path) -> None:
    summary = summarise(folder)
    assert json.loads(json.dumps(summary.data()))["rows"][0]["label"] == "prune"
    text = str(summary)
    assert "72.0 ± 5.0" in text
    assert "+18.0" not in text
    assert "-20.0 (p < 0.001)" in text
    assert isinstance(summary, Summary)
    Console(quiet=True).print(summary)
