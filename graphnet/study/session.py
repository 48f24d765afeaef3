"""One network under study: its data, its edits and what is measured of it.

What a method may ask for is here (:class:`~graphnet.study.methods.Session`); the course of the training is in
:mod:`graphnet.study.training`. Edits are made one operator at a time, so that time, cost and shock belong to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from graphnet.edit.edit import Edit
from graphnet.edit.host import Snapshot
from graphnet.errors import SchemaError
from graphnet.ir.graph import Graph
from graphnet.probes.ledger import TRAINING_PASSES, Ledger
from graphnet.probes.parity import Parity, parity
from graphnet.probes.shock import function_shock, outputs
from graphnet.probes.statistics import Probe, probe
from graphnet.runtime.network import Network
from graphnet.schemas.experiment import Experiment
from graphnet.study.cells import Cell, editable_groups, full_graph, target_units
from graphnet.study.datasets import BatchStream, Dataset, stratified_indices
from graphnet.study.methods import Units, method_for
from graphnet.study.records import RecordFile

__all__ = ["CellSession", "PhaseName", "Position", "loss_function"]

PhaseName: TypeAlias = Literal["cycle", "ticket"]
Samples: TypeAlias = tuple[Tensor, Tensor]


@dataclass(slots=True)
class Position:
    """How far a cell has come; everything that the network, the optimizer and the ledger do not hold."""

    phase: PhaseName = "cycle"
    epoch: int = 0
    step: int = 0
    born: dict[str, list[int]] = field(default_factory=dict)
    born_step: int = 0
    censored: bool = False
    metrics_length: int = 0
    journal_length: int = 0


def loss_function(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of ``[..., classes]`` against ``[...]``."""
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


