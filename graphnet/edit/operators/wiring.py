"""Insert, redirect and remove: ops come between others, readers read something else, ops go.

An op that nothing reads yet waits in the plan (it is *loose*) until an edge is redirected to it or to something
that reads it. What a change of wiring does to the function is proved from the weights (:mod:`graphnet.edit.proof`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from graphnet.edit.host import Batch
from graphnet.edit.newborns import Claim
from graphnet.edit.operators.grow import check_claim, check_promise
from graphnet.edit.plan import Loose, Plan, Preserves, Step
from graphnet.edit.proof import Prover, dirac, rewired
from graphnet.errors import EditError, GraphError
from graphnet.ir.graph import Graph
from graphnet.ir.ops import OPS
from graphnet.ir.ops.activation import Activation
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.conv import Conv1d, Conv2d
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.io import Input, Output
from graphnet.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm

__all__ = ["build_op", "fresh_tensors", "insert", "node_of", "readers_of", "redirect", "remove", "rewire"]

_INITS = ("default", "zeros", "identity", "kaiming")
_NUMBERS = frozenset(
    kind for kind, cls in OPS.items()
    if issubclass(cls, Activation | LinearOp | Conv1d | Conv2d | BatchNorm | LayerNorm | GroupNorm | RMSNorm)
)  # fmt: skip
"""Ops that need numbers with a fraction; the graph knows layouts, and types only where they enter."""


def insert(
    plan: Plan,
    kind: str,
    name: str,
    *,
    inputs: str | Sequence[str],
    before: str | Sequence[str] | None = None,
    like: str | None = None,
    init: str = "default",
    beside: str | None = None,
    preserves: Preserves | None = None,
    batch: Batch | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> str:
    """Insert an op; returns its name. See :meth:`graphnet.edit.edit.Edit.insert`."""
    what = f"insert {name!r}"
    check_promise(what, preserves)
    if not isinstance(init, str) or init not in _INITS:
        raise EditError(f"{what}: init is one of {', '.join(_INITS)}, not {init!r}")
    if not isinstance(kind, str) or kind not in OPS or issubclass(OPS[kind], Input | Output):
        raise EditError(f"{what}: there is no op {kind!r} to insert; there are {', '.join(sorted(OPS))}")
    if not isinstance(name, str):
        raise EditError(f"{what}: a new op's name is text")
    if name in plan.graph.nodes or name in plan.loose:
        raise EditError(f"{what}: there is an op of that name already; give the new one another")
    read = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    for source in read:
        node = plan.graph.nodes.get(source)
        if node is not None and isinstance(node.op, Input) and node.op.dtype != "float" and kind in _NUMBERS:
            raise EditError(f"{what}: {kind!r} computes with real numbers, and {source!r} gives {node.op.dtype}s")
    op = build_op(plan, kind, name, read, like, dict(attributes or {}))
    tensors = fresh_tensors(plan, op, init, batch)
    if beside is not None and beside not in plan.graph.tensors:
        raise EditError(f"{what}: beside={beside!r} names no stored tensor of the network")
    plan.loose[name] = Loose(op, tensors, {} if beside is None else dict.fromkeys(tensors, beside))
    arguments: dict[str, Any] = {"kind": kind, "name": name, "inputs": list(read), "init": init}
    arguments |= {key: value for key, value in (("like", like), ("beside", beside)) if value is not None}
    arguments |= dict(attributes or {})
    if op.op == "batch_norm" and init == "identity":
        arguments["needs_batch"] = True  # a replay has none
    if before is None:
        if preserves is not None:
            check_claim(what, Claim("function"), preserves)
        plan.steps.append(Step("insert", None, arguments, preserves="function", note="nothing reads it yet"))
        return name
    targets = [before] if isinstance(before, str) else list(before)
    for target in targets:
        _check_edge(plan, what, read[0], target)
    claim = rewire(plan, {target: {read[0]: name} for target in targets})
    check_claim(what, claim, preserves)
    plan.steps.append(Step("insert", None, arguments | {"before": targets}, (), (), claim.preserves, claim.note))
    return name


def redirect(plan: Plan, edge: str | Sequence[str], to: str, *, preserves: Preserves | None = None) -> None:
    """Let an op read something else. See :meth:`graphnet.edit.edit.Edit.redirect`."""
    source, target = _edge(edge)
    what = f"redirect {source!r} -> {target!r}"
    check_promise(what, preserves)
    _check_edge(plan, what, source, target)
    if not isinstance(to, str) or (to.partition(":")[0] not in plan.graph.nodes and to not in plan.loose):
        raise EditError(f"{what}: there is no op {to!r} to read")
    claim = rewire(plan, {target: {source: to}})
    check_claim(what, claim, preserves)
    plan.steps.append(Step("redirect", None, {"edge": [source, target], "to": to}, (), (), claim.preserves, claim.note))


def remove(plan: Plan, name: str, *, keep: str | None = None, preserves: Preserves | None = None) -> tuple[str, ...]:
    """Remove an op, whose readers go on with what it read. See :meth:`graphnet.edit.edit.Edit.remove`."""
    what = f"remove {name!r}"
    check_promise(what, preserves)
    if name in plan.loose:
        del plan.loose[name]
        plan.steps.append(Step("remove", None, {"name": name}, preserves="function", note="nothing read it"))
        return (name,)
    op = node_of(plan, what, name).op
    if isinstance(op, Input | Output):
        raise EditError(f"{what}: inputs and outputs of the network stay")
    if keep is None and len(op.inputs) != 1:
        raise EditError(f"{what}: it reads {list(op.inputs)}; say with keep= which of them its readers go on with")
    if keep is not None and keep not in op.inputs:
        raise EditError(f"{what}: keep={keep!r} is none of what it reads ({list(op.inputs)})")
    stays = op.inputs[0] if keep is None else keep
    if op.ports > 1:
        raise EditError(f"{what}: it has {op.ports} outputs, so that no one input can take its place")
    before = set(plan.graph.nodes)
    claim = rewire(plan, {target: {name: stays} for target in readers_of(plan.graph, name)}, drop_unread=True)
    check_claim(what, claim, preserves)
    gone = tuple(one for one in before if one not in plan.graph.nodes)
    arguments: dict[str, Any] = {"name": name} | ({} if keep is None else {"keep": keep})
    plan.steps.append(Step("remove", None, arguments, (), (), claim.preserves, claim.note))
    return tuple(sorted(gone))


# -- what they share ------------------------------------------------------------------------------------------------


def node_of(plan: Plan, what: str, name: str) -> Any:
    """The node of an op that is there.

    Raises
    ------
    EditError
        It is not; lists those that are.
    """
    if not isinstance(name, str) or name not in plan.graph.nodes:
        raise EditError(f"{what}: there is no op {name!r}; the ops are {', '.join(plan.graph.nodes)}")
    return plan.graph.nodes[name]


def readers_of(graph: Graph, name: str) -> list[str]:
    """Ops that read an op, in topological order."""
    return [key for key, node in graph.nodes.items() if any(producer == name for producer, _ in node.inputs)]


def build_op(
    plan: Plan, kind: str, name: str, inputs: Sequence[str], like: str | None, attributes: dict[str, Any]
) -> Op:
    """A checked op model, its size taken from another op where ``like`` names one, or from what it reads.

    Raises
    ------
    EditError
        The attributes are not the op's.
    """
    cls = OPS[kind]
    what = f"insert {name!r}"
    seen = _provisional(plan, [])
    if "out" in cls.model_fields and "out" not in attributes:
        attributes["out"] = _width(seen, what, like if like is not None else inputs[0] if inputs else "", cls)
    if issubclass(cls, Conv1d | Conv2d):
        kernel, dilation = attributes.setdefault("kernel", 3), attributes.get("dilation", 1)
        if "padding" not in attributes and isinstance(kernel, int) and kernel % 2 and isinstance(dilation, int):
            attributes["padding"] = dilation * (kernel - 1) // 2
    try:
        return TypeAdapter(cls).validate_python({"op": kind, "name": name, "inputs": tuple(inputs), **attributes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "attributes"
        raise EditError(f"{what}: {kind} {where}: {first['msg']}") from error


def _width(seen: Graph, what: str, model: str, cls: type[Op]) -> int:
    """Size of the dimension that a new op of a class would write, in what another op, or one of its ports, gives.

    Raises
    ------
    EditError
        There is no such output, or it has no such dimension.
    """
    producer, _, port = model.partition(":")
    if producer not in seen.nodes:
        raise EditError(f"{what}: there is no op {model!r} to take its width from; give out=")
    outputs = seen.nodes[producer].outputs
    at = 0 if not port else int(port) if port.isdecimal() else -1
    if not 0 <= at < len(outputs):
        raise EditError(f"{what}: {producer!r} has {len(outputs)} output(s), and no {port!r} to take a width from")
    dims, place = outputs[at], 1 if issubclass(cls, Conv1d | Conv2d) else -1
    if len(dims) < 2:
        raise EditError(f"{what}: {model!r} has {len(dims)} dimension(s), none of them of features; give out=")
    return dims[place].size(seen.sizes)


def fresh_tensors(plan: Plan, op: Op, init: str, batch: Batch | None = None) -> dict[str, Tensor]:
    """Values of a new op's stored tensors, drawn from the edit's own random numbers.

    Raises
    ------
    EditError
        The op cannot stand there, or has no such initial values.
    """
    graph = _provisional(plan, [op])
    specs = [spec for spec in graph.nodes[op.name].tensors if spec.shared is None]
    like = _like(plan, op)
    seed = int(torch.randint(2**31, (1,), generator=plan.generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = op.build(graph.op_sizes(op.name))
    values: dict[str, Tensor] = {}
    stored = {} if module is None else {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for spec in specs:
        value = stored[spec.name[len(op.path) + 1 :]].detach()
        values[spec.name] = value.to(like) if value.is_floating_point() and like is not None else value
    if init == "zeros":
        for spec in specs:
            if spec.kind in ("weight", "bias", "scale", "shift"):
                values[spec.name].zero_()
    elif init == "kaiming":
        for spec in specs:
            if spec.kind == "weight":
                fan_in = max(1, values[spec.name][0].numel())
                bound = (6.0 / fan_in) ** 0.5
                drawn = torch.empty(values[spec.name].shape, dtype=torch.float64)
                values[spec.name].copy_(drawn.uniform_(-bound, bound, generator=plan.generator))
            elif spec.kind == "bias":
                values[spec.name].zero_()
    elif init == "identity":
        _identity(plan, graph, op, values, batch)
    return values


def _like(plan: Plan, op: Op) -> Tensor | None:
    """A parameter whose dtype and device new tensors take."""
    for name, spec in plan.graph.tensors.items():
        if not spec.buffer and plan.value(name).is_floating_point():
            return plan.value(name).new_empty(0)
    return None


def _identity(plan: Plan, graph: Graph, op: Op, values: dict[str, Tensor], batch: Batch | None) -> None:
    name = op.name
    if isinstance(op, LinearOp | Conv1d | Conv2d):
        weight = values[f"{name}.weight"]
        square = isinstance(op, LinearOp) and weight.shape[0] == weight.shape[1]
        if isinstance(op, LinearOp):
            if not square:
                raise EditError(f"insert {name!r}: an identity has as many outputs as inputs, not {list(weight.shape)}")
            weight.copy_(torch.eye(len(weight)))
        else:
            weight.copy_(dirac(weight))
        if f"{name}.bias" in values:
            values[f"{name}.bias"].zero_()
        probe = Prover(graph, lambda key: values[key] if key in values else plan.value(key))
        if probe.value(name) == probe.value(*graph.nodes[name].inputs[0]):
            return
        raise EditError(f"insert {name!r}: with these attributes no weights give the identity (stride 1, same size)")
    if op.op == "batch_norm":
        held = {key: value for one in plan.loose.values() for key, value in one.tensors.items()}
        known = Prover(graph, lambda key: held[key] if key in held else plan.value(key))
        read_from = known.value(*graph.nodes[name].inputs[0])  # what a layer that is the identity itself gives
        producer, port = read_from.producer, read_from.port
        if producer is None or port or producer not in plan.graph.nodes:
            raise EditError(f"insert {name!r}: an identity norm is measured on an op of the network's own")
        found = plan.evaluate(batch, None, f"insert {name!r} as an identity norm", taps=(producer,))
        read = found.activations[producer].double()
        dims = [dim for dim in range(read.dim()) if dim != 1]
        mean, variance = read.mean(dims), read.var(dims, unbiased=False)
        like = values[f"{name}.running_mean"]
        values[f"{name}.running_mean"] = mean.to(like)
        values[f"{name}.running_var"] = variance.to(like)
        eps = op.model_dump()["eps"]
        if f"{name}.weight" in values:
            values[f"{name}.weight"] = (values[f"{name}.running_var"].double() + eps).sqrt().to(like)
            values[f"{name}.bias"] = values[f"{name}.running_mean"].clone()
        return
    if values:
        raise EditError(f"insert {name!r}: there is no identity for {op.op!r}; use init='default' or 'zeros'")


def rewire(plan: Plan, changes: Mapping[str, Mapping[str, str]], *, drop_unread: bool = False) -> Claim:
    """Let ops read others, with the loose ops that this needs; says what it does to the function.

    Parameters
    ----------
    changes : mapping of op to {old reference: new reference}
    drop_unread : bool
        Also remove the ops from which no output is reached any more.
    """
    before = plan.graph
    old = Prover(before, _frozen(plan))
    put: dict[str, Op] = {}
    for target, table in changes.items():
        op = before.nodes[target].op
        put[target] = op.model_copy(update={"inputs": tuple(table.get(ref, ref) for ref in op.inputs)})
    needed = _needed(plan, put)
    loose = {name: plan.loose[name] for name in needed}
    tensors = {key: value for one in loose.values() for key, value in one.tensors.items()}
    beside = {key: value for one in loose.values() for key, value in one.beside.items()}
    gone: list[str] = []
    if drop_unread:
        gone = _unread(before, put, [one.op for one in loose.values()])
    plan.restructure([*(one.op for one in loose.values()), *put.values()], remove=gone, tensors=tensors, beside=beside)
    for name in needed:
        del plan.loose[name]
    return rewired(old, Prover(plan.graph, plan.value))


def _frozen(plan: Plan) -> Any:
    values = {name: plan.value(name) for name in plan.graph.tensors}
    return values.__getitem__


def _needed(plan: Plan, put: Mapping[str, Op]) -> list[str]:
    """The loose ops that new inputs reach back to, in the order of their insertion."""
    found: set[str] = set()
    queue = [ref.partition(":")[0] for op in put.values() for ref in op.inputs]
    while queue:
        name = queue.pop()
        if name in plan.loose and name not in found:
            found.add(name)
            queue.extend(ref.partition(":")[0] for ref in plan.loose[name].op.inputs)
    return [name for name in plan.loose if name in found]


def _unread(graph: Graph, put: Mapping[str, Op], added: Sequence[Op]) -> list[str]:
    """Ops from which no output would be reached; the network's inputs stay."""
    ops = {**graph.ops, **put, **{op.name: op for op in added}}
    reached: set[str] = set()
    queue = [name for name, op in ops.items() if isinstance(op, Output)]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            queue.extend(ref.partition(":")[0] for ref in ops[name].inputs)
    return [
        name for name, op in ops.items() if name not in reached and name in graph.nodes and not isinstance(op, Input)
    ]


