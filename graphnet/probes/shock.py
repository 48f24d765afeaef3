"""Function shock: how much an edit changed what the network computes, on fixed data in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphnet.edit.host import Loss
from graphnet.errors import GraphnetError
from graphnet.runtime.network import Network

__all__ = ["Shock", "function_shock", "outputs"]


@dataclass(frozen=True, slots=True)
class Shock:
    """How far two functions differ on fixed data.

    Attributes
    ----------
    kl : float
        ``KL(p_before || p_after)`` in nats of the softmax over the last dimension, mean over everything else.
    delta_loss : float or None
        Loss after minus loss before; None without a target and a loss.
    max_relative : float
        Largest absolute change of an output over the largest absolute output before.
    """

    kl: float
    delta_loss: float | None
    max_relative: float


def outputs(net: Network, x: Any) -> Tensor:
    """What the current version gives for a batch in evaluation mode; nothing of the network is touched.

    Parameters
    ----------
    net : Network
    x : Tensor or tuple of Tensor
        One batch of inputs.

    Raises
    ------
    GraphnetError
        The inputs do not fit, or the network has several outputs.
    """
    tensors = {name: net.live(name) for name in net.graph.tensors}
    found = net.evaluate(net.graph, tensors, ((x,) if isinstance(x, Tensor) else (tuple(x),))).output
    if not isinstance(found, Tensor):
        raise GraphnetError(f"the network has {len(found)} outputs; a shock is measured on one: compare them yourself")
    return found.detach()


def function_shock(
    before: Network | Tensor, after: Network | Tensor, x: Any = None, y: Any = None, loss: Loss | None = None
) -> Shock:
    """Compare what a network gave before an edit with what it gives after it.

    Parameters
    ----------
    before, after : Tensor or Network
        Class logits ``[..., classes]`` (:func:`outputs`), or a network to run on ``x``. An edit changes a network in
        place, so keep its outputs from before.
    x : Tensor or tuple of Tensor, optional
        The fixed inputs; needed where a network is given.
    y, loss : optional
        Target and ``loss(output, y)``, for ``delta_loss``.

    Raises
    ------
    GraphnetError
        Shapes differ, or ``x`` is missing.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> function_shock(logits, logits)
    Shock(kl=0.0, delta_loss=None, max_relative=0.0)
    """
    old, new = _values(before, x, "before"), _values(after, x, "after")
    if old.shape != new.shape or old.dim() < 1 or not old.numel():
        raise GraphnetError(
            f"function_shock: outputs before have shape {list(old.shape)}, after {list(new.shape)}; both must be "
            "[..., classes] and agree (an edit of the classes has no shock)"
        )
    with torch.no_grad():
        delta = None if loss is None or y is None else float(loss(new, _like(y, new))) - float(loss(old, _like(y, old)))
    log_old, log_new = old.double().log_softmax(-1), new.double().log_softmax(-1).to(old.device)
    kl = (log_old.exp() * (log_old - log_new)).sum(-1).mean()
    scale = float(old.double().abs().max())
    change = float((new.double().to(old.device) - old.double()).abs().max())
    return Shock(max(float(kl), 0.0), delta, change / scale if scale else (0.0 if change == 0 else float("inf")))


def _values(source: Network | Tensor, x: Any, which: str) -> Tensor:
    if isinstance(source, Tensor):
        return source.detach()
    if not isinstance(source, Network):
        raise GraphnetError(f"function_shock: {which!r} is a network or its outputs, not a {type(source).__name__}")
    if x is None:
        raise GraphnetError(f"function_shock: {which!r} is a network, so the inputs x are needed")
    return outputs(source, x)


def _like(y: Any, output: Tensor) -> Any:
    return y.to(output.device) if isinstance(y, Tensor) else y
