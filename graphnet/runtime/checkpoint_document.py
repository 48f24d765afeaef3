"""The document of a checkpoint: its models, and how a network is written as one.

Tensors of the file are named after what they are: ``tensor/``, ``reserve/`` and ``gradient/`` with the name in the
state dict, ``birth/``, ``rate/`` and so on (:data:`~graphnet.edit.rates.NEUTRAL`) with optimizer, dimension and
name, ``value/`` and a number for those inside other values; ``kept/`` and a number before those of a kept version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from graphnet.errors import CheckpointError
from graphnet.runtime.checkpoint_history import VersionEntry, write_history
from graphnet.runtime.checkpoint_kept import BirthEntry, KeptEntry, write_births, write_kept
from graphnet.runtime.network import Network
from graphnet.runtime.optimizers import Attached
from graphnet.runtime.resuming import random_states
from graphnet.runtime.values import Writer
from graphnet.schemas.base import Frozen
from graphnet.version import __version__

__all__ = ["CheckpointDocument", "GroupEntry", "OptimizerEntry", "write_document"]


class GroupEntry(Frozen):
    """A parameter group: names of its parameters, hyperparameters."""

    params: tuple[str, ...]
    options: dict[str, Any]


class OptimizerEntry(Frozen):
    """An attached optimizer: its class name, hyperparameters and state, and the ages of slices."""

    kind: str
    horizon: int | None
    steps: int
    defaults: dict[str, Any]
    groups: tuple[GroupEntry, ...]
    state: dict[str, dict[str, Any]]
    births: tuple[BirthEntry, ...]


class CheckpointDocument(Frozen):
    """Everything of a checkpoint but the numbers in tensors."""

    graphnet: str
    torch: str
    seed: int
    evaluation: tuple[str, ...]  # modules in evaluation mode
    constant: tuple[str, ...]  # parameters that need no gradient
    reserve: tuple[str, ...]
    gradients: tuple[str, ...]
    channels_last: tuple[str, ...]
    structures: tuple[dict[str, Any], ...]
    versions: tuple[VersionEntry, ...] = Field(min_length=1)
    kept: tuple[KeptEntry, ...] = ()
    optimizers: tuple[OptimizerEntry, ...]
    state: dict[str, Any]
    extra: dict[str, Any]
    rng: dict[str, Any] | None


# -- writing --------------------------------------------------------------------------------------------------


def write_document(
    net: Network,
    writer: Writer,
    *,
    extra: Mapping[str, Any] | None,
    state: Mapping[str, Any] | None,
    rng: bool,
    gradients: bool,
) -> dict[str, Any]:
    """Describe a network as plain data and put its tensors into the writer; see :func:`~checkpoint.save`.

    Raises
    ------
    CheckpointError
        Something cannot be kept; says what.
    """
    _write_tensors(net, writer, gradients)
    structures, versions = write_history(net.history, writer)
    specs = net.graph.tensors
    parameters = {name: net.tensor(name) for name, spec in specs.items() if not spec.buffer}
    return {
        "graphnet": __version__,
        "torch": str(torch.__version__),
        "seed": net._seed,
        "evaluation": [name for name, module in net.named_modules() if not module.training],
        "constant": [name for name, parameter in parameters.items() if not parameter.requires_grad],
        "reserve": [name for name in specs if net.reserve_of(name) is not None],
        "gradients": [name for name, p in parameters.items() if gradients and p.grad is not None],
        "structures": structures,
        "versions": versions,
        "kept": list(write_kept(net, writer)),
        "optimizers": [_write_optimizer(attached, parameters, writer) for attached in net._attached.values()],
        "state": {
            name: writer.encode(_state_dict(name, owner), f"state[{name!r}]") for name, owner in (state or {}).items()
        },
        "extra": _write_extra(extra, writer),
        "rng": writer.encode(random_states(), "rng") if rng else None,
        "channels_last": writer.channels_last,
    }


def _write_tensors(net: Network, writer: Writer, gradients: bool) -> None:
    specs = {spec.name for node in net.graph.nodes.values() for spec in node.tensors}
    held = {name for name, _ in (*net.named_parameters(), *net.named_buffers())}
    if parametrized := sorted(name for name in held - specs if ".parametrizations." in f".{name}"):
        raise CheckpointError(
            f"tensors {parametrized[:8]} are of a parametrization (torch.nn.utils.parametrize), which is code of its "
            "own and not part of a checkpoint: remove it with remove_parametrizations, or save net.state_dict()"
        )
    if foreign := sorted(held - specs):
        raise CheckpointError(
            f"the network holds tensors {foreign[:8]} that are not of its graph: keep modules of your own outside it, "
            "and save them by themselves"
        )
    for name, spec in net.graph.tensors.items():
        tensor = net.tensor(name)
        writer.put(f"tensor/{name}", tensor)
        if gradients and not spec.buffer and tensor.grad is not None:
            writer.put(f"gradient/{name}", tensor.grad)
        kept = net.reserve_of(name)
        if kept is not None:
            writer.put(f"reserve/{name}", kept)


def _write_optimizer(attached: Attached, parameters: Mapping[str, Tensor], writer: Writer) -> dict[str, Any]:
    kind = type(attached.optimizer).__name__
    names = {id(parameter): name for name, parameter in parameters.items()}
    foreign = sum(id(parameter) not in names for parameter in attached.parameters())
    if foreign:
        raise CheckpointError(
            f"{kind} holds {foreign} parameters that are not of this network: give them an optimizer of their own, and "
            "save it by itself"
        )
    births = {names[id(parameter)]: table for parameter, table in attached.updates.births.items()}
    return {
        "kind": kind,
        "horizon": attached.updates.horizon,
        "steps": attached.updates.steps,
        "defaults": writer.encode(attached.optimizer.defaults, f"{kind}.defaults"),
        "groups": [
            {
                "params": [names[id(parameter)] for parameter in group["params"]],
                "options": writer.encode(
                    {key: value for key, value in group.items() if key != "params"}, f"{kind}.param_groups[{index}]"
                ),
            }
            for index, group in enumerate(attached.optimizer.param_groups)
        ],
        "state": {
            names[id(parameter)]: writer.encode(dict(held), f"{kind}.state[{names[id(parameter)]!r}]")
            for parameter, held in attached.optimizer.state.items()
        },
        "births": write_births(births, attached.key, writer),
    }


def _state_dict(name: str, owner: Any) -> Any:
    method = getattr(owner, "state_dict", None)
    if method is None or not hasattr(owner, "load_state_dict"):
        raise CheckpointError(f"state[{name!r}]: a {type(owner).__name__} has no state_dict and load_state_dict")
    return method()


def _write_extra(extra: Mapping[str, Any] | None, writer: Writer) -> Any:
    found = dict(extra or {})
    if not all(isinstance(key, str) and not key.startswith("!") for key in found):
        raise CheckpointError(f"extra: keys are text and do not begin with '!': {list(found)[:8]}")
    return writer.encode(found, "extra")