def _provisional(plan: Plan, extra: Sequence[Op]) -> Graph:
    """The graph with loose ops and some more, each read by the output, so that shapes can be inferred."""
    added = [*(one.op for one in plan.loose.values()), *extra]
    if not added:
        return plan.graph
    if plan.tried is not None:
        graph, ops, found = plan.tried
        if graph is plan.graph and list(map(id, ops)) == list(map(id, added)):
            return found
    read = {ref.partition(":")[0] for op in added for ref in op.inputs}
    unknown = sorted(read - set(plan.graph.nodes) - {op.name for op in added})
    if unknown:
        raise EditError(f"insert {added[-1].name!r}: there is no op {unknown[0]!r} to read")
    kept = [op for op in plan.graph.ops.values() if not isinstance(op, Output)]
    outputs = [ref for op in plan.graph.ops.values() if isinstance(op, Output) for ref in op.inputs]
    leaves = [op.name for op in added if op.name not in read]
    try:
        found = Graph.from_ops([*kept, *added], [*outputs, *leaves], name=plan.graph.name, twice=False)
    except GraphError as error:
        raise EditError(f"insert {added[-1].name!r}: {error}") from error
    plan.tried = plan.graph, tuple(added), found
    return found


def _edge(edge: str | Sequence[str]) -> tuple[str, str]:
    parts = [part.strip() for part in edge.split("->")] if isinstance(edge, str) else list(edge)
    if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise EditError(f"an edge is 'source -> target' or (source, target), not {edge!r}")
    return parts[0], parts[1]


def _check_edge(plan: Plan, what: str, source: str, target: str) -> None:
    node = node_of(plan, what, target)
    if source not in node.op.inputs:
        raise EditError(f"{what}: {target!r} does not read {source!r}; it reads {list(node.op.inputs)}")
