"""Small studies, and what two runs must agree on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphnet.study.records import read_records

TIMES = ("seconds", "wall_seconds", "edit_seconds")

SMALL: dict[str, Any] = {
    "kind": "experiment",
    "schema_version": 1,
    "name": "small",
    "data": {"name": "digits", "limit_train": 240, "limit_test": 100},
    "backbones": [
        {"name": "mlp", "model": {"builder": "mlp", "sizes": [64, 24, 16, 10]}, "editable": ["fc1", "fc2"]},
    ],
    "methods": [{"method": "dense"}, {"method": "prune"}, {"method": "grow"}],
    "compactness": [0.5],
    "seeds": 1,
    "train": {
        "cycles": 3, "epochs_per_cycle": 2, "batch_size": 32,
        "optimizer": {"name": "adam", "lr": 0.003}, "lr_schedule": "cosine",
    },
    "probes": {"age_curve_every": 5, "batch": 64},
    "checkpoints": {"every_epochs": 1},
}  # fmt: skip


@pytest.fixture
def small() -> Callable[..., dict[str, Any]]:
    """Return a function that gives a small study, with some of its entries replaced."""

    def make(**changes: Any) -> dict[str, Any]:
        return copy.deepcopy(SMALL) | changes

    return make


@pytest.fixture
def untimed() -> Callable[[Path], dict[str, list[dict[str, Any]]]]:
    """Return a function that reads the records of each cell of a run, without times."""

    def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
        return {
            path.parent.name: [
                {key: value for key, value in record.items() if key not in TIMES} for record in read_records(path)
            ]
            for path in sorted(folder.glob("cells/*/metrics.jsonl"))
        }

    return read
