"""Kill training runs with SIGKILL at random moments and see that each resume goes on bit for bit.

A run trains, edits its network and saves every few micro-batches, with gradients in flight, an average of the weights,
a scheduler, kept versions and rollbacks, and draws its data order and its edits from torch's, numpy's and Python's
random numbers. An uninterrupted run of the same kind writes down a digest of everything after each micro-batch. Then
processes are killed: half of them at any moment, half at a moment within a save. After each kill the file under the
checkpoint's name must be the last whole one, or the one whose writing was just ending, and whatever a killed writer
left must not load as anything else; the next process must find exactly that state, and every state after it must be
that of the uninterrupted run.

    python scripts/kill.py                       200 kills, a table of what they hit
    python scripts/kill.py --kills 10 --json -   a few, as JSON

It ends with status 1 where anything is not as it must be. One process imports torch and forks the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import graphnet as gn
from graphnet.runtime.checkpoint import load_checkpoint
from graphnet.testing import state_of

TICKS = 60
"""Micro-batches of a run, by default; two make an optimizer step."""
SAVE_EVERY = 2
EDIT_EVERY = 3
PER_RUN = 14
"""Kills after which a run is left to end."""


# -- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A network and how it is trained."""

    graph: Callable[[], gn.Graph]
    optimizer: Callable[[gn.Network], Optimizer]
    scheduler: Callable[[Optimizer], LRScheduler]
    example: Callable[[Tensor], Tensor]
    deepens: str | None = None


def _two_groups(net: gn.Network) -> Optimizer:
    head = list(net.get_submodule("head").parameters())
    rest = [p for p in net.parameters() if all(p is not h for h in head)]
    groups = [{"params": rest, "lr": 2e-3}, {"params": head, "weight_decay": 0.1}]
    return torch.optim.Adam(groups, lr=1e-3, amsgrad=True)


KINDS: dict[str, Kind] = {
    "mlp, Adam": Kind(
        lambda: gn.mlp([64, 320, 192, 10], dropout=0.25),
        _two_groups,
        lambda o: torch.optim.lr_scheduler.StepLR(o, 4, gamma=0.9),
        lambda x: x,
        "act1",
    ),
    "convnet, SGD": Kind(
        lambda: gn.convnet((1, 8, 8), channels=[16, 24], hidden=[64], classes=10, norm="batch", dropout=0.1),
        lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30),
        lambda x: x.reshape(-1, 1, 8, 8),
    ),
    "transformer, AdamW": Kind(
        lambda: gn.transformer(10, width=32, depth=1, heads=4, context=64, tied=True, dropout=0.1),
        lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 2e-3, total_steps=TICKS),
        lambda x: (x.abs() * 5).long().clamp(max=9)[:, :16],
    ),
}


