"""The laws of edits as functions: each raises ``AssertionError`` with what differs, where, and by how much.

Two kinds. A law *of an edit* takes a network and a ``change``: a function of an open :class:`graphnet.Edit`. It
commits the change and compares before with after (:func:`check_edit` checks any of them on one commit). A law *of a
network* takes a network and says what holds of it.

Every law has a tolerance by dtype (:data:`~graphnet.testing.compare.TOLERANCES`); what an edit moves or carries is
compared bit for bit. Laws count themselves in :data:`~graphnet.testing.counting.COUNTS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from hypothesis.errors import HypothesisException
from torch import Tensor

from graphnet.edit.action import move
from graphnet.edit.edit import Edit
from graphnet.edit.plan import Plan, Step
from graphnet.edit.scores import SCORES
from graphnet.edit.scores.base import Scoring
from graphnet.edit.states import NEUTRAL
from graphnet.edit.unit_map import UnitMap
from graphnet.errors import EditError, GraphnetError
from graphnet.ir import reference
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.ir.layout import Layout
from graphnet.runtime.network import Network
from graphnet.runtime.replay import replay, replay_graph
from graphnet.testing.compare import (
    ROUNDINGS,
    check_bits,
    check_close,
    check_rounded,
    positions,
    rounded,
    share_of,
    state_of,
    survivors,
    take,
    tolerance_of,
    twin_of,
)
from graphnet.testing.counting import COUNTS, operators_of
from graphnet.testing.data import dtype_of, probe_batch, sample, train, wave_loss
from graphnet.testing.optimizers import elementwise

__all__ = [
    "EDIT_LAWS",
    "Change",
    "check_edit",
    "check_functor",
    "check_functors",
    "check_incumbents",
    "check_lowering",
    "check_masked",
    "check_next_update",
    "check_output",
    "check_permutation",
    "check_preservation",
    "check_preserved",
    "check_replay",
    "check_round_trip",
    "check_score",
    "check_unchanged",
    "check_valid",
]

Change: TypeAlias = Callable[[Edit], object]
"""What an edit does: called with the open edit."""


# -- laws of an edit ------------------------------------------------------------------------------------------


_OUR_FAULT = ("is a bug", "layout inference is not stable")
"""In messages of errors that no input should give."""


class _Before:
    """A network before an edit: what the laws compare with."""

    def __init__(self, net: Network, laws: Sequence[str]) -> None:
        self.net = net
        self.graph = net.graph
        self.history = net.history
        self.inputs = sample(net.graph, 1, dtype=dtype_of(net))
        self.state, self.axes = state_of(net), _axes(net)
        self.objects = [id(parameter) for parameter in net.parameters()]
        self.output = output_of(net, self.inputs)
        self.gradients = _gradients(net, self.inputs) if "gradients" in laws else {}
        self.twin = twin_of(net) if "next-update" in laws and net.attached else None


def check_edit(net: Network, change: Change, laws: Sequence[str] | None = None) -> bool:
    """Commit a change and check laws of an edit; of a change that is refused, that it changed nothing.

    Parameters
    ----------
    net : Network
        In place: afterwards it is what the change made it. ``next-update`` also takes one step of every attached
        optimizer, with random gradients.
    change : callable
        ``change(edit)`` calls operators.
    laws : sequence of str, optional
        Names in :data:`EDIT_LAWS`; by default all of them.

        ==============  ====================================================================================
        ``valid``       the new graph is valid, its document gives it back, tensors and optimizer state fit it
        ``lowering``    the network computes what the reference evaluator does
        ``preserved``   the outputs are unchanged, where the version says ``preserves: function``
        ``gradients``   so are the gradients of the units that stay
        ``incumbents``  units that stay keep parameters, gradients in flight and optimizer state, bit for bit
        ``next-update`` given the same gradients, their next update is the same, bit for bit (4 ulp while ``aged``)
        ==============  ====================================================================================

    Returns
    -------
    bool
        Whether it was committed.

    Raises
    ------
    AssertionError
        A law does not hold, or the change raised something else than a :class:`graphnet.GraphnetError`.
    """
    if unknown := sorted(set(laws or ()) - set(EDIT_LAWS)):
        raise ValueError(f"there are no laws {unknown}; there are {list(EDIT_LAWS)}")
    wanted = [law for law in EDIT_LAWS if laws is None or law in laws]  # in this order: the last one takes a step
    before = _Before(net, wanted)
    try:
        with net.edit() as edit:
            change(edit)
            refused_by = None
    except GraphnetError as error:
        refused_by = error
    except HypothesisException:
        raise
    except Exception as error:
        raise AssertionError(f"bad input gives a GraphnetError, not {type(error).__name__}: {error}") from error
    if refused_by is not None:
        _check_refusal(before, refused_by)
        return False
    operators = operators_of(net.history.latest.steps)
    for law in wanted:
        if EDIT_LAWS[law](before):
            COUNTS.held(law, operators)
    COUNTS.committed(net.history.latest.steps)
    return True


def _check_refusal(before: _Before, error: GraphnetError) -> None:
    net, what = before.net, f"a refused edit ({str(error)[:200]})"
    _check_sound(error)
    if net.graph is not before.graph or net.history is not before.history:
        raise AssertionError(f"{what}: graph or history is another")
    if [id(parameter) for parameter in net.parameters()] != before.objects:
        raise AssertionError(f"{what}: the parameters are other objects")
    check_bits(before.state, state_of(net), what)
    COUNTS.held("refused unchanged")


def _check_sound(error: GraphnetError) -> None:
    if any(sign in str(error) for sign in _OUR_FAULT):
        raise AssertionError(f"an edit failed by a mistake of an operator: {error}") from error


def _valid(before: _Before) -> bool:
    check_valid(before.net, counted=False)
    return True


def _lowering(before: _Before) -> bool:
    check_lowering(before.net, *before.inputs, counted=False)
    return True


def _preserved(before: _Before) -> bool:
    net = before.net
    if net.history.latest.preserves != "function":
        return False
    after = output_of(net, before.inputs)
    what = f"{_named(net)} says preserves='function', but the function"
    check_output(net, before.inputs, before.output, after, what, tolerance_of("function", after))
    return True


def _gradients_kept(before: _Before) -> bool:
    net = before.net
    if net.history.latest.preserves != "function":
        return False
    after, noise = _gradients(net, before.inputs), None
    compared = False
    for name, (old, new) in _shared(before.graph, net.graph, net.history.latest.steps).items():
        if name not in before.gradients or name not in after:
            continue
        one, two = take(before.gradients[name], old), take(after[name], new)
        if not one.numel():
            continue
        scale = max(float(before.gradients[name].abs().max()), float(after[name].abs().max()))
        gap, allowed = float((one - two).abs().max()), tolerance_of("gradient", one) * scale
        if not gap <= allowed:
            noise = noise or _noise(net, before.inputs)[1]
            if not gap <= max(allowed, ROUNDINGS * noise[name]):
                raise AssertionError(
                    f"{_named(net)}: the gradient of {name} for units that stay differs by {gap / scale:.3g} of its "
                    "maximum"
                )
        compared = True
    return compared


def _incumbents(before: _Before) -> bool:
    net, after, axes = before.net, state_of(before.net), _axes(before.net)
    shared, compared = _shared(before.graph, net.graph, net.history.latest.steps), False
    for key, old in before.state.items():
        name, dims = before.axes.get(key, (None, ()))
        if name not in shared:
            continue
        if key not in after:
            raise AssertionError(f"{_named(net)}: {key} is gone")
        places = [[index[dim] for dim in dims] for index in shared[name]]
        one, two = take(old, places[0]), take(after[key], places[1])
        check_bits({key: one}, {key: two}, f"{_named(net)}: units that stay")
        compared = True
    for key in after.keys() - before.state.keys():
        kind, (name, dims) = key.split(" ")[0], axes.get(key, (None, ()))
        if name in shared and kind in NEUTRAL:
            held = take(after[key], [shared[name][1][dim] for dim in dims])
            if not bool(torch.eq(held, NEUTRAL[kind]).all()):  # type: ignore[index]
                raise AssertionError(f"{_named(net)}: units that stay got a {kind} of their own in {key}")
    return compared


def _next_update(before: _Before) -> bool:
    net, twin = before.net, before.twin
    if twin is None or not all(elementwise(optimizer) for optimizer in net.attached):
        return False
    generator = torch.Generator().manual_seed(net.version)
    shared = _shared(before.graph, net.graph, net.history.latest.steps)
    for name in shared:
        live, other = net.tensor(name), twin.tensor(name)
        if not live.requires_grad:
            continue
        live.grad = torch.randn(live.shape, dtype=torch.float64, generator=generator).to(live.dtype)
        other.grad = torch.randn(other.shape, dtype=torch.float64, generator=generator).to(other.dtype)
        old, new = shared[name]
        where = np.ix_(*new) if live.dim() else ()
        live.grad[where] = take(other.grad, old)
    for optimizer in (*net.attached, *twin.attached):
        optimizer.step()
    for name, (old, new) in shared.items():
        one, two = take(twin.tensor(name).detach(), old), take(net.tensor(name).detach(), new)
        if not one.numel():
            continue
        young = any(net.tensor(name) in attached.updates.births for attached in net._attached.values())
        if young and bool(((one - two).abs() <= _ULPS * torch.finfo(one.dtype).eps * one.abs().max()).all()):
            continue
        check_bits({name: one}, {name: two}, f"{_named(net)}: the next update of units that stay")
    return bool(shared)


_ULPS = 4
"""Units in the last place by which the update of a unit that is still young may differ: a power of its age is rounded
otherwise at another place of a vector."""


EDIT_LAWS: Mapping[str, Callable[[_Before], bool]] = {
    "valid": _valid,
    "lowering": _lowering,
    "preserved": _preserved,
    "gradients": _gradients_kept,
    "incumbents": _incumbents,
    "next-update": _next_update,
}
"""The laws that :func:`check_edit` knows; each gives whether there was something to check."""


def check_preservation(net: Network, change: Change) -> None:
    """Law 2: a change whose version says ``preserves: function`` leaves the outputs as they were."""
    check_edit(net, change, ["preserved"])


def check_incumbents(net: Network, change: Change) -> None:
    """Law 3: the units that stay keep parameters, gradients in flight and optimizer state bit for bit.

    Where the version says ``preserves: function`` their gradients stay too, to rounding. Not for operators whose
    purpose it is to change incumbents (replicas, merges, rewinds).
    """
    check_edit(net, change, ["gradients", "incumbents"])


def check_next_update(net: Network, change: Change) -> None:
    """Law 3: given the same gradients, the next update of the units that stay is bit for bit the same.

    Takes one step of every attached optimizer. Nothing is said of optimizers that mix units or are fused.
    """
    check_edit(net, change, ["next-update"])


def _named(net: Network) -> str:
    return " and ".join(operators_of(net.history.latest.steps)) or "the edit"


def output_of(net: Network, inputs: Sequence[Tensor]) -> Any:
    """What a network gives in evaluation mode, without gradients."""
    was = net.training
    net.eval()
    with torch.no_grad():
        output = net(*inputs)
    net.train(was)
    return output


def check_output(net: Network, inputs: Sequence[Tensor], one: Any, two: Any, what: str, tolerance: float) -> None:
    """Two outputs agree within the tolerance, or within what rounding does to this network.

    A norm over a group of one unit, for instance, divides rounding errors by the root of its epsilon.
    """
    check_rounded(one, two, what, tolerance, lambda: _noise(net, inputs)[0])


def _noise(net: Network, inputs: Sequence[Tensor]) -> tuple[float, dict[str, float]]:
    """What rounding every parameter once does: to the outputs, as a share of their maximum, and to each gradient.

    The larger of two roundings in opposite directions.
    """
    one, before = output_of(net, inputs), _gradients(net, inputs)
    share, gaps = 0.0, dict.fromkeys(before, 0.0)
    for sign in (1.0, -1.0):
        other = copy.deepcopy(net)
        with torch.no_grad():
            for name, tensor in rounded({name: net.tensor(name) for name in net.graph.tensors}, sign).items():
                other.tensor(name).copy_(tensor)
        two, after = output_of(other, inputs), _gradients(other, inputs)
        share = max(share, share_of(one, two))
        gaps = {name: max(gap, float((before[name] - after[name]).abs().max())) for name, gap in gaps.items()}
    return share, gaps


def _gradients(net: Network, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The gradients of a fixed loss, beside those that are in flight."""
    named = {name: net.tensor(name) for name in net.graph.tensors if net.tensor(name).requires_grad}
    if not named:
        return {}
    was = net.training
    net.eval()
    loss = wave_loss(net(*inputs))
    net.train(was)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


