"""Scores from what the units do on a batch: activation frequency, APoZ, ReDo, contribution utility.

Each evaluates the network once, in evaluation mode, and reads only the outputs that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from graphnet.edit.action import reduce_units
from graphnet.edit.consumers import Consumer, consumers, tap_name
from graphnet.edit.scores.base import Scoring, score
from graphnet.edit.scores.weights import magnitude
from graphnet.errors import EditError

__all__ = ["activation_frequency", "apoz", "contribution", "incoming_weight", "mean_size", "outgoing_weight", "redo"]


@score("activation-frequency")
def activation_frequency(scoring: Scoring, *, tau: float = 0.05) -> Tensor:
    """Share of a batch (and of positions) in which the unit's activation exceeds ``tau``."""
    place = scoring.site
    found = scoring.evaluate("activation-frequency", taps=(place.post,))
    values = found.activations[place.post]
    return scoring.unit_mean(_truth(values > tau, values), place.post, place.dim)


@score("apoz")
def apoz(scoring: Scoring, *, tau: float = 0.0) -> Tensor:
    """One minus the average percentage of zeros: the share of a batch (and of positions) with ``|h| > tau``.

    Hu et al. (2016, arXiv 1607.03250) remove the units with the most zeros; a score removes the lowest, hence the
    one minus. Activations that are never exactly zero (GELU, tanh) need a ``tau`` above 0: without one all units
    tie.
    """
    if tau < 0:
        raise EditError(f"apoz: tau must not be negative, it is {tau}")
    place = scoring.site
    found = scoring.evaluate("apoz", taps=(place.post,))
    values = found.activations[place.post]
    return scoring.unit_mean(_truth(values.abs() > tau, values), place.post, place.dim)


def _truth(holds: Tensor, values: Tensor) -> Tensor:
    """1 where it holds and 0 where not; a NaN stays one, so that the score is refused."""
    return torch.where(values.isnan(), values, holds.to(values.dtype))


@score("redo")
def redo(scoring: Scoring) -> Tensor:
    """``E|h_j| / mean_k E|h_k|``: the share of the group's mean activity; 0 for all where the whole group is silent.

    A unit is dormant where this is at most a threshold (0 to 0.1). Source: Sokar et al. (ICML 2023,
    arXiv 2302.12902).
    """
    place = scoring.site
    found = scoring.evaluate("redo", taps=(place.post,))
    size = scoring.unit_mean(found.activations[place.post].abs(), place.post, place.dim)
    mean = size.mean()
    return size / mean if mean != 0 else size


@score("contribution")
def contribution(
    scoring: Scoring,
    *,
    at: Literal["activation", "consumers"] = "activation",
    mean_corrected: bool = False,
    adaptable: bool = False,
) -> Tensor:
    """``E|h_j| * sum |W_out[:, j]|`` over every consumer: the contribution utility of continual backprop.

    Source: Dohare et al. (Nature 2024), and its variants.

    Parameters
    ----------
    at : {"activation", "consumers"}
        Where ``h`` is read: behind the group's first nonlinearity, or where each consumer reads it (behind pooling
        and residual sums; each column of a flattened map by itself).
    mean_corrected : bool
        ``E|h_j - E h_j|`` in place of ``E|h_j|``: what is lost if the mean is put into the consumers' biases.
    adaptable : bool
        Divide by the mean ``|w_in|``: units with small incoming weights change faster.

    Raises
    ------
    EditError
        No stored weight reads the group; or ``adaptable`` and a unit's incoming weights are all zero.
    """
    outgoing = outgoing_weight(scoring)
    if at == "activation":
        place = scoring.site
        found = scoring.evaluate("contribution", taps=(place.post,))
        values = found.activations[place.post]
        mean = scoring.unit_mean(values, place.post, place.dim) if mean_corrected else None
        total = mean_size(scoring, values, mean) * outgoing
    else:
        if scoring.gates:
            raise EditError("contribution: dormant units are gated before any consumer: use at='activation'")
        readers = consumers(scoring.plan.graph, scoring.group.name)
        known = {reader.tensor for reader in readers}
        for holder in scoring.plan.holders(scoring.group.name, roles=("read",)):
            if holder.tensor not in known:
                raise EditError(f"contribution: {holder.tensor!r} is part of a computed weight: use at='activation'")
        taps = tuple(dict.fromkeys(tap_name(reader.source) for reader in readers))
        found = scoring.evaluate("contribution", taps=taps)
        total = sum_over_consumers(scoring, readers, found.activations, mean_corrected=mean_corrected)
    return total / incoming_weight(scoring) if adaptable else total


def mean_size(scoring: Scoring, activation: Tensor, mean: Tensor | None = None) -> Tensor:
    """``E|h_j - mean_j|`` of the activation at the group's site: ``[units]``."""
    place, values = scoring.site, activation.double()
    if mean is not None:
        graph = scoring.plan.graph
        owners = torch.from_numpy(graph.dims(place.post)[place.dim].owners(scoring.group.name, graph.sizes))
        spread = torch.where(owners >= 0, mean[owners.clamp(min=0)], torch.zeros((), dtype=mean.dtype))
        values = values - spread.reshape([-1 if d == place.dim else 1 for d in range(values.dim())]).to(values.device)
    return scoring.unit_mean(values.abs(), place.post, place.dim)


def outgoing_weight(scoring: Scoring) -> Tensor:
    """``sum |W_out[:, j]|`` over every stored weight that reads the group: ``[units]``.

    Raises
    ------
    EditError
        There is none.
    """
    holders = list(scoring.plan.holders(scoring.group.name, roles=("read",)))
    if not holders:
        raise EditError(
            f"contribution: no stored weight reads {scoring.group.name!r}, so its units have no outgoing ones: use "
            "another score"
        )
    total = torch.zeros(scoring.group.size, dtype=torch.float64)
    for holder in holders:
        total += scoring.per_unit(scoring.plan.value(holder.tensor).abs(), holder.dim, holder.tensor).cpu()
    return total


def incoming_weight(scoring: Scoring) -> Tensor:
    """Mean ``|w_in|``: ``[units]``; an :class:`EditError` where it is zero."""
    size: Tensor = magnitude(scoring)
    dead = torch.nonzero(size == 0).flatten().tolist()
    if dead:
        raise EditError(
            f"contribution: adaptable divides by the mean incoming weight, which is zero for units "
            f"{[scoring.group.ids[at] for at in dead[:8]]} of {scoring.group.name!r}"
        )
    return size


def sum_over_consumers(
    scoring: Scoring, readers: list[Consumer], activations: Mapping[str, Tensor], *, mean_corrected: bool
) -> Tensor:
    """Column by column: ``sum over consumers of E|x_c| * sum |W_c[:, c]|``, added up over each unit's columns."""
    graph, group = scoring.plan.graph, scoring.group
    total = torch.zeros(group.size, dtype=torch.float64)
    for reader in readers:
        x = activations[tap_name(reader.source)].double().movedim(reader.axis, -1).flatten(0, -2)
        if mean_corrected:
            x = x - x.mean(0)
        size = x.abs().mean(0)  # [columns of what is read]
        weight = scoring.plan.value(reader.tensor).double().abs()
        columns = weight.movedim(reader.dim, -1)
        groups = size.numel() // columns.shape[-1]  # a grouped convolution reads a part of the channels in each group
        outer = columns.reshape(groups, -1, columns.shape[-1]).sum(1).flatten()
        total += reduce_units(size * outer.to(size), 0, reader.layout, group.name, graph.sizes).cpu()
    return total
