"""Networks with random tensors, inputs that fit a graph, a loss, and a few training steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

from graphnet.edit.edit import Edit
from graphnet.ir.graph import Graph
from graphnet.runtime.network import Network

__all__ = ["batches", "dtype_of", "probe_batch", "random_network", "sample", "train", "wave_loss"]

_DYNAMIC = 5
"""Positions of a dynamic dimension in a sample."""


def random_network(graph: Graph, seed: int = 0, *, dtype: torch.dtype = torch.float64) -> Network:
    """A network whose norms have random scales, shifts and statistics, so that none of them is the identity."""
    net = Network(graph, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, spec in graph.tensors.items():
            tensor = net.tensor(name)
            if spec.kind in ("scale", "statistic") and spec.newborn == 1.0:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            elif spec.kind in ("shift", "statistic", "bias"):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return net


def dtype_of(net: Network) -> torch.dtype:
    """The type of the network's first floating point tensor; float64 where it has none."""
    found = (net.tensor(name).dtype for name in net.graph.tensors)
    return next((dtype for dtype in found if dtype.is_floating_point), torch.float64)


def sample(graph: Graph, seed: int = 0, size: int = 4, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Inputs that fit a graph; dynamic dimensions have 5 positions."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for entry in graph.inputs:
        shape = (size, *(n if isinstance(n, int) else _DYNAMIC for n in entry.shape))
        if entry.dtype == "int64":
            inputs.append(torch.randint(entry.high or 2, shape, generator=generator))
        else:
            inputs.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
    return tuple(inputs)


def batches(graph: Graph) -> st.SearchStrategy[tuple[Tensor, ...]]:
    """Random inputs that fit a graph."""
    return st.integers(0, 2**31).map(lambda seed: sample(graph, seed))


def probe_batch(edit: Edit) -> tuple[tuple[Tensor, ...], None]:
    """A batch for operators that need data, ``(inputs, no target)``: one that fits the network under the edit."""
    plan = edit.plan
    kinds = [plan.host.live(name).dtype for name in plan.graph.tensors if plan.origin(name) is not None]
    dtype = next((kind for kind in kinds if kind.is_floating_point), torch.float64)
    return sample(edit.graph, 0, dtype=dtype), None


def wave_loss(output: Any, target: Any = None) -> Tensor:
    """A smooth scalar of any output that no symmetry leaves unchanged; the target is not looked at."""
    total = torch.zeros((), dtype=torch.float64)
    for tensor in output if isinstance(output, tuple) else (output,):
        waves = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64)).reshape(tensor.shape)
        total = total + (tensor * waves).mean() + 0.5 * tensor.square().mean()
    return total


def train(net: Network, optimizer: Optimizer | Sequence[Optimizer], steps: int, *, seed: int = 0) -> None:
    """Take some steps of one or several optimizers on random batches, with gradients left in place.

    Of a network from which edits have taken the last parameter there is nothing to train.
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        return
    optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
    dtype = dtype_of(net)
    for step in range(steps):
        inputs = sample(net.graph, seed * 1000 + step, dtype=dtype)

        def closure(inputs: tuple[Tensor, ...] = inputs) -> Tensor:
            for held in optimizers:
                held.zero_grad()
            loss = wave_loss(net(*inputs))
            torch.autograd.backward(loss)
            return loss

        for held in optimizers:
            if isinstance(held, torch.optim.LBFGS):  # evaluates the loss itself, several times
                held.step(closure)  # type: ignore[no-untyped-call]
        if not all(isinstance(held, torch.optim.LBFGS) for held in optimizers):
            closure()
            for held in optimizers:
                held.step()
