"""Per-unit statistics of a network on a side batch: activation rate, gradient, saliency.

:func:`probe` runs the current version once, in evaluation mode, on a copy of its structure with taps. The live
network is not touched: neither its gradients and random numbers nor the mode of its modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphnet.edit.action import reduce_units
from graphnet.edit.host import Batch, Evaluation, Loss
from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.sites import Site, site
from graphnet.probes.parity import EPSILON, Parity, parity
from graphnet.runtime.network import Network

__all__ = ["GroupStatistics", "Probe", "Vector", "dormant_fraction", "effective_rank", "probe", "stable_rank"]

Vector: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class GroupStatistics:
    """What one group's units did on the batch; every vector is ``[units]``, float64, in the order of ``ids``.

    Attributes
    ----------
    name : str
    ids : tuple of int
    activation : array
        Fraction of activations ``h_j`` above the probe's ``tau``, over the batch and all positions.
    gradient : array
        Mean ``|dL/dz_j|`` over the batch and all positions, ``z`` the pre-activation. It scales with the loss: for a
        mean-reduced loss it falls as one over the batch size, so compare it within one probe.
    saliency : array
        Mean ``|z_j * dL/dz_j|``; unlike the gradient it does not change when a ReLU unit is rescaled.
    magnitude : array
        Mean ``|h_j|``.
    weight_norm : array
        L2 norm of the incoming weights; NaN where no weight writes the group.
    """

    name: str
    ids: tuple[int, ...]
    activation: Vector
    gradient: Vector
    saliency: Vector
    magnitude: Vector
    weight_norm: Vector

    def positions(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Positions of units by id, in the order given.

        Raises
        ------
        GraphnetError
            An id was not live when the probe ran.
        """
        at = {unit: position for position, unit in enumerate(self.ids)}
        missing = [int(unit) for unit in ids if int(unit) not in at]
        if missing:
            raise GraphnetError(
                f"group {self.name!r}: units {missing[:8]} were not live when the probe ran ({len(self.ids)} units, "
                "named by id, not by position): probe again after the edit, or leave them out"
            )
        return np.array([at[int(unit)] for unit in ids], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What one probe found.

    Attributes
    ----------
    graph : Graph
        The version that was probed.
    groups : mapping of str to GroupStatistics
    loss : float
    tau : float
        The threshold of ``activation``.
    """

    graph: Graph
    groups: Mapping[str, GroupStatistics]
    loss: float
    tau: float

    @property
    def version(self) -> int:
        """The number of the version that was probed."""
        return self.graph.version

    def group(self, name: str) -> GroupStatistics:
        """The statistics of a group, by its name or by that of an op that writes it.

        Raises
        ------
        GraphnetError
            There is no such group, or the probe left it out.
        """
        found = self.groups.get(name) or self.groups.get(self.graph.group(name).name)
        if found is None:
            raise GraphnetError(f"the probe has no group {name!r}; it has {sorted(self.groups)}")
        return found

    def parity(
        self, group: str, newborns: Sequence[int], incumbents: Sequence[int] | None = None, *, eps: float = EPSILON
    ) -> Parity:
        """Compare two cohorts of a group: newborns with incumbents, or kept with pruned units.

        Parameters
        ----------
        group : str
        newborns : sequence of int
            Unit ids.
        incumbents : sequence of int, optional
            Unit ids; every other live unit of the group by default.
        eps : float
            Added to the incumbents' mean.

        Raises
        ------
        GraphnetError
            A unit was not live when the probe ran.
        """
        found = self.group(group)
        born = found.positions(newborns)
        if incumbents is None:
            others = np.setdiff1d(np.arange(len(found.ids)), born)
        else:
            others = found.positions(incumbents)
        pairs = [(vector[born], vector[others]) for vector in (found.activation, found.gradient)]
        return parity(found.name, *pairs[0], *pairs[1], eps=eps)


def probe(net: Network, batch: Batch, loss: Loss, *, groups: Sequence[str] | None = None, tau: float = 0.05) -> Probe:
    """Measure every unit on a side batch, in evaluation mode, changing nothing.

    Parameters
    ----------
    net : Network
    batch : tuple
        ``(x, y)``; a tuple in place of ``x`` where the network has several inputs.
    loss : callable
        ``loss(output, y)``, a scalar.
    groups : sequence of str, optional
        Unit groups, or ops that write one; by default every group that is not frozen and stands in an activation.
    tau : float
        A unit is active where its activation exceeds ``tau``.

    Raises
    ------
    GraphnetError
        The batch does not fit, the loss is not a scalar, or a named group stands in no activation.

    Notes
    -----
    The measures are those of Lillo and Cheney, "On the Stability of Growth in Structural Plasticity"
    (arXiv 2605.15435, 2026). One forward and one backward pass over the batch.

    Examples
    --------
    >>> import torch
    >>> from graphnet.ir.builders import mlp
    >>> from graphnet.runtime.network import Network
    >>> net = Network(mlp([4, 8, 3]), seed=0)
    >>> batch = torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> found = probe(net, batch, torch.nn.functional.cross_entropy)
    >>> sorted(found.groups), found.groups["fc1"].gradient.shape
    (['fc1', 'head'], (8,))
    """
    if not isinstance(net, Network):
        raise GraphnetError(f"probe: a gn.Network is measured, not a {type(net).__name__}")
    graph = net.graph
    sites = _sites(graph, groups)
    taps = tuple(dict.fromkeys(op for place in sites.values() for op in (place.pre, place.post)))
    tensors = {name: net.live(name) for name in graph.tensors}
    found = net.evaluate(graph, tensors, batch, loss, taps=taps)
    if found.loss is None:
        raise GraphnetError("probe: gradients need a loss, a function loss(output, y) that gives a scalar")
    return Probe(
        graph,
        MappingProxyType({name: _statistics(graph, place, found, tensors, tau) for name, place in sites.items()}),
        float(found.loss),
        tau,
    )


def _sites(graph: Graph, groups: Sequence[str] | None) -> dict[str, Site]:
    if groups is not None:
        named = (groups,) if isinstance(groups, str) else groups
        return {name: site(graph, name) for name in dict.fromkeys(graph.group(key).name for key in named)}
    found = {}
    for name, group in graph.groups.items():
        if group.frozen is None:
            try:
                found[name] = site(graph, name)
            except EditError:  # the group indexes stored tensors only
                continue
    return found


def _statistics(
    graph: Graph, place: Site, found: Evaluation, tensors: Mapping[str, Tensor], tau: float
) -> GroupStatistics:
    group = graph.groups[place.group]
    z, h = found.activations[place.pre], found.activations[place.post]
    gradient = found.gradients.get(place.pre)
    gradient = torch.zeros_like(z) if gradient is None else gradient
    before, after = _Units(graph, place.group, place.pre, place.dim), _Units(graph, place.group, place.post, place.dim)
    return GroupStatistics(
        group.name,
        group.ids,
        activation=after.mean(h > tau),
        gradient=before.mean(gradient.abs()),
        saliency=before.mean((z.double() * gradient.double()).abs()),
        magnitude=after.mean(h.abs()),
        weight_norm=_weight_norm(graph, group.name, tensors),
    )


class _Units:
    """The mean over everything but a group's units, of tensors shaped like one op's output."""

    def __init__(self, graph: Graph, group: str, op: str, dim: int) -> None:
        self.group, self.dim, self.sizes = group, dim, graph.sizes
        self.layout = graph.dims(op)[dim]
        owners = self.layout.owners(group, graph.sizes)
        self.shares = np.bincount(owners[owners >= 0], minlength=graph.sizes[group]) / len(owners)

    def mean(self, values: Tensor) -> Vector:
        """``[units]``; elements of the tensor that belong to no unit of the group are left out."""
        total = reduce_units(values.double(), self.dim, self.layout, self.group, self.sizes)
        return np.asarray(total.cpu().numpy() / (self.shares * values.numel()), dtype=np.float64)


def _weight_norm(graph: Graph, group: str, tensors: Mapping[str, Tensor]) -> Vector:
    total = torch.zeros(graph.sizes[group], dtype=torch.float64)
    written = False
    for spec in graph.users[group]:
        for dim, (layout, role) in enumerate(zip(spec.dims, spec.roles, strict=True)):
            if role == "write" and spec.kind in ("weight", "table") and group in set(layout.atoms()):
                square = tensors[spec.shared or spec.name].double().square()
                total += reduce_units(square, dim, layout, group, graph.sizes).cpu()
                written = True
    return total.sqrt().numpy() if written else np.full(graph.sizes[group], np.nan)


def dormant_fraction(source: Probe | GroupStatistics | Tensor, tau: float = 0.025, *, dim: int = 1) -> float:
    """Share of units whose ReDo score is at most ``tau``.

    The score of a unit is its mean ``|h|`` over the mean of its group's; where a whole group is zero, every unit
    counts as dormant. Source: Sokar et al. (ICML 2023, arXiv 2302.12902).

    Parameters
    ----------
    source : Probe, GroupStatistics or Tensor
        A probe (the share is over the units of all its groups), one group, or activations.
    tau : float
    dim : int
        The dimension of the units in a tensor of activations.

    Examples
    --------
    >>> dormant_fraction(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    0.5
    """
    if isinstance(source, Tensor):
        other = [d for d in range(source.dim()) if d != dim % source.dim()]
        found: list[Vector] = [source.detach().double().abs().mean(dim=other).cpu().numpy()]
    elif isinstance(source, Probe):
        found = [group.magnitude for group in source.groups.values()]
    else:
        found = [source.magnitude]
    dormant = sum(int(np.sum(size <= tau * size.mean())) for size in found)
    units = sum(size.size for size in found)
    if not units:
        raise GraphnetError("dormant_fraction: there are no units")
    return dormant / units


def effective_rank(features: Tensor) -> float:
    """``exp(-sum p ln p)`` with ``p`` the singular values over their sum; 0 where all features are zero.

    Source: Roy and Vetterli (EUSIPCO 2007).

    Parameters
    ----------
    features : Tensor
        ``[samples, d]``; further leading dimensions count as samples.

    Examples
    --------
    >>> round(effective_rank(torch.eye(5)), 6)
    5.0
    """
    values = _singular(features, "effective_rank")
    if not values.sum():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(features: Tensor) -> float:
    """``sum s^2 / s_1^2`` over the singular values; 0 where all features are zero. Takes what effective_rank does."""
    values = _singular(features, "stable_rank")
    return float((values**2).sum() / values[0] ** 2) if values[0] else 0.0


def _singular(features: Tensor, what: str) -> Vector:
    if not isinstance(features, Tensor) or features.dim() < 2 or not features.numel():
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise GraphnetError(f"{what}: features are a tensor [samples, d] with at least one sample, not {shape}")
    matrix = features.detach().double().reshape(prod(features.shape[:-1]), features.shape[-1])
    if not bool(torch.isfinite(matrix).all()):
        raise GraphnetError(f"{what}: the features are not finite: check data and weights")
    return np.asarray(torch.linalg.svdvals(matrix).cpu().numpy(), dtype=np.float64)
