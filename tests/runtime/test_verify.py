"""An edit that claims to preserve the function is held to it on an example."""

from __future__ import annotations

import pytest
import torch

import graphnet as gn
from graphnet.edit.plan import Plan, Step


def scale_everything(plan: Plan) -> None:
    """An operator that says it preserves the function, and does not."""
    value = plan.value("fc1.weight")
    plan.staged("fc1.weight").write([None, None], value * 1.5)
    plan.steps.append(Step("scale_everything", None, {}, preserves="function"))


def test_a_false_claim_is_caught_and_changes_nothing() -> None:
    net = gn.Network(gn.mlp([4, 8, 2]), seed=0)
    net.verify_on(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(gn.EditError, match=r"scale_everything.*changes by"), net.edit() as edit:
        edit.apply(scale_everything)
    assert net.version == 0
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    with net.edit() as edit:  # true claims pass, in units and in structure
        edit.grow("fc1", 3, preserves="function")
        edit.deepen("act1", form="residual", preserves="function")
    with net.edit() as edit:  # and no claim is no check
        edit.prune("fc1", lowest=2)
    net.verify_on()
    with net.edit() as edit:
        edit.apply(scale_everything)
    assert net.version == 3


def test_the_check_leaves_modes_and_statistics_alone() -> None:
    net = gn.Network(gn.mlp([4, 8, 2], norm="batch", dropout=0.5), seed=0)
    net.verify_on(torch.randn(5, 4))
    counted = {name: value.clone() for name, value in net.named_buffers()}
    state = torch.get_rng_state()
    with net.edit() as edit:
        edit.grow("fc1", 2, preserves="function")
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    for name, value in counted.items():
        if value.dim() == 0:
            assert torch.equal(value, net.get_buffer(name))


def test_an_edit_after_which_an_imported_program_does_not_run_is_refused() -> None:
    """A mean needs the type that the cast before it gave; the graph knows layouts, and no types."""

    class Share(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.layer(x) > 0).float().mean(-1, keepdim=True) * x

    net = gn.from_torch(Share(), (torch.randn(2, 4),))
    x = torch.randn(2, 4)
    before = net(x)
    with pytest.raises(gn.EditError, match="run on the"), net.edit() as edit:
        edit.remove("to")
    assert net.version == 0
    assert torch.equal(net(x), before)
