"""A stateful test: training, edits, saves, loads, copies and compiles of one network, in random order.

Subclass :class:`SurgeryMachine`, override what it makes, add rules, and give its ``TestCase`` to your test runner.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from graphnet.edit.host import Snapshot
from graphnet.errors import GraphnetError
from graphnet.ir.graph import Graph
from graphnet.runtime.checkpoint import load_checkpoint
from graphnet.runtime.network import Network
from graphnet.testing.compare import check_bits, check_close, state_of, twin_of
from graphnet.testing.counting import COUNTS
from graphnet.testing.data import dtype_of, random_network, sample, train
from graphnet.testing.edits import EditCall, edit_calls, edits
from graphnet.testing.episodes import is_finite
from graphnet.testing.graphs import graphs
from graphnet.testing.laws import check_edit, check_lowering, check_unchanged, check_valid
from graphnet.testing.optimizers import OptimizerSpec, optimizers

__all__ = ["SurgeryMachine", "counted"]

_EVALUATED = 20_000
"""Most parameters for which the forward pass is compared with the reference after every rule."""
_COMPILES = 1
"""Compilations of one run: each takes seconds."""


Step = TypeVar("Step", bound=Callable[..., None])


def counted(step: Step) -> Step:
    """Count in ``COUNTS.rules`` how often a rule ran to its end (function decorator, below ``@rule``)."""

    @wraps(step)
    def run(machine: SurgeryMachine, *args: Any, **drawn: Any) -> None:
        step(machine, *args, **drawn)
        COUNTS.rules[step.__name__] += 1

    return cast(Step, run)


class SurgeryMachine(RuleBasedStateMachine):
    """Interleaves what a user does to a network while it trains, and checks after every step that it is whole.

    Override :meth:`make_graph` and :meth:`make_optimizer` for your own network, and add rules with
    :func:`hypothesis.stateful.rule`; ``self.net`` is the network, ``self.optimizers`` what is attached to it.

    Invariants: the graph is valid and its document gives it back, tensors fit it, the optimizers hold every
    parameter and their state fits, the forward pass is what the reference evaluator gives, and an averaged model
    (half of the runs have one) is of the same version.

    Rules: ``train``, ``edit``, ``edit_several`` in one transaction, ``fail`` in the middle of one, ``snapshot`` for
    rewinds, ``keep_and_roll_back``, ``save_and_load``, ``go_on_with_a_copy``, ``take_a_plain_copy``, ``compile``.

    Examples
    --------
    A test runner that knows ``unittest`` runs ``TestMyNetwork``; :func:`hypothesis.stateful.run_state_machine_as_test`
    runs a machine anywhere.

    >>> from hypothesis import settings
    >>> import graphnet as gn
    >>> class OnMyNetwork(gn.testing.SurgeryMachine):
    ...     def make_graph(self):
    ...         return gn.mlp([4, 8, 2], norm="batch")
    >>> OnMyNetwork.TestCase.settings = settings(max_examples=2, stateful_step_count=4, deadline=None)
    >>> TestMyNetwork = OnMyNetwork.TestCase
    """

    net: Network
    optimizers: tuple[Optimizer, ...]

    def __init__(self) -> None:
        super().__init__()
        self.spec: OptimizerSpec | None = None
        self.average: AveragedModel | None = None
        self.snapshots: list[Snapshot] = []
        self.compiled = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    # -- what a subclass says -----------------------------------------------------------------------------------

    def make_graph(self) -> Graph | st.SearchStrategy[Graph]:
        """The graph, or a strategy of graphs, that a run begins with."""
        return graphs(composed=False)

    def make_network(self, graph: Graph, seed: int) -> Network:
        """The network of a graph."""
        return random_network(graph, seed)

    def make_optimizer(self, net: Network) -> Optimizer:
        """An optimizer that holds every parameter of the network; by default a random one of torch.optim."""
        assert self.spec is not None
        return self.spec(net.parameters())

    def make_edits(self, graph: Graph) -> st.SearchStrategy[EditCall]:
        """A strategy of the edits that are tried."""
        return edit_calls(graph)

    # -- rules ----------------------------------------------------------------------------------------------------

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Make the network and its optimizer."""
        made = self.make_graph()
        graph = made if isinstance(made, Graph) else data.draw(made, label="graph")
        self.spec = data.draw(optimizers(), label="optimizer")
        self.net = self.make_network(graph, data.draw(st.integers(0, 99), label="seed"))
        self._attach(self.net)
        if data.draw(st.booleans(), label="average"):
            self._average()

    def _average(self) -> None:
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
        self.net.attach(self.average)

    def _attach(self, net: Network) -> None:
        self.net, self.average = net, None
        optimizer = self.make_optimizer(net)
        if all(held is not optimizer for held in net.attached):
            net.attach(optimizer)
        self.optimizers = net.attached

    @rule(steps=st.integers(1, 2), seed=st.integers(0, 99))
    @counted
    def train(self, steps: int, seed: int) -> None:
        """Take training steps."""
        train(self.net, self.optimizers, steps, seed=seed)
        if self.average is not None:
            self.average.update_parameters(self.net)

    @rule(data=st.data())
    @counted
    def edit(self, data: st.DataObject) -> None:
        """Make an edit of one operator, and check the laws of an edit."""
        call = data.draw(self.make_edits(self.net.graph), label="edit")
        laws = ["valid", "lowering", "preserved"] + (["gradients", "incumbents"] if call.incumbents else [])
        snapshot = data.draw(st.sampled_from(self.snapshots), label="snapshot") if self.snapshots else None
        check_edit(self.net, lambda edit: call.apply(edit, snapshot), laws)

    @rule(data=st.data())
    @counted
    def edit_several(self, data: st.DataObject) -> None:
        """Make one transaction of several operators."""
        calls = data.draw(edits(self.net.graph, max_size=3), label="edits")

        def change(edit: Any) -> None:
            for call in calls:
                call.apply(edit)

        laws = ["valid", "lowering", "preserved"]
        check_edit(self.net, change, laws + (["incumbents"] if all(call.incumbents for call in calls) else []))

    @rule(data=st.data())
    @counted
    def fail(self, data: st.DataObject) -> None:
        """An error in the block of an edit: nothing may have changed."""
        call = data.draw(self.make_edits(self.net.graph), label="edit")
        before, version = state_of(self.net), self.net.version
        try:
            with self.net.edit() as edit:
                call.apply(edit)
                raise RuntimeError("in the block")
        except (RuntimeError, GraphnetError):
            pass
        check_unchanged(self.net, before, "an error in the block of an edit")
        assert self.net.version == version
        COUNTS.held("failed block unchanged")

    @rule()
    @counted
    def snapshot(self) -> None:
        """Take a snapshot, for rewinds."""
        self.snapshots = [*self.snapshots[-2:], self.net.snapshot()]

    @rule(further=st.integers(0, 1))
    @counted
    def keep_and_roll_back(self, further: int) -> None:
        """Keep the version, train and edit, and roll back: everything but gradients is as it was."""
        kept = self.net.keep(last=2)
        before = {name: value for name, value in state_of(self.net).items() if not name.startswith("grad ")}
        train(self.net, self.optimizers, 1)
        groups = [name for name, group in self.net.graph.groups.items() if group.frozen is None]
        for name in groups[:further]:
            with self.net.edit() as edit:
                edit.grow(name, 1, init="kaiming")
        self.net.rollback(kept.version)
        check_unchanged(self.net, before, "rolled back")
        COUNTS.held("rolled back")

    @rule()
    @counted
    def save_and_load(self) -> None:
        """Write a checkpoint, read it, and go on with what was read."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="graphnet-surgery-")
        before = state_of(self.net)
        path = self.net.save(Path(self._folder.name) / "checkpoint")
        checkpoint = load_checkpoint(path)
        old, net, averaged = self.net, checkpoint.network(), self.average is not None
        self._attach(net)
        checkpoint.resume(net, *self.optimizers)
        for name, parameter in old.named_parameters():  # a checkpoint keeps gradients only on request
            net.tensor(name).grad = None if parameter.grad is None else parameter.grad.clone()
        check_unchanged(net, _without_average(before), "saved and loaded")
        assert net.graph.to_document() == old.graph.to_document()
        if averaged:
            self._average()
        COUNTS.held("saved and loaded")

    @rule()
    @counted
    def go_on_with_a_copy(self) -> None:
        """Copy the network with its optimizers and go on with the copy; the original must not notice."""
        old, before = self.net, state_of(self.net)
        averaged = self.average is not None
        self.net, self.average = twin_of(old), None
        self.optimizers = self.net.attached
        check_bits(_without_average(before), state_of(self.net), "a copy")
        train(self.net, self.optimizers, 1)
        check_unchanged(old, before, "the original of a copy that was trained")
        if averaged:
            self._average()
        COUNTS.held("copies")

    @rule()
    @counted
    def take_a_plain_copy(self) -> None:
        """The plain module computes the same."""
        inputs = sample(self.net.graph, 3, dtype=dtype_of(self.net))
        self.net.eval()
        with torch.no_grad():
            check_close(self.net(*inputs), self.net.to_torch().eval()(*inputs), "to_torch", tolerance=0.0)
        self.net.train()
        COUNTS.held("plain copy")

    @precondition(lambda self: self.compiled < _COMPILES)
    @rule(backend=st.sampled_from(["eager", "eager", "aot_eager"]), wanted=st.integers(0, 3))
    def compile(self, backend: str, wanted: int = 0) -> None:
        """``torch.compile`` gives what the network gives (rarely: it is slow)."""
        if wanted:
            return
        self.compiled += 1
        inputs = sample(self.net.graph, 4, dtype=dtype_of(self.net))
        torch.compiler.reset()
        self.net.eval()
        with torch.no_grad():
            compiled = torch.compile(copy.deepcopy(self.net), backend=backend)
            check_close(self.net(*inputs), compiled(*inputs), f"torch.compile, {backend}")
        self.net.train()
        COUNTS.held("compiled")
        COUNTS.rules["compile"] += 1

    # -- invariants -----------------------------------------------------------------------------------------------

    @invariant()
    def is_whole(self) -> None:
        """Graph, document, shapes, optimizers."""
        if hasattr(self, "net"):
            check_valid(self.net)

    @invariant()
    def is_the_graph(self) -> None:
        """The forward pass is what the reference gives, on small networks with finite tensors."""
        if not hasattr(self, "net") or not is_finite(self.net):
            return
        if sum(p.numel() for p in self.net.parameters()) <= _EVALUATED:
            check_lowering(self.net)

    @invariant()
    def average_follows(self) -> None:
        """An averaged copy is of the same version, and computes what its own tensors say."""
        if getattr(self, "average", None) is None or not is_finite(self.net):
            return
        assert self.average is not None
        averaged: Any = self.average.module
        assert averaged.graph is self.net.graph, "the average is of another version"
        assert {n: t.shape for n, t in averaged.named_parameters()} == {
            n: t.shape for n, t in self.net.named_parameters()
        }
        if is_finite(averaged):
            check_lowering(averaged)
        COUNTS.held("average")

    def teardown(self) -> None:
        """Remove the checkpoints."""
        if self._folder is not None:
            self._folder.cleanup()


def _without_average(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without what follows an averaged model, which copies and checkpoints do not carry."""
    return {name: value for name, value in state.items() if name.split(" ")[0] not in ("average", "carried")}


SurgeryMachine.TestCase.settings = settings(
    max_examples=10, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
