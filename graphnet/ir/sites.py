"""Where a unit group can be watched: its pre-activation ``z`` and its activation ``h``."""

from __future__ import annotations

from dataclasses import dataclass

from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.ir.ops.activation import Activation, Dropout, Identity

__all__ = ["Site", "site"]

_TRANSPARENT = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "dropout", "identity")


@dataclass(frozen=True, slots=True)
class Site:
    """The ops whose outputs are a group's pre-activation and activation.

    Attributes
    ----------
    group : str
    pre, post : str
        Ops; the same one where no nonlinearity follows the writer.
    dim : int
        The dimension of both outputs that holds the group.
    """

    group: str
    pre: str
    post: str
    dim: int


def site(graph: Graph, group: str) -> Site:
    """Find where a group can be watched: the first op that writes it, then through norms to its nonlinearity.

    Raises
    ------
    EditError
        No activation holds the group.
    """
    name = graph.group(group).name
    readers: dict[str, list[str]] = {}
    for reader, node in graph.nodes.items():
        for producer, _ in node.inputs:
            readers.setdefault(producer, []).append(reader)
    for start, node in graph.nodes.items():
        for dim, layout in enumerate(node.outputs[0] if node.outputs else ()):
            if name not in set(layout.atoms()):
                continue
            current = start
            while len(readers.get(current, ())) == 1:
                following = graph.nodes[readers[current][0]]
                nonlinear = isinstance(following.op, Activation) and not isinstance(following.op, Dropout | Identity)
                if nonlinear:
                    return Site(name, current, following.op.name, dim)
                if following.op.op not in _TRANSPARENT:
                    break
                current = following.op.name
            return Site(name, start, start, dim)
    raise EditError(f"unit group {name!r} stands in no activation, so it cannot be watched")
