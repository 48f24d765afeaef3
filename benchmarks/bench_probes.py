"""What the ledger costs a training step, and what a probe costs once.

The same training step of the study's small convolutional network is timed bare, bare again (the control: what
differs between the two is noise), with the ledger, and with the ledger inside its timing block. The order
rotates from round to round and medians are compared. The ledger alone is timed too, since its cost is below
what a difference of steps can show.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

from graphnet.ir.builders import convnet
from graphnet.probes import Cohorts, Ledger, probe
from graphnet.runtime.network import Network

ROUNDS, BATCH, CALLS = 60, 32, 20_000


def seconds(action: Callable[[], object], times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - started) / times


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Network(convnet((3, 16, 16), channels=(8, 16), hidden=(64, 64, 32)), seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.attach(optimizer)
    ledger, cohorts = Ledger(net, batch_size=BATCH), Cohorts(net)
    x, y = torch.randn(BATCH, 3, 16, 16), torch.arange(BATCH) % 10

    def bare() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def counted() -> None:
        bare()
        ledger.step(BATCH)

    def timed() -> None:
        with ledger.timing():
            counted()

    cases = {"bare": bare, "bare again (control)": bare, "with ledger": counted, "with ledger, timed": timed}
    found: dict[str, list[float]] = {name: [] for name in cases}
    for action in cases.values():
        seconds(action, 5)
    names = list(cases)
    for turn in range(ROUNDS):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(seconds(cases[name]))
    step = median(found["bare"])
    print(f"training step, batch {BATCH}, {ROUNDS} rounds, medians")
    for name, times in found.items():
        print(f"  {name:<24}{1e6 * median(times):>10.1f} us   {100 * (median(times) / step - 1):+6.2f} %")

    alone = median(seconds(lambda: ledger.step(BATCH), CALLS) for _ in range(7))
    with ledger.timing():
        clocked = median(seconds(lambda: ledger.step(BATCH), CALLS) for _ in range(7))
    recorded = median(seconds(lambda: cohorts.record(0), CALLS) for _ in range(7))
    print(f"alone, medians of 7 x {CALLS} calls")
    for name, cost in (("ledger.step", alone), ("ledger.step, timed", clocked), ("cohorts.record", recorded)):
        print(f"  {name:<24}{1e6 * cost:>10.2f} us   {100 * cost / step:6.3f} % of a step")

    probing = median(seconds(lambda: probe(net, (x, y), F.cross_entropy)) for _ in range(15))
    fresh = []
    for _ in range(7):
        with net.edit() as edit:
            edit.grow("fc1", 1)
        fresh.append(seconds(lambda: ledger.step(BATCH)))
    print("now and then, medians")
    print(f"  {'probe, every group':<24}{1e6 * probing:>10.1f} us   {probing / step:6.2f} steps")
    print(f"  {'ledger.step, new version':<24}{1e6 * median(fresh):>10.1f} us   {median(fresh) / step:6.2f} steps")


if __name__ == "__main__":
    main()
