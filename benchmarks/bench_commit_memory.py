"""What a commit takes in memory, and what it takes in time as the tensors that it touches grow.

Memory: the bytes of every storage that a torch operation makes are counted from its making to its end, so the most
that there were at once is exact. Two bounds are shown, each as a share that should not be above 1:

- default: the most bytes beside those that were there, over the bytes of the new tensors that the edit touches, with
  their optimizer state;
- ``low_memory=True``: the most bytes beside the network as it was, or as it is after the last tensor with what an undo
  needs (whichever is more: neither can be avoided), over the largest touched tensor with its optimizer state.

Time: an edit of one group of an MLP at many widths, in seconds of the processor, beside a plain copy of as many bytes;
straight lines through (bytes touched, seconds) give the fixed part and the cost of a megabyte, R^2 says how straight
they are, and the exponent is that of the part that is not fixed.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import graphnet as gn


class Live(TorchDispatchMode):
    """Bytes of the storages that torch operations made and that are still alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return found

    def note(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self.seen or not storage.nbytes():
            return
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        self.seen[storage._cdata] = weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())

    def gone(self, key: int, size: int) -> None:
        self.now -= size
        del self.seen[key]


def network(widths: list[int], optimizer: str = "Adam") -> tuple[gn.Network, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = gn.Network(gn.mlp(widths), seed=0)
    attached: torch.optim.Optimizer = getattr(torch.optim, optimizer)(net.parameters(), lr=1e-3)
    net.attach(attached)
    net(torch.randn(2, widths[0])).square().mean().backward()
    attached.step()
    attached.zero_grad()
    return net, attached


def tensors(net: gn.Network, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [*net.parameters(), *(v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))]


def change(edit: gn.Edit, kind: str) -> None:
    for name, group in list(edit.graph.groups.items()):
        if group.output:
            continue
        units = list(group.ids[: group.size // 4])
        if kind == "grow every layer by a quarter":
            edit.grow(name, len(units))
        elif kind == "prune a quarter of every layer":
            edit.prune(name, units=units)
        elif kind == "replace a quarter of every layer":
            edit.prune(name, units=units)
            edit.grow(name, len(units))
        else:
            edit.grow(name, len(units), init="net2wider")


KINDS = (
    "grow every layer by a quarter", "prune a quarter of every layer", "replace a quarter of every layer",
    "net2wider by a quarter",
)  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes: before the commit; at its end, with what an undo would need; after it; the most that there were."""

    before: int
    ending: int
    after: int
    peak: int
    touched: int
    largest: int

    @property
    def share(self) -> float:
        """What the default commit takes beside what was there, over the bytes touched."""
        return (self.peak - self.before) / self.touched

    @property
    def low_share(self) -> float:
        """What the commit takes beside old, new and what an undo needs, over the largest tensor with its state."""
        return (self.peak - max(self.before, self.ending)) / self.largest


def measure(kind: str, *, low: bool, layers: int, width: int, optimizer: str = "Adam") -> Memory:
    """Make one edit and count."""
    net, attached = network([64, *[width] * layers, 10], optimizer)
    context = net.edit(low_memory=low)
    edit = context.__enter__()
    change(edit, kind)
    touched, ending = edit.cost.transient_bytes, 0
    largest = max(_bytes_with_state(net, attached).values())
    gc.collect()
    live = Live()
    for thing in gc.get_objects():  # the plan holds what newborns will start with, made when it was described
        if type(thing) in (Tensor, torch.nn.Parameter):
            live.note(thing)
    del thing
    before, clear = live.now, torch.clear_autocast_cache

    def last() -> None:
        """What a commit does last before the new version is there."""
        nonlocal ending
        ending = live.now
        clear()

    torch.clear_autocast_cache = last
    try:
        with live:
            context.__exit__(None, None, None)
    finally:
        torch.clear_autocast_cache = clear
    largest = max(largest, *_bytes_with_state(net, attached).values())
    after = sum(t.untyped_storage().nbytes() for t in tensors(net, attached))
    return Memory(before, ending, after, live.peak, touched, largest)


def _bytes_with_state(net: gn.Network, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    return {
        name: sum(t.nbytes for t in (p, *optimizer.state[p].values()) if isinstance(t, Tensor))
        for name, p in net.named_parameters()
    }


def memory(layers: int, width: int) -> Table:
    table = Table(title=f"peak memory of a commit, MLP of {layers} layers of {width}; megabytes")
    for column in ("edit", "optimizer", "network and state", "touched", "default: beside it", "/ touched",
                   "largest + state", "undo needs", "low memory: beside both", "/ (largest + state)"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("edit", "optimizer") else "right")
    for kind in KINDS:
        for optimizer in ("Adam", "SGD"):
            default, low = (
                measure(kind, low=low, layers=layers, width=width, optimizer=optimizer) for low in (False, True)
            )
            shown = (
                default.before, default.touched, default.peak - default.before, default.share, low.largest,
                max(0, low.ending - low.after), low.peak - max(low.before, low.ending), low.low_share,
            )  # fmt: skip
            table.add_row(kind, optimizer, *(f"{v:.3f}" if isinstance(v, float) else f"{v / 1e6:.2f}" for v in shown))
    return table


def timing(widths: list[int], rounds: int) -> Table:
    table = Table(title=f"processor time of an edit (8 units of fc1, MLP 256-n-256-10, Adam) against the bytes it "
                        f"touches; medians of {rounds}")  # fmt: skip
    for column in ("edit", "mode", "n", "MB touched", "ms", "ms of a copy", "edit / copy"):
        table.add_column(column, justify="right")
    fits = []
    for kind in ("grow", "prune"):
        for low in (False, True):
            points, mode = [], "low" if low else "default"
            for width in widths:
                megabytes, seconds, copy = one_edit(kind, low, width, rounds)
                points.append((megabytes, seconds, copy))
                table.add_row(
                    kind, mode, f"{width}", f"{megabytes:.2f}", f"{1e3 * seconds:.2f}", f"{1e3 * copy:.2f}",
                    f"{seconds / copy:.1f}",
                )  # fmt: skip
            fits.append((kind, mode, *fitted(np.array(points).T)))
    for kind, mode, fixed, slope, r2, exponent, ratio in fits:
        table.add_row(
            kind, mode, "fit", f"{1e3 * fixed:.2f} ms fixed", f"{1e3 * slope:.3f} per MB",
            f"R² {r2:.4f}, exponent {exponent:.2f}", f"{ratio:.1f} per MB",
        )  # fmt: skip
    return table


def fitted(points: Any) -> tuple[float, float, float, float, float]:
    """The fixed part, the cost of a megabyte, R², the exponent of what is not fixed, the same cost over a copy's."""
    x, y, copy = points
    slope, fixed = np.polyfit(x, y, 1)
    r2 = 1 - ((y - slope * x - fixed) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    floor = y.min()  # what the smallest edit takes is fixed almost all
    rising = y > 2 * floor
    exponent = np.polyfit(np.log(x[rising]), np.log(y[rising] - floor), 1)[0] if rising.sum() > 1 else float("nan")
    return fixed, slope, r2, exponent, slope / np.polyfit(x, copy, 1)[0]


def one_edit(kind: str, low: bool, width: int, rounds: int) -> tuple[float, float, float]:
    """Megabytes touched by an edit, the median of its seconds, and of those of a plain copy of as many bytes."""
    net, _ = network([256, width, 256, 10])
    times: list[float] = []
    copies: list[float] = []
    moved = 0
    for turn in range(rounds + 1):
        for step in ("grow", "prune"):
            started = time.process_time()
            with net.edit(low_memory=low) as edit:
                if step == "grow":
                    edit.grow("fc1", 8)
                else:
                    edit.prune("fc1", units=list(net.graph.groups["fc1"].ids[:8]))  # from the front: all is moved
            if step == kind and turn:
                times.append(time.process_time() - started)
                moved = net.history.latest.bytes_moved
        held = [torch.ones(moved // 4 // 8) for _ in range(8)] if moved else []
        started = time.process_time()
        again = [tensor.clone() for tensor in held]
        copies.append(time.process_time() - started)
        del held, again
    return moved / 1e6, statistics.median(times), statistics.median(copies[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    console.print(memory(given.layers, given.width))
    console.print(timing([256, 512, 1024, 2048, 4096, 8192], given.rounds))


if __name__ == "__main__":
    main()
