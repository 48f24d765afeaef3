from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import graphnet as gn
from graphnet.rules import load_policy

POLICIES = ("fixed_cycle_growth", "plateau_growth", "imp_rewind")


@pytest.mark.parametrize("name", POLICIES)
def test_the_policies_are_found_and_executable(name: str, root: Path) -> None:
    assert load_policy(root / "examples" / "policies" / f"{name}.yaml").rules


def test_fixed_cycles_grow_every_hidden_layer_by_an_eighth(root: Path) -> None:
    policy = load_policy(root / "examples" / "policies" / "fixed_cycle_growth.yaml")
    net = gn.Network(gn.mlp([4, 16, 8, 2]), seed=0)
    planned = policy.dry_run(net, range(0, 1200, 5))
    assert [(o.step, o.changes[0].after, o.changes[1].after) for o in planned] == [
        (0, 18, 9), (200, 20, 10), (400, 23, 11), (600, 26, 12), (800, 29, 14),
    ]  # fmt: skip


def test_magnitude_pruning_rewinds_survivors_to_their_first_weights(root: Path) -> None:
    policy = load_policy(root / "examples" / "policies" / "imp_rewind.yaml")
    net = gn.Network(gn.mlp([4, 20, 10, 2]), seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net.attach(optimizer)
    first = net.snapshot()
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    widths = []
    for step in range(0, 1300, 20):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if step == 0:
            first = net.snapshot()
        if policy.step(net, step=step)[0].applied:
            rows, columns = (list(net.graph.groups[name].ids) for name in ("fc2", "fc1"))
            assert torch.equal(net.fc2.weight, first.tensors["fc2.weight"][rows][:, columns])
            widths.append((len(columns), len(rows)))
    assert widths == [(16, 8), (13, 6), (10, 5), (8, 4), (6, 4)]  # a fifth each time; groups of 4 no longer match


def test_growing_in_a_plain_loop_learns_the_digits(root: Path) -> None:
    pytest.importorskip("sklearn")
    path = root / "examples" / "grow_in_a_loop.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True, check=True)
    *growth, last = found.stdout.splitlines()
    assert len(growth) == 4
    assert all("applied (grow fc1" in line for line in growth)
    assert float(last.split()[2]) > 0.9  # the ungrown network of 8 and 8 units reaches 0.84
