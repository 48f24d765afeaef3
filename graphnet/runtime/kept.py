"""Kept versions: copies of everything that training changes, so that a network can go back to a version of its past.

Nothing is kept unless it is asked for: ``net.keep()`` copies the tensors, the weights of dormant units, the state of
the attached optimizers and the ages of slices, as they are at that moment.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphnet.compilers.plain import lower, tie
from graphnet.edit.rates import NEUTRAL
from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.runtime.births import Births
from graphnet.runtime.history import History
from graphnet.runtime.intact import steady
from graphnet.runtime.meta import on_meta
from graphnet.runtime.optimizers import Attached

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = ["Kept", "KeptOptimizer", "assemble", "find_kept", "keep", "network_of"]


@dataclass(frozen=True, eq=False)
class KeptOptimizer:
    """The state of one attached optimizer; hyperparameters are not part of it.

    Attributes
    ----------
    key : str
        Which of the attached ones.
    kind : str
        Class name.
    groups : tuple of tuple of str
        Names of the network's parameters in each parameter group.
    state : mapping of parameter to {key: value}
    births : mapping of parameter to Births
        Ages and rates of slices.
    steps : int
        Steps taken since it was attached.
    """

    key: str
    kind: str
    groups: tuple[tuple[str, ...], ...]
    state: Mapping[str, Mapping[str, Any]]
    births: Mapping[str, Births]
    steps: int


@dataclass(frozen=True, eq=False)
class Kept:
    """A kept version.

    Attributes
    ----------
    graph : Graph
    tensors : mapping of str to Tensor
        Parameters and buffers by their name in the state dict.
    reserve : mapping of str to Tensor
        The weights of dormant units beside the live ones.
    constant : frozenset of str
        Parameters that need no gradient.
    optimizers : tuple of KeptOptimizer
    averages : mapping of key to {name: Tensor}
        The tensors of attached averaged models.
    parts : mapping of str to {name: Tensor}
        What a parametrized tensor is computed from, whose value ``tensors`` has.
    """

    graph: Graph
    tensors: Mapping[str, Tensor] = field(repr=False)
    reserve: Mapping[str, Tensor] = field(repr=False)
    constant: frozenset[str] = frozenset()
    optimizers: tuple[KeptOptimizer, ...] = field(default=(), repr=False)
    averages: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    parts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return self  # nothing changes it

    @property
    def version(self) -> int:
        """The version that it is of."""
        return self.graph.version

    @property
    def bytes(self) -> int:
        """Bytes of its tensors, optimizer state included."""
        state = [value for one in self.optimizers for held in one.state.values() for value in held.values()]
        held = [
            *self.tensors.values(),
            *self.reserve.values(),
            *(t for a in self.averages.values() for t in a.values()),
            *(t for one in self.parts.values() for t in one.values()),
        ]
        return sum(t.numel() * t.element_size() for t in (*held, *state) if isinstance(t, Tensor))


def keep(net: Network) -> Kept:
    """Copy what training changes of a network as it is now."""
    with steady(net):
        return _keep(net)


def _keep(net: Network) -> Kept:
    graph = net.graph
    names = {id(net.tensor(name)): name for name, spec in graph.tensors.items() if not spec.buffer}
    found = {
        name: {part.name: part.tensor for part in one.parts} for name in graph.tensors if (one := net._parts(name))
    }
    held = {name: tensor for one in found.values() for name, tensor in one.items() if isinstance(tensor, nn.Parameter)}
    names |= {id(tensor): name for name, tensor in held.items()}
    constant = {name for name, spec in graph.tensors.items() if not spec.buffer and not _trains(net.tensor(name))}
    stored = [*graph.tensors, *(name for one in found.values() for name in one)]
    reserve = {name: net.reserve_of(name) for name in graph.tensors}
    return Kept(
        graph,
        {name: net.tensor(name).detach().clone() for name in graph.tensors},
        {name: value.clone() for name, value in reserve.items() if value is not None},
        frozenset(constant | {name for name, tensor in held.items() if not _trains(tensor)}),
        tuple(_keep_optimizer(attached, names) for attached in net._attached.values()),
        {
            key: {name: average.copy.tensor(name).detach().clone() for name in stored}
            for key, average in net._averages.items()
        },
        {name: {key: tensor.detach().clone() for key, tensor in one.items()} for name, one in found.items()},
    )


def _trains(parameter: Tensor) -> bool:
    return parameter.requires_grad


def _keep_optimizer(attached: Attached, names: Mapping[int, str]) -> KeptOptimizer:
    optimizer, updates = attached.optimizer, attached.updates
    return KeptOptimizer(
        attached.key,
        type(optimizer).__name__,
        tuple(tuple(names[id(p)] for p in group["params"] if id(p) in names) for group in optimizer.param_groups),
        {}
        if attached.rule.resets is not None  # an edit clears it
        else {
            names[id(parameter)]: {key: copied(value) for key, value in held.items()}
            for parameter, held in optimizer.state.items()
            if id(parameter) in names
        },
        {
            names[id(parameter)]: copied_births(births)
            for parameter, births in updates.births.items()
            if id(parameter) in names
        },
        updates.steps,
    )


def copied(value: Any, place: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A copy of a value of an optimizer's state."""
    return place(value.detach()) if isinstance(value, Tensor) else copy.deepcopy(value)


