"""The importer: from any ``nn.Module`` to a graph, by way of torch.export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphnet.compilers.importer.assemble import Assembled, assemble
from graphnet.compilers.importer.capture import capture
from graphnet.compilers.importer.functional import functionalise
from graphnet.compilers.importer.modes import merge
from graphnet.compilers.importer.program import Program
from graphnet.errors import ImportModelError

__all__ = ["Assembled", "import_model"]


def import_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, dynamic: Any = None, name: str = "network"
) -> tuple[Assembled, Program]:
    """Trace a model in both modes and build its graph.

    Parameters
    ----------
    model : nn.Module
        A copy whose mode may be changed.
    args, kwargs
        An example of what it is called with.
    dynamic : tree or None
        ``dynamic_shapes`` of torch.export.
    name : str
        The graph's name.

    Raises
    ------
    ImportModelError
        The model cannot be traced, or holds what a graph cannot.
    """

    def attempt(tied: bool) -> tuple[Assembled, Program]:
        captured = capture(model, args, kwargs, dynamic, tied=tied)
        program = merge(functionalise(captured.train), functionalise(captured.evaluation))
        return assemble(model, program, name), program

    try:
        return attempt(False)
    except ImportModelError:
        tensors = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.dim()]
        if dynamic is not None or len(tensors) < 2 or len({tensor.shape[0] for tensor in tensors}) > 1:
            raise
        try:  # batches that torch.export takes for two, since nothing in the program makes them one
            return attempt(True)
        except ImportModelError:
            pass
        raise
