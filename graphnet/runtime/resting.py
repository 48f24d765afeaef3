"""A new network of a graph that has dormant units: it is drawn with all of them, which then rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.action import select
from graphnet.edit.plan import extended_sizes
from graphnet.ir.graph import Graph
from graphnet.ir.layout import IndexArray, Layout

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = ["awake", "lay_to_rest"]


def awake(graph: Graph) -> Graph | None:
    """The graph with its dormant units live, each in its place; None where none is dormant."""
    resting = {name: group for name, group in graph.groups.items() if group.dormant}
    if not resting:
        return None
    return graph.resized({name: replace(one, ids=one.extended, dormant=()) for name, one in resting.items()})


def lay_to_rest(net: Network, whole: Network) -> Mapping[str, Tensor]:
    """Give a network the live part of a whole one's tensors; what the dormant units keep of them.

    Parameters
    ----------
    net, whole : Network
        Of a graph, and of :func:`awake` of it.
    """
    graph, reserve = net.graph, {}
    sizes = extended_sizes(graph)

    def positions(layout: Layout) -> IndexArray | None:
        groups = {key: graph.groups[key] for key in set(layout.atoms()) & graph.groups.keys()}
        if not any(group.dormant for group in groups.values()):
            return None
        live = {key: group.positions(np.array(group.ids), within=group.extended) for key, group in groups.items()}
        return layout.index(live, sizes)

    with torch.no_grad():
        for name, spec in graph.tensors.items():
            index = [positions(layout) for layout in spec.dims]
            every = whole.tensor(name).detach()
            if any(at is not None for at in index):
                reserve[name] = every
            net.tensor(name).copy_(select(every, index))
    return reserve
