"""The laws of edits as functions: each raises ``AssertionError`` with what differs, where, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphnet.edit.action import move
from graphnet.edit.edit import Edit
from graphnet.edit.plan import Plan, Step
from graphnet.edit.unit_map import UnitMap
from graphnet.ir import reference
from graphnet.ir.layout import Layout
from graphnet.runtime.network import Network
from graphnet.testing.strategies import RandomEdit, sample

__all__ = [
    "check_bits",
    "check_close",
    "check_functor",
    "check_laws",
    "check_lowering",
    "check_permutation",
    "check_preserved",
    "check_round_trip",
    "state_of",
]


def state_of(net: Network) -> dict[str, Tensor]:
    """A copy of everything that an edit carries, by name: tensors, gradients, optimizer state, ages, reserve.

    Optimizers are numbered in the order in which they were attached.
    """
    state: dict[str, Tensor] = {}
    for name in net.graph.tensors:
        tensor = net.tensor(name)
        state[name] = tensor.detach().clone()
        for slot in net.slots(name):
            state[" ".join(slot.key)] = slot.base.clone()
        for number, optimizer in enumerate(net.attached):
            step = optimizer.state.get(tensor, {}).get("step")
            if step is not None:
                state[f"state {number} {name} step"] = torch.as_tensor(step).clone()
        kept = net.reserve_of(name)
        if kept is not None:
            state[f"reserve {name}"] = kept.clone()
    return state


def check_bits(one: Mapping[str, Tensor], two: Mapping[str, Tensor], what: str) -> None:
    """Two tables of tensors have the same names and the same bits."""
    if one.keys() != two.keys():
        raise AssertionError(f"{what}: only one side has {sorted(one.keys() ^ two.keys())}")
    for name, tensor in one.items():
        other = two[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise AssertionError(
                f"{what}: {name} is {tensor.dtype}{list(tensor.shape)}, then {other.dtype}{list(other.shape)}"
            )
        if not torch.equal(tensor, other):
            gap = (tensor.double() - other.double()).abs().max()
            raise AssertionError(f"{what}: {name} differs by up to {float(gap):.3g}")


def check_close(one: Any, two: Any, what: str, *, tolerance: float) -> None:
    """Two outputs agree within a tolerance relative to the larger one's greatest element."""
    pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (one, two)), strict=True)
    for index, (a, b) in enumerate(pairs):
        if a.shape != b.shape:
            raise AssertionError(f"{what}: output {index} has shape {list(a.shape)}, then {list(b.shape)}")
        scale = max(float(a.detach().abs().max()), float(b.detach().abs().max()), 1e-300)
        gap = float((a.detach() - b.detach()).abs().max()) / scale
        if not gap <= tolerance:
            raise AssertionError(f"{what}: output {index} differs by {gap:.3g} of its maximum, allowed {tolerance:.0e}")


def check_functor(
    tensor: Tensor,
    dims: Sequence[Layout],
    first: Mapping[str, UnitMap],
    second: Mapping[str, UnitMap],
    *,
    newborn: float = 0.0,
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


def check_preserved(net: Network, before: Any, *inputs: Tensor, what: str = "edit", tolerance: float = 1e-12) -> None:
    """Law 2: the network in evaluation mode still gives what it gave before."""
    was = net.training
    net.eval()
    with torch.no_grad():
        after = net(*inputs)
    net.train(was)
    check_close(before, after, f"{what}: the function", tolerance=tolerance)


def check_round_trip(net: Network, group: str, count: int, *, init: str = "kaiming", state: str = "aged") -> None:
    """Law 4: growing units and pruning them again gives back every tensor bit for bit."""
    before = state_of(net)
    with net.edit() as edit:
        born = edit.grow(group, count, init=init, state=state)
    with net.edit() as edit:
        edit.prune(group, units=born)
    after = state_of(net)
    for name in after.keys() - before.keys():  # ages of units that are gone: all neutral
        if name.split(" ")[0] == "birth" and bool((after[name] == after[name].min()).all()):
            del after[name]
    check_bits(before, after, f"round trip of {count} units of {group!r}")


def check_permutation(
    net: Network, group: str, order: Sequence[int], *inputs: Tensor, tolerance: float = 1e-12
) -> None:
    """Law 6: permuting the units of a group changes nothing but their order; commits the permutation."""
    name = net.graph.group(group).name

    def permute(plan: Plan) -> None:
        old = plan.graph.groups[name]
        plan.advance(replace(old, ids=tuple(old.ids[at] for at in order)))
        plan.steps.append(Step("permute", name, {"order": list(order)}, preserves="function"))

    net.eval()
    before, bits = net(*inputs), state_of(net)
    output = net.graph.groups[name].output
    with net.edit() as edit:
        edit.apply(permute)
    if not output:
        check_preserved(net, before, *inputs, what=f"permuting {group!r}", tolerance=tolerance)
    back = np.argsort(np.asarray(order))
    with net.edit() as edit:
        order = list(back)
        edit.apply(permute)
    check_bits(bits, state_of(net), f"permuting {group!r} and back")


def check_lowering(net: Network, *inputs: Tensor, tolerance: float = 1e-11) -> None:
    """Law 7: the lowered network gives what the reference evaluator gives."""
    inputs = inputs or sample(net.graph)
    was = net.training
    net.eval()
    with torch.no_grad():
        lowered = net(*inputs)
    net.train(was)
    tensors = {name: net.tensor(name) for name in net.graph.tensors}
    expected = tuple(torch.from_numpy(out) for out in reference.evaluate(net.graph, tensors, inputs))
    lowered = lowered if isinstance(lowered, tuple) else (lowered,)
    check_close(expected, lowered, "lowering against the reference evaluator", tolerance=tolerance)


def check_laws(net: Network, edits: Sequence[RandomEdit]) -> None:
    """Commit edits one by one; after each the lowering and the round trip of one more unit must hold."""
    check_lowering(net)
    for one in edits:
        with net.edit() as edit:
            applied = _apply(edit, one)
        if applied:
            check_lowering(net)
            if not net.graph.groups[one.group].dormant:
                check_round_trip(net, one.group, 1)


def _apply(edit: Edit, one: RandomEdit) -> tuple[int, ...]:
    return one.apply(edit)
