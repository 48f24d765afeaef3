"""The network: an ``nn.Module`` that owns the tensors of the current version and the one gateway that edits them."""

from __future__ import annotations

import copy
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from graphnet.compilers.exporters import dynamic_shapes, example_inputs, to_export, to_onnx
from graphnet.compilers.plain import build_modules, carries_sizes, lower, refresh_modules, same_code, tie
from graphnet.edit.edit import Edit
from graphnet.edit.forecast import touched
from graphnet.edit.host import Batch, Evaluation, Loss, OptimizerKind, Slot, Snapshot
from graphnet.edit.plan import Plan
from graphnet.errors import EditError, GraphError
from graphnet.ir.graph import Graph
from graphnet.ir.infer import BATCH
from graphnet.runtime.averages import Average
from graphnet.runtime.evaluate import evaluate
from graphnet.runtime.gradients import dense
from graphnet.runtime.history import History, Version
from graphnet.runtime.initialise import kaiming_uniform
from graphnet.runtime.intact import check_intact, check_unparametrized, steady
from graphnet.runtime.kept import Kept, find_kept, keep, network_of
from graphnet.runtime.low_memory import outline, tensor_swaps
from graphnet.runtime.optimizers import Attached, notes_of
from graphnet.runtime.originals import check_layers_stay, move_originals
from graphnet.runtime.parallel import Agreement, Distributed
from graphnet.runtime.parametrized import Parametrized, list_of, read
from graphnet.runtime.recompiling import allow_recompiling
from graphnet.runtime.resize import check_settable, refuse
from graphnet.runtime.resting import awake, lay_to_rest
from graphnet.runtime.rollback import roll_back
from graphnet.runtime.structure import Structure
from graphnet.runtime.swaps import bytes_of, swaps_of
from graphnet.runtime.transaction import Swap, commit
from graphnet.runtime.verify import check_function

__all__ = ["Network"]

_APPLIERS: dict[type[Any], Callable[..., Any]] = {}


@dataclass(frozen=True, slots=True)
class _Current:
    """Everything that a commit publishes at once."""

    graph: Graph
    program: fx.GraphModule
    history: History
    reserve: Mapping[str, Tensor] = field(default_factory=dict)


class _Open:
    """Lives as long as the frame of an open edit, so that not even a failure while it ends leaves it open."""


