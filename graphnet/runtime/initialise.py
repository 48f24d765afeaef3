"""Initial weights other than torch's own."""

from __future__ import annotations

import torch
from torch import nn

from graphnet.ir.graph import Graph

__all__ = ["kaiming_uniform"]


def kaiming_uniform(graph: Graph, root: nn.Module) -> None:
    """Draw linear and convolution weights from U(+-sqrt(6/fan_in)) (He et al. 2015); biases stay as torch drew them."""
    for name, spec in graph.tensors.items():
        if spec.kind == "weight":
            module, _, attribute = name.rpartition(".")
            with torch.no_grad():
                nn.init.kaiming_uniform_(getattr(root.get_submodule(module), attribute), nonlinearity="relu")
