"""The neuron-by-neuron graph has an edge for every weight, and none besides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest

from graphnet.errors import GraphError
from graphnet.ir.builders import convnet, mlp, transformer
from graphnet.ir.document import load
from graphnet.ir.expand import expand
from graphnet.ir.graph import Graph


def _graph(shape: list[int], *ops: dict[str, Any]) -> Graph:
    return load({"inputs": {"x": {"shape": shape}}, "ops": list(ops)})


def test_an_mlp_is_fully_connected_layer_by_layer(lowered: Callable[..., Any]) -> None:
    graph = mlp([4, 3, 2])
    root, module, inputs = lowered(graph)
    found = expand(graph, tensors=root.state_dict())
    assert sorted(found) == [
        *(("fc1", unit) for unit in range(3)), *(("head", unit) for unit in range(2)), *(("x", i) for i in range(4)),
    ]  # fmt: skip
    assert found.number_of_edges() == 4 * 3 + 3 * 2
    assert found.nodes["x", 0]["kind"] == "fixed"
    assert found.nodes["fc1", 0]["kind"] == "neurons"
    weight = nx.to_numpy_array(found, [("x", i) for i in range(4)] + [("fc1", i) for i in range(3)])[:4, 4:]
    np.testing.assert_allclose(weight, root.get_parameter("fc1.weight").detach().numpy().T)
    # walking the edges in order computes the network
    x = inputs[0][0].numpy()
    hidden = {
        unit: max(0.0, sum(found.edges[("x", i), unit]["weight"] * x[i] for i in range(4)) + bias)
        for unit, bias in ((("fc1", j), root.get_parameter("fc1.bias")[j].item()) for j in range(3))
    }
    out = sum(found.edges[unit, ("head", 1)]["weight"] * value for unit, value in hidden.items())
    assert out + root.get_parameter("head.bias")[1].item() == pytest.approx(module(*inputs)[0, 1].item(), rel=1e-12)


def test_only_what_touches_the_named_groups_is_expanded() -> None:
    graph = mlp([4, 3, 3, 2])
    found = expand(graph, "fc1")
    assert {group for group, _ in found} == {"x", "fc1", "fc2"}
    assert found.number_of_edges() == 4 * 3 + 3 * 3
    assert {group for group, _ in graph.expand("fc1", "head")} == {"x", "fc1", "fc2", "head"}


def test_channels_carry_their_kernel_and_flattened_positions(lowered: Callable[..., Any]) -> None:
    graph = convnet((3, 8, 8), channels=(4, 6), hidden=(5,), classes=2)
    root, _, _ = lowered(graph)
    found = expand(graph, tensors=root.state_dict())
    kernel = found.edges[("conv1", 3), ("conv2", 5)]
    assert kernel["kernel"] == (3, 3)
    weight = root.get_parameter("conv2.weight").detach().numpy()
    np.testing.assert_array_equal(kernel["values"][0], weight[5, 3])
    assert kernel["weight"] == pytest.approx(np.linalg.norm(weight[5, 3]))
    flat = found.edges[("conv2", 2), ("fc1", 4)]
    assert flat["kernel"] == (4,)
    np.testing.assert_array_equal(
        flat["values"][0], root.get_parameter("fc1.weight").detach().numpy()[4, 2 * 4 : 3 * 4]
    )
    assert found.number_of_edges() == 3 * 4 + 4 * 6 + 6 * 5 + 5 * 2


def test_grouped_and_depthwise_channels_connect_inside_their_group() -> None:
    graph = _graph(
        [3, 5, 5],
        {"name": "c", "op": "conv2d", "out": 4, "kernel": 1},
        {"name": "dw", "op": "conv2d", "out": 4, "kernel": 3, "depthwise": True},
        {"name": "h", "op": "conv2d", "out": 2, "kernel": 1},
    )
    found = expand(graph, "c")
    assert [source for source in found.predecessors(("c", 1)) if source[0] == "c"] == [("c", 1)]
    assert found.edges[("c", 1), ("c", 1)]["ops"] == ("dw",)
    grouped = expand(_graph([4, 5, 5], {"name": "g", "op": "conv2d", "out": 6, "kernel": 1, "groups": 2}))
    assert grouped.number_of_edges() == 12  # 6 outputs, each with the 2 inputs of its group


def test_a_product_of_groups_names_the_units_of_both() -> None:
    graph = transformer(9, width=8, depth=1, heads=2, context=4)
    name = "blocks.0.q_proj.heads*blocks.0.q_proj.head_dim"
    found = expand(graph, "blocks.0.q_proj")
    assert (name, (1, 3)) in found
    assert found.in_degree((name, (1, 3))) == 8
    assert found.nodes[name, (1, 3)]["group"] == name


def test_a_concat_leads_to_the_right_units() -> None:
    graph = _graph(
        [4],
        {"name": "a", "op": "linear", "inputs": ["x"], "out": 2},
        {"name": "b", "op": "linear", "inputs": ["x"], "out": 3},
        {"name": "cat", "op": "concat", "inputs": ["a", "b", "x"]},
        {"name": "h", "op": "linear", "out": 1},
    )
    found = expand(
        graph, tensors={"a.weight": np.zeros((2, 4)), "b.weight": np.zeros((3, 4)), "h.weight": np.arange(9.0)[None]}
    )
    assert found.edges[("a", 1), ("h", 0)]["weight"] == 1.0
    assert found.edges[("b", 0), ("h", 0)]["weight"] == 2.0
    assert found.in_degree(("h", 0)) == 9


def test_two_layers_between_the_same_units_share_the_edge() -> None:
    graph = _graph(
        [4],
        {"name": "a", "op": "linear", "out": 2},
        {"name": "b", "op": "linear", "inputs": ["a"], "out": 2},
        {"name": "c", "op": "linear", "inputs": ["a"], "out": 2},
        {"name": "s", "op": "add", "inputs": ["a", "b", "c"]},
        {"name": "h", "op": "linear", "out": 1},
    )
    found = expand(graph, "a")
    assert found.edges[("a", 0), ("a", 1)]["ops"] == ("b", "c")


def test_dormant_and_newborn_units_are_marked() -> None:
    graph = mlp([4, 6, 2])
    group = graph.groups["fc1"]
    graph = graph.resized({"fc1": dataclasses.replace(group, ids=(0, 1, 2, 7), dormant=(4,), next_id=8)})
    tensors = {"fc1.weight": np.arange(16.0).reshape(4, 4), "head.weight": np.arange(8.0).reshape(2, 4)}
    live = expand(graph, newborns={"fc1": {7}})
    assert live.nodes["fc1", 7]["newborn"]
    assert not live.nodes["fc1", 0]["newborn"]
    assert ("fc1", 4) not in live
    full = expand(graph, dormant=True, tensors=tensors)
    assert full.nodes["fc1", 4]["dormant"]
    assert "weight" not in full.edges[("x", 0), ("fc1", 4)]
    assert full.edges[("x", 1), ("fc1", 7)]["weight"] == 13.0  # the last live row
    assert full.edges[("fc1", 7), ("head", 1)]["weight"] == 7.0


def test_too_large_a_part_says_how_large_and_what_to_do() -> None:
    graph = mlp([784, 256, 10])
    with pytest.raises(GraphError, match=r"203,264 edges.*20,000.*fewer groups.*limit=203264"):
        graph.expand()
    assert graph.expand("head", limit=2560).number_of_edges() == 2560


def test_what_does_not_exist_or_fit_is_refused() -> None:
    graph = mlp([4, 3, 2])
    with pytest.raises(GraphError, match="no unit group or op 'fc9'"):
        expand(graph, "fc9")
    with pytest.raises(GraphError, match=r"'fc1\.weight' is not given"):
        expand(graph, tensors={})
    with pytest.raises(GraphError, match=r"shape \[2, 2\], not \[3, 4\]"):
        expand(graph, tensors={"fc1.weight": np.zeros((2, 2))})
