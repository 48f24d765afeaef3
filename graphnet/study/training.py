"""The life of one cell: a plain PyTorch loop, edited at the start of each cycle, then the winning ticket.

Only the optimizer's work is training time; evaluation, probes and records come between epochs or beside them. A
checkpoint is taken at the end of an epoch, so a cell that was cut off goes on from there, bit for bit: the order of
samples, the random numbers and the learning rate of an epoch depend on the seed and on the epoch's number alone.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from graphnet.edit.host import Snapshot
from graphnet.ir.document import load
from graphnet.probes.ledger import Ledger, optimizer_bytes
from graphnet.runtime.checkpoint import load_checkpoint, save
from graphnet.runtime.history import Version
from graphnet.runtime.network import Network
from graphnet.schemas.experiment import Experiment, Optimizer
from graphnet.study.cells import Cell
from graphnet.study.datasets import Dataset, load_dataset
from graphnet.study.methods import check_matched
from graphnet.study.records import RecordFile, exclusive, write_json
from graphnet.study.session import CellSession, PhaseName, Position

__all__ = ["Tick", "load_data", "run_cell"]

Tick: TypeAlias = Callable[[int, int, str], object]
"""Called with epochs done, epochs in all, and what is going on, after every epoch."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training in one go: the cycles, or the ticket."""

    name: PhaseName
    epochs: int
    ends: tuple[int, ...]
    """After how many epochs each cycle ends; the ticket is scored at the same places."""

    @classmethod
    def of(cls, name: PhaseName, epochs: int, cycles: int) -> Phase:
        """Cut epochs into cycles as evenly as whole epochs allow."""
        ends = sorted({epochs * (cycle + 1) // cycles for cycle in range(cycles)} - {0})
        return cls(name, epochs, tuple(ends))

    def cycle(self, epoch: int) -> int:
        """The cycle of an epoch, both counted from 0."""
        return bisect_right(self.ends, epoch)


def load_data(experiment: Experiment) -> Dataset:
    """The experiment's data."""
    data = experiment.data
    return load_dataset(
        data.name, data.root, limit_train=data.limit_train, limit_test=data.limit_test, validation=data.validation
    )


def run_cell(folder: Path, experiment: Experiment, cell: Cell, data: Dataset, tick: Tick) -> None:
    """Train one cell to its end, from its checkpoint where it has one.

    Parameters
    ----------
    folder : Path
        The cell's folder; it is made.
    experiment : Experiment
        With every architecture written out.
    data : Dataset
        What :func:`load_data` gives.

    Raises
    ------
    GraphnetError
        The cell cannot be run as asked, or its files are damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", wait=True):
        training = CellTraining(folder, experiment, cell, data, tick)
        try:
            training.run()
        finally:
            training.close()


class CellTraining(CellSession):
    """One cell while it runs; what its method sees of it is :class:`~graphnet.study.methods.Session`."""

    optimizer: torch.optim.Optimizer

    def __init__(self, folder: Path, experiment: Experiment, cell: Cell, data: Dataset, tick: Tick) -> None:
        super().__init__(folder, experiment, cell, data)
        self.tick = tick
        epochs = self.cycles * experiment.train.epochs_per_cycle
        self.phases = {
            "cycle": Phase.of("cycle", epochs, self.cycles),
            "ticket": Phase.of("ticket", experiment.ticket.epochs or epochs, self.cycles),
        }
        self.total = epochs + (self.phases["ticket"].epochs if experiment.ticket.enabled else 0)
        self.earlier, self.started = 0.0, time.perf_counter()
        self.checkpoint = folder / "checkpoint" / "cell.gn"
        self.journal = RecordFile(folder / "journal.jsonl")

    # -- the course of a cell ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Train what is left of the cell."""
        self._resume()
        self._describe("running")
        if self.at.phase == "cycle":
            self._train(self.phases["cycle"])
            check_matched(self.net, self.targets)
            write_json(self.folder / "graph_after.json", self.net.graph.to_document())
            self._keep("cycle")
            if self.experiment.ticket.enabled:
                self._begin_ticket()
        if self.at.phase == "ticket":
            self._train(self.phases["ticket"])
            self._keep("ticket")
        self._describe("done")
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    def _begin(self) -> None:
        """Start the cell from nothing."""
        self.metrics.cut(0)
        self.journal.cut(0)
        write_json(self.folder / "graph_before.json", self.full.to_document())
        self._own(self.initial_network())
        self.net.attach(self.optimizer)
        self._follow(everything=True)
        self.method.begin(self)

    def _begin_ticket(self) -> None:
        """Go on with the final units alone: at their slots the backbone's new weights, or its initial ones."""
        self.at = Position("ticket", metrics_length=self.at.metrics_length, journal_length=self.at.journal_length)
        final = {group: self.net.graph.groups[group].ids for group in self.groups}
        rewound = self.experiment.ticket.init == "rewind"
        net = self.initial_network() if rewound else self.initial_network(_mix(self.cell.seed, 1))
        with net.edit() as edit:
            for group, ids in final.items():
                full = self.full.groups[group].ids
                spare = [unit for unit in full if unit not in set(ids)]
                foreign = len(set(ids) - set(full))  # units born beyond the backbone get slots that it has free
                if spare[foreign:]:
                    edit.prune(group, units=spare[foreign:])
        self._own(net)
        net.attach(self.optimizer)
        self._follow(everything=True)

    def _train(self, phase: Phase) -> None:
        while self.at.epoch < phase.epochs:
            cycle = phase.cycle(self.at.epoch)
            if phase.name == "cycle" and self.at.epoch in (0, *phase.ends[:-1]):
                self._event(cycle)
            loss = self._epoch(phase)
            self.at.epoch += 1
            ends = self.at.epoch in phase.ends
            if self.at.epoch == self.method.snapshot_epoch and phase.name == "cycle":
                self.kept = self.net.snapshot()
            if ends or self.at.epoch % self.experiment.evaluation.every_epochs == 0:
                accuracy = self._score(phase, cycle, loss)
                if ends:
                    self._end_cycle(phase, cycle, accuracy)
            every = self.experiment.checkpoints.every_epochs
            if ends if every is None else self.at.epoch % every == 0:
                self._save()
            done = self.at.epoch + (self.phases["cycle"].epochs if phase.name == "ticket" else 0)
            self.tick(done, self.total, f"{phase.name} {cycle + 1}/{len(phase.ends)}")

    def _event(self, cycle: int) -> None:
        """Let the method edit, and measure the newborns at birth."""
        self.cycle = cycle
        self.at.born, self.at.born_step = {}, self.at.step
        self.method.event(self, cycle)
        self.at.censored = self.measure("post", cycle)

    def _epoch(self, phase: Phase) -> Tensor:
        """One pass over the training samples; returns their mean loss, ``[]``."""
        net, optimizer, (x, y) = self.net, self.optimizer, self.train
        total = torch.zeros((), dtype=torch.float64)
        torch.manual_seed(_mix(self.cell.seed, phase.name == "ticket", self.at.epoch))  # noise of this epoch
        net.train()
        for measured, batches in self._pieces():
            with self.ledger.timing():
                for batch in batches:
                    rate = self._rate(phase)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    loss = self.loss(net(x[batch]), y[batch])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    total += loss.detach() * len(batch)
                    self.at.step += 1
                    self.ledger.step(len(batch))
            if measured:
                self.measure("age", phase.cycle(self.at.epoch))
                net.train()
        return total / len(y)

    def _pieces(self) -> Iterator[tuple[bool, list[Tensor]]]:
        """The batches of this epoch, cut where the newborns are measured."""
        every = self.experiment.probes.age_curve_every if self.at.born else None
        piece: list[Tensor] = []
        for age, batch in enumerate(self.stream.epoch(self.at.epoch), self.at.step - self.at.born_step + 1):
            piece.append(batch)
            if every is not None and (age % every == 0 or (age == 1 and self.at.censored)):
                yield True, piece
                piece = []
        yield False, piece

    def _rate(self, phase: Phase) -> float:
        lr = self.experiment.train.optimizer.lr
        if self.experiment.train.lr_schedule == "constant":
            return lr
        return lr * 0.5 * (1.0 + math.cos(math.pi * self.at.step / (phase.epochs * len(self.stream))))

    # -- measuring ------------------------------------------------------------------------------------------------

    def _score(self, phase: Phase, cycle: int, loss: Tensor) -> float:
        """Write the epoch's record; returns the accuracy on the test samples."""
        accuracy = self.accuracy(*self.test)
        graph, spent, now = self.net.graph, self.ledger.totals(), self.ledger.current
        record: dict[str, Any] = {
            "kind": "epoch", "phase": phase.name, "cycle": cycle + 1, "epoch": self.at.epoch, "step": self.at.step,
            "train_loss": float(loss), "test_accuracy": accuracy,
            "units": {group: graph.groups[group].size for group in self.groups},
            "dormant": {group: len(graph.groups[group].dormant) for group in self.groups},
            "params": now.params, "flops_forward": now.flops_forward,
            "flops_forward_nominal": now.flops_forward_nominal, "flops_total": spent["flops"],
            "flops_total_nominal": spent["flops_nominal"], "scoring_flops": spent["scoring_flops"],
            "param_steps": spent["param_steps"], "optimizer_bytes": optimizer_bytes(self.net),
            "wall_seconds": spent["wall_seconds"], "edit_seconds": spent["edit_seconds"],
        }  # fmt: skip
        if self.validation is not None:
            record["validation_accuracy"] = self.accuracy(*self.validation)
        self.metrics.append(record)
        return accuracy

    def _end_cycle(self, phase: Phase, cycle: int, accuracy: float) -> None:
        self.metrics.append({"kind": "checkpoint", "phase": phase.name, "cycle": cycle + 1, "accuracy": accuracy})
        if phase.name == "cycle":
            self.measure("end", cycle)

    # -- files --------------------------------------------------------------------------------------------------------

    def _own(self, net: Network) -> None:
        """Take a network to train, with an optimizer and a ledger of its own."""
        self.net = net
        self.optimizer = make_optimizer(self.experiment.train.optimizer, net)
        self.ledger = Ledger(net, batch_size=self.stream.batch_size, input_shape=self.shape)

    def _follow(self, *, everything: bool = False) -> None:
        """Write versions to the journal as they are made; ``everything``: also those that are there already."""
        for version in self.net.history if everything else ():
            self._journal(version)
        self.net.on_commit(self._journal)

    def _journal(self, version: Version) -> None:
        self.journal.append({"phase": self.at.phase, "step": self.at.step} | version.record())

    def _save(self) -> None:
        """Take a checkpoint: one file, replaced in one step."""
        self.at.metrics_length, self.at.journal_length = self.metrics.length, self.journal.length
        extra: dict[str, Any] = {
            "position": asdict(self.at), "ledger": self.ledger.state_dict(), "seconds": self._seconds(),
        }  # fmt: skip
        if self.kept is not None:
            extra["kept"] = {"graph": self.kept.graph.to_document(), "tensors": dict(self.kept.tensors)}
        save(self.net, self.checkpoint, extra=extra, rng=False)

    def _keep(self, phase: str) -> None:
        """Keep the network that a phase ended with, for :func:`graphnet.load_network`."""
        save(self.net, self.folder / f"{phase}.gn", rng=False)

    def _resume(self) -> None:
        """Go on from the checkpoint, or begin where there is none."""
        if not self.checkpoint.exists():
            self._begin()
            return
        found = load_checkpoint(self.checkpoint)
        extra = found.extra
        self.at, self.earlier = Position(**extra["position"]), float(extra["seconds"])
        self.metrics.cut(self.at.metrics_length)
        self.journal.cut(self.at.journal_length)
        if "kept" in extra:
            self.kept = Snapshot(load(extra["kept"]["graph"]), extra["kept"]["tensors"])
        net = found.network()
        self._own(net)
        found.resume(net, self.optimizer, rng=False)
        self._follow()
        self.ledger.load_state_dict(extra["ledger"])

    def _seconds(self) -> float:
        """Wall time that the cell has taken, in this process and before."""
        return self.earlier + time.perf_counter() - self.started

    def _describe(self, status: str) -> None:
        write_json(
            self.folder / "cell.json",
            self.cell.described() | {"status": status, "targets": dict(self.targets), "wall_seconds": self._seconds()},
        )

    def close(self) -> None:
        """Close the record files."""
        self.metrics.close()
        self.journal.close()


def make_optimizer(settings: Optimizer, net: Network) -> torch.optim.Optimizer:
    """The optimizer of a configuration, over every parameter."""
    options = settings.model_dump(exclude={"name"})
    classes: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    made: torch.optim.Optimizer = classes[settings.name](net.parameters(), **options)
    return made


def _mix(*numbers: int) -> int:
    """A seed that depends on every number."""
    text = ",".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
