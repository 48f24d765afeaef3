"""Record files: append, cut, read back; tables; locks."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from graphnet.errors import CheckpointError, DataError
from graphnet.study.records import RecordFile, exclusive, read_json, read_records, write_json, write_tables


def records_at(path: Path, *numbers: int) -> RecordFile:
    file = RecordFile(path)
    for number in numbers:
        file.append({"kind": "epoch", "epoch": number})
    return file


def test_a_record_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    file = records_at(tmp_path / "m.jsonl", 1, 2)
    assert [r["epoch"] for r in read_records(tmp_path / "m.jsonl")] == [1, 2]
    file.close()


def test_cut_takes_back_what_came_after_a_length_and_appending_goes_on_there(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    file = records_at(path, 1)
    length = file.length
    file.append({"kind": "epoch", "epoch": 2})
    file.close()

    again = RecordFile(path)
    assert again.length > length  # a file that is opened again goes on at its end
    again.cut(length)
    again.append({"kind": "epoch", "epoch": 22})
    again.close()
    assert [r["epoch"] for r in read_records(path)] == [1, 22]


def test_cut_past_the_end_is_refused(tmp_path: Path) -> None:
    file = records_at(tmp_path / "m.jsonl", 1)
    with pytest.raises(CheckpointError, match="records were removed"):
        file.cut(file.length + 1)
    file.close()


def test_half_a_last_record_is_left_out_and_damage_before_it_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    records_at(path, 1).close()
    with path.open("ab") as file:
        file.write(b'{"kind": "epo')
    assert [r["epoch"] for r in read_records(path)] == [1]
    path.write_bytes(b'{"kind": "epo\n{"kind": "epoch"}\n')
    with pytest.raises(DataError, match="line 1 is no record"):
        read_records(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "missing.jsonl")


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    file = RecordFile(path)
    file.append({"kind": "epoch", "train_loss": float("nan"), "deep": [{"x": float("inf")}, 1.5]})
    file.close()
    assert read_records(path) == [{"kind": "epoch", "train_loss": None, "deep": [{"x": None}, 1.5]}]


def test_kinds_are_selected(tmp_path: Path) -> None:
    file = records_at(tmp_path / "m.jsonl", 1)
    file.append({"kind": "probe"})
    file.close()
    assert read_records(tmp_path / "m.jsonl", "probe", "edit") == [{"kind": "probe"}]


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["cell.json"]
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(path)


def test_tables_hold_the_records_of_cells_that_are_done(tmp_path: Path) -> None:
    for name, status in (("a", "done"), ("b", "failed")):
        folder = tmp_path / "cells" / name
        folder.mkdir(parents=True)
        cell = {"backbone": "mlp", "method": "grow", "label": "grow", "compactness": 0.5, "seed": 3, "status": status}
        write_json(folder / "cell.json", cell)
        file = RecordFile(folder / "metrics.jsonl")
        file.append({"kind": "epoch", "epoch": 1, "units": {"fc1": 4}})
        file.append({"kind": "edit", "born": [7]})
        file.close()
    metrics, events = write_tables(tmp_path)
    (row,) = parquet.read_table(metrics).to_pylist()
    assert (row["cell"], row["seed"], row["epoch"], json.loads(row["units"])) == ("a", 3, 1, {"fc1": 4})
    (row,) = parquet.read_table(events).to_pylist()
    assert (row["kind"], json.loads(row["born"])) == ("edit", [7])


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / ".lock", wait=False),
        pytest.raises(CheckpointError, match="in use"),
        exclusive(tmp_path / ".lock", wait=False),
    ):
        pass
    with exclusive(tmp_path / ".lock", wait=False):  # free again
        pass
