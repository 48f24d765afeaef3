"""How calls of graphnet's own operators are drawn: one generator each, registered by its operator's name.

The last section holds edits of structure; :mod:`graphnet.testing.edits` says how to add one of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.operators.replace import REPLACEMENTS
from graphnet.edit.scores import SCORES
from graphnet.edit.states import STATES
from graphnet.ir.graph import Graph
from graphnet.ir.ops.activation import Activation
from graphnet.ir.ops.conv import Conv1d, Conv2d
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.io import Input, Output
from graphnet.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from graphnet.testing.edits import DATA, EditCall, Given, edit_strategy, groups_of, some_group, spare
from graphnet.testing.graphs import ACTIVATIONS

__all__: list[str] = []

_SIMPLE = ("kaiming", "copy-std", "zero-outgoing")
_REPLICAS = ("net2wider",)
"""Initialisers that divide the outgoing weights of incumbents."""
_CORRECTING = ("corrected", "gradmax", "variance-transfer")
"""Initialisers that also change biases, norms or weights of incumbents."""


@edit_strategy("grow")
def _grow(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph)
    if name is None:
        return None
    init = draw(st.sampled_from(_SIMPLE) | st.sampled_from(sorted(INITIALISERS)))
    state = draw(st.sampled_from([one for one in STATES if one != "scaled" or init in _REPLICAS]))
    options: dict[str, Any] = {"init": init, "state": state}
    if init not in (*_SIMPLE, *_REPLICAS):
        options |= DATA
    speed = draw(st.sampled_from([None, None, None, (2.0, 2)]))
    if speed is not None:
        options["speed"] = speed
    return EditCall("grow", (name, draw(st.integers(1, 3))), options, incumbents=init not in (*_REPLICAS, *_CORRECTING))


def _choice(draw: st.DrawFn, graph: Graph, name: str) -> dict[str, Any]:
    """Which units go: by id, or the lowest by a score."""
    count = draw(st.integers(1, min(3, spare(graph, name))))
    ids = graph.groups[name].ids
    how = draw(st.sampled_from(["units", "lowest", "keep"]))
    if how == "units":
        return {"units": list(draw(st.permutations(ids)))[:count]}
    score = draw(st.sampled_from(sorted(SCORES)))
    data = {} if score in ("magnitude", "random") else dict(DATA)
    return {"lowest": count, "score": score, **data} if how == "lowest" else {
        "keep": len(ids) - count, "score": score, **data
    }  # fmt: skip


@edit_strategy("prune")
def _prune(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph, where=lambda group: spare(graph, group.name) > 0)
    return None if name is None else EditCall("prune", (name,), _choice(draw, graph, name))


@edit_strategy("retire")
def _retire(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph, where=lambda group: spare(graph, group.name) > 0)
    return None if name is None else EditCall("retire", (name,), _choice(draw, graph, name))


@edit_strategy("recruit")
def _recruit(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph, where=lambda group: bool(group.dormant))
    if name is None:
        return None
    dormant = graph.groups[name].dormant
    count = draw(st.integers(1, min(3, len(dormant))))
    state = draw(st.sampled_from([one for one in STATES if one != "scaled"]))
    if draw(st.booleans()):
        return EditCall("recruit", (name,), {"units": list(draw(st.permutations(dormant)))[:count], "state": state})
    score = draw(st.sampled_from(sorted(SCORES)))
    return EditCall("recruit", (name,), {"highest": count, "score": score, "state": state, **DATA})


@edit_strategy("rewind")
def _rewind(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = draw(st.none() | groups_of(graph))
    options = {} if draw(st.booleans()) else {"clear_state": False}
    return EditCall("rewind", (name, Given.SNAPSHOT), options, incumbents=False)


@edit_strategy("reset")
def _reset(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph)
    if name is None:
        return None
    ids = graph.groups[name].ids
    options: dict[str, Any] = {"units": list(draw(st.permutations(ids)))[: draw(st.integers(1, min(3, len(ids))))]}
    if draw(st.booleans()):
        options = {"lowest": len(options["units"]), "score": draw(st.sampled_from(sorted(SCORES))), **DATA}
    state = draw(st.sampled_from([one for one in STATES if one != "scaled"]))
    return EditCall("reset", (name,), options | {"init": draw(st.sampled_from(_SIMPLE[:2])), "state": state})


@edit_strategy("split")
def _split(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph)
    if name is None:
        return None
    ids = graph.groups[name].ids
    units = list(draw(st.permutations(ids)))[: draw(st.integers(1, min(2, len(ids))))]
    by = draw(st.sampled_from(["net2wider", "net2wider", "firefly", "steepest"]))
    options: dict[str, Any] = {"units": units, "by": by, "state": draw(st.sampled_from(list(STATES)))}
    if by == "net2wider":
        options |= {"copies": draw(st.integers(1, 2)), "shares": draw(st.sampled_from(["equal", "random"]))}
    else:
        options |= DATA
    return EditCall("split", (name,), options, incumbents=False)


@edit_strategy("merge")
def _merge(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph, where=lambda group: spare(graph, group.name) > 0)
    if name is None:
        return None
    one, two = list(draw(st.permutations(graph.groups[name].ids)))[:2]
    how: list[dict[str, Any]] = [{"pairs": [(one, two)]}, {"threshold": 0.0}]
    options = draw(st.sampled_from(how))
    state = draw(st.sampled_from(["combined", "survivor"]))
    return EditCall("merge", (name,), options | {"scaled": draw(st.booleans()), "state": state}, incumbents=False)


@edit_strategy("permute")
def _permute(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = some_group(draw, graph)
    if name is None:
        return None
    outputs = {"outputs": True} if graph.groups[name].output else {}
    return EditCall("permute", (name,), {"order": list(draw(st.permutations(graph.groups[name].ids))), **outputs})


@edit_strategy("shrink_and_perturb")
def _shrink_and_perturb(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    name = draw(st.none() | groups_of(graph))
    options = {"shrink": draw(st.sampled_from([0.5, 1.0])), "noise": draw(st.sampled_from([0.0, 0.1]))}
    return EditCall("shrink_and_perturb", (name,), options, incumbents=False)


# -- structure ------------------------------------------------------------------------------------------------

_MOST_OPS = 40
"""Ops past which nothing is inserted any more: insertion outruns removal in some sequences."""
_NORMS = {"batch_norm": BatchNorm, "layer_norm": LayerNorm, "rms_norm": RMSNorm, "group_norm": GroupNorm}


def _free_name(graph: Graph, stem: str) -> str:
    """A name that no op of the graph begins with."""
    count = 0
    while any(name.startswith(f"{stem}{count}") for name in graph.nodes):
        count += 1
    return f"{stem}{count}"


def _edges(graph: Graph) -> list[tuple[str, str]]:
    """Edges from an op with one output, the outputs of the network among the targets."""
    return [
        (producer, name)
        for name, node in graph.nodes.items()
        for producer, _ in node.inputs
        if graph.nodes[producer].op.ports == 1
    ]


def _named(graph: Graph, *kinds: type) -> list[str]:
    return [name for name, node in graph.nodes.items() if isinstance(node.op, kinds)]


def _shape(graph: Graph, name: str) -> list[int]:
    return [layout.size(graph.sizes) for layout in graph.dims(name)]


def _earlier_alike(graph: Graph, name: str, before: str) -> list[str]:
    """Ops before another one, in topological order, whose output has the shape of this one's."""
    order = list(graph.nodes)
    return [
        other
        for other in order[: order.index(before)]
        if other != name and graph.nodes[other].op.ports == 1 and _shape(graph, other) == _shape(graph, name)
    ]


