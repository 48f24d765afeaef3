"""The operators of the law matrix that edit the structure: ops come, go, and are wired otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from graphnet.edit.edit import Edit
from graphnet.edit.host import Snapshot
from graphnet.ir.graph import Graph
from graphnet.ir.ops.activation import Activation
from graphnet.ir.ops.conv import Conv1d, Conv2d
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from graphnet.testing.law_registry import Apply, Case, operator
from graphnet.testing.law_units import Data

__all__: list[str] = []

NORMS = (BatchNorm, GroupNorm, LayerNorm, RMSNorm)

NEW, FEWER, WIRES, OTHER = "New ops", "Ops that go", "Wires and ties", "Ops in place of others"
VALUES = "Operators on values"


# -- where it happens ---------------------------------------------------------------------------------------------


def writer(graph: Graph, on: Case) -> str:
    """The op that writes the group: the group's name without the factor of a product."""
    name = on.group
    while name not in graph.nodes:
        name = name.rpartition(".")[0]
    return name


def readers(graph: Graph, name: str) -> list[str]:
    """The ops that read an op."""
    return [key for key, node in graph.nodes.items() if any(producer == name for producer, _ in node.inputs)]


def first_behind(graph: Graph, on: Case, *kinds: type) -> str | None:
    """The first op of some kind behind the writer, with no other weights in between."""
    front = [writer(graph, on)]
    for name in front:
        for reader in readers(graph, name):
            op = graph.nodes[reader].op
            if isinstance(op, kinds):
                return reader
            if isinstance(op, Activation | BatchNorm | GroupNorm | LayerNorm | RMSNorm):
                front.append(reader)
    return None


def _layer(graph: Graph, name: str) -> str:
    return "conv2d" if len(graph.dims(name)) == 4 else "linear"


def _has(*kinds: type) -> Callable[[Case], bool]:
    """Whether one of these kinds stands behind a case's writer."""
    return lambda on: first_behind(on.build(), on, *kinds) is not None


def _writes(*kinds: type) -> Callable[[Case], bool]:
    """Whether a case's writer is of one of these kinds."""

    def applies(on: Case) -> bool:
        graph = on.build()
        return isinstance(graph.nodes[writer(graph, on)].op, kinds)

    return applies


# -- new ops ------------------------------------------------------------------------------------------------------


def _inserting(name: str, kind: str | None = None, **options: Any) -> None:
    @operator(f"insert {name}", NEW)
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        at = writer(edit.graph, on)
        given = {"batch": data["batch"]} if kind == "batch_norm" else {}
        edit.insert(kind or _layer(edit.graph, at), "new", inputs=at, before=readers(edit.graph, at),
                    **given, **options, **promise)  # fmt: skip


_inserting("identity layer", init="identity")
_inserting("kaiming layer", init="kaiming")
_inserting("identity batch norm", "batch_norm", init="identity")
_inserting("layer norm", "layer_norm")
_inserting("relu", "relu")


