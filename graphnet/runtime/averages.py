"""Averaged copies of a network (EMA, SWA) that follow its edits.

``torch.optim.swa_utils.AveragedModel(net)`` copies the network, and averages parameter by parameter. An edit of the
network moves the copy's tensors by the same unit maps, in the same transaction: what stays keeps its average; what is
new, or was given another value by the edit, starts its average at the live value; copies of a unit (Net2Wider) share
its average as they share its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from graphnet.compilers.plain import carries_sizes, lower, refresh_modules
from graphnet.edit.host import Slot, SlotKey
from graphnet.edit.plan import Result
from graphnet.errors import EditError
from graphnet.ir.layout import Layout
from graphnet.runtime.intact import check_intact
from graphnet.runtime.resize import check_settable, set_data
from graphnet.runtime.structure import Structure
from graphnet.runtime.transaction import Swap

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = ["Average"]


class Average:
    """An averaged copy of a network.

    Parameters
    ----------
    key : str
        Its name among the slots of the network's tensors.
    model : torch.optim.swa_utils.AveragedModel
        Of the network; or of the plain model that it was imported from, which a copy of the network with the same
        averages then takes the place of.
    net : Network
        Which it averages.

    Raises
    ------
    EditError
        The model holds no copy of the network, or one of another version.
    """

    def __init__(self, key: str, model: AveragedModel, net: Network) -> None:
        copies: list[Any] = [module for module in model.modules() if isinstance(module, type(net))]
        if not copies and _fits(model.module, net):
            copies = [_adopted(model, net)]
        if len(copies) != 1 or copies[0] is net:
            raise EditError(
                f"the averaged model holds {len(copies)} copies of a network; make it of this one: AveragedModel(net)"
            )
        (copy,) = copies
        if copy.graph.to_document() != net.graph.to_document():
            raise EditError(
                f"the averaged model is a copy of version {copy.version}, and the network is at version {net.version} "
                "or another one altogether: make the copy of the network as it is, and attach it before the next edit"
            )
        self.key = key
        self.model = model
        self.copy: Network = copy
        self._same_version(net._current)

    def _same_version(self, current: Any) -> None:
        mine = self.copy._current
        self.copy.__dict__["_current"] = replace(mine, graph=current.graph, history=current.history)

    def check(self, current: Any) -> None:
        """The copy must be what the last edit left.

        Raises
        ------
        EditError
            It was edited, or its modules were changed.
        """
        mine = self.copy._current
        if mine.graph is not current.graph:
            raise EditError(
                "the averaged copy was edited by itself, or is of another version, and cannot follow any more: edit "
                "the network that it averages; net.detach(averaged) lets go of it"
            )
        check_intact(mine.graph, self.copy, mine.program)

    def slots(self, name: str, live: Tensor, dims: tuple[Layout, ...]) -> Iterator[Slot]:
        """The average of a tensor, and the tensor itself as it is carried: where an edit wrote, the two differ."""
        yield Slot(("average", self.key, name), name, self.copy.tensor(name).detach(), dims, "weight")
        yield Slot(("carried", self.key, name), name, live.detach(), dims, "weight")

    def swaps(self, result: Result, live: Mapping[str, Tensor], before: Any, following: Any) -> Iterator[Swap]:
        """Everything that the copy changes with the network's commit; built here, done by it.

        Parameters
        ----------
        result : Result
        live : mapping of str to Tensor
            The network's tensors as they are, under their new names; of a parametrized one what it is computed from.
        before, following : object
            What the network publishes, before and after.
        """
        self.check(before)
        copy, structure, graph = self.copy, None, result.graph
        old = copy._current
        # put back last, when the modules of before are there again
        yield Swap(lambda: None, lambda: refresh_modules(old.graph, copy))
        if result.origins is not None:
            fresh = {name: self._placed(value) for name, value in result.fresh.items()}
            structure = Structure.build(replace(result, fresh=fresh), before.graph, copy)
        for name in live:
            tensor = copy.tensor(name) if structure is None else structure.tensor(name)
            value = self._value(name, tensor, live[name], result.tensors.get(name), result.slots)
            if value is not tensor:
                check_settable(name, tensor)
                yield _data_swap(tensor, value)
        program = old.program
        if structure is not None:
            program = lower(graph, copy, find=structure.find)
            yield from structure.swaps()
        elif carries_sizes(graph):
            program = lower(graph, copy)
        device = next((parameter.device for parameter in copy.parameters()), torch.device("cpu"))
        reserve = {name: tensor.to(device) for name, tensor in following.reserve.items()}
        new, publish = replace(following, program=program, reserve=reserve), copy.__dict__
        yield Swap(lambda: refresh_modules(graph, copy), lambda: None)
        yield Swap(lambda: publish.update(_current=new), lambda: publish.update(_current=old))

    def _value(
        self, name: str, average: Tensor, live: Tensor, after: Tensor | None, slots: Mapping[SlotKey, Tensor]
    ) -> Tensor:
        """The average after the edit: carried where the weight was carried, else the weight."""
        if after is None:
            return average
        moved = slots.get(("average", self.key, name), average)
        same = slots.get(("carried", self.key, name), live.detach()) == after
        if bool(same.all()):
            return moved
        return torch.where(same.to(moved.device), moved.detach(), after.to(moved))

    def _placed(self, value: Tensor) -> Tensor:
        """A new tensor as the copy keeps its own."""
        like = next(self.copy.parameters(), value)
        return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


def _data_swap(tensor: Tensor, data: Tensor) -> Swap:
    """New data for a tensor of the copy; a gradient that someone took of it goes."""
    old, gradient = tensor.data, tensor.grad
    refusals: list[RemovableHandle] = []

    def do() -> None:
        tensor.grad = None
        set_data(tensor, data, refusals)

    def undo() -> None:
        set_data(tensor, old, refusals)
        tensor.grad = gradient
        for refusal in refusals:
            refusal.remove()

    return Swap(do, undo)


def _fits(module: Any, net: Network) -> bool:
    """Whether a plain module holds the same parameters and buffers as a network, by name and shape, in one order."""
    if not isinstance(module, nn.Module):
        return False
    mine, theirs = net.state_dict(), module.state_dict()
    return list(mine) == list(theirs) and all(mine[name].shape == theirs[name].shape for name in mine)


def _adopted(model: AveragedModel, net: Network) -> Network:
    """Put a copy of the network that holds a plain module's averages in the place of that module."""
    plain, made = model.module, deepcopy(net)
    values = dict(plain.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, tensor in made.state_dict(keep_vars=True).items():
            tensor.data = values[name].detach().clone(memory_format=torch.preserve_format)
            tensor.requires_grad_(values[name].requires_grad)
    made._attached.clear()
    made._averages.clear()
    made.train(plain.training)
    model.module = made
    return made