Places: TypeAlias = "tuple[list[Any], list[Any]]"


def _shared(old: Graph, new: Graph, steps: Sequence[Step] = ()) -> dict[str, Places]:
    """For each tensor that has the same layouts in both graphs: where the units that stay are, before and after.

    A unit that one of these steps dropped has not stayed, even if another one brought it back. Nor have the units of
    a group that these steps joined with another and parted again: it has the other one's ids. Taps of a kernel that
    was made smaller and larger again have gone too.
    """
    left = {(step.group, unit) for step in steps for unit in step.dropped}
    ids = {name: tuple(u for u in units if (name, u) not in left) for name, units in survivors(old, new).items()}
    rewired = bool(_WIRING & {step.operator for step in steps})
    moved = {step.group for step in steps if step.operator == "permute"}
    joined = {
        name for name, units in ids.items()
        if rewired and name not in moved and units != tuple(u for u in old.groups[name].ids if u in set(units))
    }  # fmt: skip
    kernels = {f"{step.arguments['name']}.weight" for step in steps if step.operator == "kernel"}
    found = {}
    for name, spec in new.tensors.items():
        groups = {atom for dim in spec.dims for atom in dim.atoms()}
        if name in old.tensors and old.tensors[name].dims == spec.dims and not groups & joined and name not in kernels:
            found[name] = positions(old, name, ids), positions(new, name, ids)
    return found


