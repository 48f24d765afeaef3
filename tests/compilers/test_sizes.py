"""Sizes in the code that is emitted: sums and products of what changes from batch to batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import graphnet as gn


class Joined(nn.Module):
    """Two sequences of any length, one after the other, whose positions are flattened and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([a, b], dim=1)
        count, length, _ = x.shape
        flat = self.head(self.fc(x).relu().reshape(count * length, -1))
        return flat.reshape(count, length, 2) + torch.arange(length, dtype=x.dtype)[None, :, None]


def test_sizes_are_sums_and_products_of_the_inputs_own() -> None:
    model, auto = Joined().eval(), torch.export.Dim.AUTO
    shapes = ({0: auto, 1: auto}, {0: auto, 1: auto})
    net = gn.from_torch(model, (torch.randn(2, 3, 4), torch.randn(2, 5, 4)), dynamic_shapes=shapes)
    for count, one, two in ((3, 7, 2), (2, 3, 5), (4, 1, 6)):
        a, b = torch.randn(count, one, 4), torch.randn(count, two, 4)
        assert torch.equal(net(a, b), model(a, b))
    with torch.no_grad():
        model.head.weight[:, [1, 4]] = 0
        net.head.weight[:, [1, 4]] = 0
    with net.edit() as edit:
        edit.prune("fc", units=[1, 4], preserves="function")
    torch.testing.assert_close(net(a, b), model(a, b))