@operator("insert residual branch", NEW)
def _branch(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    at = writer(edit.graph, on)
    before = readers(edit.graph, at)
    edit.insert(_layer(edit.graph, at), "branch", inputs=at, like=at, init="zeros")
    edit.insert("add", "joined", inputs=[at, "branch"], before=before, **promise)


def _deepening(name: str, **options: Any) -> None:
    @operator(f"deepen {name}", NEW)
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        edit.deepen(writer(edit.graph, on), name="deeper", **options, **promise)


_deepening("identity", form="identity")
_deepening("residual", form="residual")
_deepening("residual, layer norm", form="residual", norm="layer_norm")


# -- ops that go --------------------------------------------------------------------------------------------------


def _identity(edit: Edit, on: Case, data: Data) -> None:
    at = writer(edit.graph, on)
    edit.insert(_layer(edit.graph, at), "new", inputs=at, before=readers(edit.graph, at), init="identity")


@operator("remove identity layer", FEWER, prepare=_identity)
def _remove_identity(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.remove("new", **promise)


def _removing(name: str, *kinds: type) -> None:
    @operator(f"remove {name}", FEWER, applies=_has(*kinds))
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        edit.remove(str(first_behind(edit.graph, on, *kinds)), **promise)


_removing("activation", Activation)
_removing("norm", *NORMS)


# -- wires and ties -----------------------------------------------------------------------------------------------


@operator("redirect to a copy", WIRES)
def _redirect_copy(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    at = writer(edit.graph, on)
    reader = readers(edit.graph, at)[0]
    edit.insert("identity", "copy", inputs=at)
    edit.redirect((at, reader), "copy", **promise)


@operator("redirect to another layer", WIRES)
def _redirect_layer(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    at = writer(edit.graph, on)
    reader = readers(edit.graph, at)[0]
    edit.insert(_layer(edit.graph, at), "other", inputs=at, init="kaiming")
    edit.redirect((at, reader), "other", **promise)


def _is_tied(on: Case) -> bool:
    return any(isinstance(node.op, LinearOp) and node.op.tied for node in on.build().nodes.values())


def _tied(graph: Graph) -> str:
    return next(name for name, node in graph.nodes.items() if isinstance(node.op, LinearOp) and node.op.tied)


@operator("untie", WIRES, applies=_is_tied)
def _untie(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.untie(_tied(edit.graph), **promise)


def _apart(edit: Edit, on: Case, data: Data) -> None:
    edit.untie(_tied(edit.graph))


def _further_apart(edit: Edit, on: Case, data: Data) -> None:
    edit.untie(_tied(edit.graph))
    edit.shrink_and_perturb(None, shrink=1.0, noise=0.1)


def _tying(name: str, prepare: Apply) -> None:
    @operator(name, WIRES, prepare=prepare, applies=_is_tied)
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        edit.tie(_tied(on.build()), on.group, **promise)


_tying("tie equal weights", _apart)
_tying("tie other weights", _further_apart)


# -- ops in place of others ---------------------------------------------------------------------------------------


@operator("replace activation by a blend", OTHER, applies=_has(Activation))
def _blend(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.replace(str(first_behind(edit.graph, on, Activation)), by="blend", to="elu", **promise)


@operator("replace activation", OTHER, applies=_has(Activation))
def _activation(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    edit.replace(str(first_behind(edit.graph, on, Activation)), by="elu", **promise)


_OTHER_NORM: dict[str, dict[str, Any]] = {
    "batch_norm": {"by": "group_norm", "groups": 1}, "group_norm": {"by": "batch_norm"},
    "layer_norm": {"by": "rms_norm"}, "rms_norm": {"by": "layer_norm"},
}  # fmt: skip


@operator("replace norm", OTHER, applies=_has(*NORMS))
def _norm(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
    name = str(first_behind(edit.graph, on, *NORMS))
    edit.replace(name, **_OTHER_NORM[edit.graph.nodes[name].op.op], batch=data["batch"], **promise)


def _factoring(by: str, rank: int, *kinds: type) -> None:
    @operator(f"replace {by}, {'full rank' if rank > 1 else 'rank 1'}", OTHER, applies=_writes(*kinds))
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        name = writer(edit.graph, on)
        shape = edit.graph.shape(edit.graph.tensors[f"{name}.weight"])
        full = min(shape) if by == "low-rank" else min(shape[0], shape[2] * shape[3])
        edit.replace(name, by=by, rank=min(rank, full), **promise)


for _rank in (99, 1):
    _factoring("low-rank", _rank, LinearOp)
    _factoring("separable", _rank, Conv2d)


def _kernel_sizes(graph: Graph, name: str) -> Sequence[int]:
    op = graph.nodes[name].op
    return op.kernel_sizes() if isinstance(op, Conv1d | Conv2d) else ()


def _resizing(name: str, by: int) -> None:
    def applies(on: Case) -> bool:
        graph = on.build()
        sizes = _kernel_sizes(graph, writer(graph, on))
        return bool(sizes) and max(sizes) + by > 0

    @operator(f"kernel {name}", OTHER, applies=applies)
    def apply(edit: Edit, on: Case, data: Data, **promise: Any) -> None:
        at = writer(edit.graph, on)
        edit.kernel(at, max(_kernel_sizes(edit.graph, at)) + by, **promise)


_resizing("larger", 2)
_resizing("smaller", -2)


# -- values -------------------------------------------------------------------------------------------------------


def _shrinking(name: str, **options: Any) -> None:
    @operator(f"shrink_and_perturb {name}", VALUES, promises=False)
    def apply(edit: Edit, on: Case, data: Data) -> None:
        edit.shrink_and_perturb(on.group, **options)


_shrinking("without noise", shrink=0.5, noise=0.0)
_shrinking("with noise", shrink=0.5, noise=0.01)


_SNAPSHOTS: WeakKeyDictionary[Any, Snapshot] = WeakKeyDictionary()


def _remember(edit: Edit, on: Case, data: Data) -> None:
    host: Any = edit.plan.host
    _SNAPSHOTS[host] = host.snapshot()
    edit.shrink_and_perturb(None, shrink=0.5)


@operator("rewind", VALUES, prepare=_remember, promises=False)
def _rewind(edit: Edit, on: Case, data: Data) -> None:
    edit.rewind(on.group, _SNAPSHOTS[edit.plan.host])