_WIRING = {"insert", "redirect", "remove", "deepen"}
"""Operators that may join two groups into one, or part them."""


def _axes(net: Network) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For each entry of :func:`state_of` the tensor that it follows, and the dimensions that it has of it.

    Two are left out: the reserve, whose units are counted with the dormant ones, and what an optimizer keeps that
    mixes units, such as means over all of them.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    mixing = _mixing(net)
    for name, spec in net.graph.tensors.items():
        every = tuple(range(len(spec.dims)))
        found[name] = name, every
        for slot in net.slots(name):
            if not _is_mixed(slot.key, mixing):
                found[" ".join(slot.key)] = name, every if slot.axes is None else slot.axes
        for number, _ in enumerate(net.attached):
            found[f"state {number} {name} step"] = name, ()
    return found


def _mixing(net: Network) -> frozenset[str]:
    """The numbers of the attached optimizers whose state of one unit depends on others."""
    return frozenset(str(number) for number, optimizer in enumerate(net.attached) if not elementwise(optimizer))


def _is_mixed(key: Sequence[str], mixing: frozenset[str]) -> bool:
    return key[0] in ("state", "means") and key[1] in mixing and key[-1] != "step"


def _check_same(net: Network, before: Mapping[str, Tensor], what: str) -> None:
    """Everything is bit for bit as before; what an optimizer keeps that mixes units, to rounding."""
    after, mixing = state_of(net), _mixing(net)
    for name in after.keys() - before.keys():  # ages of units that are gone: all neutral
        kind = name.split(" ")[0]
        if kind in NEUTRAL and bool(torch.eq(after[name], NEUTRAL[kind]).all()):  # type: ignore[index]
            del after[name]
    mixed = [name for name in before.keys() & after.keys() if _is_mixed(name.split(" "), mixing)]
    for name in mixed:
        check_close(before[name], after[name], f"{what}: {name}", tolerance=tolerance_of("function", after[name]))
        after[name] = before[name]
    check_bits(before, after, what)


