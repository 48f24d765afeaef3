"""GradMax: outgoing weights that make the newborns' first incoming gradient as large as possible."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from graphnet.edit.initialisers.base import initialiser
from graphnet.edit.newborns import Block, Claim, Newborns, visible
from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.ir.ops.activation import Activation, Dropout, Identity, RandSmoothLeaky
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.conv import Conv2d
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.norm import BatchNorm

__all__ = ["gradmax"]


@initialiser("gradmax")
def gradmax(newborns: Newborns, *, scale: float = 0.5, lift: float = 1e-3) -> Claim:
    """Evci et al. (ICLR 2022, arXiv 2201.05125): zero incoming weights, the best outgoing ones.

    The outgoing vectors are the top singular directions of the gradient that a direct connection from the
    producer's input to the consumer's output would have (for convolutions, of a kernel that spans both). Each is
    scaled to ``scale`` times the mean norm of the incumbents'; among orthonormal directions no choice gives a
    larger newborn gradient.

    With an activation whose derivative at zero is zero (torch's ``relu``) newborns at exactly zero would never
    train. Their pre-activation is then the constant ``lift``, through the producer's bias or the norm's shift,
    and what it adds to the consumer is taken from the consumer's bias.

    Parameters
    ----------
    scale : float
    lift : float
        Pre-activation of newborns under an activation that is flat at zero; unused otherwise.

    Raises
    ------
    EditError
        The group is not written by one weight and read by one; the two are not both linear or both conv2d of
        stride 1; there are more newborns than singular directions; or there is no data.
    """
    producer, consumer = _one(newborns.incoming(), "written", newborns), _one(newborns.outgoing(), "read", newborns)
    chain = _chain(newborns.plan.graph, _op(producer), _op(consumer), newborns.group.name)
    directions = _directions(newborns, producer, consumer)
    if directions.shape[0] < newborns.count:
        raise EditError(
            f"gradmax: {newborns.count} newborns, but only {directions.shape[0]} orthonormal directions between "
            f"{_op(producer)!r} and {_op(consumer)!r}: grow fewer at a time"
        )
    current = consumer.incumbent_values()
    norm = current.movedim(consumer.holder.dim, 0).reshape(current.shape[consumer.holder.dim], -1).norm(dim=1).mean()
    outgoing = directions[: newborns.count].to(current) * (scale * norm)
    outgoing = outgoing.reshape(newborns.count, *current.movedim(consumer.holder.dim, 0).shape[1:])
    consumer.write(outgoing.movedim(0, consumer.holder.dim))
    for block in newborns.incoming():
        block.zero()
    claim = Claim("function")
    flat = [op for op in chain if isinstance(op, Activation) and op.slope_at_zero == 0.0]
    if flat:
        claim = _lift(newborns, chain, _op(producer), consumer, lift)
    reason = visible(newborns.group)
    if reason is not None:
        return Claim("none", reason)
    shifting = [op.name for op in chain if not op.zero_at_zero and not isinstance(op, BatchNorm)]
    if shifting and not flat:
        return Claim("none", f"{shifting[0]!r} does not map zero to zero")
    return claim


def _one(blocks: list[Block], how: str, newborns: Newborns) -> Block:
    weights = [block for block in blocks if block.holder.kind == "weight"]
    if len(weights) != 1:
        listed = ", ".join(block.holder.tensor for block in weights) or "no weight"
        raise EditError(f"gradmax: {newborns.group.name!r} must be {how} by one weight; it is {how} by {listed}")
    return weights[0]


def _op(block: Block) -> str:
    return block.holder.tensor.rpartition(".")[0]


def _chain(graph: Graph, producer: str, consumer: str, group: str) -> list[Op]:
    """The ops between producer and consumer; all must work on each unit and each position by itself."""
    chain: list[Op] = []
    current = graph.nodes[consumer].inputs[0][0]
    while current != producer:
        node = graph.nodes[current]
        simple = isinstance(node.op, Activation | BatchNorm)
        if not simple or len(node.inputs) != 1:
            raise EditError(
                f"gradmax: op {current!r} ({node.op.op}) stands between {producer!r} and {consumer!r}; only "
                f"activations and batch norm may: use another initialiser for {group!r}"
            )
        chain.append(node.op)
        current = node.inputs[0][0]
    return [op for op in reversed(chain) if not isinstance(op, Dropout | Identity)]


def _directions(newborns: Newborns, producer: Block, consumer: Block) -> Tensor:
    """Orthonormal outgoing vectors, best first: ``[count, out]`` (conv: ``[count, out*k*k]``), float64."""
    graph = newborns.plan.graph
    before, after = graph.nodes[_op(producer)], graph.nodes[_op(consumer)]
    source = before.inputs[0][0]
    found = newborns.plan.evaluate(
        newborns.batch, newborns.loss, "gradmax", taps=(source, _op(consumer)), needs_loss=True
    )
    h, delta = found.activations[source].double(), found.gradients[_op(consumer)].double()
    if not bool(h.isfinite().all() and delta.isfinite().all()):
        raise EditError("gradmax: the activations or gradients of the batch are not finite: check data and weights")
    if isinstance(before.op, LinearOp) and isinstance(after.op, LinearOp):
        gradient = delta.reshape(-1, delta.shape[-1]).T @ h.reshape(-1, h.shape[-1])
        left: Tensor = torch.linalg.svd(gradient, full_matrices=False).U
        return left.T
    one, two = before.op, after.op
    plain = isinstance(one, Conv2d) and isinstance(two, Conv2d)
    if not plain or any(op.stride != 1 or op.dilation != 1 or op.groups != 1 or op.depthwise for op in (one, two)):  # type: ignore[attr-defined]
        raise EditError(
            f"gradmax: {_op(producer)!r} and {_op(consumer)!r} must both be linear, or both conv2d of stride 1 "
            "without groups: use another initialiser"
        )
    assert isinstance(one, Conv2d)
    assert isinstance(two, Conv2d)
    (a, b), (c, d) = one.kernel_sizes(), two.kernel_sizes()
    span = (a + c - 1, b + d - 1)
    spanning: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        h, (delta.shape[1], h.shape[1], *span), delta, stride=1, padding=one.padding + two.padding
    )
    # newborn kernel tap (i, u) meets outgoing tap (o, v) in the spanning kernel at u + v
    windows = spanning.unfold(2, c, 1).unfold(3, d, 1)  # [o, i, a, b, c, d]
    matrix = windows.permute(1, 2, 3, 0, 4, 5).reshape(h.shape[1] * a * b, delta.shape[1] * c * d)
    right: Tensor = torch.linalg.svd(matrix, full_matrices=False).Vh
    return right


def _passed(op: Op, height: Tensor) -> Tensor:
    """A newborn's constant activation after one more op, in evaluation mode; its norm slots are the identity."""
    if isinstance(op, BatchNorm):
        return height / sqrt(1.0 + op.eps)
    if isinstance(op, RandSmoothLeaky):
        slope = 0.5 * (op.lower + op.upper)
        return slope * height + (1.0 - slope) * height * torch.sigmoid(op.c * height / op.p)
    module = op.build({})
    return height if module is None else torch.as_tensor(module.eval()(height))


def _lift(newborns: Newborns, chain: list[Op], producer: str, consumer: Block, lift: float) -> Claim:
    plan, group = newborns.plan, newborns.group.name
    if not lift > 0:
        raise EditError(f"gradmax: lift must be above 0 under an activation that is flat at zero, it is {lift}")
    flat = next(at for at, op in enumerate(chain) if isinstance(op, Activation) and op.slope_at_zero == 0.0)
    norms = [op.name for op in chain[:flat] if not isinstance(op, Activation)]
    shifts = {_op(block): block for block in newborns.blocks("write", "slot", kinds=("bias", "shift"))}
    last = shifts.get(norms[-1] if norms else producer)
    if last is None:
        raise EditError(
            f"gradmax: {chain[flat].name!r} after {group!r} is flat at zero and the op before it "
            f"({norms[-1] if norms else producer!r}) has no bias, so that newborns would never train: use another "
            "activation or initialiser"
        )
    start = next((at for at, op in enumerate(chain) if norms and op.name == norms[-1]), -1) + 1
    last.write(plan.value(last.holder.tensor).new_full(last.shape, lift))
    op = plan.graph.nodes[_op(consumer)].op
    padded = isinstance(op, Conv2d) and op.padding > 0
    if not getattr(op, "bias", False) or padded:
        where = "pads its input" if padded else "has no bias"
        return Claim("approximate", f"newborns start at the constant {lift} and {op.name!r} {where} to take it back")
    height = torch.full((), lift, dtype=torch.float64)
    for passed in chain[start:]:
        height = _passed(passed, height)
    weights = plan.staged(consumer.holder.tensor).block(consumer._index(consumer.positions))
    added = weights.double().movedim(0, -1).reshape(-1, weights.shape[0]).sum(dim=0) * float(height)
    bias = plan.staged(f"{op.name}.bias")
    rank = len(plan.spec(f"{op.name}.bias").dims)
    bias.write([None] * rank, bias.value() - added.to(bias.value()))
    return Claim("function")
