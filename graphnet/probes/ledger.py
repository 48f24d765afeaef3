"""The cost ledger: what training a network that changes its structure has cost, integrated over its steps.

What one step costs is worked out once for each version of the graph; :meth:`Ledger.step` then only adds numbers.
Nothing here runs the network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from graphnet.errors import CheckpointError, GraphnetError
from graphnet.ir.cost import OPTIMIZER_SLOTS, Cost
from graphnet.ir.graph import Graph
from graphnet.runtime.network import Network

__all__ = ["TRAINING_PASSES", "Ledger", "Totals", "VersionCost", "optimizer_bytes", "optimizer_name"]

TRAINING_PASSES = 3
"""A training step counts as so many forward passes: one forward, and a backward of twice its cost."""


@dataclass(slots=True)
class Totals:
    """What has been spent.

    Attributes
    ----------
    steps, samples : int
    flops : int
        Executed: three forward passes for each sample trained on, and what scoring cost.
    flops_nominal : int
        The same with dormant units counted as live: what a masked dense backbone executes.
    scoring_flops : int
        The part of both that scoring cost.
    param_steps, param_steps_nominal : int
        Sum over steps of the number of parameters, live or with dormant units.
    optimizer_byte_steps : int
        Sum over steps of the bytes of optimizer state.
    wall_seconds : float
        Inside :meth:`Ledger.timing`.
    param_seconds : float
        Integral of the number of live parameters over ``wall_seconds``.
    edit_seconds : float
        Of edits; they lie in ``wall_seconds`` too where the edit was made inside :meth:`Ledger.timing`.
    edits : int
    """

    steps: int = 0
    samples: int = 0
    flops: int = 0
    flops_nominal: int = 0
    scoring_flops: int = 0
    param_steps: int = 0
    param_steps_nominal: int = 0
    optimizer_byte_steps: int = 0
    wall_seconds: float = 0.0
    param_seconds: float = 0.0
    edit_seconds: float = 0.0
    edits: int = 0


@dataclass(frozen=True, slots=True)
class VersionCost:
    """What one version costs; ``nominal`` counts dormant units as live.

    Attributes
    ----------
    version : int
    flops_forward, flops_forward_nominal : int
        Of one forward pass of one sample.
    params, params_nominal : int
    activation_bytes : int
        Of one forward pass of the ledger's batch: an upper estimate of what a backward pass needs.
    """

    version: int
    flops_forward: int
    flops_forward_nominal: int
    params: int
    params_nominal: int
    activation_bytes: int


class Ledger:
    """Adds up what training costs; call :meth:`step` after each optimizer step.

    Parameters
    ----------
    net : Network
    batch_size : int
        Samples in a training batch, for the bytes of activations.
    input_shape : sequence of int, or mapping of input name to sequence, optional
        Shapes of the inputs without the batch; needed where they have dimensions that change from batch to batch.

    Raises
    ------
    GraphError
        A dimension that changes from batch to batch is not bound by ``input_shape``.

    Examples
    --------
    >>> from graphnet.ir.builders import mlp
    >>> net = Network(mlp([784, 256, 10]), seed=0)
    >>> ledger = Ledger(net, batch_size=32)
    >>> ledger.step(32)
    >>> ledger.totals()["flops"] == 3 * 32 * 2 * (784 * 256 + 256 * 10)
    True
    """

    def __init__(
        self,
        net: Network,
        *,
        batch_size: int,
        input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._net = net
        self._batch_size = batch_size
        self._input_shape = input_shape
        self._spent = Totals()
        self._graph: Graph | None = None
        self._cost = self._refresh()
        self._last: float | None = None

    # -- spending -----------------------------------------------------------------------------------------------

    def step(self, n_samples: int) -> None:
        """One optimizer step on so many samples has been taken."""
        if self._net.graph is not self._graph:
            self._cost = self._refresh()
        if self._measure:  # state appears with the first step on it, so a fresh version is measured twice
            self._measure -= 1
            self._state_bytes = optimizer_bytes(self._net)
        spent, cost = self._spent, self._cost
        spent.steps += 1
        spent.samples += n_samples
        spent.flops += TRAINING_PASSES * cost.flops_forward * n_samples
        spent.flops_nominal += TRAINING_PASSES * cost.flops_forward_nominal * n_samples
        spent.param_steps += cost.params
        spent.param_steps_nominal += cost.params_nominal
        spent.optimizer_byte_steps += self._state_bytes
        if self._last is not None:
            self._tick()

    def edit(self, seconds: float) -> None:
        """An edit took so long (:attr:`Version.seconds`, and the caller's own preparation)."""
        if not seconds >= 0:
            raise GraphnetError(f"an edit takes no less than 0 seconds, not {seconds!r}")
        self._spent.edits += 1
        self._spent.edit_seconds += float(seconds)

    def scoring(self, flops: int) -> None:
        """Scoring units took so many floating point operations; they count as executed and as nominal."""
        if flops < 0:
            raise GraphnetError(f"scoring takes no less than 0 FLOPs, not {flops!r}")
        self._spent.flops += int(flops)
        self._spent.flops_nominal += int(flops)
        self._spent.scoring_flops += int(flops)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Count the wall time of a block; leave evaluation, logging and the like outside.

        Raises
        ------
        GraphnetError
            A block is open already: time would count twice.
        """
        if self._last is not None:
            raise GraphnetError("ledger.timing() is open already: its time would count twice")
        self._last = time.perf_counter()
        try:
            yield
        finally:
            self._tick()
            self._last = None

    def _tick(self) -> None:
        assert self._last is not None
        now = time.perf_counter()
        self._spent.wall_seconds += now - self._last
        self._spent.param_seconds += (now - self._last) * self._cost.params
        self._last = now

    def _refresh(self) -> VersionCost:
        graph = self._net.graph
        dtype = next((p.dtype for p in self._net.parameters()), torch.float32)

        def count(batch: int, dormant: bool) -> Cost:
            return graph.cost(self._input_shape, batch=batch, dtype=dtype, dormant=dormant)

        live, nominal = count(1, False), count(1, True)
        found = VersionCost(
            graph.version, live.flops, nominal.flops, live.params, nominal.params,
            count(self._batch_size, False).activation_bytes,
        )  # fmt: skip
        self._graph, self._measure, self._state_bytes = graph, 2, 0
        return found

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def current(self) -> VersionCost:
        """What the network's current version costs."""
        if self._net.graph is not self._graph:
            self._cost = self._refresh()
        return self._cost

    def totals(self) -> dict[str, Any]:
        """What has been spent, by name; see :class:`Totals`."""
        return asdict(self._spent)

    # -- resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What has been spent as plain data, for JSON; integers stay exact."""
        return self.totals()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            The state is not a ledger's; nothing was changed.
        """
        wanted: dict[str, type[int] | type[float]] = {name: type(value) for name, value in asdict(Totals()).items()}
        wrong = sorted(set(wanted) ^ set(state))
        wrong += [
            f"{name}={state[name]!r}"
            for name, kind in wanted.items()
            if name in state and (isinstance(state[name], bool) or not isinstance(state[name], int | kind))
        ]
        if wrong:
            raise CheckpointError(f"this is not a state of a ledger (Ledger.state_dict): look at {', '.join(wrong)}")
        spent = Totals()
        for name, kind in wanted.items():
            setattr(spent, name, kind(state[name]))
        self._spent = spent


def optimizer_bytes(net: Network) -> int:
    """Bytes of the state tensors of every attached optimizer, as they are now (step counters included)."""
    return sum(
        value.numel() * value.element_size()
        for optimizer in net.attached
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def optimizer_name(optimizer: Optimizer) -> str:
    """The name under which :func:`graphnet.ir.cost.cost` predicts an optimizer's bytes.

    Raises
    ------
    GraphnetError
        The prediction knows no such optimizer.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer_name(torch.optim.SGD([weight], lr=0.1, momentum=0.9))
    'momentum'
    """
    name = type(optimizer).__name__.lower()
    if name == "sgd" and any(group["momentum"] for group in optimizer.param_groups):
        name = "momentum"
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        name = "amsgrad"
    if name not in OPTIMIZER_SLOTS:
        raise GraphnetError(
            f"the bytes of {type(optimizer).__name__} are not predicted, only {', '.join(OPTIMIZER_SLOTS)}"
        )
    return name
