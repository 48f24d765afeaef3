"""Random networks: their layouts say how units move, so permuting units must change nothing but order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from graphnet.errors import GraphError
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.ir.layout import IndexArray
from graphnet.ir.reference import evaluate

INPUTS = ([6], [4, 6], [4, 6, 6], [6, 8])
PROGRAMS = 40


def _random_graph(rng: random.Random) -> Graph:
    """Grow a network op by op; a candidate that does not fit is dropped."""
    inputs = {"x": {"shape": rng.choice(INPUTS)}}
    if rng.random() < 0.3:
        inputs["z"] = {"shape": list(inputs["x"]["shape"])}
    ops: list[dict[str, Any]] = []
    graph: Graph | None = None
    for step in range(60):
        if len(ops) >= 10:
            break
        produced = [
            ref for op in ops for ref in ([op["name"], f"{op['name']}:1"] if op["op"] == "split" else [op["name"]])
        ]
        known = [*inputs, *produced]
        recent = known[-3:]
        source = rng.choice(recent)
        shape = inputs[source]["shape"] if source in inputs else _shape(graph, source)
        op = _candidate(rng, shape, source, known) | {"name": f"n{step}"}
        try:
            graph = _build(inputs, [*ops, op])
        except GraphError:
            continue
        ops.append(op)
    assert graph is not None
    return graph


def _shape(graph: Graph | None, ref: str) -> list[int]:
    assert graph is not None
    name, _, port = ref.partition(":")
    return [layout.size(graph.sizes) for layout in graph.dims(name, int(port or 0))[1:]]


def _build(inputs: dict[str, Any], ops: list[dict[str, Any]]) -> Graph:
    read = {ref.partition(":")[0] for op in ops for ref in op["inputs"]}
    outputs = [op["name"] for op in ops if op["name"] not in read]
    used = {name: entry for name, entry in inputs.items() if name in read or name == "x"}
    return load({"inputs": used, "ops": ops, "outputs": outputs + ["x"] * ("x" not in read)})


def _candidate(rng: random.Random, shape: list[int], source: str, known: list[str]) -> dict[str, Any]:
    rank, total = len(shape), int(np.prod(shape))
    if not shape:
        return {"inputs": [source], "op": "relu"}
    other = rng.choice(known)
    size = rng.choice([2, 3, 4, 6])
    dim = rng.randint(1, rank)
    kinds: list[dict[str, Any]] = [
        {"op": "linear", "out": rng.choice([4, 6, 12])},
        {"op": "linear", "out": shape[-1]},
        {"op": "relu"},
        {"op": "layer_norm"},
        {"op": "batch_norm"},
        {"op": "group_norm", "groups": rng.choice([2, 3])},
        {"op": "flatten", "start": dim},
        {"op": "reshape", "shape": [*shape[: dim - 1], size, -1]},
        {"op": "reshape", "shape": [*shape[: dim - 1], size, max(1, shape[dim - 1] // size), *shape[dim:]]},
        {"op": "reshape", "shape": [rng.choice([2, 3, 4]), -1, rng.choice([2, 3])]},
        {"op": "reshape", "shape": [total]},
        {"op": "permute", "order": rng.sample(range(1, rank + 1), rank)},
        {"op": "transpose", "first": dim, "second": rng.randint(1, rank)},
        {"op": "split", "dim": dim, "sizes": [shape[dim - 1] // 2, shape[dim - 1] - shape[dim - 1] // 2]},
        {"op": "concat", "dim": dim, "inputs": [source, other]},
        {"op": "concat", "dim": dim, "inputs": [source, source]},
        {"op": "add", "inputs": [source, other]},
        {"op": "add", "inputs": [source, other]},
        {"op": "mul", "inputs": [source, other]},
        {"op": "mean", "dim": dim},
        {"op": "positions", "length": 13},
        {"op": "attention", "inputs": [source, rng.choice([source, other]), source], "heads": rng.choice([2, 3, 6])},
        {"op": "attention", "inputs": [source] * 3, "heads": 2, "causal": True},
        {"op": "conv2d", "out": rng.choice([4, 6]), "kernel": rng.choice([1, 3]), "padding": 1},
        {"op": "conv2d", "out": 6, "kernel": 2, "groups": 2},
        {"op": "conv2d", "out": shape[0] * rng.choice([1, 2]), "kernel": 2, "depthwise": True},
        {"op": "conv1d", "out": 6, "kernel": 1, "groups": rng.choice([1, 2, 3])},
        {"op": "max_pool", "kernel": 2},
    ]
    return {"inputs": [source]} | rng.choice(kinds)


def _outputs(module: Any, inputs: list[torch.Tensor]) -> list[np.ndarray[Any, Any]]:
    found = module(*inputs)
    return [value.detach().numpy() for value in (found if isinstance(found, tuple) else (found,))]


def _take(array: Any, dims: Any, sources: dict[str, IndexArray], sizes: dict[str, int]) -> Any:
    for axis, layout in enumerate(dims):
        array = np.take(array, layout.index(sources, sizes), axis=axis)
    return array


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_the_lowered_network_equals_the_reference(seed: int, lowered: Callable[..., Any]) -> None:
    graph = _random_graph(random.Random(seed))
    root, module, inputs = lowered(graph)
    expected = evaluate(graph, root.state_dict(), inputs)
    for one, two in zip(_outputs(module, inputs), expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_permuting_units_changes_nothing_but_order(seed: int, lowered: Callable[..., Any]) -> None:
    graph = _random_graph(random.Random(seed))
    root, _, inputs = lowered(graph)
    tensors = {name: tensor.numpy() for name, tensor in root.state_dict().items()}
    before = evaluate(graph, tensors, inputs)
    rng = np.random.default_rng(seed)
    sources = {name: rng.permutation(group.size) for name, group in graph.groups.items() if group.frozen is None}
    sizes = {**graph.sizes, "<batch>": 2}
    moved = {name: _take(tensors[name], spec.dims, sources, sizes) for name, spec in graph.tensors.items()}
    after = evaluate(graph, moved, inputs)
    for (producer, port), one, two in zip(graph.outputs, before, after, strict=True):
        wanted = _take(one, graph.dims(producer, port), sources, sizes)
        np.testing.assert_allclose(two, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_a_resized_graph_is_valid_and_lowers_to_what_it_says(seed: int, lowered: Callable[..., Any]) -> None:
    graph = _random_graph(random.Random(seed))
    rng = random.Random(seed)
    for _ in range(3):
        free = [group for group in graph.groups.values() if group.frozen is None]
        if not free:
            return
        group = rng.choice(free)
        count = rng.choice([group.size + 1, group.size + 2, max(group.minimum, group.size - 1)])
        graph = graph.resized({group.name: _with_size(group, count)})
    assert load(graph.to_document()).to_document() == graph.to_document()
    root, module, inputs = lowered(graph)
    expected = evaluate(graph, root.state_dict(), inputs)
    for one, two in zip(_outputs(module, inputs), expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9)


def _with_size(group: UnitGroup, count: int) -> UnitGroup:
    added = tuple(range(group.next_id, group.next_id + max(0, count - group.size)))
    return UnitGroup(
        group.name, (*group.ids[:count], *added), group.kind, group.role, group.frozen, group.output, group.coupled,
        group.contracted, group.dormant, group.minimum, group.next_id + len(added),
    )  # fmt: skip


def test_the_programs_are_worth_testing() -> None:
    graphs = [_random_graph(random.Random(seed)) for seed in range(PROGRAMS)]
    assert sum(len(graph.nodes) for graph in graphs) > 8 * PROGRAMS
    layouts = [layout for graph in graphs for node in graph.nodes.values() for dims in node.outputs for layout in dims]
    assert any(len(layout.terms) > 1 for layout in layouts)
    assert any(len(term) > 2 for layout in layouts for term in layout.terms)
    assert any(group.frozen for graph in graphs for group in graph.groups.values())
    assert {node.op.op for graph in graphs for node in graph.nodes.values()} >= {
        "conv2d",
        "attention",
        "split",
        "concat",
    }