@dataclass
class Run:
    """A run that can be saved and resumed, with everything that it reads."""

    kind: Kind
    net: gn.Network
    optimizer: Optimizer
    scheduler: LRScheduler
    average: AveragedModel
    tick: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @classmethod
    def start(cls, kind: Kind) -> Run:
        """From the beginning."""
        torch.manual_seed(11)
        np.random.seed(12)  # noqa: NPY002
        random.seed(13)
        return cls._around(kind, gn.Network(kind.graph(), seed=4))

    @classmethod
    def _around(cls, kind: Kind, net: gn.Network) -> Run:
        optimizer, average = kind.optimizer(net), AveragedModel(net, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
        net.attach(optimizer)
        net.attach(average)
        return cls(kind, net, optimizer, kind.scheduler(optimizer), average)

    @classmethod
    def resume(cls, kind: Kind, path: Path) -> Run:
        """From a checkpoint."""
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(999)  # type: ignore[operator]
        checkpoint = load_checkpoint(path)
        run = cls._around(kind, checkpoint.network())
        checkpoint.resume(run.net, run.optimizer, state={"scheduler": run.scheduler, "average": run.average})
        run.tick, run.order = checkpoint.extra["tick"], checkpoint.extra["order"]
        return run

    def save(self, path: Path) -> None:
        """With gradients in flight: every other save lies between the two backward passes of a step."""
        self.net.save(
            path, extra={"tick": self.tick, "order": self.order}, gradients=True,
            state={"scheduler": self.scheduler, "average": self.average},
        )  # fmt: skip

    def train(self) -> None:
        """One micro-batch."""
        if self.order.numel() == 0:
            self.order = torch.randperm(len(DATA))
        mine, self.order = self.order[:16], self.order[16:]
        x = DATA[mine] + torch.from_numpy(np.random.normal(0, 0.1, (len(mine), 64))).float()  # noqa: NPY002
        output = self.net(self.kind.example(x))
        (output.square().mean() * (1 + random.random())).backward()
        self.tick += 1
        if self.tick % 2 == 0:
            self.optimizer.step()
            self.scheduler.step()
            self.average.update_parameters(self.net)
            self.optimizer.zero_grad()

    def edit(self) -> None:
        """What the random numbers say; an edit that is refused is one that changes nothing."""
        net, turn = self.net, self.tick // EDIT_EVERY
        open_groups = [g for name, g in sorted(net.graph.groups.items()) if g.frozen is None and not g.output]
        group = random.choice(open_groups)
        count = int(np.random.randint(1, 4))  # noqa: NPY002
        with suppress(gn.EditError):
            if turn % 7 == 5:
                net.keep(last=1)
            if turn % 7 == 0 and net.kept and turn > 7:
                net.rollback(next(iter(net.kept)))
                return
            with net.edit(low_memory=False) as edit:
                if turn % 7 in (1, 5):
                    edit.grow(group.name, count, init="kaiming", state="aged", speed=(2.0, 9))
                elif turn % 7 == 2:
                    edit.retire(group.name, lowest=count, score="random")
                elif turn % 7 == 3 and any(g.dormant for g in open_groups):
                    asleep = next(g for g in open_groups if g.dormant)
                    edit.recruit(asleep.name, units=asleep.dormant[:1], state="aged")
                elif turn % 7 == 4 and self.kind.deepens is not None and turn < 14:
                    edit.deepen(self.kind.deepens, form="residual")
                elif turn % 7 == 6:
                    edit.prune(group.name, lowest=count, score="random")
                else:
                    edit.grow(group.name, count, init="net2wider", state="transplant", split="random")

    def digest(self) -> str:
        """Of all that training reads: tensors, state, ages, averages, kept versions, history, random numbers."""
        total = hashlib.sha256()
        for name, tensor in sorted(state_of(self.net).items()):
            _add(total, name, tensor)
        for number, kept in sorted(self.net.kept.items()):
            for name, tensor in sorted(kept.tensors.items()):
                _add(total, f"kept {number} {name}", tensor)
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        journal = [{k: v for k, v in record.items() if k != "seconds"} for record in self.net.history.journal()]
        told = [
            self.tick, self.order.tolist(), groups, self.scheduler.state_dict(), int(self.average.n_averaged),
            random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),  # type: ignore[index]  # noqa: NPY002
            json.dumps(journal, sort_keys=True, default=repr), json.dumps(self.net.graph.to_document(), sort_keys=True),
        ]  # fmt: skip
        total.update(repr(told).encode())
        return total.hexdigest()


DATA = torch.randn(80, 64, generator=torch.Generator().manual_seed(5))


def _add(total: Any, name: str, tensor: Tensor) -> None:
    total.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
    total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


# -- the processes that are killed ------------------------------------------------------------------------------------

PHASES = ("start", "train", "edit", "save", "compare", "end")
_FIELDS = ("tick", "phase", "begun", "done", "resumed", "verified", "mismatch")


