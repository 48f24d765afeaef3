"""Parametrized tensors (``torch.nn.utils.parametrize``): an edit leaves them alone, or is refused where it cannot.

Moving a tensor that is computed from others needs to know how: the norms of ``weight_norm`` run over the units that
would come and go, and fills of zero have no direction.
"""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - users do it
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

import graphnet as gn
from graphnet.testing import random_network

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Doubled(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        return 2 * original


def doubled(module: nn.Module) -> nn.Module:
    register_parametrization(module, "weight", Doubled())
    return module


KINDS: dict[str, Callable[[Any], Any]] = {
    "_WeightNorm": weight_norm,
    "_SpectralNorm": spectral_norm,
    "_Orthogonal": orthogonal,
    "Doubled": doubled,
}


def trained(kind: str, layer: str) -> tuple[gn.Network, torch.optim.Optimizer]:
    net = random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), 0)
    KINDS[kind](net.get_submodule(layer))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    for _ in range(2):
        step(net, optimizer)
    return net, optimizer


def step(net: gn.Network, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(X).square().mean().backward()
    optimizer.step()


def facts(net: gn.Network, optimizer: torch.optim.Optimizer, only: str = "") -> dict[str, Tensor]:
    found = {name: tensor.detach().clone() for name, tensor in net.state_dict().items() if name.startswith(only)}
    for name, parameter in net.named_parameters():
        if name.startswith(only):
            for key, value in optimizer.state[parameter].items():
                found[f"{name} {key}"] = value.clone()
            if parameter.grad is not None:
                found[f"{name} grad"] = parameter.grad.clone()
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_beside_it_changes_no_bit_of_it(kind: str) -> None:
    net, optimizer = trained(kind, "head")
    net.eval()
    before, output = facts(net, optimizer, "head"), net(X)
    net.train()
    original = net.head.parametrizations.weight.original if kind not in ("_WeightNorm",) else None
    with net.edit() as edit:
        edit.grow("fc1", 3, preserves="function")
        edit.permute("fc1", order=list(reversed(edit.graph.groups["fc1"].ids)))
    assert_same(facts(net, optimizer, "head"), before)
    assert all(part.training for part in net.modules())
    net.eval()
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)
    net.train()
    assert original is None or net.head.parametrizations.weight.original is original
    step(net, optimizer)
    assert is_parametrized(net.head, "weight")
    assert not torch.equal(net.head.bias, before["head.bias"])


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layer", "group", "change"),
    [
        *((layer, group, change) for layer, group in (("fc1", "fc1"), ("fc2", "fc1")) for change in ("grow", "prune")),
        ("head", "fc2", "permute"),
        ("fc1", "fc1", "rewind"),
    ],
)
def test_an_edit_that_would_move_it_is_refused(
    kind: str, layer: str, group: str, change: str, low_memory: bool
) -> None:  # fmt: skip
    net, optimizer = trained(kind, layer)
    snapshot = net.snapshot()
    step(net, optimizer)
    before = facts(net, optimizer)
    acts: dict[str, Callable[[gn.Edit], object]] = {
        "grow": lambda edit: edit.grow(group, 2),
        "prune": lambda edit: edit.prune(group, lowest=2),
        "permute": lambda edit: edit.permute(group, order=list(reversed(edit.graph.groups[group].ids))),
        "rewind": lambda edit: edit.rewind(group, snapshot),
    }
    said = rf"'{layer}.weight' is parametrized \({kind}\).*remove_parametrizations"
    with pytest.raises(gn.EditError, match=said), net.edit(low_memory=low_memory) as edit:
        acts[change](edit)
    assert net.version == 0
    assert_same(facts(net, optimizer), before)


def test_the_way_that_the_error_names_works() -> None:
    net, _ = trained("_WeightNorm", "fc2")
    output = net(X)
    remove_parametrizations(net.fc2, "weight")
    net.detach(net.attached[0])
    net.attach(torch.optim.Adam(net.parameters(), lr=0.01))
    with net.edit() as edit:
        edit.grow("fc1", 2, preserves="function")
    weight_norm(net.fc2)
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("change", ["deepen", "rollback"])
def test_an_edit_that_would_make_its_layer_anew_is_refused(change: str) -> None:
    net, optimizer = trained("_SpectralNorm", "head")
    kept = net.keep()
    before = facts(net, optimizer)

    def deepen() -> None:
        with net.edit() as edit:
            edit.deepen("act1")

    act = deepen if change == "deepen" else lambda: net.rollback(kept.version)
    with pytest.raises(gn.EditError, match=r"'head.weight' is parametrized \(_SpectralNorm\)"):
        act()
    assert_same(facts(net, optimizer), before)


def test_a_tied_tensor_counts_under_its_owner() -> None:
    net = random_network(gn.transformer(11, width=8, depth=1, heads=2, context=6, tied=True), 0)
    owner = next(spec.shared for node in net.graph.nodes.values() for spec in node.tensors if spec.shared is not None)
    register_parametrization(net.get_submodule(owner.rpartition(".")[0]), "weight", Doubled())
    with pytest.raises(gn.EditError, match=owner), net.edit() as edit:
        edit.grow("tok", 2)


def test_a_plan_reads_it_as_in_evaluation_mode() -> None:
    net, optimizer = trained("_SpectralNorm", "head")
    before = facts(net, optimizer)
    with net.plan() as edit:
        edit.grow("fc2", 2)
        assert edit.cost.params[1] > edit.cost.params[0]
    assert_same(facts(net, optimizer), before)


def test_copies_and_files(tmp_path: Path) -> None:
    """A deep copy is one; a pickle is refused by torch, a checkpoint by us."""
    net, _ = trained("_WeightNorm", "head")
    again = copy.deepcopy(net)
    assert torch.equal(again(X), net(X))
    with again.edit() as edit:
        edit.grow("fc1", 2, preserves="function")
    torch.testing.assert_close(again(X), net(X), rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(net)
    with pytest.raises(gn.CheckpointError, match="parametrization"):
        net.save(tmp_path / "run.gn")
    assert list(tmp_path.iterdir()) == []