# -- laws of a network ----------------------------------------------------------------------------------------


def check_unchanged(net: Network, state: Mapping[str, Tensor], what: str) -> None:
    """What an edit carries is bit for bit what :func:`state_of` gave before."""
    check_bits(state, state_of(net), what)


def check_valid(net: Network, *, counted: bool = True) -> None:
    """The graph is valid, its document gives it back, and tensors, optimizers and their state fit it."""
    graph = net.graph
    graph.validate()
    document = graph.to_document()
    again = load(document)
    if again.to_document() != document or again.groups.keys() != graph.groups.keys():
        raise AssertionError(f"the document of {graph.name!r} gives another graph")
    for name, group in graph.groups.items():
        if (again.groups[name].ids, again.groups[name].dormant) != (group.ids, group.dormant):
            raise AssertionError(f"the document of {graph.name!r} gives other units of {name!r}")
    held = [id(p) for optimizer in net.attached for g in optimizer.param_groups for p in g["params"]]
    if len(set(held)) != len(held):
        raise AssertionError("a parameter is held twice by the attached optimizers")
    mine = {id(p) for p in net.parameters()}
    if held and (foreign := [number for number in held if number not in mine]):
        raise AssertionError(f"the attached optimizers hold {len(foreign)} parameters that the network has not")
    for name, spec in graph.tensors.items():
        tensor = net.tensor(name)
        if tuple(tensor.shape) != graph.shape(spec):
            raise AssertionError(f"{name} has shape {list(tensor.shape)}, the graph says {list(graph.shape(spec))}")
        if tensor.grad is not None and tensor.grad.shape != tensor.shape:
            raise AssertionError(f"the gradient of {name} has shape {list(tensor.grad.shape)}")
        if net.attached and tensor.requires_grad and id(tensor) not in held:
            raise AssertionError(f"no attached optimizer holds {name}")
        for slot in net.slots(name):
            if tuple(slot.base.shape) != tuple(layout.size(graph.sizes) for layout in slot.dims):
                raise AssertionError(f"{' '.join(slot.key)} has shape {list(slot.base.shape)}")
    if counted:
        COUNTS.held("valid")


