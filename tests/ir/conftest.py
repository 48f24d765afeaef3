"""What these tests share: a graph lowered onto real modules with random tensors, and inputs that fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, fx, nn

from graphnet.compilers.plain import build_modules, lower
from graphnet.ir.graph import Graph

Lowered: TypeAlias = tuple[nn.Module, fx.GraphModule, list[Tensor]]


def _lowered(
    graph: Graph, *, batch: int = 2, dynamic: Mapping[str, int] | None = None, seed: int = 0
) -> Lowered:  # fmt: skip
    torch.manual_seed(seed)
    root = nn.Module()
    build_modules(graph, root)
    root.double().eval()
    with torch.no_grad():
        for tensor in (*root.parameters(), *root.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor))
        for name, tensor in root.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    inputs = []
    for op in graph.inputs:
        shape = [batch, *(entry if isinstance(entry, int) else (dynamic or {})[entry] for entry in op.shape)]
        if op.dtype == "int64":
            inputs.append(torch.randint(0, op.high or 2, shape))
        else:
            inputs.append(torch.randn(shape, dtype=torch.float64))
    return root, lower(graph, root), inputs


@pytest.fixture
def lowered() -> Callable[..., Lowered]:
    """Give a function from a graph to (module that holds the tensors, lowered module, inputs), in float64."""
    return _lowered