class Marks:
    """Numbers that a process leaves in memory that outlives it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(_FIELDS))

    def __getitem__(self, name: str) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * _FIELDS.index(name))[0])

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * _FIELDS.index(name), value)

    @property
    def phase(self) -> str:
        """What the process is at."""
        return PHASES[self["phase"]]

    @phase.setter
    def phase(self, name: str) -> None:
        self["phase"] = PHASES.index(name)


def work(kind: Kind, path: Path, ticks: int, expected: Mapping[int, str], marks: Marks) -> None:
    """Train from the checkpoint, or from the beginning where there is none, to the end; compare every state."""
    run = Run.resume(kind, path) if path.exists() else Run.start(kind)
    marks["resumed"] = run.tick
    while True:
        marks.phase = "compare"
        if run.digest() != expected[run.tick]:
            marks["mismatch"] = run.tick
            return
        marks["verified"] += 1
        if run.tick == ticks:
            break
        step(run, path, marks)
    marks.phase = "end"


def step(run: Run, path: Path, marks: Marks) -> None:
    """One micro-batch with what comes after it."""
    marks["tick"] = run.tick
    marks.phase = "train"
    run.train()
    if run.tick % EDIT_EVERY == 0:
        marks.phase = "edit"
        run.edit()
    if run.tick % SAVE_EVERY == 0:
        marks["begun"] = run.tick
        marks.phase = "save"
        run.save(path)
        marks["done"] = run.tick


def fork(act: Callable[[], object], errors: Path) -> int:
    """Run something in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            errors.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    return child


@dataclass
class Reference:
    """An uninterrupted run: the digest of every state, and how long it took."""

    digests: dict[int, str]
    seconds: float
    saving: float

    @classmethod
    def of(cls, kind: Kind, ticks: int, folder: Path) -> Reference:
        """Run it in a process of its own."""
        told = folder / "reference.json"

        def act() -> None:
            run, marks, saving = Run.start(kind), Marks(), []
            digests, started = {0: run.digest()}, time.perf_counter()
            while run.tick < ticks:
                step(run, folder / "run.gn", marks)
                if run.tick % SAVE_EVERY == 0:
                    again = time.perf_counter()
                    run.save(folder / "run.gn")
                    saving.append(time.perf_counter() - again)
                digests[run.tick] = run.digest()
            seconds = time.perf_counter() - started - sum(saving)
            versions = len(run.net.history.versions)
            told.write_text(json.dumps([list(digests.items()), seconds, statistics.median(saving), versions]))

        if os.waitpid(fork(act, folder / "errors.txt"), 0)[1] != 0:
            raise SystemExit((folder / "errors.txt").read_text())
        digests, seconds, saving, versions = json.loads(told.read_text())
        assert versions > ticks // EDIT_EVERY * 2 // 3, f"only {versions} versions"  # most edits are edits
        return cls(dict(digests), seconds, saving)


# -- killing ----------------------------------------------------------------------------------------------------------