def check_lowering(net: Network, *inputs: Tensor, tolerance: float | None = None, counted: bool = True) -> None:
    """Law 7: the lowered network gives what the reference evaluator gives.

    Parameters
    ----------
    inputs : Tensor
        By default a sample that fits.
    tolerance : float, optional
        By default that of the inputs' type in :data:`~graphnet.testing.compare.TOLERANCES`.
    """
    inputs = inputs or sample(net.graph, dtype=dtype_of(net))
    lowered = output_of(net, inputs)
    tensors = {name: net.tensor(name) for name in net.graph.tensors}
    expected = tuple(torch.from_numpy(out) for out in reference.evaluate(net.graph, tensors, inputs))
    lowered = lowered if isinstance(lowered, tuple) else (lowered,)
    allowed = tolerance_of("lowering", lowered) if tolerance is None else tolerance
    check_output(net, inputs, expected, lowered, "lowering against the reference evaluator", allowed)
    if counted:
        COUNTS.held("lowering")


def check_functor(
    tensor: Tensor,
    dims: Sequence[Layout],
    first: Mapping[str, UnitMap],
    second: Mapping[str, UnitMap],
    *,
    newborn: float = 0.0,
    counted: bool = True,
) -> None:
    """Law 1: acting by one map after another is acting by their composition, and the identity changes no bit."""
    before = {group: step.old for group, step in first.items()}
    between = {group: step.new for group, step in first.items()}
    composed = {group: step.then(second[group]).source for group, step in first.items()}
    one = move(tensor, dims, {g: step.source for g, step in first.items()}, before, newborn=newborn)
    two = move(one, dims, {g: step.source for g, step in second.items()}, between, newborn=newborn)
    at_once = move(tensor, dims, composed, before, newborn=newborn)
    check_bits({"tensor": two}, {"tensor": at_once}, f"functor over [{', '.join(map(str, dims))}]")
    expected = tensor.detach().clone()
    for dim, layout in enumerate(dims):
        index = torch.from_numpy(layout.index(composed, before))
        picked = expected.index_select(dim, index.clamp(min=0))
        born = (index < 0).reshape([-1 if d == dim else 1 for d in range(len(dims))])
        expected = torch.where(born, torch.full_like(picked, newborn), picked)
    check_bits({"tensor": at_once}, {"tensor": expected}, "the action against its definition")
    same = move(tensor, dims, {g: UnitMap.identity(g, n).source for g, n in before.items()}, before)
    if same is not tensor:
        check_bits({"tensor": tensor}, {"tensor": same}, "identity")
    if counted:
        COUNTS.held("functor")


