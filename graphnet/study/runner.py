"""Run a study: every cell of an experiment, in several processes, into one folder that a later run can go on with.

Processes exchange names of cells and progress; results go through files alone. A cell that fails does not stop the
others. A folder belongs to one experiment: running another one into it is refused.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.scores import SCORES
from graphnet.errors import CheckpointError, SchemaError
from graphnet.schemas.base import read_document, to_data, write_document
from graphnet.schemas.experiment import Experiment, GrowMethod, PruneMethod, load_experiment_document
from graphnet.study.cells import Cell, cells_of, editable_groups, full_graph, resolve, target_units
from graphnet.study.methods import RECRUIT
from graphnet.study.progress import Progress
from graphnet.study.records import exclusive, read_json, write_json, write_tables
from graphnet.study.summary import Summary, summarise
from graphnet.study.training import load_data
from graphnet.study.workers import StudyError, run_cells

__all__ = ["Run", "StudyError", "run"]

UNBOUND = ("output", "workers", "checkpoints")
"""Settings that change where and how a study runs, and none of its results."""


class Run:
    """A study that has been run.

    Attributes
    ----------
    folder : Path
        The run folder.
    experiment : Experiment
        As it was run.
    summary : Summary
        The tables: ``print(run.summary)``.
    """

    def __init__(self, folder: Path, experiment: Experiment, summary: Summary) -> None:
        self.folder, self.experiment, self.summary = folder, experiment, summary

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {len(cells_of(self.experiment))} cells)"


def run(
    study: Path | str | Mapping[str, Any] | Experiment,
    *,
    output: Path | str | None = None,
    resume: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Run:
    """Run a study, or what is left of it.

    Parameters
    ----------
    study : path, mapping or Experiment
        An experiment document.
    output : path, optional
        The run folder; by default the document's ``output``, else ``runs/<name>``.
    resume : bool
        Go on where the folder holds a part of this study: finished cells are kept, others go on from their last
        checkpoint. Without it, a folder that holds anything is refused.
    workers : int, optional
        Processes; by default the document's ``workers`` where it states them, else as many as there are processors
        or cells. One means this process.
    progress : bool
        Show progress bars.

    Returns
    -------
    Run

    Raises
    ------
    SchemaError
        The experiment is not valid, or cannot be run as it is.
    CheckpointError
        The folder holds another study, or one that another process is running.
    DataError
        The data, or a library of the extra ``study``, is missing.
    StudyError
        Cells failed; lists them. The others are finished, and a later run takes up what is left.

    Examples
    --------
    >>> import tempfile
    >>> study = {
    ...     "kind": "experiment", "schema_version": 1, "data": {"name": "digits", "limit_train": 100},
    ...     "backbones": [{"name": "mlp", "model": {"builder": "mlp", "sizes": [64, 8, 10]}, "editable": ["fc1"]}],
    ...     "methods": [{"method": "grow"}], "compactness": [0.5], "seeds": 1,
    ...     "train": {"cycles": 2, "epochs_per_cycle": 1, "optimizer": {"name": "sgd", "lr": 0.1}},
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = run(study, output=folder, workers=1, progress=False)
    >>> [(row.label, row.params) for row in found.summary.rows]
    [('grow', 310)]
    """
    experiment = study if isinstance(study, Experiment) else load_experiment_document(study)
    base = Path(study).parent if isinstance(study, str | Path) else Path()
    experiment = resolve(experiment, base)
    cells = cells_of(experiment)
    _check(experiment, cells)
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise SchemaError(f"workers is a number of processes, at least 1, not {workers!r}")
    folder = Path(output or experiment.output or Path("runs") / (experiment.name or "study"))
    _claim(folder, experiment, resume=resume)
    with exclusive(folder / ".lock", wait=False):
        data = load_data(experiment)
        _environment(folder, data.fingerprint, data.source)
        waiting = [cell for cell in cells if _status(folder, cell) != "done"]
        processes = min(workers or _workers(experiment), max(1, len(waiting)))
        with Progress(len(cells), len(cells) - len(waiting), shown=progress) as bars:
            failures = run_cells(folder, experiment, waiting, data, processes, bars)
        if failures:
            listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failures.items()))
            raise StudyError(
                f"{len(failures)} of {len(cells)} cells failed:\n{listed}\nThe others are in {folder}; each cell's "
                "error.txt has the details, and running the study again takes up what is left"
            )
        write_tables(folder)
        summary = summarise(folder)
        write_json(folder / "summary.json", summary.data())
    return Run(folder, experiment, summary)


def _check(experiment: Experiment, cells: tuple[Cell, ...]) -> None:
    """Find before training what would make a cell fail."""
    for backbone in experiment.backbones:
        graph = full_graph(backbone)
        groups = editable_groups(graph, backbone)
        for cell in cells:
            if cell.backbone == backbone.name:
                target_units(experiment, cell, graph, groups)
    for method, label in zip(experiment.methods, experiment.labels(), strict=True):
        if isinstance(method, PruneMethod):
            SCORES.get(method.score.name)
        if isinstance(method, GrowMethod) and method.init.name != RECRUIT:
            INITIALISERS.get(method.init.name)
        new = isinstance(method, GrowMethod) and method.init.name != RECRUIT
        if new and experiment.ticket.enabled and experiment.ticket.init == "rewind":
            raise SchemaError(
                f"method {label!r}: units that are born in training have no initial weights to rewind the ticket to; "
                "expected ticket.init: reinitialise, or init: recruit"
            )


def _claim(folder: Path, experiment: Experiment, *, resume: bool) -> None:
    """Make the folder, or see that it holds this very study."""
    document = folder / "experiment.yaml"
    if document.exists():
        if not resume:
            raise CheckpointError(f"{folder} holds a run already; choose another output, or let it resume")
        there, here = read_document(document), to_data(experiment)
        found = _difference(
            {k: v for k, v in there.items() if k not in UNBOUND}, {k: v for k, v in here.items() if k not in UNBOUND}
        )
        if found is not None:
            raise CheckpointError(
                f"{folder} holds a run of another experiment: {found}; choose another output, or remove that folder"
            )
        return
    try:
        if folder.exists() and any(folder.iterdir()):
            raise CheckpointError(f"{folder} is not empty and holds no run (no experiment.yaml); choose another output")
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made a run folder: {error}") from error
    write_document(experiment, document)


def _difference(there: Any, here: Any, where: str = "") -> str | None:
    """The first place where two documents differ, in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys((*here, *there)):
            at = f"{where}.{key}" if where else str(key)
            if key not in there or key not in here:
                return f"{at} is only in {'this one' if key in here else 'that one'}"
            if (found := _difference(there[key], here[key], at)) is not None:
                return found
        return None
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        return next((f for i, (a, b) in pairs if (f := _difference(a, b, f"{where}.{i}")) is not None), None)
    return None if there == here else f"{where} is {there!r} there and {here!r} here"


def _environment(folder: Path, fingerprint: str, source: str) -> None:
    """Write down what the run depends on; the data must be the same whenever it goes on."""
    path = folder / "environment.json"
    if path.exists():
        before = read_json(path)["data"]["fingerprint"]
        if before != fingerprint:
            raise CheckpointError(
                f"{folder} was begun with data of fingerprint {before[:12]}, and now it is {fingerprint[:12]}: the "
                "dataset's files changed; choose another output"
            )
        return
    write_json(path, {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "graphnet": _version(), "torch": torch.__version__, "python": platform.python_version(),
        "platform": platform.platform(), "processor": _processor(), "processors": os.cpu_count(),
        "git_commit": _commit(), "data": {"fingerprint": fingerprint, "source": source},
    })  # fmt: skip


def _version() -> str | None:
    try:
        return metadata.version("graphnet-engine")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return None


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source tree that this package is run from, if it is one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _workers(experiment: Experiment) -> int:
    if "workers" in experiment.model_fields_set:
        return experiment.workers
    allowed = getattr(os, "sched_getaffinity", None)  # not every system tells which processors a process may use
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _status(folder: Path, cell: Cell) -> str | None:
    path = folder / "cells" / cell.name / "cell.json"
    status: str | None = read_json(path)["status"] if path.exists() else None
    return status