@dataclass
class Killer:
    """Kills, and what came of them."""

    folder: Path
    kills: int
    kinds: dict[str, Kind]
    ticks: int
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def go(self) -> None:
        """Runs of every kind in turn, until there were enough kills."""
        kinds = self.kinds
        for kind in kinds.values():  # what is imported on first use is paid once
            run = Run.start(kind)
            for _ in range(4):
                step(run, self.folder / "warm.gn", Marks())
            run.digest()
        references: dict[str, Reference] = {}
        number = 0
        while self.counts["kills"] < self.kills and not self.wrong:
            name = list(kinds)[number % len(kinds)]
            if name not in references:
                place = self.folder / f"reference {name}"
                place.mkdir()
                references[name] = Reference.of(kinds[name], self.ticks, place)
            place = self.folder / f"run {number}"
            place.mkdir()
            self.run(kinds[name], name, references[name], place)
            shutil.rmtree(place)
            number += 1

    def run(self, kind: Kind, name: str, reference: Reference, folder: Path) -> None:
        """One run, killed again and again, and in the end left alone."""
        path, marks = folder / "run.gn", Marks()
        for field_name in ("begun", "done", "mismatch"):
            marks[field_name] = -1
        most = min(PER_RUN, -(-self.kills // len(self.kinds)))  # a few kills are spread over all kinds
        for turn in range(10_000):
            there = path.exists()
            before = marks["verified"]
            marks["resumed"], marks.phase = -1, "start"
            child = fork(lambda: work(kind, path, self.ticks, reference.digests, marks), folder / "errors.txt")
            killed = False
            if turn < most and self.counts["kills"] < self.kills:
                self.wait(marks, reference)
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            killed = os.WIFSIGNALED(status)
            if not killed and os.waitstatus_to_exitcode(status) != 0:
                self.wrong.append(f"{name}: {(folder / 'errors.txt').read_text()}")
            if marks["mismatch"] >= 0:
                self.wrong.append(f"{name}: another state at {marks['mismatch']}, resumed at {marks['resumed']}")
            if marks["verified"] > before:
                self.counts["resumes compared bit for bit" if there else "starts from the beginning"] += 1
            self.counts["states compared bit for bit"] += marks["verified"] - before
            if self.wrong:
                return
            if not killed:
                break
            self.inspect(name, path, marks)
        self.counts["runs that ended"] += marks.phase == "end"
        if os.listdir(folder) != ["run.gn"] or marks.phase != "end":
            self.wrong.append(f"{name}: ended in {marks.phase} with {os.listdir(folder)}")

    def wait(self, marks: Marks, reference: Reference) -> None:
        """Until a random moment: any, or one within a save."""
        if self.chance.random() < 0.5:
            time.sleep(self.chance.uniform(0, reference.seconds / 4))
            return
        for _ in range(self.chance.randint(1, 5)):
            last = marks["begun"]
            while marks["begun"] == last and marks.phase != "end" and marks["mismatch"] < 0:
                time.sleep(2e-4)
        time.sleep(self.chance.uniform(0, reference.saving))

    def inspect(self, name: str, path: Path, marks: Marks) -> None:
        """What a kill left: what is under the name is whole and the last one, and nothing else loads."""
        counts, inside = self.counts, marks.phase == "save"
        counts["kills"] += 1
        counts[f"kills during {marks.phase}"] += 1
        for left in path.parent.iterdir():
            if left == path:
                continue
            if not (left.name.startswith(f".{path.name}.") and left.suffix == ".tmp"):
                self.wrong.append(f"{name}: {left.name} is left")
                continue
            try:
                loaded = load_checkpoint(left).extra["tick"]
            except gn.CheckpointError:
                counts["half-written files left, each refused"] += 1
            else:
                counts["whole files left that were not yet renamed"] += 1
                if loaded != marks["begun"]:
                    self.wrong.append(f"{name}: {left.name} is of {loaded}")
        if not path.exists():
            counts["kills before there was a checkpoint"] += 1
            if marks["done"] >= 0:
                self.wrong.append(f"{name}: the checkpoint of {marks['done']} is gone")
            return
        try:
            found = load_checkpoint(path).extra["tick"]
        except gn.CheckpointError as error:
            self.wrong.append(f"{name}: {error}")
            return
        if inside and found == marks["begun"]:
            counts["saves that were killed and had been renamed"] += 1
            marks["done"] = found
        elif inside:
            counts["saves that were killed, the one before stands"] += 1
        if found != marks["done"]:
            self.wrong.append(f"{name}: the checkpoint is of {found}, and {marks['done']} was saved")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="only the first so many kinds of run")
    parser.add_argument("--ticks", type=int, default=TICKS, help="micro-batches of a run")
    parser.add_argument("--json", metavar="FILE", help="write the counts there; - is standard output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    kinds = dict(list(KINDS.items())[: given.kinds])
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder), given.kills, kinds, given.ticks, random.Random(given.seed))
        killer.go()
    told: dict[str, Any] = {**killer.counts, "seconds": round(time.perf_counter() - started, 1), "wrong": killer.wrong}
    if given.json == "-":
        print(json.dumps(told))
    else:
        if given.json:
            Path(given.json).write_text(json.dumps(told, indent=1))
        width = max(map(len, told))
        for key in sorted(killer.counts):
            print(f"{key:{width}} {killer.counts[key]:6}")
        print(f"{'seconds':{width}} {told['seconds']:6}")
        print("nothing is wrong" if not killer.wrong else "WRONG:\n" + "\n".join(killer.wrong))
    return 1 if killer.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
