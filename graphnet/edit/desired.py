"""How the output of a layer should move, and how much of that its own weights can give.

The desired change of an output is ``V = -dL/dz`` for every sample and position. What a change of the layer's own
weights can give is V's least-squares fit by what the layer reads; what is left, ``V_perp``, needs new units. Source:
Verbockhaven, Rudkiewicz, Chevallier and Charpiat (TMLR 2024, arXiv 2405.19816).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from graphnet.edit.host import Batch, Loss
from graphnet.edit.plan import Plan
from graphnet.errors import EditError
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.conv import Conv1d, Conv2d
from graphnet.ir.ops.dense import LinearOp

__all__ = ["Conv", "bottleneck", "coordinates", "features", "is_plain", "unexplained", "unfold"]

Conv: TypeAlias = Conv1d | Conv2d

CHUNK = 1 << 22
"""Elements of the largest intermediate tensor."""


def is_plain(op: Op) -> bool:
    """Whether every output unit reads every input unit: linear, or a convolution without groups."""
    return isinstance(op, LinearOp) or (isinstance(op, Conv) and op.groups == 1 and not op.depthwise)


def unfold(values: Tensor, op: Conv) -> Tensor:
    """The patches that a convolution reads: ``[B, channels * taps, positions]``."""
    if isinstance(op, Conv1d):
        window = {"dilation": (1, op.dilation), "padding": (0, op.padding), "stride": (1, op.stride)}
        return F.unfold(values.unsqueeze(2), (1, *op.kernel_sizes()), **window)
    return F.unfold(values, op.kernel_sizes(), op.dilation, op.padding, op.stride)


def features(hidden: Tensor, op: Op, *, ones: bool) -> Iterator[tuple[slice, Tensor]]:
    """What each output of a layer is a product with, a part of the batch at a time: ``[rows, fan_in]``, float64.

    Parameters
    ----------
    hidden : Tensor
        What the layer reads, ``[B, ...]``.
    ones : bool
        Append a constant 1, for the bias.
    """
    each = prod(hidden.shape[1:]) * (prod(op.kernel_sizes()) if isinstance(op, Conv) else 1)
    step = max(1, CHUNK // max(each, 1))
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, start + step)
        part = hidden[rows].double()
        found = unfold(part, op).transpose(1, 2).flatten(0, 1) if isinstance(op, Conv) else part.flatten(0, -2)
        yield rows, torch.cat([found, found.new_ones(found.shape[0], 1)], dim=1) if ones else found


def coordinates(hidden: Tensor, op: Op, *, ones: bool) -> tuple[Iterator[Tensor], Tensor | None]:
    """What a layer reads, in as few numbers as there are rows where those are fewer than features.

    Returns
    -------
    iterator of Tensor
        Parts of ``[rows, r]``, in order.
    Tensor or None
        Orthonormal directions of the coordinates, ``[r, fan_in]``; None where they are the features themselves.
    """
    rows, first = next(features(hidden, op, ones=ones))
    samples = min(rows.stop, hidden.shape[0]) - rows.start
    if len(first) // samples * hidden.shape[0] >= first.shape[1]:
        return (part for _, part in features(hidden, op, ones=ones)), None
    every = torch.cat([part for _, part in features(hidden, op, ones=ones)])
    left, values, right = torch.linalg.svd(every, full_matrices=False)
    return iter([left * values]), right


def unexplained(hidden: Tensor, target: Tensor, op: Op) -> Tensor:
    """What is left of a change of a layer's output after its least-squares fit by what the layer reads.

    Parameters
    ----------
    hidden : Tensor
        What the layer reads.
    target : Tensor
        The change, shaped as the layer's output.

    Returns
    -------
    Tensor
        Shaped as ``target``, float64.
    """
    left = target.double()
    ones = bool(getattr(op, "bias", False))
    for _ in range(2):  # the second pass takes out what rounding in the normal equations left
        gram: Tensor | None = None
        mixed: Tensor | None = None
        for rows, found in features(hidden, op, ones=ones):
            part = _rows(left[rows], op)
            gram = found.T @ found if gram is None else gram + found.T @ found
            mixed = found.T @ part if mixed is None else mixed + found.T @ part
        assert gram is not None
        if not bool(torch.isfinite(gram).all()):
            raise EditError(f"the squares of what {op.name!r} reads are not finite: check data and weights")
        weights = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ mixed
        parts = [
            _rows(left[rows], op) - found @ weights for rows, found in features(hidden, op, ones=ones)
        ]  # fmt: skip
        left = _unrows(torch.cat(parts), left, op)
    return left


def _rows(values: Tensor, op: Op) -> Tensor:
    """An output as ``[samples and positions, out]``."""
    if isinstance(op, Conv):
        return values.flatten(2).transpose(1, 2).flatten(0, 1)
    return values.flatten(0, -2)


def _unrows(rows: Tensor, like: Tensor, op: Op) -> Tensor:
    if isinstance(op, Conv):
        return rows.reshape(like.shape[0], -1, like.shape[1]).transpose(1, 2).reshape(like.shape)
    return rows.reshape(like.shape)


def bottleneck(plan: Plan, group: str, batch: Batch | None, loss: Loss | None) -> float:
    """The share of the desired change at a group's consumers that their own weights cannot give, from 0 to 1.

    ``sum |V_perp|^2 / sum |V|^2`` over every layer that reads the group; 0 where nothing is desired.

    Raises
    ------
    EditError
        Nothing reads the group through the weight of a linear layer or a convolution without groups; or there is no
        data, or it is not finite.
    """
    name = plan.graph.group(group).name
    what = f"the bottleneck of {name!r}"
    ops = list(dict.fromkeys(holder.tensor.rpartition(".")[0] for holder in plan.holders(name, roles=("read",))))
    if not ops:
        raise EditError(f"{what}: nothing reads the group through a stored weight")
    for op in ops:
        port = plan.graph.nodes[op].inputs[0][1]
        if not is_plain(plan.graph.nodes[op].op) or port:
            raise EditError(f"{what}: {op!r} reads it, and must be linear or a convolution without groups")
    sources = {op: plan.graph.nodes[op].inputs[0][0] for op in ops}
    taps = tuple(dict.fromkeys((*sources.values(), *ops)))
    found = plan.evaluate(batch, loss, what, taps=taps, needs_loss=True)
    left = total = 0.0
    for op in ops:
        if op not in found.gradients:
            raise EditError(f"{what}: the loss does not depend on the output of {op!r}")
        wanted = -found.gradients[op].double()
        if not all(bool(torch.isfinite(each).all()) for each in (wanted, found.activations[sources[op]])):
            raise EditError(f"{what}: the activations or gradients of the batch are not finite: check data and weights")
        rest = unexplained(found.activations[sources[op]], wanted, plan.graph.nodes[op].op)
        left, total = left + float(rest.square().sum()), total + float(wanted.square().sum())
    return left / total if total > 0 else 0.0