def check_functors(net: Network, seed: int = 0) -> None:
    """Law 1 on every stored tensor of a network, under random maps of its groups: one check."""
    rng, graph = np.random.default_rng(seed), net.graph

    def maps(sizes: Mapping[str, int]) -> dict[str, UnitMap]:
        return {
            group: UnitMap(group, size, rng.integers(-1, size, rng.integers(1, size + 3)))
            for group, size in sizes.items()
        }

    for name, spec in graph.tensors.items():
        groups = {key: graph.sizes[key] for layout in spec.dims for key in layout.atoms()}
        if groups:
            first = maps(groups)
            second = maps({group: one.new for group, one in first.items()})
            tensor = net.tensor(name).detach()
            check_functor(tensor, spec.dims, first, second, newborn=spec.newborn, counted=False)
    COUNTS.held("functor")


def check_preserved(
    net: Network, before: Any, *inputs: Tensor, what: str = "edit", tolerance: float | None = None
) -> None:
    """Law 2: the network in evaluation mode still gives what it gave before."""
    check_close(before, output_of(net, inputs), f"{what}: the function", tolerance=tolerance)
    COUNTS.held("preserved")


def check_round_trip(
    net: Network, group: str, count: int, *, init: str = "kaiming", state: str = "aged", **options: Any
) -> bool:
    """Law 4: growing units and pruning them again gives back every tensor bit for bit.

    Parameters
    ----------
    options
        Further arguments of :meth:`graphnet.Edit.grow`; a batch and a loss are given to it.

    Returns
    -------
    bool
        False where the growth is refused.
    """
    before = state_of(net)
    try:
        with net.edit() as edit:
            born = edit.grow(
                group, count, init=init, state=state, **{"batch": probe_batch(edit), "loss": wave_loss, **options}
            )
    except EditError as error:
        _check_sound(error)
        return False
    with net.edit() as edit:
        edit.prune(group, units=born)
    _check_same(net, before, f"round trip of {count} units of {group!r}")
    COUNTS.held("round trip", ("grow", "prune"))
    return True


def check_permutation(
    net: Network, group: str, order: Sequence[int], *inputs: Tensor, tolerance: float | None = None
) -> None:
    """Law 6: permuting the units of a group changes nothing but their order; permuting back restores every bit.

    Parameters
    ----------
    order : sequence of int
        The old position of each unit.
    inputs : Tensor
        By default a sample that fits.
    """
    name = net.graph.group(group).name
    inputs = inputs or sample(net.graph, dtype=dtype_of(net))

    before, bits, old = output_of(net, inputs), state_of(net), net.graph
    with net.edit() as edit:
        edit.permute(name, order=[old.groups[name].ids[at] for at in order], outputs=True)
    after = output_of(net, inputs)
    if old.groups[name].output:
        before = _reordered(old, before, name, order)
    allowed = tolerance_of("function", (before, after)) if tolerance is None else tolerance
    check_output(net, inputs, before, after, f"permuting {group!r}: the function", allowed)
    with net.edit() as edit:
        edit.permute(name, order=old.groups[name].ids, outputs=True)
    _check_same(net, bits, f"permuting {group!r} and back")
    COUNTS.held("permutation", ("permute",))