def copied_births(births: Births) -> Births:
    """A copy of what is known of a parameter's slices."""
    found = Births()
    for kind in NEUTRAL:
        found.table(kind).update({dim: vector.clone() for dim, vector in births.table(kind).items()})
    return found


def find_kept(net: Network, version: int, path: str | Path | None) -> Kept:
    """A version of a network that is kept in memory, or in a checkpoint.

    Raises
    ------
    EditError
        It is not in the history, or its tensors are not kept.
    CheckpointError
        There is no such checkpoint.
    """
    if version not in net.history or isinstance(version, bool):
        raise EditError(f"there is no version {version!r}; the history has {', '.join(map(str, _numbers(net)))}")
    if path is not None:
        from graphnet.runtime.checkpoint import kept_in

        return kept_in(path, net.history, version)
    kept = net.kept.get(version)
    if kept is None:
        known = ", ".join(map(str, sorted(net.kept))) or "none"
        raise EditError(
            f"the tensors of version {version} are not kept (kept in memory: {known}): call net.keep() at a version to "
            "come back to, or give path= a checkpoint that was saved at it"
        )
    return kept


def _numbers(net: Network) -> list[int]:
    return [version.number for version in net.history]


def network_of(net: Network, kept: Kept) -> Network:
    """A network of its own at a kept version of another."""
    history = net.history.until(kept.version)
    device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    made = assemble(
        type(net), kept.graph, history, net._seed, lambda name: kept.tensors[name].to(device, copy=True),
        constant=kept.constant, reserve={name: value.to(device, copy=True) for name, value in kept.reserve.items()},
    )  # fmt: skip
    made._kept = {number: one for number, one in net.kept.items() if number <= kept.version}
    return made.train(net.training)


def assemble(
    make: type[Network],
    graph: Graph,
    history: History,
    seed: int,
    get: Callable[[str], Tensor],
    *,
    constant: frozenset[str] = frozenset(),
    reserve: Mapping[str, Tensor] | None = None,
) -> Network:
    """A network of a graph with given tensors; no random number is drawn and no tensor is filled twice.

    Parameters
    ----------
    make : type
        The class of network.
    graph, history, seed
        What it is of.
    get : callable
        The tensor of a name, which becomes the network's own.
    constant : frozenset of str
        Parameters that need no gradient.
    reserve : mapping, optional
        The weights of dormant units beside the live ones.

    Raises
    ------
    GraphnetError
        It cannot be built.
    """
    try:
        net = on_meta(lambda: make(graph, seed=0))
    except (RuntimeError, NotImplementedError) as error:
        raise GraphnetError(f"the network cannot be built: {error}") from error
    for name, spec in graph.tensors.items():
        module, _, attribute = name.rpartition(".")
        value = get(name)
        held = value if spec.buffer else nn.Parameter(value, requires_grad=name not in constant)
        setattr(net.get_submodule(module), attribute, held)
    tie(graph, net)
    net._seed = seed
    net._current = replace(net._current, program=lower(graph, net), history=history, reserve=dict(reserve or {}))
    return net
