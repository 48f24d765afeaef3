"""What a stored tensor of an imported program is for: read off the ops that use what was computed from it.

In an imported program a weight may stand alone, and reach the op that multiplies by it through a transposition, a
normalisation, or a product with another weight. The op says what it does with each dimension of its operand
(:meth:`~graphnet.ir.ops.base.Context.use`); from there one walks back, through ops that no input of the network
reaches, to the stored tensors that hold the same units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphnet.ir.layout import Layout
from graphnet.ir.ops.base import Dims, Op, Role, TensorKind, TensorSpec
from graphnet.ir.ops.io import Input

__all__ = ["Use", "assign_roles", "constant_ops", "stored_behind"]

Edges = Mapping[str, tuple[tuple[str, int], ...]]

_ORDER: tuple[Role, ...] = ("read", "write", "slot")
_KINDS: tuple[TensorKind, ...] = ("weight", "table", "bias", "scale", "shift", "statistic")


@dataclass(frozen=True, slots=True)
class Use:
    """What an op does with one operand.

    Attributes
    ----------
    operand : int
    roles : tuple of Role or None
        For each dimension of the operand.
    kind : str
        What the operand is for, as in :class:`~graphnet.ir.ops.base.TensorSpec`.
    newborn : float
        What a newborn slot of it holds.
    inner : bool
        Whether it counts also where no input reaches the op: a product of two weights.
    """

    operand: int
    roles: tuple[Role | None, ...]
    kind: TensorKind
    newborn: float = 0.0
    inner: bool = False


def constant_ops(ops: Sequence[Op], edges: Edges) -> frozenset[str]:
    """Ops that no input of the network reaches: stored tensors, and what is computed from them alone."""
    found: set[str] = set()
    for op in ops:
        if not isinstance(op, Input) and all(producer in found for producer, _ in edges[op.name]):
            found.add(op.name)
    return frozenset(found)


def stored_behind(name: str, edges: Edges, constant: frozenset[str], sources: Iterable[str]) -> list[str]:
    """The stored tensors that a value which no input reaches was computed from."""
    wanted, waiting, seen, found = set(sources), [name], {name}, []
    while waiting:
        current = waiting.pop()
        if current not in constant:
            continue
        if current in wanted:
            found.append(current)
        for producer, _ in edges[current]:
            if producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    return found


def assign_roles(
    ops: Sequence[Op],
    edges: Edges,
    uses: Mapping[str, Sequence[Use]],
    shapes: Mapping[str, tuple[Dims, ...]],
    specs: Mapping[str, TensorSpec],
    final: Callable[[Layout], Layout],
) -> dict[str, tuple[TensorSpec, ...]]:
    """Roles and kinds of the tensors that stand alone.

    Parameters
    ----------
    specs : mapping of op to TensorSpec
        The tensor of each source op, with unknown roles.
    final : callable
        The resolved layout of a dimension.

    Returns
    -------
    mapping of op to tuple of TensorSpec
        The tensor itself, and a tied use more for every further role of one of its dimensions.
    """
    constant = constant_ops(ops, edges)
    roles: dict[str, list[set[Role]]] = {name: [set() for _ in spec.dims] for name, spec in specs.items()}
    kinds: dict[str, list[tuple[TensorKind, float]]] = {name: [] for name in specs}
    atoms = {name: [set(final(dim).atoms()) for dim in spec.dims] for name, spec in specs.items()}
    for op in ops:
        for use in uses.get(op.name, ()):
            if use.inner != (op.name in constant):
                continue
            producer, port = edges[op.name][use.operand]
            held = [set(final(dim).atoms()) for dim in shapes[producer][port]]
            for name in stored_behind(producer, edges, constant, specs):
                for at, (role, mine) in enumerate(zip(use.roles, held, strict=True)):
                    for dim, theirs in enumerate(atoms[name]):
                        same = dim == at if name == producer else mine & theirs
                        if role is not None and same:
                            roles[name][dim].add(role)
                kinds[name].append((use.kind, use.newborn))
    return {name: _variants(spec, roles[name], kinds[name]) for name, spec in specs.items()}


def _variants(
    spec: TensorSpec, roles: Sequence[set[Role]], kinds: Sequence[tuple[TensorKind, float]]
) -> tuple[TensorSpec, ...]:
    kind, newborn = min(kinds, key=lambda pair: _KINDS.index(pair[0]), default=(spec.kind, spec.newborn))
    if spec.buffer and kind != "statistic":
        kind = "table"
    listed = [sorted(found, key=_ORDER.index) or ["slot"] for found in roles]
    first = replace(spec, roles=tuple(found[0] for found in listed), kind=kind, newborn=newborn)
    variants = [first]
    for further in range(1, max((len(found) for found in listed), default=1)):
        chosen: tuple[Role, ...] = tuple(found[min(further, len(found) - 1)] for found in listed)
        variants.append(replace(first, roles=chosen, shared=spec.shared or spec.name))
    return tuple(variants)
