"""The command line: what it prints, and how it ends when something is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner, Result

import graphnet as gn
from graphnet.cli import app
from graphnet.schemas.catalog import json_schema

STUDY: dict[str, Any] = {
    "kind": "experiment", "schema_version": 1, "name": "tiny", "data": {"name": "digits", "limit_train": 100},
    "backbones": [{"name": "mlp", "model": {"builder": "mlp", "sizes": [64, 12, 10]}, "editable": ["fc1"]}],
    "methods": [{"method": "prune"}, {"method": "grow"}], "compactness": [0.5], "seeds": 1,
    "train": {"cycles": 2, "epochs_per_cycle": 1},
}  # fmt: skip

POLICY: dict[str, Any] = {
    "kind": "policy", "schema_version": 1, "name": "wider", "rules": [{
        "name": "grow_hidden", "match": {"nodes": {"h": {"kind": "units", "role": "hidden"}}},
        "when": {"kind": "parity", "of": "h", "above": 0.5},
        "steps": [{"do": "grow", "units": "h", "count": 8}], "schedule": {"kind": "every", "steps": 100},
    }],
}  # fmt: skip


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def program(arguments: Sequence[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed program in a process of its own, without a terminal."""
    command = [str(Path(sys.executable).with_name("graphnet")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def document(folder: Path, content: dict[str, Any], name: str = "document.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return document(tmp_path, gn.mlp([784, 256, 10]).to_document(), "net.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A tiny study that the command line has run: the folder, and what was said."""
    folder = tmp_path_factory.mktemp("cli")
    study = document(folder, STUDY, "study.yaml")
    return folder / "run", call("run", study, "--output", folder / "run", "--workers", "1", "--no-progress")


def test_run_prints_the_table_and_the_report(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert result.exit_code == 0, result.output
    assert "cycle ACC" in result.stdout
    assert f"report: {folder / 'report.html'}" in result.stdout
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_run_again_keeps_what_is_finished_and_fresh_refuses(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    records = {path: path.read_bytes() for path in folder.glob("cells/*/metrics.jsonl")}
    again = call("run", folder.parent / "study.yaml", "--output", folder, "--no-progress")
    assert again.exit_code == 0
    assert {path: path.read_bytes() for path in records} == records
    fresh = call("run", folder.parent / "study.yaml", "--output", folder, "--fresh")
    assert fresh.exit_code == 1
    assert "holds a run already" in fresh.stderr


def test_report_is_written_again(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    (folder / "report.html").unlink()
    assert call("report", folder).exit_code == 0
    assert (folder / "report.html").is_file()


def test_replay_agrees_with_the_run_and_finds_a_change(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    same = call("replay", folder)
    assert same.exit_code == 0, same.output
    assert "2 same" in same.stdout
    cell = folder / "cells" / "mlp--prune--c0.5--s0"
    graph = json.loads((cell / "graph_after.json").read_text())
    kept = (cell / "graph_after.json").read_text()
    graph["groups"]["fc1"]["next_id"] += 1
    (cell / "graph_after.json").write_text(json.dumps(graph))
    try:
        changed = call("replay", folder)
        assert changed.exit_code == 1
        assert "1 differs" in changed.stdout
        assert call("replay", folder, "--cell", "mlp--grow--c0.5--s0").exit_code == 0
    finally:
        (cell / "graph_after.json").write_text(kept)
    unknown = call("replay", folder, "--cell", "no such")
    assert unknown.exit_code == 1
    assert "mlp--grow--c0.5--s0" in unknown.stderr


def test_replay_of_a_cell_under_way_is_no_mismatch(tmp_path: Path) -> None:
    (tmp_path / "cells" / "mlp--grow--c0.5--s0").mkdir(parents=True)
    result = call("replay", tmp_path)
    assert result.exit_code == 0
    assert "not finished" in result.stdout


def test_show_an_architecture(network: Path, tmp_path: Path) -> None:
    result = call("show", network, "--svg", tmp_path / "net.svg")
    assert result.exit_code == 0, result.output
    assert "fc1" in result.stdout
    assert "output" in result.stdout
    assert "203,530 parameters" in result.stdout  # 784 * 256 + 256 + 256 * 10 + 10
    assert "<svg" in (tmp_path / "net.svg").read_text(encoding="utf-8")


def test_show_says_why_a_group_is_frozen(tmp_path: Path) -> None:
    path = document(tmp_path, {
        "kind": "architecture", "schema_version": 1, "inputs": {"x": {"shape": [4]}},
        "ops": [{"name": "fc", "op": "linear", "out": 8}, {"name": "back", "op": "linear", "out": 4},
                {"name": "sum", "op": "add", "inputs": ["back", "x"]}, {"name": "head", "op": "linear", "out": 2}],
    })  # fmt: skip
    reasons = [group.frozen for group in gn.load(path).groups.values() if group.frozen]
    result = call("show", path)
    assert result.exit_code == 0, result.output
    for reason in reasons:
        assert " ".join(reason.split()[:3]) in " ".join(result.stdout.split())


def test_show_a_policy_and_an_experiment(tmp_path: Path) -> None:
    rules = call("show", document(tmp_path, POLICY))
    assert rules.exit_code == 0, rules.output
    for words in ("grow_hidden", "parity", "every", "count 8"):
        assert words in rules.stdout
    both = {"kind": "all", "of": [{"kind": "plateau", "metric": "loss", "window": 9},
            {"kind": "not", "of": {"kind": "since", "event": "task", "below": {"kind": "linear", "start": 9, "end": 1,
             "steps": 5}}}]}  # fmt: skip
    rule = {**POLICY["rules"][0], "when": both, "priority": 2, "at_most": 1}
    full = {**POLICY, "rules": [rule], "hysteresis": 30, "immunity": 20, "max_growth": 0.5, "seed": 7}
    shown = call("show", document(tmp_path, full)).stdout
    for part in ("(plateau", "(not", "(since", "(linear", "priority 2", "at most 1"):
        assert part in shown
    assert "limits: immunity 20, hysteresis 30, max_growth 0.5, seed 7\n" in shown
    cells = call("show", document(tmp_path, STUDY))
    assert cells.exit_code == 0, cells.output
    assert "2 cells on digits" in cells.stdout
    assert "fc1 6" in cells.stdout  # half of twelve


@pytest.mark.parametrize("options", [[], ["--input-shape", "784"], ["--input-shape", "x=1,784"], ["--batch", "1"]])
def test_cost_counts_as_the_graph_does(network: Path, options: list[str]) -> None:
    wanted = gn.mlp([784, 256, 10]).cost(batch=1)
    result = call("cost", network, *options)
    assert result.exit_code == 0, result.output
    assert f"{wanted.flops:,}" in result.stdout
    assert f"{wanted.params:,}" in result.stdout


def test_cost_takes_the_batch_from_the_shape(network: Path) -> None:
    result = call("cost", network, "--input-shape", "32,784")
    assert "batch of 32" in result.stdout
    assert f"{gn.mlp([784, 256, 10]).cost(batch=32).flops:,}" in result.stdout
    assert call("cost", network, "--input-shape", "32,784", "--batch", "8").exit_code == 1


def test_diff_of_documents_and_of_versions(network: Path, tmp_path: Path) -> None:
    net = gn.Network(gn.load(network))
    with net.edit() as edit:
        edit.grow("fc1", 4)
    other = document(tmp_path, net.graph.to_document(), "grown.yaml")
    run = net.save(tmp_path / "run@2.gn")
    expected = str(gn.load(network).diff(net.graph))
    for before, after in ((network, other), (f"{run}@0", run), (f"{run}@0", f"{run}@1"), (network, f"{run}@1")):
        result = call("diff", before, after)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == expected
    assert "fc1: 256 -> 260 neurons (born 256-259)" in expected
    result = call("diff", network, run, "--json", "--svg", tmp_path / "d.svg")
    assert json.loads(result.stdout)["groups_changed"]["fc1"]["size"] == [256, 260]
    assert "<svg" in (tmp_path / "d.svg").read_text(encoding="utf-8")
    for arguments, words in (
        ((network, tmp_path / "absent.yaml"), "absent.yaml"), ((f"{network}@1", run), "is no checkpoint"),
        ((network, f"{run}@7"), "there is no version 7"), ((network, f"{run}@x"), "the number of a version"),
    ):  # fmt: skip
        result = call("diff", *arguments)
        assert result.exit_code != 0
        assert words in " ".join(result.stderr.split()), result.stderr


def test_show_and_cost_of_a_checkpoint_of_an_imported_model(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.order, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = torch.relu(self.body(x))
            return self.head(hidden), torch.cumsum(self.order(hidden), -1)[:, 0]

    net = gn.from_torch(Model(), (torch.randn(2, 4),))
    with net.edit() as edit:
        edit.prune("body", units=[0])
    run = net.save(tmp_path / "run.gn")
    shown = {version: call("show", f"{run}@{version}").stdout for version in (0, 1)}
    assert call("show", run).stdout == shown[1]
    assert "frozen: the order of its positions counts (op 'cumsum')" in shown[1]
    for version, units in ((0, 6), (1, 5)):
        row = next(line for line in shown[version].splitlines() if line.startswith("│ body ") and "neurons" in line)
        assert row.split("│")[2].strip() == str(units)
    cost = call("cost", run, "--batch", "2")
    assert f"{net.graph.cost(batch=2).flops:,}" in cost.stdout


@pytest.mark.parametrize("kind", ["architecture", "experiment", "policy"])
def test_schema_prints_what_the_catalogue_holds(kind: str, tmp_path: Path) -> None:
    assert json.loads(call("schema", kind).stdout) == json_schema(kind)
    call("schema", kind, "--output", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8")) == json_schema(kind)


def mistakes(folder: Path) -> list[tuple[list[str | Path], int, str]]:
    """Arguments, status, and words of the message."""
    net = document(folder, gn.mlp([4, 3, 2]).to_document(), "net.yaml")
    wrong = document(folder, STUDY | {"seed": 1}, "wrong.yaml")
    other = document(folder, {"kind": "recipe"}, "recipe.yaml")
    return [
        (["run", net], 2, "runs documents of kind 'experiment'"),
        (["run", wrong], 2, "did you mean 'seeds'"),
        (["run", folder / "absent.yaml"], 2, "absent.yaml"),
        (["show", other], 2, "expected one of architecture, experiment, policy"),
        (["show", wrong, "--svg", folder / "x.svg"], 2, "--svg draws architectures"),
        (["schema", "polcy"], 2, "did you mean 'policy'"),
        (["cost", net, "--input-shape", "3"], 1, "input_shape gives [3]"),
        (["cost", net, "--input-shape", "y=4"], 1, "there is no input 'y'"),
        (["cost", net, "--input-shape", "four"], 1, "expected whole numbers"),
        (["cost", net, "--optimizer", "adm"], 1, "'adm' is not one of"),
        (["report", folder / "absent"], 1, "there is no run folder"),
        (["replay", folder], 1, "is no run folder"),
        (["schema", "policy", "--output", folder / "no" / "where.json"], 1, "cannot be written"),
    ]


def test_a_mistake_gives_a_message_and_a_status(tmp_path: Path) -> None:
    for arguments, status, words in mistakes(tmp_path):
        result = call(*arguments)
        said = " ".join(result.stderr.split())
        assert (result.exit_code, result.stdout) == (status, ""), arguments
        assert words in said, said
        assert said.startswith("error: ")
        assert "Traceback" not in said


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    quiet = program(["report", tmp_path / "absent"], tmp_path)
    loud = program(["--debug", "report", tmp_path / "absent"], tmp_path)
    assert quiet.returncode == loud.returncode == 1
    assert "Traceback" not in quiet.stderr
    assert "\x1b" not in quiet.stderr  # no terminal, no colours
    assert "Traceback" in loud.stderr


def test_the_program_without_a_terminal(tmp_path: Path) -> None:
    version = program(["--version"], tmp_path)
    assert (version.returncode, version.stdout) == (0, f"graphnet {gn.__version__}\n")
    shown = program(["show", document(tmp_path, STUDY)], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "2 cells on digits" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    long = STUDY | {"train": {"cycles": 2, "epochs_per_cycle": 5000}, "evaluation": {"every_epochs": 1}}
    command = [str(Path(sys.executable).with_name("graphnet")), "run", str(document(tmp_path, long))]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "run"), "--workers", "1"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell's background job, such as these tests may be, ignores the signal, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("run/cells/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "run again to resume" in said
    assert "Traceback" not in said
    partial = call("report", tmp_path / "run")
    assert partial.exit_code == 0, partial.output
    assert "This is a partial report" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