@edit_strategy("insert")
def _insert(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    edges = _edges(graph)
    if not edges or len(graph.nodes) > _MOST_OPS:
        return None
    source, target = draw(st.sampled_from(edges))
    rank = len(graph.dims(source))
    kinds = ["relu", "identity", "add", "layer_norm", "rms_norm", "batch_norm"]
    kinds += {3: ["linear", "conv1d"], 4: ["conv2d"]}.get(rank, ["linear"])
    kind = draw(st.sampled_from(kinds))
    inputs: Any = source
    if kind == "add":
        others = _earlier_alike(graph, source, target)
        if not others:
            return None
        inputs = [source, draw(st.sampled_from(others))]
    options: dict[str, Any] = {"inputs": inputs, "before": target}
    if kind in ("linear", "conv1d", "conv2d"):
        options["init"] = draw(st.sampled_from(["identity", "zeros", "default", "kaiming"]))
    elif kind == "batch_norm" and draw(st.booleans()):
        options |= {"init": "identity", "batch": Given.BATCH}
    # A layer of zeros gives zero whoever reads it, but with another reader it has another gradient.
    same = kind == "identity" or options.get("init") == "identity"
    return EditCall("insert", (kind, _free_name(graph, "inserted")), options, gradients=same)


@edit_strategy("deepen")
def _deepen(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    if len(graph.nodes) > _MOST_OPS:
        return None
    after = draw(st.sampled_from([name for name, node in graph.nodes.items() if not isinstance(node.op, Output)]))
    options: dict[str, Any] = {"form": draw(st.sampled_from(["identity", "residual"]))}
    norm = draw(st.sampled_from([None, None, "batch_norm", "rms_norm"]))
    if norm is not None:
        options |= {"norm": norm, "batch": Given.BATCH}
    return EditCall("deepen", (after,), options | {"name": _free_name(graph, "deeper")})


@edit_strategy("redirect")
def _redirect(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    edges = [
        (source, target) for source, target in _edges(graph) if not isinstance(graph.nodes[target].op, Input)
    ]  # fmt: skip
    if not edges:
        return None
    source, target = draw(st.sampled_from(edges))
    others = _earlier_alike(graph, source, target)
    if not others:
        return None
    return EditCall("redirect", ((source, target), draw(st.sampled_from(others))), gradients=False)  # as for insert


@edit_strategy("remove")
def _remove(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    names = [
        name
        for name, node in graph.nodes.items()
        if node.inputs and node.op.ports == 1 and not isinstance(node.op, Input | Output)
    ]
    if not names:
        return None
    name = draw(st.sampled_from(names))
    read = graph.nodes[name].op.inputs
    keep = {"keep": draw(st.sampled_from(read))} if len(read) > 1 else {}
    return EditCall("remove", (name,), keep, gradients=False)  # as for insert


@edit_strategy("replace")
def _replace(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    names = _named(graph, Activation, *_NORMS.values(), Conv2d, LinearOp)
    if not names:
        return None
    name = draw(st.sampled_from(names))
    op = graph.nodes[name].op
    if isinstance(op, Activation):
        if draw(st.booleans()):
            return EditCall("replace", (name,), {"by": draw(st.sampled_from(ACTIVATIONS))})
        return EditCall("replace", (name,), {"by": "blend", "to": draw(st.sampled_from(ACTIVATIONS))})
    if isinstance(op, LinearOp | Conv2d):
        by = draw(st.sampled_from(sorted({*REPLACEMENTS} - {"blend"})))
        return EditCall("replace", (name,), {"by": by, "rank": draw(st.integers(1, 2))}, incumbents=False)
    by = draw(st.sampled_from(sorted(_NORMS)))
    return EditCall(
        "replace", (name,), {"by": by, **({"groups": 2} if by == "group_norm" else {}), "batch": Given.BATCH}
    )


@edit_strategy("kernel")
def _kernel(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    names = _named(graph, Conv1d, Conv2d)
    if not names:
        return None
    name = draw(st.sampled_from(names))
    old = max(graph.nodes[name].op.kernel_sizes())  # type: ignore[attr-defined]
    return EditCall("kernel", (name, max(1, min(7, old + draw(st.sampled_from([2, -2]))))))


@edit_strategy("tie")
def _tie(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    pairs = _alike(graph)
    return EditCall("tie", draw(st.sampled_from(pairs)), incumbents=False) if pairs else None


def _alike(graph: Graph) -> Sequence[tuple[str, str]]:
    """Linear layers whose weight has the shape of an earlier one's."""
    shapes = {spec.name: graph.shape(spec) for spec in graph.tensors.values()}
    names = [name for name in _named(graph, LinearOp) if f"{name}.weight" in shapes]
    return [
        (name, other)
        for at, name in enumerate(names)
        for other in names[:at]
        if shapes[f"{name}.weight"] == shapes[f"{other}.weight"]
    ]


@edit_strategy("untie")
def _untie(draw: st.DrawFn, graph: Graph) -> EditCall | None:
    names = [name for name in _named(graph, LinearOp) if graph.nodes[name].op.tied is not None]  # type: ignore[attr-defined]
    return EditCall("untie", (draw(st.sampled_from(names)),), gradients=False) if names else None
