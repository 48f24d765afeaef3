"""Growth of groups that something computes along: norms that are corrected, keys that start at zero."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt
from typing import Literal, TypeAlias

import numpy as np
import torch

from graphnet.edit.initialisers.base import initialiser
from graphnet.edit.initialisers.draws import refuse_tied
from graphnet.edit.newborns import Claim, Newborns
from graphnet.edit.replicas import replicate
from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.ir.infer import Node
from graphnet.ir.ops.activation import Activation, Dropout, Identity
from graphnet.ir.ops.arithmetic import Add, Mul
from graphnet.ir.ops.attention import Attention
from graphnet.ir.ops.conv import Conv1d, Conv2d
from graphnet.ir.ops.dense import Embedding, LinearOp, Positions
from graphnet.ir.ops.io import Output
from graphnet.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from graphnet.ir.ops.shape import Concat, Flatten, Permute, Reshape, Split, Transpose

__all__ = ["corrected", "mean_rows", "zero_keys"]

Fill: TypeAlias = Literal["mean", "zero"]
"""What a newborn's activation is at every moment: the mean of the incumbents', or zero."""

_MOVES = (Concat, Flatten, Permute, Reshape, Split, Transpose)


@initialiser("corrected")
def corrected(newborns: Newborns, *, outgoing: Literal["zeros", "kaiming"] = "kaiming") -> Claim:
    """Widen a group that layer, RMS or group norms read, exactly: their statistics are corrected.

    Under layer norm (and group norm without positions) a newborn is the mean of the incumbents, so that it changes no
    mean and adds nothing to the variance; under RMS norm it is zero. The norm's gain is multiplied by sqrt(n/n') and
    its epsilon by n/n', where n units become n'; the optimizer's state of the gain follows by the chain rule. What
    the norm gives for a newborn is then zero, so that weights behind the norm are free. A group norm over positions
    leaves no such choice: there every unit is replicated equally, by a multiple of their number. Sources: Wang et
    al., LEMON (ICLR 2024, arXiv 2310.07999); Gesmundo and Maile (arXiv 2308.06103).

    Parameters
    ----------
    outgoing : {"kaiming", "zeros"}
        Weights that read a newborn behind a norm; with "zeros" nothing is learned from it at first. Weights that read
        it before a norm start at zero where it is not zero itself.

    Raises
    ------
    EditError
        No norm reads the group, norms of both kinds do, or something stands in the way; says which op and why.
    """
    plan, name = newborns.plan, newborns.group.name
    norms = [node for node in plan.graph.nodes.values() if _couples(node, name)]
    what = f"grow {name!r} with init='corrected'"
    if not norms:
        raise EditError(f"{what}: no op computes a statistic along it; any initialiser that is exact will do")
    if newborns.group.output:
        raise EditError(f"{what}: a model output reads it")
    for node in norms:
        _check_norm(what, node, name)
    if over_positions := [node.op.name for node in norms if _takes_positions(node)]:
        return _replicated(newborns, what, over_positions[0])
    by_square = [node.op.name for node in norms if isinstance(node.op, RMSNorm)]
    if by_square and len(by_square) < len(norms):
        others = [node.op.name for node in norms if node.op.name not in by_square]
        raise EditError(
            f"{what}: {by_square[0]!r} (rms_norm) is left alone by newborns that are zero, {others[0]!r} by those that "
            "are the mean of the others: replace one of the norms first, or accept a change (another init)"
        )
    fill: Fill = "zero" if by_square else "mean"
    states = _flow(what, plan.graph, name, fill)
    for block in newborns.incoming():
        if fill == "zero":
            block.zero()
        else:
            block.write(_mean(newborns, block.holder.tensor, block.holder.dim))
    incoming = {block.holder.tensor for block in newborns.incoming()}
    for block in newborns.outgoing():
        tensor = block.holder.tensor
        silent = all(states.get(ref) == "zero" for ref in _read_by(plan.graph, tensor, name))
        if tensor in incoming:  # tied: it holds what it has to write
            if fill == "mean" and not silent:
                raise EditError(f"{what}: {tensor!r} both writes and reads it before a norm (tied weights)")
        elif silent and outgoing == "kaiming":
            block.uniform(sqrt(6.0 / max(1, block.fan_in)), newborns.generator)
        else:
            block.zero()
    old, new = newborns.step.old, newborns.group.size
    _correct(newborns, norms, old / new)
    return Claim("function")


def _read_by(graph: Graph, tensor: str, group: str) -> list[tuple[str, int]]:
    """What the ops read that use a stored tensor to read a group."""
    return [
        node.inputs[0]
        for node in graph.nodes.values()
        if any(
            (spec.shared or spec.name) == tensor
            and any(
                role == "read" and group in set(dim.atoms()) for dim, role in zip(spec.dims, spec.roles, strict=True)
            )
            for spec in node.tensors
        )
    ]


def _couples(node: Node, group: str) -> bool:
    return any(group in set(layout.atoms()) for layout, _ in node.coupled)


def _check_norm(what: str, node: Node, group: str) -> None:
    op, name = node.op, node.op.name
    if not isinstance(op, LayerNorm | RMSNorm | GroupNorm):
        raise EditError(f"{what}: {node.coupled[0][1]} (op {name!r}), which cannot be corrected")
    if any(layout.single != group for layout, _ in node.coupled):
        raise EditError(f"{what}: {name!r} takes its statistics over more than this group")


def _takes_positions(node: Node) -> bool:
    """Whether a norm's statistics are over positions too, so that no constant newborn leaves them alone."""
    return isinstance(node.op, GroupNorm) and len(node.outputs[0]) > 2


