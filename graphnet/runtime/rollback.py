"""Going back to a kept version: a new version with the graph, tensors and optimizer state of an old one.

The old versions stay in the history; the new one names the old one as its parent, so that what is edited next is a
branch. Unit ids that were given on any branch are not given again. Everything is built first and then swapped in, as
in any commit: parameters that are there before and after stay the same objects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graphnet.compilers.plain import lower, refresh_modules
from graphnet.edit.changes import Change, ops_change, units_change
from graphnet.edit.plan import Result, Step
from graphnet.errors import EditError
from graphnet.ir.diff import matching_groups
from graphnet.ir.graph import Graph
from graphnet.ir.rewrite import Rewritten
from graphnet.runtime.births import Births
from graphnet.runtime.history import History, Version
from graphnet.runtime.intact import check_intact
from graphnet.runtime.kept import Kept, KeptOptimizer, copied, copied_births
from graphnet.runtime.kept_parts import parts_of_then
from graphnet.runtime.optimizers import Attached
from graphnet.runtime.originals import forget
from graphnet.runtime.parallel import Agreement
from graphnet.runtime.resize import check_settable, set_data
from graphnet.runtime.structure import Structure
from graphnet.runtime.transaction import Swap, commit

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = ["roll_back"]


def roll_back(net: Network, kept: Kept, agreement: Agreement, *, reset_optimizers: bool) -> Version:
    """Commit a kept version as the next one; see :meth:`Network.rollback`.

    Raises
    ------
    EditError
        The network was changed by hand, or an optimizer's state of then is not known; nothing was changed.
    """
    started = time.perf_counter()
    current = net._current
    parametrized = check_intact(net.graph, net, current.program)
    computed = parts_of_then(net, kept, parametrized, reset=reset_optimizers)
    graph = _next_graph(net.history, kept.graph)
    pairs = _optimizer_pairs(net, kept, reset=reset_optimizers)
    result = _result(net.graph, graph, kept, _placed_like(net))
    structure = Structure.build(result, net.graph, net)
    tensors = dict(structure.tensors)
    for one in computed:  # what it is computed from goes back in its place
        del result.tensors[one.name], tensors[one.name]
        for part in one.parts:
            result.tensors[part.name] = _placed_like(net)(kept.parts[one.name][part.name])
            tensors[part.name] = part.tensor
    for name in result.tensors:
        check_settable(name, tensors[name])
    program = lower(graph, net, find=structure.find)
    swaps: list[Swap] = []
    for name, value in result.tensors.items():
        swaps.append(_data_swap(tensors[name], value, trains=name not in kept.constant))
    for name in result.fresh:
        if name in kept.constant:
            tensors[name].requires_grad_(False)  # new, and seen by nobody yet
    swaps += structure.swaps()
    swaps += [forget(net, one.name) for one in computed]
    unplaced = dict(result.fresh)
    for attached, held in pairs:
        swaps += _optimizer_swaps(attached, held, tensors, structure.dropped)
        for names in held.groups if held is not None else ():
            for name in names:
                unplaced.pop(name, None)
    others = {attached.key: attached for attached, held in pairs if held is None}
    if others:
        swaps += structure.optimizer_swaps(replace(result, fresh=unplaced), others)
    elif pairs and any(_trains(tensors[name]) for name in unplaced):
        raise EditError(
            f"parameters {sorted(unplaced)} were in no attached optimizer when version {kept.version} was kept"
        )
    version = _version(net, kept, graph, result, started)
    following = replace(
        current, graph=graph, program=program, history=current.history.following(version), reserve=dict(result.reserve)
    )
    swaps += _average_swaps(net, kept, result, tensors, current, following)
    swaps.append(Swap(lambda: refresh_modules(graph, net), lambda: refresh_modules(current.graph, net)))
    swaps.append(Swap(torch.clear_autocast_cache, torch.clear_autocast_cache))
    publish = net.__dict__
    swaps.append(Swap(agreement.confirm, lambda: None))
    swaps.append(Swap(lambda: publish.update(_current=following), lambda: publish.update(_current=current)))
    agreement.reach_back(kept)
    commit(swaps)
    return version


# -- the graph ------------------------------------------------------------------------------------------------------


def _next_graph(history: History, graph: Graph) -> Graph:
    """The kept graph as the next version; ids that were given on any branch count as given."""
    given = {name: group.next_id for name, group in graph.groups.items()}
    for tip in history.branches:
        for name, origin in matching_groups(tip.graph, graph).items():
            given[name] = max(given[name], tip.graph.groups[origin].next_id)
    groups = {
        name: group if group.frozen is not None else replace(group, next_id=given[name])
        for name, group in graph.groups.items()
    }
    return replace(graph, groups=MappingProxyType(groups), version=history.latest.number + 1)


def _changes(before: Graph, after: Graph) -> tuple[Change, ...]:
    """The way from one graph to the other, as a journal holds it."""
    units = units_change(after, [name for name, group in after.groups.items() if group.frozen is None])
    if before.diff(after).same_ops and set(before.groups) == set(after.groups):
        return (units,)
    put = [node.op for node in after.nodes.values()]
    gone = [name for name in before.nodes if name not in after.nodes]
    return ops_change(put, gone, Rewritten(after, {}, {}), {}, {}, list(after.tensors)), units


def _version(net: Network, kept: Kept, graph: Graph, result: Result, started: float) -> Version:
    old = net.history[kept.version]
    step = Step("rollback", None, {"version": kept.version}, changes=_changes(net.graph, graph))
    moved = sum(t.numel() * t.element_size() for t in (*result.tensors.values(), *result.fresh.values()))
    seconds = time.perf_counter() - started
    return Version(graph.version, kept.version, graph, (step,), 0, old.params, old.flops, seconds, moved)


# -- tensors --------------------------------------------------------------------------------------------------------


def _placed_like(net: Network) -> Callable[[Tensor], Tensor]:
    """Copies a kept tensor to where the network is by now."""
    device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    return lambda tensor: tensor.to(device, copy=True)


def _result(before: Graph, after: Graph, kept: Kept, place: Callable[[Tensor], Tensor]) -> Result:
    staying = {
        name: name
        for name, spec in after.tensors.items()
        if name in before.tensors and before.tensors[name].buffer == spec.buffer
    }
    values = {name: place(kept.tensors[name]) for name in after.tensors}
    return Result(
        after,
        {name: value for name, value in values.items() if name in staying},
        {},
        {name: place(value) for name, value in kept.reserve.items()},
        [],
        [],
        {name: value for name, value in values.items() if name not in staying},
        staying,
    )


def _data_swap(tensor: Tensor, data: Tensor, *, trains: bool) -> Swap:
    old, old_grad, trained = tensor.data, tensor.grad, tensor.requires_grad
    refusals: list[RemovableHandle] = []

    def do() -> None:
        set_data(tensor, data, refusals)
        tensor.grad = None  # of other weights, and perhaps of another shape
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(trains)

    def undo() -> None:
        set_data(tensor, old, refusals)
        tensor.requires_grad_(trained)
        tensor.grad = old_grad
        for refusal in refusals:
            refusal.remove()

    return Swap(do, undo)


def _trains(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _average_swaps(
    net: Network, kept: Kept, result: Result, tensors: Mapping[str, Tensor], current: Any, following: Any
) -> Iterator[Swap]:
    """Averages go back too; one that was attached since starts again at the weights."""
    live = {name: tensors[name] for name in result.tensors}
    for key, average in net._averages.items():
        held = kept.averages.get(key)
        slots: dict[tuple[str, ...], Tensor] = {}
        fresh = result.fresh
        for name, value in result.tensors.items():
            slots["carried", key, name] = value if held is not None else torch.full_like(value, _other(value))
            slots["average", key, name] = value if held is None else held[name].to(value.device, copy=True)
        if held is not None:
            fresh = {name: held[name].clone() for name in result.fresh}
        yield from average.swaps(replace(result, slots=slots, fresh=fresh), live, current, following)


def _other(value: Tensor) -> float:
    """A number that no entry of a tensor equals."""
    if value.is_floating_point() or value.is_complex():
        return float("nan")
    return int(value.max()) + 1 if value.numel() else 0


# -- optimizers -----------------------------------------------------------------------------------------------------


def _optimizer_pairs(net: Network, kept: Kept, *, reset: bool) -> list[tuple[Attached, KeptOptimizer | None]]:
    """Every attached optimizer with its kept state; None where it is to start again."""
    pairs: list[tuple[Attached, KeptOptimizer | None]] = []
    by_key = {held.key: held for held in kept.optimizers}
    for key, attached in net._attached.items():
        held, kind = by_key.get(key), type(attached.optimizer).__name__
        if held is not None and (held.kind != kind or len(held.groups) != len(attached.optimizer.param_groups)):
            held = None
        if held is None and not reset:
            raise EditError(
                f"the state that {kind} had at version {kept.version} is not known: it was attached, or given other "
                "parameter groups, after that version was kept; reset_optimizers=True lets it start again"
            )
        pairs.append((attached, None if reset else held))
    return pairs


def _optimizer_swaps(
    attached: Attached, held: KeptOptimizer | None, tensors: Mapping[str, Tensor], dropped: list[Tensor]
) -> Iterator[Swap]:
    optimizer, updates = attached.optimizer, attached.updates
    mine = {id(tensor) for tensor in (*tensors.values(), *dropped)}
    state = {p: value for p, value in optimizer.state.items() if id(p) not in mine}
    births = {p: value for p, value in updates.births.items() if id(p) not in mine}
    if held is not None:
        for group, names in zip(optimizer.param_groups, held.groups, strict=True):
            yield _params_swap(group["params"], [tensors[name] for name in names], mine)
        for name, entries in held.state.items():
            place = _state_place(tensors[name])
            state[tensors[name]] = {key: copied(value, place) for key, value in entries.items()}
        births |= {tensors[name]: copied_births(value) for name, value in held.births.items()}
    yield _table_swap(optimizer.state, state)
    yield _table_swap(updates.births, births)
    if held is not None:
        yield _attribute_swap(updates, "steps", held.steps)
    for name, value in (attached.rule.resets or {}).items():
        yield _attribute_swap(optimizer, name, value)


def _state_place(parameter: Tensor) -> Callable[[Tensor], Tensor]:
    """State of the parameter's rank lies where the parameter does; a count stays where it was."""
    return lambda value: value.to(value.device if value.dim() == 0 else parameter.device, copy=True)


def _params_swap(params: list[Tensor], following: list[Tensor], mine: set[int]) -> Swap:
    """The network's parameters of then, and after them those of others; as it is where nothing differs."""
    old = list(params)
    if {id(p) for p in old if id(p) in mine} == {id(p) for p in following}:
        return Swap(lambda: None, lambda: None)
    new = [*following, *(p for p in old if id(p) not in mine)]

    def put(values: list[Tensor]) -> Callable[[], None]:
        def assign() -> None:
            params[:] = values

        return assign

    return Swap(put(new), put(old))


def _table_swap(table: dict[Tensor, Any], following: Mapping[Tensor, dict[str, Any] | Births]) -> Swap:
    before = dict(table)

    def put(entries: Mapping[Tensor, Any]) -> Callable[[], None]:
        def assign() -> None:
            table.clear()
            table.update(entries)

        return assign

    return Swap(put(following), put(before))


def _attribute_swap(owner: Any, name: str, value: Any) -> Swap:
    before = getattr(owner, name)
    return Swap(lambda: setattr(owner, name, value), lambda: setattr(owner, name, before))
