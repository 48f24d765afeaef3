"""What each method does to a network: widths over the cycles, who goes, who comes, who is rewound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphnet.errors import EditError
from graphnet.ir.builders import mlp
from graphnet.runtime.network import Network
from graphnet.schemas.base import read_document
from graphnet.schemas.experiment import Experiment
from graphnet.study.allocation import interpolate, prune_schedule
from graphnet.study.cells import cells_of
from graphnet.study.methods import METHODS, check_matched
from graphnet.study.records import read_records
from graphnet.study.training import CellTraining, load_data, run_cell

Small = Callable[..., dict[str, Any]]
FULL = {"fc1": 24, "fc2": 16}
TARGETS = {"fc1": 12, "fc2": 8}


@pytest.fixture
def small() -> Small:
    """Return a function that gives a small study, with some of its entries replaced."""
    return lambda **changes: read_document(Path(__file__).with_name("small.yaml")) | changes


def trained(tmp_path: Path, study: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the only cell of a study."""
    experiment = Experiment.model_validate(study)
    (cell,) = cells_of(experiment)
    run_cell(tmp_path / "cell", experiment, cell, load_data(experiment), lambda *at: None)
    return read_records(tmp_path / "cell" / "metrics.jsonl")


def opened(tmp_path: Path, study: dict[str, Any]) -> CellTraining:
    """The only cell of a study, before its first epoch."""
    experiment = Experiment.model_validate(study)
    (cell,) = cells_of(experiment)
    (tmp_path / "cell").mkdir()
    training = CellTraining(tmp_path / "cell", experiment, cell, load_data(experiment), lambda *at: None)
    training._resume()
    return training