def _replicated(newborns: Newborns, what: str, norm: str) -> Claim:
    """Every unit copied equally often, which leaves all statistics alone."""
    old = newborns.step.old
    if newborns.count % old:
        raise EditError(
            f"{what}: {norm!r} takes its statistics over positions too, so that only equal copies of all of its units "
            f"leave them alone: grow it by {old} or a multiple, not by {newborns.count}, or accept a change"
        )
    refuse_tied(newborns, "corrected", ", so that copies cannot share what goes out without changing what comes in")
    donors = np.arange(newborns.group.size, dtype=np.int64)
    donors[newborns.positions] = np.tile(np.flatnonzero(newborns.step.source >= 0), newborns.count // old)
    return replicate(newborns, donors, np.ones(newborns.group.size))


def _flow(what: str, graph: Graph, group: str, fill: Fill) -> Mapping[tuple[str, int], Fill]:
    """What a newborn's activation is behind every op, when stored weights write ``fill``.

    Raises
    ------
    EditError
        Some op makes something else of it than the correction needs.
    """
    states: dict[tuple[str, int], Fill] = {}
    for name, node in graph.nodes.items():
        op = node.op
        reads = [states.get(ref) for ref in node.inputs]
        holds = any(group in set(dim.atoms()) for dims in node.outputs for dim in dims)
        if isinstance(op, Output) or not (holds or any(reads)):
            continue
        writes = any(role == "write" and group in set(dim.atoms()) for s in node.tensors
                     for dim, role in zip(s.dims, s.roles, strict=True))  # fmt: skip
        state = _behind(what, node, reads, fill, writes=writes)
        if holds and state is not None:
            states.update({(name, port): state for port in range(op.ports)})
    return states


def _behind(what: str, node: Node, reads: list[Fill | None], fill: Fill, *, writes: bool) -> Fill | None:
    op, name = node.op, node.op.name
    if isinstance(op, Positions):
        if reads[0] != fill:
            raise EditError(f"{what}: {name!r} adds to something that is not {fill} for a newborn")
        return fill
    if isinstance(op, LinearOp | Conv1d | Conv2d | Embedding):
        if isinstance(op, Conv1d | Conv2d) and (op.depthwise or op.groups > 1) and reads[0] is not None:
            raise EditError(f"{what}: {name!r} is a grouped convolution of the group")
        return fill if writes else None
    given = {state for state in reads if state is not None}
    if isinstance(op, LayerNorm | RMSNorm | GroupNorm):
        if given != {fill}:
            raise EditError(
                f"{what}: {name!r} normalises what another norm gave (post-norm), where a newborn is zero and not "
                f"the {fill} of the others"
            )
        return "zero"
    if isinstance(op, Add):
        if len(given) > 1 or len(reads) > len([state for state in reads if state is not None]):
            raise EditError(f"{what}: {name!r} adds a newborn's zero to a newborn that is the mean of the others")
        return next(iter(given))
    if isinstance(op, (Identity, Dropout, *_MOVES)) or op.op in ("avg_pool", "adaptive_avg_pool", "mean"):
        return next(iter(given), None)
    if isinstance(op, Mul):
        if "zero" in given:
            return "zero"
    elif given == {"zero"} and (isinstance(op, BatchNorm) or (isinstance(op, Activation) and op.zero_at_zero)):
        return "zero"
    raise EditError(f"{what}: {name!r} ({op.op}) stands between a weight and the norm, and changes what a newborn is")


def _mean(newborns: Newborns, tensor: str, dim: int) -> torch.Tensor:
    """For each newborn slice the mean of the incumbents' slices (of the same group of a group norm)."""
    plan, name = newborns.plan, newborns.group.name
    sizes = plan.graph.sizes
    layout = plan.spec(tensor).dims[dim]
    block = layout.block(name, sizes)
    if block is None:
        raise EditError(f"grow {name!r} with init='corrected': {tensor!r} holds the group more than once")
    pre, post = block
    value = plan.value(tensor)
    shape = list(value.shape)
    outer, inner = prod(shape[:dim]) * pre, prod(shape[dim + 1 :]) * post
    view = value.reshape(outer, sizes[name], inner)
    old = torch.from_numpy(np.flatnonzero(newborns.step.source >= 0)).to(value.device)
    mean = view.index_select(1, old).double().mean(1, keepdim=True).to(value)
    shape[dim] = pre * newborns.count * post
    return mean.expand(outer, newborns.count, inner).reshape(shape)


def _correct(newborns: Newborns, norms: list[Node], share: float) -> None:
    """Multiply gains by sqrt(n/n') and epsilons by n/n'; state of the gains follows."""
    plan = newborns.plan
    scaled: set[str] = set()
    for node in norms:
        for spec in node.tensors:
            owner = spec.shared or spec.name
            if spec.kind != "scale" or owner in scaled:
                continue
            scaled.add(owner)
            staged = plan.staged(owner)
            value = staged.value()
            staged.write([None] * value.dim(), value * sqrt(share))
            for slot, held in plan.slots(owner).values():
                if slot.key[0] in ("state", "grad") and slot.power:
                    held.write([None] * len(slot.dims), held.value() * sqrt(share) ** -slot.power)
    changed = []
    for node in norms:
        op = plan.graph.nodes[node.op.name].op
        eps = op.model_dump()["eps"]
        changed.append(op.model_copy(update={"eps": eps * share}))
    plan.restructure(changed)


@initialiser("zero-keys")
def zero_keys(newborns: Newborns) -> Claim:
    """Grow the features along which queries and keys are multiplied: queries at random, keys at zero; exact.

    The scale of the attention stays what it was, so that no other weight changes. Source: Gesmundo and Maile
    (arXiv 2308.06103).

    Raises
    ------
    EditError
        The group is not multiplied out between queries and keys, or a norm or another op reads it on the way.
    """
    plan, group = newborns.plan, newborns.group
    what = f"grow {group.name!r} with init='zero-keys'"
    if group.coupled is not None:
        raise EditError(f"{what}: {group.coupled}")
    users = [
        node for node in plan.graph.nodes.values()
        if any(group.name in set(layout.atoms()) for layout, _ in node.contracted)
    ]  # fmt: skip
    if not users or not all(isinstance(node.op, Attention) for node in users):
        raise EditError(f"{what}: no attention multiplies queries and keys along it")
    queries: set[str] = set()
    keys: set[str] = set()
    for node in users:
        queries |= _writers(what, plan.graph, group.name, node.inputs[0][0])
        keys |= _writers(what, plan.graph, group.name, node.inputs[1][0])
    if queries & keys:
        raise EditError(f"{what}: {sorted(queries & keys)} gives both queries and keys, so that one side is not zero")
    for block in newborns.incoming():
        if block.holder.tensor in keys or block.holder.kind == "bias":
            block.zero()
        else:
            block.uniform(sqrt(6.0 / max(1, block.fan_in)), newborns.generator)
    for block in newborns.outgoing():
        block.zero()
    return Claim("function")


def _writers(what: str, graph: Graph, group: str, start: str) -> set[str]:
    """Stored tensors that write a group into an op's output, through ops that map zero to zero."""
    found: set[str] = set()
    queue, seen = [start], set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph.nodes[name]
        mine = {
            spec.shared or spec.name
            for spec in node.tensors
            for dim, role in zip(spec.dims, spec.roles, strict=True)
            if role == "write" and group in set(dim.atoms())
        }
        if mine:
            found |= mine
            continue
        passes = isinstance(node.op, (Add, Identity, Dropout, *_MOVES)) or (
            isinstance(node.op, Activation) and node.op.zero_at_zero
        )
        if not passes:
            raise EditError(f"{what}: {name!r} ({node.op.op}) stands between the projection and the attention")
        queue.extend(producer for producer, port in node.inputs
                     if any(group in set(dim.atoms()) for dim in graph.dims(producer, port)))  # fmt: skip
    return found


@initialiser("mean-rows")
def mean_rows(newborns: Newborns) -> Claim:
    """Give newborns the mean of the incumbents' incoming weights: new classes that start undecided."""
    for block in newborns.incoming():
        block.write(_mean(newborns, block.holder.tensor, block.holder.dim))
    for block in newborns.outgoing():
        block.zero()
    if newborns.group.output:
        return Claim("none", "the network returns more; what it returned before is unchanged")
    return newborns.claim_if_silent()
