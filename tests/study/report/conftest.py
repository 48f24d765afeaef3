"""Run folders as a study writes them, made up: the numbers are plausible, quick and the same for the same seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import graphnet as gn

LAYERS = {"fc1": 256, "fc2": 256}
TARGETS = {0.2: {"fc1": 58, "fc2": 63}, 0.5: {"fc1": 134, "fc2": 140}}
STEPS_PER_EPOCH = 469


def experiment(
    *, methods: Sequence[dict[str, Any]], levels: Sequence[float], seeds: int, cycles: int, epochs: int
) -> dict[str, Any]:
    """An experiment document of the protocol's MLP."""
    return {
        "kind": "experiment", "schema_version": 1, "name": "grow against prune", "data": {"name": "mnist"},
        "backbones": [{
            "name": "mlp", "model": {"builder": "mlp", "sizes": [784, 256, 256, 10]}, "editable": list(LAYERS),
        }],
        "methods": list(methods), "compactness": list(levels), "seeds": list(range(seeds)),
        "train": {"cycles": cycles, "epochs_per_cycle": epochs},
    }  # fmt: skip


DEFAULT_METHODS: tuple[dict[str, Any], ...] = ({"method": "dense"}, {"method": "prune"}, {"method": "grow"})


def write_run(
    folder: Path,
    *,
    methods: Sequence[dict[str, Any]] = DEFAULT_METHODS,
    levels: Sequence[float] = (0.2, 0.5),
    seeds: int = 3,
    cycles: int = 3,
    epochs: int = 2,
    backbone: str = "mlp",
    without: Iterable[str] = (),
) -> Path:
    """Write a finished run; ``without`` leaves out kinds of records."""
    asked = experiment(methods=methods, levels=levels, seeds=seeds, cycles=cycles, epochs=epochs)
    asked["backbones"][0]["name"] = backbone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
    about = {
        "date": "2026-01-01T12:00:00+00:00", "graphnet": gn.__version__, "python": "3.12.1", "torch": "2.13.0",
        "cpu": "example", "threads": 1, "dataset": {"name": "mnist", "fingerprint": "0123abcd"},
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(about), encoding="utf-8")
    for index, method in enumerate(methods):
        for level in [1.0] if method["method"] == "dense" else levels:
            for seed in range(seeds):
                cell = MadeUpCell(folder, backbone, method, level, seed, index, cycles, epochs, set(without))
                cell.write()
    return folder