class CellSession:
    """A network, its data and its records; :class:`~graphnet.study.training.CellTraining` trains it.

    Parameters
    ----------
    folder : Path
        The cell's folder.
    experiment : Experiment
        With every architecture written out.
    cell : Cell
    data : Dataset
    """

    net: Network
    ledger: Ledger

    def __init__(self, folder: Path, experiment: Experiment, cell: Cell, data: Dataset) -> None:
        self.folder, self.experiment, self.cell = folder, experiment, cell
        self.dtype = torch.float64 if experiment.precision == "float64" else torch.float32
        backbone, config = cell.settings(experiment)
        self.full = full_graph(backbone)
        self.groups = editable_groups(self.full, backbone)
        self.targets: Mapping[str, int] = target_units(experiment, cell, self.full, self.groups)
        self.method = method_for(config)
        self.train, self.test, self.validation = _fit(data, self.full, self.dtype)
        self.shape = tuple(self.train[0].shape[1:])
        self.loss = loss_function
        self.cycles = experiment.train.cycles
        self.stream = BatchStream(len(self.train[1]), experiment.train.batch_size, cell.seed)
        chosen = stratified_indices(data.train_y, experiment.probes.batch, cell.seed)
        self.side = self.train[0][chosen], self.train[1][chosen]
        self.at = Position()
        self.cycle = 0
        self.kept: Snapshot | None = None
        self.metrics = RecordFile(folder / "metrics.jsonl")

    # -- measuring ------------------------------------------------------------------------------------------------

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Share of right answers, in evaluation mode."""
        self.net.eval()
        size = self.experiment.evaluation.batch_size
        right = torch.zeros((), dtype=torch.int64)
        with torch.no_grad():
            for part, target in zip(torch.split(x, size), torch.split(y, size), strict=True):
                right += (self.net(part).argmax(-1) == target).sum()
        return int(right) / y.numel()

    def _probe(self) -> Probe:
        return probe(self.net, self.side, self.loss, groups=self.groups, tau=self.experiment.probes.tau)

    def measure(self, moment: str, cycle: int) -> bool:
        """Record parity of the last event's newborns; returns whether a gradient could not be told from zero."""
        if not self.experiment.probes.parity or not self.at.born:
            return False
        found = self._probe()
        parities = [found.parity(group, units) for group, units in self.at.born.items()]
        for each in parities:
            self._record_parity(moment, cycle, each, "newborn/incumbent")
        return any(each.censored for each in parities)

    def _record_parity(self, moment: str, cycle: int, found: Parity, cohorts: str) -> None:
        age = self.at.step - self.at.born_step if cohorts == "newborn/incumbent" else None
        self.metrics.append(
            {"kind": "probe", "phase": self.at.phase, "moment": moment, "cohorts": cohorts, "cycle": cycle + 1,
             "step": self.at.step, "age": age} | found.record()
        )  # fmt: skip

    # -- what a method asks for (graphnet.study.methods.Session) ------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.at.step

    @cached_property
    def initial(self) -> Snapshot:
        """The weights before the first edit."""
        return self.initial_network().snapshot()

    def minibatch(self, cycle: int) -> tuple[Tensor, Tensor]:
        """The mini-batch that scores and initialisers of a cycle read."""
        chosen = BatchStream(self.stream.n, self.stream.batch_size, -1 - self.cell.seed).epoch(cycle)[0]
        return self.train[0][chosen], self.train[1][chosen]

    @contextmanager
    def edit(self) -> Iterator[Edit]:
        """A transaction of one operator, timed and recorded with its function shock."""
        x, y = self.side
        before, was, version = outputs(self.net, x), self.ledger.current, self.net.version
        started = time.perf_counter()
        with self.net.edit() as edit:
            yield edit
        seconds = time.perf_counter() - started
        if self.net.version == version:
            return
        self.ledger.edit(seconds)
        shock, now = function_shock(before, outputs(self.net, x), y=y, loss=self.loss), self.ledger.current
        for step in self.net.history.latest.steps:
            self.metrics.append({
                "kind": "edit", "phase": self.at.phase, "cycle": self.cycle + 1, "step": self.at.step,
                "version": self.net.version, "operator": step.operator, "group": step.group,
                "born": step.born, "dropped": step.dropped, "seconds": seconds,
                "params_before": was.params, "params_after": now.params,
                "flops_before": was.flops_forward, "flops_after": now.flops_forward,
                "shock_kl": shock.kl, "shock_loss": shock.delta_loss,
            })  # fmt: skip
            if step.group is not None and step.born:
                self.at.born.setdefault(step.group, []).extend(step.born)

    def scored(self, *, group: str | None, gradients: bool) -> None:
        """Charge the compute of one look at the mini-batch; with ``group``, its dormant units ran too."""
        graph = self.net.graph
        if group is not None:
            found = graph.groups[group]
            graph = graph.resized({group: replace(found, ids=found.extended, dormant=())})
        flops = graph.cost(self.shape, batch=self.stream.batch_size).flops
        self.ledger.scoring(flops * (TRAINING_PASSES if gradients else 1))

    def exiting(self, pruned: Units) -> None:
        """Record parity of the units that stay and those that are about to go."""
        if not self.experiment.probes.parity or not pruned:
            return
        found = self._probe()
        for group, units in pruned.items():
            gone = set(units)
            kept = [unit for unit in self.net.graph.groups[group].ids if unit not in gone]
            self._record_parity("exit", self.cycle, found.parity(group, kept, units), "kept/pruned")

    @contextmanager
    def survivors(self) -> Iterator[None]:
        """Record the survivors' statistics after the block over those before it."""
        if not self.experiment.probes.parity:
            yield
            return
        before = self._probe()
        yield
        after = self._probe()
        if after.version == before.version:
            return
        for group in self.groups:
            now, was = after.group(group), before.group(group)
            at = was.positions(now.ids)
            change = parity(group, now.activation, was.activation[at], now.gradient, was.gradient[at])
            self._record_parity("survivors", self.cycle, change, "after/before")

    def initial_network(self, seed: int | None = None) -> Network:
        """The full backbone with the cell's initial weights, or those of another seed."""
        return Network(self.full, self.cell.seed if seed is None else seed, init="kaiming").to(self.dtype)


def _fit(data: Dataset, graph: Graph, dtype: torch.dtype) -> tuple[Samples, Samples, Samples | None]:
    """Training, test and validation samples in the form that the graph reads."""
    if len(graph.inputs) != 1:
        raise SchemaError(f"a study's backbone reads one input; this one reads {[op.name for op in graph.inputs]}")
    shape = graph.inputs[0].shape
    if len(shape) == 1 and len(data.shape) > 1:
        data = data.flat()
    wrong = len(shape) != len(data.shape)
    if wrong or any(isinstance(n, int) and n != m for n, m in zip(shape, data.shape, strict=True)):
        raise SchemaError(
            f"the backbone {graph.name!r} reads inputs of shape {list(shape)}; samples of {data.name!r} have "
            f"{list(data.shape)}: change the backbone's sizes or input_shape"
        )

    def ready(x: Tensor, y: Tensor) -> Samples:
        return (x.to(dtype) if x.is_floating_point() else x), y

    held_out = None
    if data.validation_x is not None and data.validation_y is not None:
        held_out = ready(data.validation_x, data.validation_y)
    return ready(data.train_x, data.train_y), ready(data.test_x, data.test_y), held_out