def _reordered(graph: Graph, output: Any, group: str, order: Sequence[int]) -> Any:
    """Outputs with the units of a group in another order."""
    several = isinstance(output, tuple)
    found = []
    for (producer, port), tensor in zip(graph.outputs, output if several else (output,), strict=True):
        for dim, layout in enumerate(graph.dims(producer, port)):
            if group in set(layout.atoms()):
                index = layout.index({group: np.asarray(order, dtype=np.int64)}, graph.sizes)
                tensor = tensor.index_select(dim, torch.from_numpy(index))
        found.append(tensor)
    return tuple(found) if several else found[0]


def check_masked(
    net: Network, group: str, units: Sequence[int], *, steps: int = 3, seed: int = 0, tolerance: float | None = None
) -> None:
    """Law 5: training with units removed equals training with them masked.

    The masked network has weights, gradients and optimizer state of these units put to zero before and after every
    step. Holds for elementwise optimizers with eps > 0, groups along which no op takes a statistic, and networks
    without dropout.

    Parameters
    ----------
    net : Network
        In place: the units are pruned from it and it is trained.
    units : sequence of int
        Ids.
    steps : int
        Training steps.
    """
    name = net.graph.group(group).name
    if net.graph.groups[name].coupled is not None or net.graph.groups[name].output:
        raise ValueError(f"{name!r} is coupled or an output: removing its units is no masking")
    start = twin_of(net)
    with net.edit() as edit:
        edit.prune(name, units=list(units))
    for step in range(steps):
        train(net, net.attached, 1, seed=seed + step)
    twin = _trained_masked(start, name, units, steps, seed)
    noise: dict[str, float] = {}
    for tensor, (old, new) in _shared(twin.graph, net.graph).items():
        one, two = (take(of.tensor(tensor).detach(), at).double() for of, at in ((twin, old), (net, new)))
        if not one.numel():
            continue
        scale, gap = float(one.abs().max()) + 1e-30, float((one - two).abs().max())
        allowed = (tolerance_of("trajectory", net.tensor(tensor)) if tolerance is None else tolerance) * scale
        if not gap <= allowed:
            noise = noise or _trajectory_noise(start, twin, name, units, steps, seed)
            if not gap <= max(allowed, ROUNDINGS * noise[tensor]):
                raise AssertionError(
                    f"masked equals compact, {len(units)} units of {name!r}: {tensor} differs by {gap / scale:.3g} of "
                    "its maximum"
                )
    COUNTS.held("masked", ("prune",))


def _trained_masked(
    start: Network, group: str, units: Sequence[int], steps: int, seed: int, sign: float = 0
) -> Network:
    """A copy trained with units masked; with a sign, after a rounding of every tensor."""
    twin = twin_of(start)
    if sign:
        with torch.no_grad():
            for name, tensor in rounded({name: twin.tensor(name) for name in twin.graph.tensors}, sign).items():
                twin.tensor(name).copy_(tensor)
    for step in range(steps):
        _mask(twin, group, units)
        inputs = sample(twin.graph, (seed + step) * 1000, dtype=dtype_of(twin))
        for optimizer in twin.attached:
            optimizer.zero_grad()
        torch.autograd.backward(wave_loss(twin(*inputs)))
        _mask(twin, group, units)
        for optimizer in twin.attached:
            optimizer.step()
    _mask(twin, group, units)
    return twin


def _trajectory_noise(
    start: Network, twin: Network, group: str, units: Sequence[int], steps: int, seed: int
) -> dict[str, float]:
    """What rounding every tensor once, before the training, does to each tensor after it.

    A gradient that is nothing but rounding errors, as that of a bias before a batch norm, is made a step of full size
    by optimizers that divide by its root mean square.
    """
    others = [_trained_masked(start, group, units, steps, seed, sign) for sign in (1.0, -1.0)]
    return {
        name: max(float((other.tensor(name) - twin.tensor(name)).detach().abs().max()) for other in others)
        for name in twin.graph.tensors
        if twin.tensor(name).numel()
    }


