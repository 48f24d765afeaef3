"""Comparing networks bit by bit or within a tolerance: the tolerance of each law by dtype, states, twins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from graphnet.ir.graph import Graph
from graphnet.ir.layout import IndexArray
from graphnet.runtime.network import Network

__all__ = [
    "ROUNDINGS",
    "TOLERANCES",
    "check_bits",
    "check_close",
    "check_rounded",
    "rounded",
    "share_of",
    "state_of",
    "survivors",
    "take",
    "tolerance_of",
    "twin_of",
]

Bound: TypeAlias = Literal["function", "gradient", "lowering", "trajectory"]

TOLERANCES: Mapping[Bound, Mapping[torch.dtype, float]] = {
    "function": {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-1, torch.float16: 2e-2},
    "gradient": {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-1, torch.float16: 2e-2},
    "lowering": {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-1, torch.float16: 5e-2},
    "trajectory": {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 1.0, torch.float16: 2e-1},
}
"""The greatest difference that a law allows, as a share of the tensor's greatest element, by dtype.

``function`` and ``gradient`` bound what an exact edit may change by rounding: matrix products are blocked differently
at another width. ``lowering`` compares with a float64 evaluation. ``trajectory`` bounds tensors after a few optimizer
steps, where an optimizer divides by the root of small second moments. Whatever is moved or carried is compared bit
for bit.
"""


def tolerance_of(bound: Bound, value: Any) -> float:
    """The tolerance for the least precise floating point type among some tensors (a dtype, a tensor, nested tuples)."""
    kinds = list(_dtypes(value))
    table = TOLERANCES[bound]
    return max((table[kind] for kind in kinds if kind in table), default=table[torch.float64])


def _dtypes(value: Any) -> Sequence[torch.dtype]:
    if isinstance(value, torch.dtype):
        return [value]
    if isinstance(value, Tensor):
        return [value.dtype]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [kind for part in parts for kind in _dtypes(part)]


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
            gap = (tensor.double() - other.double()).abs()
            at = np.unravel_index(int(gap.nan_to_num(float("inf")).argmax()), tuple(gap.shape))
            place = f" at {[int(i) for i in at]}" if gap.dim() else ""
            raise AssertionError(f"{what}: {name} differs by up to {float(gap.max()):.3g}{place}")


def check_close(one: Any, two: Any, what: str, *, tolerance: float | None = None) -> None:
    """Two outputs agree within a tolerance relative to the larger one's greatest element.

    Parameters
    ----------
    tolerance : float, optional
        By default that of an unchanged function at the outputs' type (:data:`TOLERANCES`).
    """
    allowed = tolerance_of("function", (one, two)) if tolerance is None else tolerance
    pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (one, two)), strict=True)
    for index, (a, b) in enumerate(pairs):
        if a.shape != b.shape:
            raise AssertionError(f"{what}: output {index} has shape {list(a.shape)}, then {list(b.shape)}")
        if not a.numel():
            continue
        a, b = a.detach().double(), b.detach().double()
        scale = max(float(a.abs().max()), float(b.abs().max()), 1e-300)
        gap = float((a - b).abs().max()) / scale
        if not gap <= allowed:
            raise AssertionError(f"{what}: output {index} differs by {gap:.3g} of its maximum, allowed {allowed:.0e}")


ROUNDINGS = 30.0
"""How many times the effect of rounding every tensor a difference may be, in an ill-conditioned network."""


def rounded(tensors: Mapping[str, Tensor], sign: float) -> dict[str, Tensor]:
    """Every tensor of real numbers rounded otherwise: moved by a random share of its type's epsilon.

    Zeros are moved too, as sums that come to zero would be: behind a layer of zeros a ReLU stands at its kink, and any
    rounding decides on which side.

    Parameters
    ----------
    sign : float
        1 or -1: two roundings in opposite directions.
    """
    generator, found = torch.Generator().manual_seed(0), dict(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, dtype=torch.float64, generator=generator).to(tensor)
            size = torch.where(tensor == 0, torch.ones_like(tensor), tensor)
            found[name] = tensor + sign * size * drawn * torch.finfo(tensor.dtype).eps
    return found


def check_rounded(one: Any, two: Any, what: str, tolerance: float, noise: Callable[[], float]) -> None:
    """Two outputs agree within the tolerance, or within what rounding does: :data:`ROUNDINGS` times the noise.

    Parameters
    ----------
    noise : callable
        What rounding does, as a share of the outputs' maximum; called where they differ by more than the tolerance.
    """
    try:
        check_close(one, two, what, tolerance=tolerance)
    except AssertionError:
        check_close(one, two, what, tolerance=max(tolerance, ROUNDINGS * noise()))


def share_of(one: Any, two: Any) -> float:
    """The greatest difference of two outputs, as a share of the first one's greatest element."""
    pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (one, two)), strict=True)
    gaps = [float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300) for a, b in pairs if a.numel()]
    return max(gaps, default=0.0)


def twin_of(net: Network) -> Network:
    """A copy of a network with copies of its optimizers attached: gradients, state, ages and step counts too."""
    twin = copy.deepcopy(net)
    places = {id(net.tensor(name)): twin.tensor(name) for name in net.graph.tensors}
    for name in net.graph.tensors:
        gradient = net.tensor(name).grad
        twin.tensor(name).grad = None if gradient is None else gradient.clone()
    for held in net._attached.values():
        # an optimizer is copied without its hooks; its parameters are the twin's through the memo
        other = copy.deepcopy(held.optimizer, dict(places))
        if isinstance(other, torch.optim.LBFGS):
            other._params = other.param_groups[0]["params"]
            other._numel_cache = None
        twin.attach(other, horizon=held.updates.horizon)
        updates = next(one.updates for one in twin._attached.values() if one.optimizer is other)
        updates.births = {places[id(tensor)]: copy.deepcopy(births) for tensor, births in held.updates.births.items()}
        updates.steps = held.updates.steps
    return twin


def survivors(old: Graph, new: Graph) -> dict[str, tuple[int, ...]]:
    """Ids of the units that are live in both graphs, in the order of the new one, by group."""
    found = {}
    for name, group in new.groups.items():
        if name in old.groups and group.frozen is None:
            before = set(old.groups[name].ids)
            found[name] = tuple(unit for unit in group.ids if unit in before)
    return found


def positions(graph: Graph, name: str, ids: Mapping[str, Sequence[int]]) -> list[IndexArray]:
    """For each dimension of a stored tensor the positions of units by id; all of them for a group left out."""
    index = []
    for layout in graph.tensors[name].dims:
        named = {key: graph.groups[key].positions(np.array(ids[key])) for key in set(layout.atoms()) & ids.keys()}
        index.append(layout.index(named, graph.sizes))
    return index


def take(tensor: Tensor, index: Sequence[IndexArray]) -> Tensor:
    """The block of a tensor at positions of each dimension."""
    for dim, at in enumerate(index):
        tensor = tensor.index_select(dim, torch.from_numpy(np.ascontiguousarray(at)))
    return tensor
