"""Where a policy acts: on a live network, or on its graph alone for a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.ir.graph import Graph
from graphnet.probes.statistics import Probe, probe
from graphnet.rules.costs import Accountant
from graphnet.rules.engine import CompiledRule, Draft, perform
from graphnet.rules.steps import Data, Moment
from graphnet.runtime.network import Network
from graphnet.schemas.policy import Budgets

__all__ = ["Live", "Sketch", "World"]


class World(Protocol):
    """What a policy needs of the network, live or sketched."""

    accountant: Accountant

    @property
    def graph(self) -> Graph:
        """The current graph."""

    def snapshot(self) -> Snapshot:
        """The state to which a rule may rewind."""

    def parity(
        self, signal: Literal["gradient", "activation"], group: str, newborns: Sequence[int]
    ) -> float | str | None:
        """Newborns over incumbents; text says why it cannot be measured."""

    def apply(self, rule: CompiledRule, draft: Draft, moment: Moment, budgets: Budgets, seed: int) -> Draft:
        """Make a draft the current version, or give it back rejected."""


class Live:
    """A network with the caller's batch and loss."""

    def __init__(
        self,
        net: Network,
        accountant: Accountant,
        batch: Batch | None,
        loss: Loss | None,
        snapshots: dict[str, Snapshot],
    ) -> None:
        self.net, self.accountant = net, accountant
        self.data = Data(batch, loss, snapshots)
        self._probe: Probe | None = None
        accountant.refresh(batch)

    @property
    def graph(self) -> Graph:
        """The network's graph."""
        return self.net.graph

    def snapshot(self) -> Snapshot:
        """A copy of every tensor."""
        return self.net.snapshot()

    def parity(
        self, signal: Literal["gradient", "activation"], group: str, newborns: Sequence[int]
    ) -> float | str | None:
        """Measured on the caller's batch, once for each version."""
        if self.data.batch is None or self.data.loss is None:
            return f"parity needs metrics['parity.{signal}.{group}'], or batch=(x, y) and loss=f with f(output, y)"
        if self._probe is None or self._probe.graph is not self.net.graph:
            self._probe = probe(self.net, self.data.batch, self.data.loss)
        found = self._probe.parity(group, newborns)
        return found.ratio_gradient if signal == "gradient" else found.ratio_activation

    def apply(self, rule: CompiledRule, draft: Draft, moment: Moment, budgets: Budgets, seed: int) -> Draft:
        """Edit the network."""
        return perform(
            self.net, draft, moment, self.data, accountant=self.accountant, budgets=budgets,
            seed=rule.seed(self.net, seed, moment.step),
        )  # fmt: skip


class Sketch:
    """A network's graph alone."""

    def __init__(self, net: Network, accountant: Accountant) -> None:
        self._graph, self.accountant = net.graph, accountant
        accountant.refresh(None)

    @property
    def graph(self) -> Graph:
        """The graph as the dry run leaves it."""
        return self._graph

    def snapshot(self) -> Snapshot:
        """The graph without tensors."""
        return Snapshot(self._graph, {})

    def parity(
        self, signal: Literal["gradient", "activation"], group: str, newborns: Sequence[int]
    ) -> float | str | None:
        """Not without tensors."""
        return f"a dry run measures nothing: give it metrics['parity.{signal}.{group}']"

    def apply(self, rule: CompiledRule, draft: Draft, moment: Moment, budgets: Budgets, seed: int) -> Draft:
        """Go on to the draft's graph."""
        self._graph = draft.graph
        return draft
