"""A study's run folder as values: what was asked for, and what each cell has recorded so far.

Reading is forgiving. A run may still be going or have broken off, so a missing file, a record cut short or an
unknown field never stops the report; what could not be read is kept as a sentence in ``problems``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from graphnet.errors import DataError, GraphnetError
from graphnet.schemas.base import read_document
from graphnet.schemas.experiment import Experiment, load_experiment_document

__all__ = ["PHASES", "Cell", "Key", "Phase", "Record", "Run", "number", "read_run"]

Record = dict[str, Any]
Phase = Literal["cycle", "ticket"]
PHASES: tuple[Phase, ...] = ("cycle", "ticket")


@dataclass(frozen=True, order=True)
class Key:
    """What the seeds of a study repeat: one method on one backbone at one compactness."""

    backbone: str
    compactness: float
    label: str


@dataclass(frozen=True)
class Cell:
    """One training run: a method on a backbone at a compactness, with one seed.

    Attributes
    ----------
    name : str
        Its folder's name.
    method : str
        ``dense``, ``prune`` or ``grow``, whatever its label.
    status : str
        ``done``, ``running`` (or interrupted) or ``failed``.
    records : mapping of kind to records
        ``epoch``, ``edit``, ``probe`` and ``checkpoint`` records in the order of their writing.
    """

    name: str
    folder: Path
    key: Key
    method: str
    seed: int
    status: str
    about: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)

    def of(self, kind: str, phase: Phase | None = None) -> Iterator[Record]:
        """Records of a kind, of one phase where it is given."""
        for record in self.records.get(kind, ()):
            if phase is None or record.get("phase", "cycle") == phase:
                yield record

    def targets(self) -> dict[str, int]:
        """Units that each editable group is to have at the end."""
        found = self.about.get("targets")
        return dict(found) if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes
    ----------
    experiment : Experiment or None
        None where ``experiment.yaml`` is missing or does not parse.
    environment : mapping
    cells : tuple of Cell
        In the order of backbone, compactness, method and seed.
    problems : tuple of str
        What could not be read, a sentence each.
    """

    folder: Path
    experiment: Experiment | None
    environment: Mapping[str, Any]
    cells: tuple[Cell, ...]
    problems: tuple[str, ...]

    def labels(self) -> list[str]:
        """Names of the methods, in the experiment's order; others after them."""
        known = list(self.experiment.labels()) if self.experiment else []
        rest = {cell.key.label: cell.method for cell in self.cells if cell.key.label not in known}
        order = ("dense", "prune", "grow")
        rank = {label: order.index(kind) if kind in order else len(order) for label, kind in rest.items()}
        return known + sorted(rest, key=lambda label: (rank[label], label))

    def methods(self) -> dict[str, str]:
        """The method behind each label."""
        found = {cell.key.label: cell.method for cell in self.cells}
        if self.experiment:
            found |= {m.label or m.method: m.method for m in self.experiment.methods}
        return {label: found.get(label, label) for label in self.labels()}

    def backbones(self) -> list[str]:
        """Names of the backbones, in the experiment's order."""
        known = [b.name for b in self.experiment.backbones] if self.experiment else []
        return list(dict.fromkeys([*known, *(cell.key.backbone for cell in self.cells)]))

    def levels(self, backbone: str) -> list[float]:
        """Compactnesses that methods other than dense have cells of; 1.0 alone where only dense has."""
        cells = [cell for cell in self.cells if cell.key.backbone == backbone]
        edited = {cell.key.compactness for cell in cells if cell.method != "dense"}
        return sorted(edited or {cell.key.compactness for cell in cells})

    def select(
        self, backbone: str, compactness: float | None = None, label: str | None = None
    ) -> list[Cell]:  # fmt: skip
        """Cells of a backbone; with a compactness, dense cells too, since they are everyone's reference."""
        return [
            cell
            for cell in self.cells
            if cell.key.backbone == backbone
            and (compactness is None or cell.key.compactness == compactness or cell.method == "dense")
            and (label is None or cell.key.label == label)
        ]

    def expected_cells(self) -> int | None:
        """How many cells the experiment asks for."""
        if self.experiment is None:
            return None
        levels = len(self.experiment.compactness)
        per_seed = sum(1 if method.method == "dense" else levels for method in self.experiment.methods)
        return per_seed * len(self.experiment.backbones) * len(self.experiment.seeds)

    def finished(self, cell: Cell, phase: Phase) -> bool:
        """Whether a cell has all checkpoints of a phase."""
        count = sum(1 for _ in cell.of("checkpoint", phase))
        if count == 0:
            return False
        if cell.status == "done" or (phase == "cycle" and any(cell.of("epoch", "ticket"))):
            return True
        wanted = self.experiment.train.cycles if self.experiment else None
        return phase == "cycle" and wanted is not None and count >= wanted


