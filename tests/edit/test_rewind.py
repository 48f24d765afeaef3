"""Rewind: survivors go back to a snapshot by unit id."""

from __future__ import annotations

import pytest
import torch

import graphnet as gn
from graphnet.testing import random_network, sample, train, wave_loss


def trained(steps: int = 3) -> tuple[gn.Network, torch.optim.Adam]:
    net = random_network(gn.mlp([5, 8, 6, 3], norm="batch"), 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    train(net, optimizer, steps)
    return net, optimizer


def test_survivors_return_by_id_after_prune_and_grow() -> None:
    net, optimizer = trained()
    snapshot = net.snapshot()
    train(net, optimizer, 2, seed=1)
    with net.edit() as edit:
        edit.prune("fc1", units=[0, 3])
        born = edit.grow("fc1", 2)
    with pytest.raises(gn.EditError, match="born after the snapshot"), net.edit() as edit:
        edit.rewind("fc1", snapshot)
    with net.edit() as edit:
        edit.prune("fc1", units=born)
        edit.rewind("fc1", snapshot)
    kept = [1, 2, 4, 5, 6, 7]
    assert torch.equal(net.fc1.weight, snapshot.tensors["fc1.weight"][kept])
    assert torch.equal(net.norm1.running_var, snapshot.tensors["norm1.running_var"][kept])
    assert not torch.equal(net.fc2.weight, snapshot.tensors["fc2.weight"][:, kept])  # fc2 writes that one
    assert net.fc1.weight not in optimizer.state
    assert net.fc2.weight in optimizer.state
    train(net, optimizer, 1, seed=2)


def test_rewinding_everything_and_keeping_the_state() -> None:
    net, optimizer = trained()
    snapshot = net.snapshot()
    train(net, optimizer, 2, seed=1)
    with net.edit() as edit:
        edit.prune("fc1", units=[2])
        names = edit.rewind(None, snapshot, clear_state=False)
    assert set(names) == set(net.graph.tensors)
    assert torch.equal(net.fc2.weight, snapshot.tensors["fc2.weight"][:, [0, 1, 3, 4, 5, 6, 7]])
    assert float(optimizer.state[net.fc1.weight]["step"]) == 5
    assert tuple(optimizer.state[net.fc1.weight]["exp_avg"].shape) == (7, 5)


def test_a_snapshot_is_a_copy() -> None:
    net, optimizer = trained()
    snapshot = net.snapshot()
    before = snapshot.tensors["fc1.weight"].clone()
    train(net, optimizer, 1)
    with net.edit() as edit:
        edit.rewind("fc1", snapshot)
    train(net, optimizer, 1)
    assert torch.equal(snapshot.tensors["fc1.weight"], before)


def test_gradients_in_flight_outlive_a_rewind() -> None:
    net, optimizer = trained()
    snapshot = net.snapshot()
    optimizer.zero_grad()
    wave_loss(net(*sample(net.graph))).backward()
    grad = net.fc1.weight.grad.clone()
    with net.edit() as edit:
        edit.rewind("fc1", snapshot)
    assert torch.equal(net.fc1.weight.grad, grad)


@pytest.mark.parametrize("recruit_first", [False, True])
def test_ages_do_not_outlive_the_state_that_they_count(recruit_first: bool) -> None:
    # births count optimizer steps; a rewind drops the state, and the count starts at 0 again
    net, optimizer = trained(5)
    snapshot = net.snapshot()
    with net.edit() as edit:
        edit.retire("fc1", units=[2, 3])
    train(net, optimizer, 5)
    with net.edit() as edit:
        if recruit_first:
            edit.recruit("fc1", units=[2, 3], state="aged")
        edit.rewind(None, snapshot)
        if not recruit_first:
            edit.recruit("fc1", units=[2, 3], state="aged")
    for _ in range(3):  # with a constant gradient every step of fresh Adam state is lr, for every unit
        before = net.fc1.weight.detach().clone()
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        step = before - net.fc1.weight.detach()
        torch.testing.assert_close(step, torch.full_like(step, 0.01), rtol=1e-6, atol=0)


def test_a_foreign_snapshot_is_refused() -> None:
    net, _ = trained()
    with pytest.raises(gn.EditError, match="no tensor"), net.edit() as edit:
        edit.rewind(None, gn.Network(gn.mlp([5, 8, 3])).snapshot())
    with pytest.raises(gn.EditError, match="needs a snapshot"), net.edit() as edit:
        edit.rewind(None, net.state_dict())  # type: ignore[arg-type]
