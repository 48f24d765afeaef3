"""``torch.compile`` across edits: the same values as uncompiled, compiled anew however many versions there were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import graphnet as gn
from graphnet.testing import random_network

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _apart() -> Iterator[None]:
    """Nothing compiled before counts, and nothing compiled here stays."""
    from torch._dynamo import config  # noqa: TID251 - the limits have no public name

    torch.compiler.reset()
    with config.patch(recompile_limit=2, accumulated_recompile_limit=4):
        yield
    torch.compiler.reset()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits that a version gets are those of :func:`_apart`."""
    from graphnet.runtime import recompiling

    monkeypatch.setattr(recompiling, "_before", {})


class Counting:
    """A backend that runs the captured graph as it is and counts."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1
        return module.forward


def network() -> tuple[gn.Network, torch.optim.Adam]:
    net = random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    return net, optimizer


def a_function(net: gn.Network, backend: Any) -> Callable[[Tensor], Tensor]:
    @torch.compile(backend=backend)
    def run(x: Tensor) -> Tensor:
        found: Tensor = net(x)
        return found

    return run


def in_place(net: gn.Network, backend: Any) -> Callable[[Tensor], Tensor]:
    net.compile(backend=backend)
    return net


WAYS: dict[str, Callable[[gn.Network, Any], Callable[[Tensor], Tensor]]] = {
    "torch.compile(net)": lambda net, backend: torch.compile(net, backend=backend),
    "a compiled function": a_function,
    "net.compile()": in_place,
}


def step(run: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    run(X).square().mean().backward()
    optimizer.step()


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if way == "torch.compile(net)" else pytest.mark.slow) for way in WAYS]
)
def test_every_version_is_compiled_and_equals_the_uncompiled_one(way: str) -> None:
    """Five versions under limits of 2 and 4; by width, and by structure."""
    net, optimizer = network()
    plain = copy.deepcopy(net)
    own = torch.optim.Adam(plain.parameters(), lr=0.01)
    plain.attach(own)
    counting = Counting()
    run = WAYS[way](net, counting)
    for version in range(5):
        before = counting.compiled
        step(run, optimizer)
        assert counting.compiled > before, f"version {version} ran uncompiled"
        step(plain, own)
        with torch.no_grad():
            torch.testing.assert_close(run(X), plain(X), rtol=1e-12, atol=1e-14)
        for one in (net, plain):
            with one.edit() as edit:
                edit.grow("fc1", 1, init="kaiming", state="aged")
                if version % 3 == 1:
                    edit.deepen("act1", form="residual", name=f"more{version}")
                if version % 3 == 2:
                    edit.prune("fc2", lowest=1)
    assert net.version == 5


@pytest.mark.parametrize("change", ["prune", "reset"])
def test_a_loss_from_before_an_edit_is_refused(change: str) -> None:
    """By us, or by torch where compiled code meets another shape before it comes to the parameters."""
    net, _ = network()
    loss = torch.compile(net, backend="aot_eager")(X).square().mean()
    with net.edit() as edit:
        edit.prune("fc1", lowest=2) if change == "prune" else edit.reset("fc1", units=[0])
    with pytest.raises((gn.EditError, RuntimeError), match=r"before an edit|size of tensor"):
        loss.backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in net.parameters())


@pytest.mark.slow
def test_with_inductor() -> None:
    net, optimizer = network()
    run = torch.compile(net)
    for _ in range(4):
        step(run, optimizer)
        with torch.no_grad():
            torch.testing.assert_close(run(X), net(X), rtol=1e-12, atol=1e-14)
        with net.edit() as edit:
            edit.grow("fc1", 2, init="kaiming")