def number(value: Any) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(folder: Path | str) -> Run:
    """Read a run folder.

    Raises
    ------
    DataError
        The folder does not exist, or is no run folder: it has neither ``experiment.yaml`` nor ``cells``.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"there is no run folder {path}; give the folder that `graphnet run` printed")
    if not (path / "experiment.yaml").is_file() and not (path / "cells").is_dir():
        raise DataError(
            f"{path} is no run folder: expected experiment.yaml and the folder cells in it; "
            "give the folder that `graphnet run` printed"
        )
    problems: list[str] = []
    experiment = _experiment(path / "experiment.yaml", problems)
    environment = _json(path / "environment.json", problems)
    folders = sorted((path / "cells").iterdir()) if (path / "cells").is_dir() else []
    cells = [cell for entry in folders if entry.is_dir() and (cell := _cell(entry, problems))]
    run = Run(path, experiment, environment, (), ())
    labels = Run(path, experiment, environment, tuple(cells), ()).labels()
    backbones = Run(path, experiment, environment, tuple(cells), ()).backbones()
    cells.sort(
        key=lambda cell: (
            backbones.index(cell.key.backbone), cell.key.compactness, labels.index(cell.key.label), cell.seed
        )
    )  # fmt: skip
    return Run(run.folder, experiment, environment, tuple(cells), tuple(problems))


def _experiment(path: Path, problems: list[str]) -> Experiment | None:
    if not path.is_file():
        problems.append("experiment.yaml is missing, so what was asked for is not known.")
        return None
    try:
        data = dict(read_document(path))
        data.pop("runner", None)
        return load_experiment_document(data)
    except GraphnetError as error:
        problems.append(f"experiment.yaml cannot be read: {error}")
        return None


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds no JSON object.")
        return {}
    return found


def _cell(folder: Path, problems: list[str]) -> Cell | None:
    path = folder / "cell.json"
    if not path.is_file():
        problems.append(f"cell {folder.name} has no cell.json and is left out.")
        return None
    found: list[str] = []
    about = _json(path, found)
    try:
        key = Key(str(about["backbone"]), float(about.get("compactness") or 1.0), str(about["label"]))
        seed = int(about["seed"])
    except (KeyError, TypeError, ValueError) as error:
        reason = found[0] if found else f"cell.json lacks a usable {error}"
        problems.append(f"cell {folder.name} is left out: {reason}")
        return None
    method, status = str(about.get("method", key.label)), str(about.get("status", "running"))
    records: dict[str, list[Record]] = {}
    for record in _records(folder / "metrics.jsonl", folder.name, problems):
        records.setdefault(str(record.get("kind")), []).append(record)
    frozen = {kind: tuple(_newest(kind, each)) for kind, each in records.items()}
    return Cell(folder.name, folder, key, method, seed, status, about, frozen)


def _newest(kind: str, records: Iterable[Record]) -> Iterable[Record]:
    """Records without those that a resumed run wrote a second time."""
    names = {"epoch": ("phase", "epoch"), "checkpoint": ("phase", "cycle")}.get(kind)
    if names is None:
        return records
    return {tuple(record.get(name) for name in names): record for record in records}.values()


def _records(path: Path, cell: str, problems: list[str]) -> Iterator[Record]:
    if not path.is_file():
        problems.append(f"cell {cell} has no metrics.jsonl yet.")
        return
    broken = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                broken += bool(line.strip())
                continue
            if isinstance(record, dict):
                yield record
            else:
                broken += 1
    if broken:
        problems.append(f"cell {cell}: {broken} line(s) of metrics.jsonl are cut short and are left out.")
