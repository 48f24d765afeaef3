"""Where a policy acts: on a live network, or on its graph alone for a dry run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, Protocol

import torch

from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.rules.costs import Accountant, check_budgets, check_transient
from graphnet.rules.engine import CompiledRule, Draft, nothing, performed
from graphnet.rules.execution import Limits, RefusedError, perform_steps
from graphnet.rules.measure import Measurements, Measuring, NotMeasuring
from graphnet.rules.metrics import METRICS, Readings
from graphnet.rules.outcome import CostChange
from graphnet.rules.remembered import Remembered
from graphnet.rules.steps import Data, Moment
from graphnet.rules.verify import check_latency, check_promise
from graphnet.runtime.network import Network
from graphnet.schemas.policy import Budgets

__all__ = ["Live", "Sketch", "World", "plainly"]

_AS_IT_IS = nullcontext()


def plainly(device: torch.device) -> AbstractContextManager[Any]:
    """Measure and fill in the weights' own type, also where the caller is under autocast."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else _AS_IT_IS


class World(Protocol):
    """What a policy needs of the network, live or sketched."""

    accountant: Accountant
    readings: Readings

    @property
    def measure(self) -> Measurements:
        """What guards measure."""

    @property
    def graph(self) -> Graph:
        """The current graph."""

    def snapshot(self) -> Snapshot:
        """The state to which a rule may rewind."""

    def apply(
        self, rule: CompiledRule, draft: Draft, moment: Moment, budgets: Budgets, limits: Limits, seed: int
    ) -> Draft:
        """Make a draft the current version, or give it back rejected."""


class Live:
    """A network with the caller's metrics, batch and loss."""

    def __init__(
        self,
        net: Network,
        accountant: Accountant,
        step: int,
        metrics: dict[str, float],
        batch: Batch | None,
        loss: Loss | None,
        snapshots: dict[str, Snapshot],
        remembered: Remembered,
    ) -> None:
        self.net, self.accountant = net, accountant
        self._remembered = remembered
        self._given = batch, loss, snapshots
        self._step = step
        self._measuring: Measuring | None = None
        self.readings = Readings(metrics, self._registered)
        accountant.refresh(batch)

    @property
    def measure(self) -> Measurements:
        """Measures on the batch, each once for every version."""
        if self._measuring is None:
            (batch, loss, _), known = self._given, self._remembered
            self._measuring = Measuring(
                self.net, self._step, batch, loss, self.readings.given, known.utility, known.trouble
            )  # fmt: skip
        return self._measuring

    @property
    def data(self) -> Data:
        """What an edit may use."""
        return Data(*self._given, self._values)

    @property
    def graph(self) -> Graph:
        """The network's graph."""
        return self.net.graph

    def snapshot(self) -> Snapshot:
        """A copy of every tensor."""
        return self.net.snapshot()

    def _values(self, metric: str, group: UnitGroup) -> Mapping[int, float] | str:
        """A metric of units by id, for the steps that choose by it."""
        known = self._remembered.units.of(metric, group)
        if known:
            return known
        if metric in METRICS:
            found = self.measure.registered(metric, self.net.graph.groups.get(group.name, group))
            return found if isinstance(found, Mapping | str) else f"the metric {metric!r} gives no value for each unit"
        if metric == "utility":
            return self.measure.utility(group.name)
        return f"there is no metric {metric!r} of units: give metrics[{metric!r}][{group.name!r}]"

    def _registered(self, name: str) -> float | None:
        found = self.measure.registered(name, None)
        return found if isinstance(found, float) else None

    def apply(
        self, rule: CompiledRule, draft: Draft, moment: Moment, budgets: Budgets, limits: Limits, seed: int
    ) -> Draft:
        """Edit the network."""
        net, accountant = self.net, self.accountant
        before = net.graph
        places = [place for place in draft.places if place.status == "applied"]
        try:
            with net.edit(seed=rule.seed(net, seed, moment.step)) as edit:
                done = perform_steps(rule.runners, places, lambda: edit, moment, limits, self.data)
                assert done is not None  # on a live network a refusal is an error
                plan = edit.plan
                if draft.predicted:
                    _check_prediction(draft.graph, plan.graph)
                if not any(place.status == "applied" for place in places):
                    raise _NothingError
                costs = CostChange(accountant.costs(before), accountant.costs(plan.graph))
                check_budgets(budgets, costs.before, costs.after)
                if budgets.transient_bytes is not None:
                    check_transient(budgets, accountant.peak(before, done.stages))
                check_promise(net, plan, moment.preserves, self.data.batch)
                check_latency(net, plan, budgets.latency, self.data.batch)
                plan.provenance = {
                    "rule": rule.rule.name,
                    "step": moment.step,
                    "matches": [dict(place.binding) for place in places if place.status == "applied"],
                    "changes": [str(change) for change in done.changes],
                    "cost": {"before": asdict(costs.before), "after": asdict(costs.after)},
                }
        except RefusedError as refused:
            return draft.without(before, refused.places, refused.error)
        except _NothingError:
            return nothing(before, draft.places, places)
        except GraphnetError as error:
            return draft.rejected(before, error)
        return performed(draft, done, net)


class _NothingError(Exception):
    """No step found anything to do."""


def _check_prediction(planned: Graph, found: Graph) -> None:
    """The draft and the edit must agree, for the draft's costs were checked."""
    for name, group in planned.groups.items():
        have = found.groups.get(name)
        if have is None or (have.size, len(have.dormant)) != (group.size, len(group.dormant)):
            size = "no" if have is None else have.size
            raise EditError(f"{name!r} would have {size} units where the rule planned {group.size}")


class Sketch:
    """A network's graph alone."""

    def __init__(self, net: Network, accountant: Accountant) -> None:
        self._graph, self.accountant = net.graph, accountant
        self.measure: Measurements = NotMeasuring()
        self.readings = Readings({})
        accountant.refresh(None)

    def read(self, metrics: dict[str, float]) -> None:
        """Take the metrics of the next step."""
        self.readings = Readings(metrics)

    @property
    def graph(self) -> Graph:
        """The graph as the dry run leaves it."""
        return self._graph

    def snapshot(self) -> Snapshot:
        """The graph without tensors."""
        return Snapshot(self._graph, {})

    def apply(
        self, rule: CompiledRule, draft: Draft, moment: Moment, budgets: Budgets, limits: Limits, seed: int
    ) -> Draft:
        """Go on to the draft's graph."""
        if not draft.predicted:
            why: Any = draft.error
            return draft.rejected(self._graph, EditError(f"a dry run cannot tell what the rule would do: {why}"))
        self._graph = draft.graph
        return draft