@pytest.fixture
def made_up_run(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a run folder; takes the arguments of `write_run`."""

    def write(name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return write


class MadeUpCell:
    """One training run's files."""

    def __init__(
        self, folder: Path, backbone: str, method: dict[str, Any], level: float, seed: int, index: int,
        cycles: int, epochs: int, without: set[str],
    ) -> None:  # fmt: skip
        self.kind, self.label = method["method"], method.get("label", method["method"])
        self.level, self.seed, self.cycles, self.epochs, self.without = level, seed, cycles, epochs, without
        self.random = np.random.default_rng([seed, index, round(100 * level)])
        self.folder = folder / "cells" / f"{backbone}--{self.label}--c{level:g}--s{seed}".replace("/", "_")
        self.about = {
            "backbone": backbone, "method": self.kind, "label": self.label, "compactness": level, "seed": seed,
            "status": "done", "targets": LAYERS if self.kind == "dense" else TARGETS[level], "wall_seconds": 12.5,
        }  # fmt: skip
        self.skill = {"dense": 0.982, "prune": 0.975, "grow": 0.968}[self.kind] - 0.004 * index + 0.004 * level
        self.lines: list[dict[str, Any]] = []

    def write(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "cell.json").write_text(json.dumps(self.about), encoding="utf-8")
        self._phase("cycle")
        self._phase("ticket")
        kept = [line for line in self.lines if line["kind"] not in self.without]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        (self.folder / "metrics.jsonl").write_text(text, encoding="utf-8")
        if "graph" not in self.without:
            for moment, cycle in (("before", 0), ("after", self.cycles)):
                graph = gn.mlp([784, *self._units(cycle).values(), 10]).to_document()
                (self.folder / f"graph_{moment}.json").write_text(json.dumps(graph), encoding="utf-8")

    def _units(self, cycle: int) -> dict[str, int]:
        share = cycle / self.cycles
        start = {"dense": 1.0, "prune": 1.0, "grow": 0.1}[self.kind]
        return {
            group: round((1 - share) * start * full + share * self.about["targets"][group])
            for group, full in LAYERS.items()
        }

    def _phase(self, phase: str) -> None:
        spent = nominal = work = wall = edit = 0.0
        for cycle in range(1, self.cycles + 1):
            units = self._units(self.cycles if phase == "ticket" else cycle)
            sizes = [784, *units.values(), 10]
            params = sum((a + 1) * b for a, b in pairwise(sizes))
            forward = 2 * sum(a * b for a, b in pairwise(sizes))
            if phase == "cycle" and self.kind != "dense":
                edit += self._edits(cycle, params)
            dormant = {
                g: full - units[g] if self.kind == "grow" and phase == "cycle" else 0 for g, full in LAYERS.items()
            }
            for inner in range(1, self.epochs + 1):
                epoch = (cycle - 1) * self.epochs + inner
                spent += 3 * forward * 60_000
                nominal += 3 * (2 * (784 * 256 + 256 * 256 + 2560) if any(dormant.values()) else forward) * 60_000
                work += params * STEPS_PER_EPOCH
                wall += 1.5 + forward / 4e5
                dip = 0.05 * math.exp(-inner) if self.kind == "prune" and phase == "cycle" else 0.0
                accuracy = self.skill * (1 - 0.25 * math.exp(-0.5 * epoch)) - dip + self.random.normal(0, 0.0012)
                self.lines.append({
                    "kind": "epoch", "phase": phase, "cycle": cycle, "epoch": epoch, "step": epoch * STEPS_PER_EPOCH,
                    "train_loss": 2.3 * math.exp(-0.4 * epoch), "test_accuracy": min(accuracy, 1.0), "units": units,
                    "dormant": dormant, "params": params, "flops_forward": forward,
                    "flops_forward_nominal": 2 * (784 * 256 + 256 * 256 + 2560), "flops_total": spent,
                    "flops_total_nominal": nominal, "param_steps": work, "optimizer_bytes": 0,
                    "wall_seconds": wall, "edit_seconds": edit,
                })  # fmt: skip
                if phase == "cycle" and self.kind == "grow":
                    self._ages(cycle, inner)
            self.lines.append({"kind": "checkpoint", "phase": phase, "cycle": cycle, "accuracy": min(accuracy, 1.0)})
            if phase == "cycle" and self.kind == "grow":
                self._parity("end", cycle, -0.1, -1.1, self.epochs * STEPS_PER_EPOCH)

    def _edits(self, cycle: int, params: int) -> float:
        grow = self.kind == "grow"
        if not grow:
            self._parity("exit", cycle, 0.35, 0.6, None, "kept/pruned")
        for group in LAYERS:
            self.lines.append({
                "kind": "edit", "phase": "cycle", "cycle": cycle, "step": (cycle - 1) * self.epochs * STEPS_PER_EPOCH,
                "version": cycle, "operator": "recruit" if grow else "prune", "group": group,
                "born": list(range(30)) if grow else [], "dropped": [] if grow else list(range(65)),
                "seconds": 0.004, "params_before": params, "params_after": params, "flops_before": 1, "flops_after": 1,
                "shock_kl": 0.02 * cycle if grow else 0.3, "shock_loss": 0.01 if grow else 0.2,
            })  # fmt: skip
        if grow:
            self._parity("post", cycle, 0.15, -1.9, 0)
        else:
            self._parity("survivors", cycle, 0.02, 0.1, None, "after/before")
        return 0.01

    def _ages(self, cycle: int, inner: int) -> None:
        for part in range(1, 4):
            age = (inner - 1) * STEPS_PER_EPOCH + part * 150
            self._parity("age", cycle, 0.15 * math.exp(-age / 600), -1.1 - 0.8 * math.exp(-age / 300), age)

    def _parity(
        self, moment: str, cycle: int, activation: float, gradient: float, age: int | None,
        cohorts: str = "newborn/incumbent",
    ) -> None:  # fmt: skip
        for group in LAYERS:
            a, g = self.random.normal(activation, 0.05), self.random.normal(gradient, 0.15)
            silent = moment == "post" and group == "fc2" and cycle == 1
            self.lines.append({
                "kind": "probe", "phase": "cycle", "moment": moment, "cohorts": cohorts, "cycle": cycle, "step": 0,
                "age": age, "group": group, "newborn_activation": 0.4 * math.exp(a), "incumbent_activation": 0.4,
                "newborn_gradient": 0.0 if silent else 1e-4 * math.exp(g), "incumbent_gradient": 1e-4,
                "log_parity_activation": a, "log_parity_gradient": None if silent else g, "censored": silent,
                "newborns": 30, "incumbents": 60,
            })  # fmt: skip