class Network(nn.Module):
    """A neural network whose structure can be edited while it trains.

    Its submodules are ordinary torch layers under the ops' names, so ``print``, ``state_dict``, ``.to()``, autocast,
    hooks and other tools behave as usual. Parameters keep their identity through edits.

    Parameters
    ----------
    graph : Graph
    seed : int
        Seeds the initial weights and every edit that is not given a seed of its own.
    init : {"torch", "kaiming"}
        Initial weights: torch's own, or Kaiming-uniform for linear and convolution weights.

    Examples
    --------
    >>> import torch, graphnet as gn
    >>> net = gn.Network(gn.mlp([4, 8, 2]), seed=0)
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> net.attach(optimizer)
    >>> with net.edit() as edit:
    ...     ids = edit.grow("fc1", 2, preserves="function")
    >>> ids, tuple(net.fc1.weight.shape), net.version
    ((8, 9), (10, 4), 1)
    """

    def __init__(self, graph: Graph, seed: int = 0, *, init: Literal["torch", "kaiming"] = "torch") -> None:
        super().__init__()
        if not isinstance(graph, Graph):
            raise GraphError(f"a Network is built from a gn.Graph (gn.load, gn.mlp ...), not a {type(graph).__name__}")
        if not isinstance(init, str) or init not in ("torch", "kaiming"):
            raise GraphError(f"init is 'torch' or 'kaiming', not {init!r}")
        self._seed = check_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            build_modules(graph, self)
            if init == "kaiming":
                kaiming_uniform(graph, self)
        self._attached: dict[str, Attached] = {}
        self._averages: dict[str, Average] = {}
        self._callbacks: list[Callable[[Version], object]] = []
        self._example: tuple[Any, ...] | None = None
        self._kept: dict[int, Kept] = {}
        self._distributed: weakref.ref[Distributed] | None = None
        self._editing: weakref.ref[_Open] | None = None
        flops = partial(_flops, graph)
        first = Version(graph.version, None, graph, seed=seed, params=self._count_params(), flops=flops)
        self._current = _Current(graph, lower(graph, self), History((first,)))
        whole = awake(graph)
        if whole is not None:
            self._current = replace(self._current, reserve=lay_to_rest(self, Network(whole, seed, init=init)))

    # -- reading ----------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any) -> Any:
        """Run the current version; a backward through it after a later edit is an :class:`EditError`."""
        current = self._current
        output = current.program(*inputs)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._guard(current.graph, output)
        return output

    def _guard(self, graph: Graph, output: Any) -> None:
        """Watch a backward where it enters the network: nodes that saved a weight would fail before its accumulator."""

        def check(*_: Any) -> None:
            if self._current.graph is not graph:
                refuse()

        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(check)

    @property
    def graph(self) -> Graph:
        """The current graph."""
        return self._current.graph

    @property
    def version(self) -> int:
        """The number of the current version."""
        return self._current.graph.version

    @property
    def history(self) -> History:
        """Every version with what made it."""
        return self._current.history

    @property
    def code(self) -> str:
        """The Python code that the current version was lowered to."""
        return str(self._current.program.code)

    @property
    def attached(self) -> tuple[Optimizer, ...]:
        """The attached optimizers."""
        return tuple(attached.optimizer for attached in self._attached.values())

    @property
    def averaged(self) -> tuple[AveragedModel, ...]:
        """The attached averaged models."""
        return tuple(average.model for average in self._averages.values())

    def tensor(self, name: str) -> Tensor:
        """A stored tensor by its name in the state dict: a parameter or a buffer."""
        if not isinstance(name, str):
            raise GraphError(f"a tensor is named by text, not by {name!r}")
        *path, attribute = name.split(".")
        home: nn.Module | None = self
        for part in path:
            home = home._modules.get(part) if home is not None else None
        tensor = None if home is None else home._parameters.get(attribute)
        if tensor is None:  # a buffer, one that is computed, or none
            tensor = getattr(home, attribute, None)
        if not isinstance(tensor, Tensor):
            raise GraphError(f"there is no tensor {name!r} in this network: net.graph.tensors lists them")
        return tensor

    def snapshot(self) -> Snapshot:
        """A copy of every tensor, with the graph that says whose they are; for :meth:`Edit.rewind`."""
        graph = self.graph
        with steady(self):
            tensors = {name: self.tensor(name).detach().clone() for name in graph.tensors}
        return Snapshot(
            graph,
            tensors,
            {name: tensor.clone() for name, tensor in self._current.reserve.items()},
        )

    def verify_on(self, *example: Any) -> None:
        """Check every edit that claims to preserve the function on these inputs before it is committed.

        An edit that fails the check is an :class:`EditError` and changes nothing. Without inputs no check is made.
        """
        self._example = example or None

    def _take_after(self, other: Network) -> None:
        """Be called as another network of the same kind is, and checked on the same example."""
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        if other._example is not None:
            self._example = tuple(
                value.detach().to(device) if isinstance(value, Tensor) else value for value in other._example
            )

    def on_commit(self, callback: Callable[[Version], object]) -> None:
        """Call a function with each new version, after it is published; what it raises is reported as a warning."""
        self._callbacks.append(callback)

    # -- optimizers ---------------------------------------------------------------------------------------------

    def attach(self, what: Optimizer | AveragedModel | LRScheduler, *, horizon: int | None = None) -> None:
        """Carry an optimizer, or an averaged copy of the network, through every edit.

        Parameters
        ----------
        what : torch.optim.Optimizer, torch.optim.swa_utils.AveragedModel or a learning-rate scheduler
            An optimizer: its object, groups, hyperparameters and state are carried. It is one of torch.optim, a
            subclass that overrides nothing, or a class with a registered rule
            (:func:`~graphnet.runtime.optimizers.register_optimizer`). An ``AveragedModel(net)`` of the network as it
            is: its averages are carried, newborns' averages start at their weights. A scheduler of an attached
            optimizer needs nothing and is only checked.
        horizon : int, optional
            Of an optimizer: the age past which an ``aged`` newborn's update is left as it is; by default the age at
            which the correction falls below 1e-3 (6,213 steps at beta2 = 0.999).

        Raises
        ------
        EditError
            It is already attached; an optimizer holds no parameter of this network, has no rule or is differentiable;
            an averaged model is of another version; a scheduler's optimizer is not attached.

        Examples
        --------
        >>> import torch, graphnet as gn
        >>> net = gn.Network(gn.mlp([4, 8, 2]), seed=0)
        >>> average = torch.optim.swa_utils.AveragedModel(net)
        >>> net.attach(average)
        >>> with net.edit() as edit:
        ...     ids = edit.grow("fc1", 2)
        >>> average(torch.zeros(1, 4)).shape, average.module.version
        (torch.Size([1, 2]), 1)
        """
        if isinstance(what, AveragedModel):
            self._attach_average(what)
        elif isinstance(what, LRScheduler):
            if all(attached.optimizer is not what.optimizer for attached in self._attached.values()):
                raise EditError(f"attach the optimizer of this {type(what).__name__}; the scheduler needs no more")
        elif isinstance(what, Optimizer):
            self._attach_optimizer(what, horizon)
        else:
            raise EditError(
                "attach takes a torch optimizer, an AveragedModel or a learning-rate scheduler, not a "
                f"{type(what).__name__}"
            )

    def _attach_optimizer(self, optimizer: Optimizer, horizon: int | None) -> None:
        if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 0):
            raise EditError(f"horizon is an age in optimizer steps, a whole number; not {horizon!r}")
        if any(attached.optimizer is optimizer for attached in self._attached.values()):
            raise EditError("this optimizer is already attached")
        mine = {id(parameter) for parameter in self.parameters()}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if held and not any(id(parameter) in mine for parameter in held):  # one that an edit has emptied is right
            raise EditError("the optimizer holds no parameter of this network: build it from net.parameters()")
        for attached in self._attached.values():
            if any(attached.holds(parameter) for parameter in held if id(parameter) in mine):
                raise EditError("a parameter of the optimizer is held by another attached optimizer already")
        key = str(1 + max((int(known) for known in self._attached), default=-1))
        self._attached[key] = Attached(key, optimizer, horizon)

    def _attach_average(self, model: AveragedModel) -> None:
        if any(average.model is model for average in self._averages.values()):
            raise EditError("this averaged model is already attached")
        key = f"average {1 + max((int(known.split()[1]) for known in self._averages), default=-1)}"
        self._averages[key] = Average(key, model, self)

    def detach(self, what: Optimizer | AveragedModel) -> None:
        """Let go of an optimizer or an averaged model; it does not follow later edits.

        Raises
        ------
        EditError
            It is not attached.
        """
        for key, attached in self._attached.items():
            if attached.optimizer is what:
                attached.updates.detach()
                del self._attached[key]
                return
        for key, average in self._averages.items():
            if average.model is what:
                del self._averages[key]
                return
        raise EditError(f"this {type(what).__name__} is not attached")

    def _check_held(self) -> None:
        if not self._attached:
            return
        held = {id(p) for attached in self._attached.values() for p in attached.parameters()}
        missing = [name for name, p in self.named_parameters() if p.requires_grad and id(p) not in held]
        if missing:
            raise EditError(
                f"parameters {missing} are in no attached optimizer and would never be trained: attach the optimizer "
                "that holds them, add them to one, or set requires_grad to False"
            )

    # -- the host of an edit (graphnet.edit.host.Host) ------------------------------------------------------------

    def live(self, name: str) -> Tensor:
        """A stored tensor, detached."""
        return self.tensor(name).detach()

    def slots(self, name: str) -> Sequence[Slot]:
        """What follows a tensor through edits: gradient, optimizer state, births."""
        return list(self._slots(name))

    def _slots(self, name: str) -> Iterator[Slot]:
        dims, parts = self.graph.tensors[name].dims, self._parts(name)
        if parts is not None:
            yield from parts.slots(dims, self._attached)
            return
        tensor = self.tensor(name)
        if tensor.is_leaf and tensor.grad is not None:
            yield Slot(("grad", name), name, dense(tensor.grad), dims, power=1.0)
        for attached in self._attached.values():
            if attached.holds(tensor):
                yield from attached.slots(tensor, name, dims)
        for average in self._averages.values():
            yield from average.slots(name, tensor, dims)

    def _parts(self, name: str) -> Parametrized | None:
        """What a tensor is computed from, where it is parametrized."""
        if list_of(self, name) is None:
            return None
        spec = self.graph.tensors[name]
        return read(self, name, spec.dims, self.graph.shape(spec))

    def step_of(self, optimizer: str, name: str) -> int | None:
        """The optimizer's step count of a parameter."""
        attached, parts = self._attached[optimizer], self._parts(name)
        if parts is None:
            return attached.step_of(self.tensor(name))
        counts = [attached.step_of(part.tensor) for part in parts.held_by(attached)]
        return max((count for count in counts if count is not None), default=None)

    def steps_taken(self, optimizer: str) -> int:
        """Steps that the optimizer has taken since it was attached."""
        return self._attached[optimizer].updates.steps

    def optimizers_of(self, name: str) -> Sequence[str]:
        """The attached optimizers that hold a parameter."""
        parts = self._parts(name)
        if parts is not None:
            return [key for key, attached in self._attached.items() if parts.held_by(attached)]
        tensor = self.tensor(name)
        return [key for key, attached in self._attached.items() if attached.holds(tensor)]

    def optimizer_kind(self, optimizer: str) -> OptimizerKind:
        """How its updates depend on gradients."""
        return self._attached[optimizer].rule.kind

    def reserve_of(self, name: str) -> Tensor | None:
        """The weights of dormant units beside the live ones."""
        return self._current.reserve.get(name)

    def evaluate(
        self, graph: Graph, tensors: Mapping[str, Tensor], batch: Batch, loss: Loss | None = None, **options: Any
    ) -> Evaluation:
        """Run a graph with these tensors on a batch, in evaluation mode, changing nothing."""
        return evaluate(graph, tensors, batch, loss, **options)

    # -- editing ------------------------------------------------------------------------------------------------

    @contextmanager
    def edit(self, *, seed: int | None = None, low_memory: bool = False) -> Iterator[Edit]:
        """One atomic transaction: a new version when the block ends, nothing when anything fails.

        Parameters
        ----------
        seed : int, optional
            Seed of the edit's random numbers; by default from the network's seed and the version.
        low_memory : bool
            Commit one tensor after the other: the memory for new tensors beside the old ones is then bounded by the
            largest of them with its optimizer state (see :attr:`Edit.cost`), and the commit takes longer.

        Raises
        ------
        EditError
            From an operator or from the commit; graph, tensors, optimizer and history are as they were.
        """
        if self._editing is not None and self._editing() is not None:
            raise EditError("an edit is open already: a transaction holds every operator of its version")
        started = time.perf_counter()
        token, before, edit = _Open(), self._current, None
        self._editing = weakref.ref(token)
        try:
            with Agreement(self) as agreement:
                if torch.is_inference_mode_enabled():
                    raise EditError("a network cannot be edited in inference mode: leave torch.inference_mode() first")
                chosen = _mix(self._seed, self.version + 1) if seed is None else check_seed(seed)
                plan = Plan(self, self.graph, torch.Generator().manual_seed(chosen), keeps=not low_memory)
                edit = Edit(plan)
                check_intact(self.graph, self, self._current.program)
                with steady(self):
                    yield edit
                    if edit._failed is not None:
                        raise EditError(f"the edit failed ({edit._failed}); nothing was changed")
                    if plan.steps:
                        self._commit(plan, chosen, started, agreement, low_memory=low_memory)
        finally:
            if edit is not None:
                edit._open = False
            self._editing = None
            del token
            if self._current is not before:  # also where an interrupt was held back until the commit was done
                self._report(self._current.history.latest)

    def _report(self, version: Version) -> None:
        """Run the callbacks, every one of them; the version is published, so an error cannot undo it."""
        allow_recompiling()
        for callback in list(self._callbacks):
            try:
                callback(version)
            except Exception as error:
                name = getattr(callback, "__qualname__", repr(callback))
                warnings.warn(
                    f"callback {name} failed after version {version.number} was committed (the version stands): "
                    f"{type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=4,
                )

    def _commit(
        self, plan: Plan, seed: int, started: float, agreement: Agreement, *, low_memory: bool = False
    ) -> None:  # fmt: skip
        parametrized = check_intact(self.graph, self, self._current.program)  # the block may have changed it
        result = (
            outline(self, plan) if low_memory else plan.result()
        )  # on detached tensors: no grad mode to switch, so none to leave switched
        if self._example is not None:
            check_function(plan, self._example)
        self._check_held()
        current, structure = self._current, None
        if result.origins is not None:
            check_layers_stay(self, result, parametrized)
            structure = Structure.build(result, current.graph, self)
        find: Callable[[str], Tensor] = self.tensor if structure is None else structure.tensor
        if low_memory:
            said = "low_memory=True does not move what it is computed from (leave that out)"
            check_unparametrized(self, parametrized, touched(plan), said)
        moved_parts = move_originals(self, plan, result, parametrized)
        result = moved_parts.result
        for name in result.tensors:
            check_settable(name, find(name))
        program = current.program
        if structure is not None:
            program = lower(result.graph, self, find=structure.find)
        elif carries_sizes(result.graph):
            program = current.program if same_code(current.graph, result.graph) else lower(result.graph, self)
        moved = sum(touched(plan).values()) if low_memory else bytes_of(result)
        notes = (*notes_of(result, find, self._attached), *moved_parts.notes)
        # put back last, when the modules of before are there again
        swaps = [Swap(lambda: None, lambda: refresh_modules(current.graph, self))]
        build = partial(tensor_swaps, plan) if low_memory else swaps_of
        swaps += build(result, find, self._attached)
        if structure is not None:
            swaps += [*structure.swaps(), *structure.optimizer_swaps(result, self._attached)]
        swaps += moved_parts.swaps
        version = Version(
            result.graph.version, current.graph.version, result.graph, tuple(result.steps), seed,
            _params(result.graph), partial(_flops, result.graph), time.perf_counter() - started, moved, notes,
            plan.provenance,
        )  # fmt: skip
        following = _Current(result.graph, program, current.history.following(version), dict(result.reserve))
        if self._averages:
            kept = {name: find(name) for name in moved_parts.names(result.graph) if name not in result.fresh}
            for average in self._averages.values():
                swaps += average.swaps(result, kept, current, following)
        swaps.append(Swap(lambda: refresh_modules(following.graph, self), lambda: None))
        swaps.append(Swap(torch.clear_autocast_cache, torch.clear_autocast_cache))
        publish = self.__dict__
        swaps.append(Swap(agreement.confirm, lambda: None))
        swaps.append(Swap(lambda: publish.update(_current=following), lambda: publish.update(_current=current)))
        agreement.reach(plan, seed, keep=not low_memory)
        commit(swaps)

    # -- what higher layers add -----------------------------------------------------------------------------------

    @classmethod
    def register_applier(cls, kind: type[Any], apply: Callable[..., Any]) -> None:
        """Say how :meth:`apply` treats an object of a class; the package registers rules."""
        _APPLIERS[kind] = apply

    def apply(self, what: Any, **options: Any) -> Any:  # type: ignore[override]
        """Apply a rule to the network (``metrics=``, ``batch=``, ``loss=``), or a function to every module.

        A :class:`graphnet.Rule` is attempted once, as one transaction, and gives a :class:`graphnet.Outcome`; a
        function is called with every submodule, as :meth:`torch.nn.Module.apply` does.
        """
        for kind, apply in _APPLIERS.items():
            if isinstance(what, kind):
                return apply(self, what, **options)
        if options or not callable(what):
            kinds = ", ".join(kind.__name__ for kind in _APPLIERS)
            raise EditError(f"apply takes a {kinds} with options, or a function of a module; not {what!r}")
        return super().apply(what)

    # -- going elsewhere ------------------------------------------------------------------------------------------

    def to_torch(self) -> fx.GraphModule:
        """A copy of the current version as a plain ``torch.fx.GraphModule``; running it needs no graphnet."""
        return copy.deepcopy(self._current.program)

    def to_export(self, example: Sequence[Tensor] | None = None) -> torch.export.ExportedProgram:
        """The current version, in evaluation mode, as a ``torch.export`` program with its dynamic dimensions.

        ``example`` holds the inputs, drawn at random without it; see :func:`graphnet.compilers.exporters.to_export`.
        """
        given = example_inputs(self.graph) if example is None else tuple(example)
        return to_export(self._current.program, given, dynamic_shapes(self.graph))

    def to_onnx(self, path: str | Path, example: Sequence[Tensor] | None = None) -> Path:
        """Write the current version, in evaluation mode, as ONNX; see :func:`graphnet.compilers.exporters.to_onnx`.

        The file is run with onnxruntime, on two batch sizes, before it is put in place.
        """
        given = example_inputs(self.graph) if example is None else tuple(example)
        others = () if example is not None else (example_inputs(self.graph, batch=3, length=5, seed=1),)
        return to_onnx(self._current.program, path, given, dynamic_shapes(self.graph), others=others)

    def save(self, path: str | Path, **extra: Any) -> Path:
        """Write a checkpoint; see :func:`graphnet.runtime.checkpoint.save`."""
        from graphnet.runtime.checkpoint import save

        return save(self, path, **extra)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors as :meth:`torch.nn.Module.load_state_dict` does; with ``assign`` the code reads the new ones."""
        loaded = super().load_state_dict(state_dict, strict, assign)
        if assign:
            current = self._current
            tie(current.graph, self)
            self.__dict__["_current"] = replace(current, program=lower(current.graph, self))
        return loaded

    @contextmanager
    def plan(self, *, seed: int | None = None) -> Iterator[Edit]:
        """An edit that is never committed: to see what operators would do, and what it would cost.

        Its operators draw the random numbers that :meth:`edit` would draw now.

        Examples
        --------
        >>> import graphnet as gn
        >>> net = gn.Network(gn.mlp([4, 8, 2]), seed=0)
        >>> with net.plan() as edit:
        ...     ids = edit.grow("fc1", 2)
        >>> edit.cost.params, edit.steps[0].born, net.version
        ((58, 72), (8, 9), 0)
        """
        chosen = _mix(self._seed, self.version + 1) if seed is None else check_seed(seed)
        edit = Edit(Plan(self, self.graph, torch.Generator().manual_seed(chosen)))
        try:
            check_intact(self.graph, self, self._current.program)
            with steady(self):
                yield edit
                edit.plan.validate()
        finally:
            edit._open = False

    def distributed(self, *, patience: float = 300.0, **options: Any) -> Distributed:
        """The network under ``DistributedDataParallel``, in a wrapper that follows edits.

        Use it in place of the network in the training loop, one on each process; edit the network, on every process
        alike. A commit compares what the processes do and raises on all of them where they differ. Keep the wrapper:
        once it is gone, nothing is compared.

        Parameters
        ----------
        patience : float
            For how many seconds a process waits in an edit for the others to come to the same one.
        **options
            Of :class:`torch.nn.parallel.DistributedDataParallel`.

        Raises
        ------
        EditError
            ``torch.distributed`` is not initialised.
        """
        wrapper = Distributed(self, patience=patience, **options)
        self._distributed = weakref.ref(wrapper)
        return wrapper

    # -- versions ---------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> Mapping[int, Kept]:
        """The versions whose tensors are kept in memory (:meth:`keep`), by number."""
        return MappingProxyType(self._kept)

    def keep(self, *, last: int | None = None) -> Kept:
        """Keep a copy of the current version as it is now, to come back to: see :meth:`rollback` and :meth:`at`.

        Parameters
        ----------
        last : int, optional
            Let go of all kept versions but the newest so many; ``net.on_commit(lambda version: net.keep(last=3))``
            keeps the last three as they were right after their edits.

        Returns
        -------
        Kept
            Its ``bytes`` say what it costs.
        """
        if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 1):
            raise EditError(f"last is how many versions to keep, a whole number from 1; not {last!r}")
        kept = keep(self)
        self._kept = {number: one for number, one in self._kept.items() if number != kept.version}
        self._kept[kept.version] = kept
        if last is not None:
            self.forget(*sorted(self._kept)[:-last])
        return kept

    def forget(self, *versions: int) -> None:
        """Let go of kept versions; one that is not kept is passed over."""
        self._kept = {number: kept for number, kept in self._kept.items() if number not in versions}

    def rollback(self, version: int, *, path: str | Path | None = None, reset_optimizers: bool = False) -> Version:
        """Go back to a kept version: its units, tensors, optimizer state and ages, as they were when it was kept.

        That is a new version, whose parent is the one gone back to; what lies between stays in the history as a
        branch. Hyperparameters of optimizers (learning rates) and schedulers stay as they are; gradients are
        dropped; parameters that were there then and now stay the same objects.

        Parameters
        ----------
        version : int
        path : str or Path, optional
            A checkpoint of that version, or a folder that has one, for a version that is not kept in memory.
        reset_optimizers : bool
            Drop the state of every attached optimizer instead of taking it back.

        Returns
        -------
        Version
            The new one.

        Raises
        ------
        EditError
            The version is not kept, an optimizer was attached since, or an edit is open; nothing was changed.
        CheckpointError
            The file does not hold that version of this network.

        Examples
        --------
        >>> import graphnet as gn
        >>> net = gn.Network(gn.mlp([4, 8, 2]), seed=0)
        >>> kept = net.keep()
        >>> with net.edit() as edit:
        ...     ids = edit.prune("fc1", lowest=5)
        >>> net.rollback(0).number, net.graph.groups["fc1"].size
        (2, 8)
        >>> [version.number for version in net.history.branches]
        [1, 2]
        """
        if self._editing is not None and self._editing() is not None:
            raise EditError("an edit is open: end it before rolling back")
        if torch.is_inference_mode_enabled():
            raise EditError("a network cannot be rolled back in inference mode: leave torch.inference_mode() first")
        kept = find_kept(self, version, path)
        before = self._current
        try:
            with Agreement(self) as agreement:
                return roll_back(self, kept, agreement, reset_optimizers=reset_optimizers)
        finally:
            if self._current is not before:
                self._report(self._current.history.latest)

    def at(self, version: int, path: str | Path | None = None) -> Network:
        """A network of its own as this one was at a version, bit for bit: when that was kept or saved.

        Its history ends there. No optimizer is attached.

        Parameters
        ----------
        version : int
        path : str or Path, optional
            A checkpoint of that version, or a folder that has one; else the version is kept in memory, or the
            current one.

        Raises
        ------
        EditError
            The version's tensors are not kept.
        CheckpointError
            The file does not hold that version of this network.
        """
        kept = keep(self) if path is None and version == self.version else find_kept(self, version, path)
        return network_of(self, kept)

    def fork(self) -> Network:
        """A copy that goes on by itself from here: with the history and the kept versions, no optimizer attached."""
        return copy.deepcopy(self)

    def _count_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        current = self.__dict__.get("_current")
        if current is not None:
            moved = {name: fn(tensor) for name, tensor in current.reserve.items()}
            alone = any(node.op.source for node in current.graph.nodes.values())  # torch puts new buffers in place
            program = lower(current.graph, self) if alone else current.program
            self.__dict__["_current"] = replace(current, reserve=moved, program=program)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        current = state.pop("_current")
        state |= {"_attached": {}, "_averages": {}, "_callbacks": [], "_editing": None, "_distributed": None}
        state["_saved"] = (current.graph, current.history, dict(current.reserve))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        graph, history, reserve = state.pop("_saved")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        tie(graph, self)
        self._current = _Current(graph, lower(graph, self), history, reserve)

    def extra_repr(self) -> str:
        """Version and name, for ``print``."""
        return f"version {self.version} of {self.graph.name!r}"


def check_seed(seed: Any) -> int:
    """A seed as torch takes it: a whole number below 2**63.

    Raises
    ------
    EditError
        It is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise EditError(f"a seed is a whole number from 0 to 2**63 - 1, not {seed!r}")
    return int(seed)


def _params(graph: Graph) -> int:
    total = 0
    for spec in graph.tensors.values():
        if not spec.buffer:
            count = 1
            for size in graph.shape(spec):
                count *= size
            total += count
    return total


def _flops(graph: Graph) -> int | None:
    return None if {*graph.dynamic} - {f"<{BATCH}>"} else graph.cost().flops


def _mix(seed: int, version: int) -> int:
    """A seed for one version: distinct for every pair in practice, and stable across machines."""
    return (seed * 1_000_003 + version * 7_919 + 12_345) % (2**63 - 1)
