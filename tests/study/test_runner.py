"""Whole studies: end to end, twice the same, cut off and resumed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

import graphnet as gn
from graphnet.errors import CheckpointError, EditError, GraphError, SchemaError
from graphnet.ir.builders import mlp
from graphnet.ir.document import load
from graphnet.schemas.base import read_document, write_document
from graphnet.schemas.experiment import load_experiment_document
from graphnet.study import StudyError, run, summarise
from graphnet.study.records import exclusive, read_cells, read_json, read_records

Small = Callable[..., dict[str, Any]]
Untimed = Callable[[Path], dict[str, list[dict[str, Any]]]]


@pytest.fixture
def small() -> Small:
    """Return a function that gives a small study, with some of its entries replaced."""
    return lambda **changes: read_document(Path(__file__).with_name("small.yaml")) | changes


@pytest.fixture
def untimed() -> Untimed:
    """Return a function that reads the records of each cell of a run, without times."""
    times = ("seconds", "wall_seconds", "edit_seconds")

    def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
        return {
            path.parent.name: [{k: v for k, v in record.items() if k not in times} for record in read_records(path)]
            for path in sorted(folder.glob("cells/*/metrics.jsonl"))
        }

    return read


def go(study: Any, folder: Path, **options: Any) -> gn.study.Run:
    return run(study, output=folder, progress=False, **({"workers": 1} | options))


def test_a_study_from_end_to_end(tmp_path: Path, small: Small) -> None:
    found = go(small(compactness=[0.3, 0.5]), tmp_path / "run")
    assert found.folder == tmp_path / "run"
    assert {p.name for p in found.folder.iterdir()} == {
        ".lock", "cells", "environment.json", "events.parquet", "experiment.yaml", "metrics.parquet", "summary.json",
    }  # fmt: skip
    cells = read_cells(found.folder)
    assert [cell["cell"] for cell in cells] == [
        "mlp--dense--c1.0--s0", "mlp--grow--c0.3--s0", "mlp--grow--c0.5--s0",
        "mlp--prune--c0.3--s0", "mlp--prune--c0.5--s0",
    ]  # fmt: skip
    assert {cell["status"] for cell in cells} == {"done"}
    for cell in cells:
        place = found.folder / "cells" / cell["cell"]
        before, after = (load(place / f"graph_{when}.json") for when in ("before", "after"))
        assert before.groups["fc1"].size == 24
        assert {name: after.groups[name].size for name in cell["targets"]} == cell["targets"]
        assert not (place / "checkpoint").exists()  # finished: nothing to resume
        kept = gn.load_network(place / "cycle.gn")
        assert kept.graph.to_document() == json.loads((place / "graph_after.json").read_text())
        assert (place / "ticket.gn").exists()
    targets = {(c["method"], c["compactness"]): c["targets"] for c in cells}
    assert targets["grow", 0.3] == targets["prune", 0.3] != targets["grow", 0.5]  # matched
    epochs = parquet.read_table(found.folder / "metrics.parquet").to_pylist()
    assert len(epochs) == 5 * 12  # 3 cycles of 2 epochs, and the ticket as long
    assert {row["cell"] for row in epochs} == {cell["cell"] for cell in cells}
    assert found.summary.data() == json.loads((found.folder / "summary.json").read_text())
    assert str(summarise(found.folder)) == str(found.summary)
    assert load_experiment_document(found.folder / "experiment.yaml") == found.experiment
    assert read_json(found.folder / "environment.json")["torch"]


def test_processes_or_not_and_twice_give_the_same_records(tmp_path: Path, small: Small, untimed: Untimed) -> None:
    study = small(seeds=[0, 1], methods=[{"method": "grow"}])
    go(study, tmp_path / "here")
    go(study, tmp_path / "workers", workers=2)
    records = untimed(tmp_path / "here")
    assert records == untimed(tmp_path / "workers")
    assert records["mlp--grow--c0.5--s0"] != records["mlp--grow--c0.5--s1"]  # and the seed matters


def test_a_killed_run_goes_on_to_the_same_records(tmp_path: Path, small: Small, untimed: Untimed) -> None:
    method = {"method": "prune", "rewind": "snapshot", "snapshot_epoch": 1}
    study = small(methods=[{"method": "grow", "state": "aged"}, method])
    study["train"] |= {"epochs_per_cycle": 4}
    go(study, tmp_path / "whole")
    write_document(study, tmp_path / "study.yaml")
    code = (
        "import sys, graphnet as gn\n"
        "gn.study.run(sys.argv[1], output=sys.argv[2], workers=1, progress=False)"
    )  # fmt: skip
    # While the structure changes (newborns are young, a snapshot waits to be rewound to), and in a ticket.
    grow, prune = "mlp--grow--c0.5--s0", "mlp--prune--c0.5--s0"
    for cell, phase, epoch in ((grow, "cycle", 5), (grow, "ticket", 2), (prune, "cycle", 6)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "study.yaml", tmp_path / "cut"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        path = tmp_path / "cut" / "cells" / cell / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            lines = path.read_text().splitlines() if path.exists() else []
            if sum('"kind": "epoch"' in line and f'"phase": "{phase}"' in line for line in lines) >= epoch:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was cut off: make it longer"
        assert (path.parent / "checkpoint" / "cell.gn").exists()
    go(study, tmp_path / "cut")
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")
    for cell in (tmp_path / "whole" / "cells").iterdir():
        there = tmp_path / "cut" / "cells" / cell.name
        assert (there / "graph_after.json").read_text() == (cell / "graph_after.json").read_text()
        journals = [
            [{**json.loads(line), "seconds": 0} for line in (place / "journal.jsonl").read_text().splitlines()]
            for place in (cell, there)
        ]
        assert journals[0] == journals[1]


def test_finished_cells_are_kept(tmp_path: Path, small: Small) -> None:
    go(small(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/metrics.jsonl")}
    cell = tmp_path / "cells" / "mlp--grow--c0.5--s0"
    (cell / "cell.json").unlink()  # as if it had never been finished
    go(small(), tmp_path)
    changed = [path.parent for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert changed == [cell]


def test_a_folder_of_another_study_is_refused(tmp_path: Path, small: Small) -> None:
    study = small(methods=[{"method": "dense"}], ticket={"enabled": False})
    go(study, tmp_path / "run")
    other = study | {"train": study["train"] | {"optimizer": {"name": "adam", "lr": 0.1}}}
    with pytest.raises(CheckpointError, match=r"train.optimizer.lr is 0.003 there and 0.1 here"):
        go(other, tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a run already"):
        go(study, tmp_path / "run", resume=False)
    go(study | {"workers": 3}, tmp_path / "run")  # how it is run is not what it is
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(CheckpointError, match="is not empty"):
        go(study, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    environment = tmp_path / "run" / "environment.json"
    environment.write_text(environment.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(CheckpointError, match="fingerprint"):
        go(study, tmp_path / "run")


def test_a_folder_in_use_is_refused(tmp_path: Path, small: Small) -> None:
    study = small(methods=[{"method": "dense"}], ticket={"enabled": False})
    go(study, tmp_path)
    with exclusive(tmp_path / ".lock", wait=False), pytest.raises(CheckpointError, match="in use"):
        go(study, tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_that_fails_does_not_take_the_others_with_it(tmp_path: Path, small: Small, workers: int) -> None:
    # 20 newborns at once and 10 directions at most: gradmax refuses.
    bad = {"method": "grow", "label": "bad", "init": "gradmax"}
    study = small(methods=[bad, {"method": "dense"}], compactness=[0.9], ticket={"enabled": False})
    study["train"] |= {"cycles": 1}
    with pytest.raises(StudyError, match=r"1 of 2 cells failed:\n  mlp--bad--c0.9--s0: gradmax: .* directions"):
        go(study, tmp_path, workers=workers)
    status = {cell["label"]: cell["status"] for cell in read_cells(tmp_path)}
    assert status == {"bad": "failed", "dense": "done"}
    assert "Traceback" in (tmp_path / "cells" / "mlp--bad--c0.9--s0" / "error.txt").read_text()


@pytest.mark.slow
def test_a_process_that_dies_costs_its_cell_alone(tmp_path: Path, small: Small) -> None:
    study = small(seeds=3, methods=[{"method": "dense"}], ticket={"enabled": False})
    place = tmp_path / "cells" / "mlp--dense--c1.0--s1"
    write_document(study, tmp_path / "study.yaml")
    code = (
        "import multiprocessing, os, sys, threading, time, graphnet as gn\n"
        "def kill():\n"
        "    while not os.path.exists(sys.argv[3]): time.sleep(0.005)\n"
        "    [os.kill(p.pid, 9) for p in multiprocessing.active_children()]\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
        "    gn.study.run(sys.argv[1], output=sys.argv[2], workers=2, progress=False)\n"
    )
    (tmp_path / "main.py").write_text(code)
    command = [sys.executable, tmp_path / "main.py", tmp_path / "study.yaml", tmp_path / "run"]
    place = tmp_path / "run" / "cells" / "mlp--dense--c1.0--s1" / "metrics.jsonl"
    found = subprocess.run([*command, place], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 1
    assert "ended with code -9" in found.stderr
    assert "StudyError" in found.stderr
    go(study, tmp_path / "run")  # a later run takes up what is left
    assert {cell["status"] for cell in read_cells(tmp_path / "run")} == {"done"}


@pytest.mark.slow
def test_a_script_without_its_guard_is_told(tmp_path: Path, small: Small) -> None:
    write_document(small(), tmp_path / "study.yaml")
    (tmp_path / "main.py").write_text(
        "import sys, graphnet as gn\ngn.study.run('study.yaml', output='run', workers=2, progress=False)\n"
    )
    command = [sys.executable, "main.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 1
    assert "below `if __name__ == '__main__':`" in found.stderr


def test_what_cannot_be_run_is_refused_before_training(tmp_path: Path, small: Small) -> None:
    def backbone(**changes: Any) -> dict[str, Any]:
        return small(backbones=[small()["backbones"][0] | changes])

    model = {"builder": "mlp", "sizes": [64, 8, 10]}
    for study, error, message in (
        (backbone(editable=["fc9"]), GraphError, "fc9"),
        (backbone(editable=["fc1", "act1"]), SchemaError, "twice"),
        (small(methods=[{"method": "grow", "init": "magic"}]), EditError, "magic"),
        (small(methods=[{"method": "prune", "score": "magic"}]), EditError, "magic"),
        (small(methods=[{"method": "grow", "init": "net2wider"}], ticket={"init": "rewind"}), SchemaError, "rewind"),
        (small(data={"name": "nowhere"}), gn.DataError, "nowhere"),
        (small(backbones=[{"name": n, "model": model, "editable": ["fc1"]} for n in ("a/b", "a b")]),
         SchemaError, "rename one"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            go(study, tmp_path / "run")
        assert not list(tmp_path.glob("run/cells/*"))
    with pytest.raises(SchemaError, match="workers"):
        go(small(), tmp_path / "run", workers=0)
    wrong = backbone(model={"builder": "mlp", "sizes": [65, 8, 10]}, editable=["fc1"])
    with pytest.raises(StudyError, match=r"reads inputs of shape \[65\]"):
        go(wrong, tmp_path / "wrong")


def test_a_backbone_may_be_a_file_beside_the_experiment(tmp_path: Path, small: Small) -> None:
    write_document(mlp([64, 12, 10]).to_document(), tmp_path / "net.yaml")
    study = small(
        backbones=[{"name": "own", "model": "net.yaml", "editable": ["fc1"]}],
        methods=[{"method": "grow", "seed_share": 0.25}], ticket={"init": "rewind"},
    )  # fmt: skip
    write_document(study, tmp_path / "study.yaml")
    found = go(tmp_path / "study.yaml", tmp_path / "run")
    (tmp_path / "net.yaml").unlink()
    assert load_experiment_document(found.folder / "experiment.yaml").backbones[0].model.document is not None  # type: ignore[union-attr]
    assert found.summary.rows[0].units == {"fc1": 6}


def test_the_example_networks_load_and_run(root: Path) -> None:
    import torch

    inputs = {
        "mlp": torch.zeros(2, 784), "convnet": torch.zeros(2, 3, 32, 32), "resnet": torch.zeros(2, 3, 32, 32),
        "transformer": torch.zeros(2, 5, dtype=torch.int64),
    }  # fmt: skip
    folder = root / "examples" / "networks"
    assert {path.stem for path in folder.glob("*.yaml")} == set(inputs)
    for name, x in inputs.items():
        assert gn.Network(gn.load(folder / f"{name}.yaml"))(x).shape[0] == 2


def test_the_example_study_is_valid_and_matched(root: Path) -> None:
    from graphnet.study.cells import cells_of, editable_groups, full_graph, target_units

    experiment = load_experiment_document(root / "examples" / "grow_vs_prune.yaml")
    found: dict[tuple[str, float | None, int], set[str]] = {}
    for cell in cells_of(experiment):
        backbone, _ = cell.settings(experiment)
        graph = full_graph(backbone)
        units = target_units(experiment, cell, graph, editable_groups(graph, backbone))
        found.setdefault((cell.backbone, cell.compactness, cell.seed), set()).add(str(units))
    assert len(found) == 2 * 3 * 3
    assert all(len(units) == 1 for units in found.values())