def widths(records: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Units in the last epoch of each cycle."""
    epochs = [r for r in records if r["kind"] == "epoch" and r["phase"] == "cycle"]
    return [next(r["units"] for r in reversed(epochs) if r["cycle"] == cycle) for cycle in (1, 2, 3)]


def of(records: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [r for r in records if all(r.get(key) == value for key, value in wanted.items())]


def test_dense_keeps_every_unit(tmp_path: Path, small: Small) -> None:
    records = trained(tmp_path, small(methods=[{"method": "dense"}]))
    assert widths(records) == [FULL] * 3
    assert not of(records, kind="edit")
    assert not of(records, kind="probe")


def test_prune_follows_the_schedule_to_the_targets(tmp_path: Path, small: Small) -> None:
    records = trained(tmp_path, small(methods=[{"method": "prune"}]))
    size, expected = dict(FULL), []
    for cycle in range(3):
        size = {g: n - prune_schedule(n, TARGETS[g], cycle, 3) for g, n in size.items()}
        expected.append(size)
    assert widths(records) == expected
    assert expected[-1] == TARGETS
    exits = of(records, kind="probe", moment="exit", group="fc1")
    assert [(r["newborns"], r["incumbents"], r["cohorts"]) for r in exits] == [
        (20, 4, "kept/pruned"), (16, 4, "kept/pruned"), (12, 4, "kept/pruned"),
    ]  # fmt: skip
    assert len(of(records, kind="probe", moment="survivors", group="fc1")) == 3
    # Nothing was trained before the first event, so there is nothing to rewind.
    assert [r["cycle"] for r in of(records, kind="edit", operator="rewind")] == [2, 3]


def test_prune_removes_the_units_with_the_smallest_weights(tmp_path: Path, small: Small) -> None:
    cell = opened(tmp_path, small(methods=[{"method": "prune"}]))
    means = cell.net.fc1.weight.abs().mean(dim=1)  # type: ignore[union-attr, operator]
    cell.method.event(cell, 0)
    assert cell.net.graph.groups["fc1"].ids == tuple(sorted(means.argsort()[4:].tolist()))
    cell.close()


@pytest.mark.parametrize("rewind", ["init", "snapshot", "none"])
def test_survivors_go_back_to_the_weights_asked_for(tmp_path: Path, small: Small, rewind: str) -> None:
    method = {"method": "prune", "rewind": rewind} | ({"snapshot_epoch": 1} if rewind == "snapshot" else {})
    cell = opened(tmp_path, small(methods=[method]))
    initial = cell.net.snapshot().tensors["head.weight"]
    kept: list[torch.Tensor] = []
    cycle = cell.phases["cycle"]
    cell._event(0)
    for epoch in (1, 2):
        cell._epoch(cycle)
        cell.at.epoch = epoch
        if epoch == cell.method.snapshot_epoch:
            cell.kept = cell.net.snapshot()
        kept.append(cell.net.head.weight.detach().clone())  # type: ignore[union-attr, operator]
    before = cell.net.graph.groups["fc2"]
    cell._event(1)
    at = before.positions(cell.net.graph.groups["fc2"].ids)
    ids = list(cell.net.graph.groups["fc2"].ids)
    expected = {"init": initial[:, ids], "snapshot": kept[0][:, at], "none": kept[1][:, at]}[rewind]
    assert torch.equal(cell.net.head.weight.detach(), expected)  # type: ignore[union-attr, arg-type]
    assert bool(cell.optimizer.state) == (rewind == "none")  # momenta of a life that did not happen are cleared
    cell.close()


def test_grow_follows_the_line_from_the_seed_to_the_targets(tmp_path: Path, small: Small) -> None:
    records = trained(tmp_path, small(methods=[{"method": "grow", "seed_share": 0.25}]))
    lines = interpolate([6, 4], [12, 8], 3)
    assert widths(records) == [dict(zip(FULL, row, strict=True)) for row in lines]
    last = of(records, kind="epoch", phase="cycle")[-1]
    assert last["dormant"] == {"fc1": 12, "fc2": 8}
    assert last["flops_forward_nominal"] == 2 * (64 * 24 + 24 * 16 + 16 * 10)
    assert last["flops_forward"] == 2 * (64 * 12 + 12 * 8 + 8 * 10)
    assert {r["operator"] for r in of(records, kind="edit")} == {"retire", "recruit"}
    assert not of(records, kind="edit", operator="rewind")
    # Two epochs of 8 steps in a cycle: parity is measured at birth, every 5 steps, and at the end.
    ages = [r["age"] for r in of(records, kind="probe", group="fc1", cycle=2)]
    assert ages == [0, 5, 10, 15, 16]


def test_a_recruit_comes_back_with_its_initial_weights(tmp_path: Path, small: Small) -> None:
    cell = opened(tmp_path, small(methods=[{"method": "grow"}]))
    initial = cell.initial.tensors["fc1.weight"]
    cell._event(0)
    cell._epoch(cell.phases["cycle"])
    before = set(cell.net.graph.groups["fc1"].ids)
    cell._event(1)
    live = cell.net.graph.groups["fc1"].ids
    born = [unit for unit in live if unit not in before]
    assert born == sorted(cell.at.born["fc1"])
    assert born
    at = [live.index(unit) for unit in born]
    assert torch.equal(cell.net.fc1.weight[at], initial[born])  # type: ignore[union-attr, index]
    cell.close()


@pytest.mark.parametrize("init", ["gradmax", "net2wider", "zero-outgoing"])
def test_growth_by_an_initialiser_starts_small_and_bears_new_units(tmp_path: Path, small: Small, init: str) -> None:
    records = trained(tmp_path, small(methods=[{"method": "grow", "init": init, "seed_share": 0.25}]))
    assert widths(records)[-1] == TARGETS
    assert {r["operator"] for r in of(records, kind="edit", phase="cycle")} == {"prune", "grow"}
    births = of(records, kind="edit", operator="grow")
    assert all(unit >= FULL[r["group"]] for r in births for unit in r["born"])  # ids of their own
    post = of(records, kind="probe", moment="post")
    assert any(r["censored"] for r in post) == (init == "zero-outgoing")
    if init == "zero-outgoing":  # measured again after a step, when there is a gradient
        assert of(records, kind="probe", moment="age", age=1)


def test_interventions_reach_the_newborns(tmp_path: Path, small: Small) -> None:
    method = {"method": "grow", "interventions": {"two_speed": {"rate": 5, "steps": 4}, "moment_transplant": {}}}
    cell = opened(tmp_path, small(methods=[method]))
    cell._event(0)
    cell._epoch(cell.phases["cycle"])
    cell._event(1)
    (step,) = cell.net.history.latest.steps
    assert step.arguments["state"] == "transplant"
    attached = cell.net._attached["0"]
    rates = attached.updates.births[cell.net.fc1.weight].rate[0]  # type: ignore[union-attr, index]
    assert sorted(set(rates.tolist())) == [1.0, 5.0]
    moments = cell.optimizer.state[cell.net.fc1.weight]  # type: ignore[union-attr, index]
    at = [cell.net.graph.groups["fc1"].ids.index(unit) for unit in cell.at.born["fc1"]]
    assert bool(moments["exp_avg_sq"][at].any())
    assert not bool(moments["exp_avg"][at].any())
    cell.close()


def test_every_method_starts_from_the_same_weights_and_reads_the_same_batches(tmp_path: Path, small: Small) -> None:
    cells = []
    for name in METHODS:
        (tmp_path / name).mkdir()
        cells.append(opened(tmp_path / name, small(methods=[{"method": name}])))
    first = cells[0]
    for cell in cells[1:]:
        for name, tensor in first.initial.tensors.items():
            assert torch.equal(tensor, cell.initial.tensors[name])
        assert all(torch.equal(a, b) for a, b in zip(first.stream.epoch(3), cell.stream.epoch(3), strict=True))
        assert torch.equal(first.minibatch(1)[0], cell.minibatch(1)[0])
        assert torch.equal(first.side[1], cell.side[1])
    for cell in cells:
        cell.close()


def test_widths_that_do_not_match_are_refused() -> None:
    net = Network(mlp([4, 6, 2]))
    check_matched(net, {"fc1": 6})
    with pytest.raises(EditError, match="'fc1': 6"):
        check_matched(net, {"fc1": 5})
