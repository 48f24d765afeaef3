"""The expressivity bottleneck: how much of what a layer should do no change of its own weights gives."""

from __future__ import annotations

import torch

from graphnet.edit import desired
from graphnet.edit.host import Batch, Loss
from graphnet.edit.plan import Plan
from graphnet.runtime.network import Network

__all__ = ["growth_bottleneck"]


def growth_bottleneck(net: Network | Plan, group: str, batch: Batch | None, loss: Loss | None) -> float:
    """How far growing a group could help where training its consumers cannot, from 0 to 1.

    ``sum |V_perp|^2 / sum |V|^2`` over the layers that read the group: ``V = -dL/dz`` is how their outputs should
    move on the batch, ``V_perp`` what is left of it after the least-squares fit by what they read. Evaluation mode;
    nothing of the network is touched. Source: Verbockhaven, Rudkiewicz, Chevallier and Charpiat (TMLR 2024, arXiv
    2405.19816).

    Parameters
    ----------
    net : Network or Plan
        A network, or the plan of an open edit (as it is at that point).
    group : str
    batch, loss
        ``(x, y)`` and ``loss(output, y)``. With fewer samples (times positions) than a layer reads features, the fit
        is perfect and the answer 0: take a batch that is a few times larger.

    Raises
    ------
    EditError
        Something other than linear layers and convolutions without groups reads the group, nothing does, there is no
        data, or what it makes of the network is not finite.

    Examples
    --------
    >>> import torch, graphnet as gn
    >>> net = gn.Network(gn.mlp([4, 3, 2], activation="tanh"), seed=0).double()
    >>> x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> loss = torch.nn.functional.mse_loss
    >>> round(growth_bottleneck(net, "fc1", (x, net(x).detach() + 1.0), loss), 6)  # a bias gives that
    0.0
    >>> growth_bottleneck(net, "fc1", (x, net(x).detach() + x[:, :2] ** 2), loss) > 0.2
    True
    """
    plan = net if isinstance(net, Plan) else Plan(net, net.graph, torch.Generator())
    return desired.bottleneck(plan, group, batch, loss)
