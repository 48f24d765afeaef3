"""Deepen: a new layer after an op, as the identity or as a residual branch whose last layer is zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphnet.edit.host import Batch
from graphnet.edit.operators.grow import check_claim, check_promise
from graphnet.edit.operators.wiring import build_op, fresh_tensors, node_of, readers_of, rewire
from graphnet.edit.plan import Loose, Plan, Preserves, Step
from graphnet.errors import EditError
from graphnet.ir.ops.activation import Activation, Dropout
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.blend import BLENDED, Blend
from graphnet.ir.ops.io import Input, Output

__all__ = ["deepen"]

_NORMS = ("batch_norm", "layer_norm", "rms_norm")


def deepen(
    plan: Plan,
    after: str,
    *,
    form: str = "identity",
    layer: str | None = None,
    kernel: int = 3,
    activation: str | None = "same",
    norm: str | None = None,
    name: str | None = None,
    beside: str | None = None,
    preserves: Preserves | None = None,
    batch: Batch | None = None,
) -> tuple[str, ...]:
    """Insert a layer behind an op; returns the names of the new ops. See :meth:`graphnet.edit.edit.Edit.deepen`."""
    what = f"deepen {after!r}"
    check_promise(what, preserves)
    node = node_of(plan, what, after)
    if isinstance(node.op, Input | Output) or node.op.ports != 1:
        raise EditError(f"{what}: name an op in the middle of the network that has one output")
    if form not in ("identity", "residual"):
        raise EditError(f"{what}: form is 'identity' or 'residual', not {form!r}")
    if norm is not None and norm not in _NORMS:
        raise EditError(f"{what}: norm is None or one of {', '.join(_NORMS)}, not {norm!r}")
    kind = layer if layer is not None else _kind(plan, after)
    if kind not in ("linear", "conv1d", "conv2d"):
        raise EditError(f"{what}: layer is 'linear', 'conv1d' or 'conv2d', not {kind!r}")
    readers = readers_of(plan.graph, after)
    stem = name or _free(plan, f"{after}_deep")
    options: dict[str, Any] = {} if kind == "linear" else {"kernel": kernel}
    nonlinear = _activation(plan, what, after, activation)
    made: list[str] = []

    def add(op_kind: str, label: str, read: tuple[str, ...], init: str, **attributes: Any) -> str:
        op = build_op(plan, op_kind, label, read, after, attributes)
        _hold(plan, op, fresh_tensors(plan, op, init, batch), beside)
        made.append(label)
        return label

    def act(label: str, read: str, like: Op) -> str:
        op = like.model_copy(update={"name": label, "inputs": (read,)})
        _hold(plan, op, fresh_tensors(plan, op, "default"), beside)
        made.append(label)
        return label

    if form == "identity":
        last = add(kind, stem, (after,), "identity", **options)
        if norm is not None:
            last = add(norm, f"{stem}_norm", (last,), "identity" if norm == "batch_norm" and batch else "default")
        if nonlinear is not None:
            same = nonlinear.idempotent and _same(nonlinear, node.op)
            shape = nonlinear if same else Blend(name=stem, first="identity", second=_plain(what, nonlinear))
            last = act(f"{stem}_act", last, shape)
    else:
        first = add(kind, f"{stem}_in", (after,), "kaiming", **options)
        if norm is not None:
            first = add(norm, f"{stem}_norm", (first,), "default")
        if nonlinear is not None:
            first = act(f"{stem}_act", first, nonlinear)
        second = add(kind, f"{stem}_out", (first,), "zeros", **options)
        last = add("add", stem, (after, second), "default")
    claim = rewire(plan, {reader: {after: last} for reader in readers})
    check_claim(what, claim, preserves)
    arguments: dict[str, Any] = {"after": after, "form": form, "layer": kind, "activation": activation, "name": stem}
    arguments |= {"kernel": kernel} if kind != "linear" else {}
    arguments |= {key: value for key, value in (("norm", norm), ("beside", beside)) if value is not None}
    if norm == "batch_norm" and batch is not None and form == "identity":
        arguments["needs_batch"] = True  # a replay has none
    plan.steps.append(Step("deepen", None, arguments, (), (), claim.preserves, claim.note))
    return tuple(made)


def _hold(plan: Plan, op: Op, tensors: dict[str, Tensor], beside: str | None) -> None:
    plan.loose[op.name] = Loose(op, tensors, {} if beside is None else dict.fromkeys(tensors, beside))


def _free(plan: Plan, name: str) -> str:
    """The name, or the name with the first number that is not taken."""
    taken = {*plan.graph.nodes, *plan.loose}
    count, found = 1, name
    while any(one == found or one.startswith(f"{found}_") for one in taken):
        count, found = count + 1, f"{name}{count + 1}"
    return found


def _kind(plan: Plan, after: str) -> str:
    """The kind of layer that fits behind an op: that of the nearest layer before it with as many dimensions."""
    graph, queue, seen = plan.graph, [after], set()
    rank = len(graph.dims(after))
    while queue:
        name = queue.pop(0)
        op = graph.nodes[name].op
        if op.op in ("linear", "conv1d", "conv2d", "embedding") and len(graph.dims(name)) == rank:
            return "linear" if op.op == "embedding" else op.op
        seen.add(name)
        queue.extend(producer for producer, _ in graph.nodes[name].inputs if producer not in seen)
    return "conv2d" if rank == 4 else "linear"


def _activation(plan: Plan, what: str, after: str, activation: str | None) -> Op | None:
    """The nonlinearity of the new layer: of the given kind, or like the nearest one before it."""
    from graphnet.ir.ops import OPS

    if activation is None:
        return None
    if activation != "same":
        cls = OPS.get(activation)
        if cls is None or not issubclass(cls, Activation) or issubclass(cls, Blend | Dropout):
            raise EditError(f"{what}: activation is 'same', None or an activation op, not {activation!r}")
        return cls(op=activation, name="activation", inputs=(after,))
    queue, seen = [after], set()
    while queue:
        name = queue.pop(0)
        op = plan.graph.nodes[name].op
        if isinstance(op, Activation) and op.op not in ("dropout", "identity", "blend"):
            return op
        seen.add(name)
        queue.extend(producer for producer, _ in plan.graph.nodes[name].inputs if producer not in seen)
    return None


def _same(one: Op, two: Op) -> bool:
    return type(one) is type(two) and one.model_copy(update={"name": two.name, "inputs": two.inputs}) == two


def _plain(what: str, op: Op) -> Any:
    """The name of an activation that a blend can hold: one that maps zero to zero, with no attributes of its own."""
    if op.op not in BLENDED:
        raise EditError(
            f"{what}: {op.op!r} cannot be blended in (only {', '.join(BLENDED)} can): name another activation=, or use "
            "form='residual'"
        )
    if op.model_dump(exclude_defaults=True).keys() - {"name", "inputs", "op"}:
        raise EditError(f"{what}: {op.op!r} with attributes of its own cannot be blended in; use form='residual'")
    return op.op
