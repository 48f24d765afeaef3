"""What an edit costs: growth and pruning of a hidden layer against a plain copy of the bytes that it moves.

For each width: the median time of an edit, the bytes of all tensors that its commit replaces (weights, Adam's two
moments, gradients), the time to clone exactly those bytes, and the ratio. The last column clones the same bytes a
second time: a control that should read 1. All in seconds of the processor, so that others on the machine do not count.

Below the table, for growth and pruning: the straight line through (bytes, seconds), as a fixed part and the cost of a
megabyte; that cost over a clone's; and the exponent of what is not fixed, 1 where the cost is linear.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import graphnet as gn

ROUNDS = 9
GROWN = 16


def main() -> None:
    torch.set_num_threads(1)
    table = Table(
        title=f"one edit of fc1 ({GROWN} units), MLP 784-n-n-10 with Adam; medians of {ROUNDS} rotated rounds"
    )
    for column in ("n", "edit", "ms", "MB moved", "clone ms", "edit / clone", "edit / step", "clone / clone"):
        table.add_column(column, justify="right")
    points: dict[str, list[tuple[float, float, float]]] = {"grow": [], "prune": []}
    for width in (128, 256, 512, 1024, 2048, 4096):
        for name, megabytes, seconds, clone, step, control in measure(width):
            points[name].append((megabytes, seconds, clone))
            table.add_row(
                str(width), name, f"{1e3 * seconds:.2f}", f"{megabytes:.1f}", f"{1e3 * clone:.2f}",
                f"{seconds / clone:.2f}", f"{seconds / step:.2f}", f"{control / clone:.2f}",
            )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    for name, held in points.items():
        x, y, clone = np.array(held).T
        slope, fixed = np.polyfit(x, y, 1)
        r2 = 1 - ((y - slope * x - fixed) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        rising = y > 2 * y.min()  # what the smallest edit takes is fixed almost all
        exponent = np.polyfit(np.log(x[rising]), np.log(y[rising] - y.min()), 1)[0]
        console.print(
            f"{name}: {1e3 * fixed:.2f} ms and {1e3 * slope:.3f} ms a megabyte (R² {r2:.4f}), "
            f"{slope / np.polyfit(x, clone, 1)[0]:.2f} times a clone's; exponent {exponent:.2f}"
        )


def measure(width: int) -> list[tuple[str, float, float, float, float, float]]:
    """For growth and pruning: megabytes, and seconds of the edit, of a clone, of a training step, of a second clone."""
    torch.manual_seed(0)
    net = gn.Network(gn.mlp([784, width, width, 10]), seed=0)
    optimizer = torch.optim.Adam(net.parameters())
    net.attach(optimizer)
    x, y = torch.randn(64, 784), torch.randint(0, 10, (64,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def grow() -> None:
        with net.edit() as edit:
            edit.grow("fc1", GROWN)

    def prune() -> None:
        with net.edit() as edit:
            edit.prune("fc1", units=list(net.graph.groups["fc1"].ids[-GROWN:]))

    step()
    tensors = [p for name, p in net.named_parameters() if name in ("fc1.weight", "fc1.bias", "fc2.weight")]

    def clone() -> list[torch.Tensor]:
        return [t.clone() for p in tensors for t in (p.data, p.grad, *_moments(optimizer, p)) if t is not None]

    tasks: dict[str, Callable[[], object]] = {
        "grow": grow,
        "prune": prune,
        "clone": clone,
        "control": clone,
        "step": step,
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for turn in range(ROUNDS):
        # growth before pruning, everything else in rotated order around them
        others = [name for name in names if name not in ("grow", "prune")]
        others = others[turn % 3 :] + others[: turn % 3]
        for name in [others[0], "grow", others[1], "prune", others[2]]:
            started = time.process_time()
            tasks[name]()
            times[name].append(time.process_time() - started)
    middle = {name: statistics.median(values) for name, values in times.items()}
    moved = {v.steps[0].operator: v.bytes_moved for v in net.history if v.steps}
    return [
        (name, moved[name] / 1e6, middle[name], middle["clone"], middle["step"], middle["control"])
        for name in ("grow", "prune")
    ]


def _moments(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> list[torch.Tensor]:
    return [v for k, v in optimizer.state[parameter].items() if k != "step"]


if __name__ == "__main__":
    main()
