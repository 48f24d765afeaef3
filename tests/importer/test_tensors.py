"""Tensors of a model that share memory: parts of one memory, and parts that overlap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphnet as gn


class Parts(nn.Module):
    """A layer whose outputs are multiplied by one vector and added to another, both parts of one memory."""

    def __init__(self, second: int) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 6)
        whole = torch.rand(6 + second)
        self.one, self.two = nn.Parameter(whole[:6]), nn.Parameter(whole[second:])
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.fc(x) * self.one + self.two)
        return found


def test_halves_of_one_memory_are_two_tensors() -> None:
    model, x = Parts(6).eval(), torch.randn(3, 5)
    net = gn.from_torch(model, (x,))
    assert torch.equal(net(x), model(x))
    assert list(net.state_dict()) == list(model.state_dict())
    assert net.one is not net.two
    assert torch.equal(net.two, model.two)
    with net.edit() as edit:
        edit.prune("fc", units=[2])
    assert torch.equal(net.one, model.one[[0, 1, 3, 4, 5]])
    assert torch.equal(net.two, model.two[[0, 1, 3, 4, 5]])


def test_what_overlaps_keeps_its_shape() -> None:
    model, x = Parts(3).eval(), torch.randn(3, 5)
    net = gn.from_torch(model, (x,))
    assert torch.equal(net(x), model(x))
    with pytest.raises(gn.FrozenGroupError, match="fixed dimension of 6"), net.edit() as edit:
        edit.prune("fc", units=[2])
