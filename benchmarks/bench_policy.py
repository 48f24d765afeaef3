"""What a policy of ten rules costs a training step while none of them fires.

A training step of a convolutional network, on one thread, for two of them: the study's (two convolutions of 32 and 64
channels on 32 x 32 pixels, three hidden layers, batches of 16), and a toy of a tenth of its cost (8 and 16 channels on
16 x 16 pixels, batches of 32), of whose step every microsecond is a larger share. It is timed bare, bare again (the
control: what differs between the two is noise), and with the policy stepped behind it. The order rotates from round to
round and medians are compared. The cost is below what a difference of steps can show, so the policy alone is timed too,
in the same rounds:

- not due: the ten rules as the example policies have them, between two of their ticks;
- all due: the same rules due at every step, each with its match and its guard false or its pattern nowhere.

On a machine that does other work as well, medians hold that work; the minimum is what the calls themselves take.
`python benchmarks/bench_policy.py [--check]`; with --check the status is 1 where a minimum passes 1% of a step of the
study's network.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from graphnet.ir.builders import convnet
from graphnet.ir.graph import Graph
from graphnet.rules import Policy, load_policy
from graphnet.runtime.network import Network

ROUNDS, CALLS = 60, 50
LIMIT = 1.0  # percent

HIDDEN = "units h[role=hidden]"
GROW = [{"do": "grow", "units": "h", "count": 4}]
PRUNE = [{"do": "prune", "units": "h", "lowest": 2}]
RESIDUAL = [
    {"do": "insert", "name": "branch", "op": "conv2d", "inputs": ["src"], "like": "src", "init": "zeros"},
    {"do": "insert", "name": "sum", "op": "add", "inputs": ["src", "branch"]},
    {"do": "redirect", "edge": "src -> dst", "to": "sum"},
]
RULES: list[dict[str, Any]] = [
    {"name": "plateau", "match": HIDDEN, "steps": GROW, "when": {"kind": "plateau", "metric": "loss", "window": 200}},
    {"name": "parity", "match": HIDDEN, "steps": GROW, "when": {"kind": "all", "of": [
        {"kind": "age", "of": "h", "above": 1e9}, {"kind": "parity", "of": "h", "above": 0.5}]}},
    {"name": "budget", "match": HIDDEN, "steps": GROW, "when": {"kind": "cost", "metric": "params", "below": 10}},
    {"name": "prune", "match": HIDDEN, "steps": PRUNE, "when": {"kind": "budget", "metric": "params", "above": 0.99}},
    {"name": "wake", "match": "units h[role=hidden, dormant>0]",
     "steps": [{"do": "recruit", "units": "h", "count": 1}]},
    {"name": "residual", "match": "src:relu -> dst:max_pool", "steps": RESIDUAL,
     "when": {"kind": "metric", "metric": "accuracy", "above": 2}},
    {"name": "deepen", "match": "act:relu -> fc:linear", "steps": [{"do": "deepen", "after": "act"}],
     "when": {"kind": "since", "event": "task", "above": 1e9}},
    {"name": "separate", "match": "c:conv2d[kernel>=3] -> relu",
     "steps": [{"do": "replace", "node": "c", "by": "separable"}],
     "when": {"kind": "metric", "metric": "loss", "below": -1}},
    {"name": "norm", "match": "a:conv2d -> batch_norm", "steps": [{"do": "remove", "node": "a"}]},
    {"name": "classes", "match": "units c[role=classifier]", "steps": [{"do": "grow", "units": "c", "count": 2}],
     "when": {"kind": "event", "event": "task"}},
]  # fmt: skip


def seconds(action: Callable[[], object], times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - started) / times


class Stepped:
    """A policy with its step counter."""

    def __init__(self, net: Network, every: int) -> None:
        schedule = {"kind": "every", "steps": every, "start": every}
        rules = [{**rule, "schedule": schedule} for rule in RULES]
        document = {"rules": rules, "budgets": {"params": 1e9}, "immunity": 100}
        self.policy: Policy = load_policy(document)
        self.net, self.at = net, 0
        self.policy.step(net, step=0, metrics={"loss": 1.0, "accuracy": 0.5})

    def __call__(self) -> None:
        self.at += 1
        self.policy.step(self.net, step=self.at, metrics={"loss": 1.0 / self.at, "accuracy": 0.5})


def measure(title: str, graph: Graph, batch: int) -> float:
    """Print the table of one network; the larger of the two shares of a step, in percent."""
    torch.manual_seed(0)
    net = Network(graph, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.attach(optimizer)
    x, y = torch.randn(batch, *graph.inputs[0].shape), torch.arange(batch) % 10
    seldom, always = Stepped(net, 10_000_000), Stepped(net, 1)

    def bare() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def with_seldom() -> None:
        bare()
        seldom()

    def with_always() -> None:
        bare()
        always()

    cases = {
        "bare": bare, "bare again (control)": bare, "ten rules, not due": with_seldom,
        "ten rules, all due": with_always,
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in cases}
    alone: dict[str, list[float]] = {"ten rules, not due": [], "ten rules, all due": []}
    for action in cases.values():
        seconds(action, 5)
    names = list(cases)
    for turn in range(ROUNDS):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(seconds(cases[name]))
        for name, policy in (("ten rules, not due", seldom), ("ten rules, all due", always)):
            alone[name].append(seconds(policy, CALLS))
    step, least = median(found["bare"]), min(found["bare"] + found["bare again (control)"])
    print(f"{title}: training step, batch {batch}, {ROUNDS} rounds: median, minimum")
    for name, times in found.items():
        print(
            f"  {name:<24}{1e6 * median(times):>10.1f} us {100 * (median(times) / step - 1):+7.2f} %"
            f"{1e6 * min(times):>12.1f} us {100 * (min(times) / least - 1):+7.2f} %"
        )
    print(f"policy.step alone, {ROUNDS} x {CALLS} calls: median and minimum, and that share of a step")
    shares = []
    for name, times in alone.items():
        shares.append(100 * min(times) / least)
        print(
            f"  {name:<24}{1e6 * median(times):>10.1f} us {100 * median(times) / step:7.2f} %"
            f"{1e6 * min(times):>12.1f} us {shares[-1]:7.2f} %"
        )
    hits = sum(entry["hits"] for each in (seldom, always) for entry in each.policy.stats().values())
    assert hits == 0, "a rule fired"
    misses = {status for entry in always.policy.stats().values() for status in entry["misses"]}
    assert misses == {"not due", "guard false", "no match"}
    return max(shares)


def main() -> int:
    torch.set_num_threads(1)
    share = measure("the study's ConvNet", convnet(), 16)
    measure("a toy", convnet((3, 16, 16), channels=(8, 16), hidden=(64, 64, 32)), 32)
    return 1 if "--check" in sys.argv[1:] and share > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