def _mask(net: Network, group: str, units: Sequence[int]) -> None:
    """Put weights, gradients and optimizer state of units to zero; running statistics are left alone."""
    graph = net.graph
    at = graph.groups[group].positions(np.array(list(units)))
    for name, spec in graph.tensors.items():
        tensor = net.tensor(name)
        for dim, layout in enumerate(spec.dims):
            rows = torch.from_numpy(np.flatnonzero(np.isin(layout.owners(group, graph.sizes), at)))
            if spec.buffer or not rows.numel():
                continue
            held = [tensor.detach(), *([] if tensor.grad is None else [tensor.grad])]
            for optimizer in net.attached:
                held += [value for value in optimizer.state.get(tensor, {}).values() if _like(value, tensor)]
            for value in held:
                value.index_fill_(dim, rows, 0.0)


def _like(value: Any, tensor: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == tensor.shape and bool(value.dim())


def check_replay(first: Network, net: Network) -> None:
    """Law 9: the journal, replayed from an earlier version with its seeds, gives the same graph and tensors.

    Parameters
    ----------
    first : Network
        A copy of the network at an earlier version, since when nothing but edits without data changed it.
    """
    journal = net.history.journal()
    graph = replay_graph(first.graph, journal)
    if graph.to_document() != net.graph.to_document():
        raise AssertionError("replay: the journal gives another graph")
    again = replay(first, journal)
    if again.graph.to_document() != net.graph.to_document():
        raise AssertionError("replay: the edits, run again, give another graph")
    found = {name: net.tensor(name).detach() for name in net.graph.tensors}
    check_bits(found, {name: again.tensor(name).detach() for name in again.graph.tensors}, "replay")
    made = [version for version in net.history if version.number > first.version]
    COUNTS.held("replay", [step.operator for version in made for step in version.steps])


def check_score(net: Network, score: str, group: str, order: Sequence[int], **options: Any) -> bool:
    """A score belongs to a unit and not to its position: of permuted units the scores are permuted.

    Parameters
    ----------
    score : str
        The name of a registered score.
    order : sequence of int
        The old position of each unit.
    options
        Of the score.

    Returns
    -------
    bool
        False where the score refuses the group or draws its numbers, and there is nothing to compare; and for the
        network's outputs, whose order a loss sees.
    """
    name = net.graph.group(group).name
    if net.graph.groups[name].output:
        return False

    def scores(of: Network, seed: int) -> Tensor:
        plan = Plan(of, of.graph, torch.Generator().manual_seed(seed))
        scoring = Scoring(plan, of.graph.groups[name], probe_batch(Edit(plan)), wave_loss)
        values: Tensor = SCORES.call(score, scoring, **options)
        return values

    try:
        before = scores(net, 0)
        if not torch.equal(before, scores(net, 1)):
            return False
    except EditError as error:
        _check_sound(error)
        return False
    if tuple(before.shape) != (net.graph.groups[name].size,):
        raise AssertionError(
            f"score {score!r} gives shape {list(before.shape)} for {net.graph.groups[name].size} units"
        )
    twin = copy.deepcopy(net)
    with twin.edit() as edit:
        edit.apply(_permute, name, list(order))
    after = scores(twin, 0)
    wanted = before[torch.tensor(list(order))]
    check_close(wanted, after, f"score {score!r} of permuted units of {name!r}", tolerance=1e-9)
    COUNTS.held("equivariance", ("prune",))
    return True


def _permute(plan: Plan, group: str, order: Sequence[int]) -> None:
    old = plan.graph.groups[group]
    plan.advance(replace(old, ids=tuple(old.ids[at] for at in order)))
    plan.steps.append(Step("permute", group, {"order": [int(at) for at in order]}, preserves="function"))
