"""What guards measure on the caller's batch where the metrics do not give it, each once for every version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.host import Batch, Loss
from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.ir.sites import site
from graphnet.probes.bottleneck import growth_bottleneck
from graphnet.probes.statistics import Probe, dormant_fraction, effective_rank, probe
from graphnet.probes.utility import Utility
from graphnet.rules.metrics import Look, compute
from graphnet.runtime.network import Network

__all__ = ["Measurements", "Measuring", "NotMeasuring"]

T = TypeVar("T")


class Measurements(Protocol):
    """What guards may ask for; text says why it cannot be measured."""

    def parity(
        self, signal: Literal["gradient", "activation"], group: str, newborns: Sequence[int], statistic: str
    ) -> float | str:
        """The newborns' mean or median over the incumbents' mean."""

    def inactive(self, group: str, tau: float) -> float | str:
        """The share of units with a ReDo score of at most ``tau``."""

    def rank(self, group: str) -> float | str:
        """The effective rank of the activations."""

    def bottleneck(self, group: str) -> float | str:
        """The expressivity bottleneck, 0 to 1."""

    def utility(self, group: str) -> Mapping[int, float] | str:
        """The utility of each live unit, by id."""

    def registered(self, name: str, group: UnitGroup | None) -> float | Mapping[int, float] | str:
        """A registered metric."""


class Measuring:
    """Measures a network, on the batch where one is needed.

    Parameters
    ----------
    net : Network
    step : int
    batch, loss : optional
    metrics : mapping
        The loop's own, for registered metrics.
    utility : Utility, optional
        Running utilities.
    trouble : str, optional
        Why the utilities could not be measured on this batch.
    """

    def __init__(
        self,
        net: Network,
        step: int,
        batch: Batch | None,
        loss: Loss | None,
        metrics: Mapping[str, float],
        utility: Utility | None = None,
        trouble: str | None = None,
    ) -> None:
        self.net, self.step, self.batch, self.loss, self.metrics = net, step, batch, loss, metrics
        self._utility, self._trouble = utility, trouble
        self._graph: Graph | None = None
        self._known: dict[tuple[Any, ...], Any] = {}

    def parity(
        self, signal: Literal["gradient", "activation"], group: str, newborns: Sequence[int], statistic: str
    ) -> float | str:
        """The newborns' mean or median over the incumbents' mean."""
        if self.batch is None or self.loss is None:
            return f"parity needs metrics['parity.{signal}.{group}'], or batch=(x, y) and loss=f with f(output, y)"
        found = self._probe()
        if isinstance(found, str):
            return found
        if group in found.groups and not np.isfinite(found.groups[group].gradient).all():
            return f"the gradients of {group} on the batch are not finite"  # nor is what its activations say
        ratio = found.parity(group, newborns)
        value = ratio.ratio_gradient if signal == "gradient" else ratio.ratio_activation
        if value is None:
            return f"the {signal} parity of {group} cannot be measured: no incumbents are left"
        if statistic == "median":
            each = found.groups[group].gradient if signal == "gradient" else found.groups[group].activation
            born = each[found.groups[group].positions(newborns)]
            mean = float(born.mean())
            value = value * float(np.median(born)) / mean if mean else 0.0
        return value

    def inactive(self, group: str, tau: float) -> float | str:
        """The share of units with a ReDo score of at most ``tau``."""
        rows = self._rows(group, "dormant")
        return rows if isinstance(rows, str) else dormant_fraction(rows, tau)

    def rank(self, group: str) -> float | str:
        """The effective rank of the activations."""
        rows = self._rows(group, "rank")
        return rows if isinstance(rows, str) else effective_rank(rows)

    def bottleneck(self, group: str) -> float | str:
        """The expressivity bottleneck."""
        batch, loss = self.batch, self.loss
        if batch is None or loss is None:
            return f"bottleneck needs metrics['bottleneck.{group}'], or batch=(x, y) and loss=f with f(output, y)"
        return self._once(("bottleneck", group), lambda: growth_bottleneck(self.net, group, batch, loss))

    def utility(self, group: str) -> Mapping[int, float] | str:
        """The utility of each live unit."""
        if self._trouble is not None:
            return self._trouble
        if self._utility is None or group not in self._utility.groups:
            return f"the utility of {group} is not known: give metrics['utility'][{group!r}], or batch=(x, y)"
        values = self._utility.values(group)
        return {unit: values[unit] for unit in self.net.graph.groups[group].ids if unit in values}

    def registered(self, name: str, group: UnitGroup | None) -> float | Mapping[int, float] | str:
        """A registered metric."""
        look = Look(self.net, self.step, group, self.batch, self.loss, self.metrics)
        return self._once(("metric", name, group and group.name), lambda: compute(name, look))

    def _once(self, key: tuple[Any, ...], measure: Callable[[], T]) -> T | str:
        """Measure, or say what was found on this version before; a refusal is text."""
        if self._graph is not self.net.graph:
            self._graph, self._known = self.net.graph, {}
        if key not in self._known:
            try:
                self._known[key] = measure()
            except EditError as error:
                self._known[key] = str(error)
        found: T | str = self._known[key]
        return found

    def _rows(self, group: str, what: str) -> Tensor | str:
        """Activations ``[samples, units]``; every position of the units is a sample."""
        batch = self.batch
        if batch is None:
            return f"{what} needs metrics['{what}.{group}'], or batch=(x, y)"
        rows = self._once(("rows", group), lambda: unit_rows(self.net, group, batch))
        if isinstance(rows, Tensor) and not rows.isfinite().all():
            return f"the activations of {group} on the batch are not finite"
        return rows

    def _probe(self) -> Probe | str:
        batch, loss = self.batch, self.loss
        assert batch is not None
        assert loss is not None
        return self._once(("probe",), lambda: probe(self.net, batch, loss))


class NotMeasuring:
    """What a dry run measures: nothing."""

    def parity(
        self, signal: Literal["gradient", "activation"], group: str, newborns: Sequence[int], statistic: str
    ) -> float | str:
        """Not without tensors."""
        return _not_measured(f"parity.{signal}.{group}")

    def inactive(self, group: str, tau: float) -> float | str:
        """Not without tensors."""
        return _not_measured(f"dormant.{group}")

    def rank(self, group: str) -> float | str:
        """Not without tensors."""
        return _not_measured(f"rank.{group}")

    def bottleneck(self, group: str) -> float | str:
        """Not without tensors."""
        return _not_measured(f"bottleneck.{group}")

    def utility(self, group: str) -> Mapping[int, float] | str:
        """Not without tensors."""
        return _not_measured(f"utility.{group}")

    def registered(self, name: str, group: UnitGroup | None) -> float | Mapping[int, float] | str:
        """Not without tensors."""
        return _not_measured(name if group is None else f"{name}.{group.name}")


def _not_measured(key: str) -> str:
    return f"a dry run measures nothing: give it metrics[{key!r}]"


def unit_rows(net: Network, group: str, batch: Batch) -> Tensor:
    """Activations of a group on a batch, ``[samples, units]``; positions of a unit count as samples.

    Raises
    ------
    EditError
        The group stands in no activation, or not as one block.
    """
    graph = net.graph
    place = site(graph, group)
    tensors = {name: net.live(name) for name in graph.tensors}
    found = net.evaluate(graph, tensors, batch, taps=(place.post,)).activations[place.post]
    layout = graph.dims(place.post)[place.dim]
    block = layout.block(place.group, graph.sizes)
    if block is None:
        owners = layout.owners(place.group, graph.sizes)
        at = np.flatnonzero(owners >= 0)
        if len(at) != graph.sizes[place.group]:
            raise EditError(f"the activations of {place.group!r} in op {place.post!r} are not one value for each unit")
        order = at[np.argsort(owners[at], kind="stable")]
        found, block = found.index_select(place.dim, torch.from_numpy(order).to(found.device)), (1, 1)
    before, size, after = found.shape[: place.dim], graph.sizes[place.group], found.shape[place.dim + 1 :]
    split = found.reshape(*before, block[0], size, block[1], *after)
    return split.movedim(len(before) + 1, -1).reshape(-1, size).double()
