"""Costs are those that torch's own counters find on the lowered network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graphnet.compilers.plain import lower
from graphnet.errors import GraphError
from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.cost import OPTIMIZER_SLOTS, cost
from graphnet.ir.document import load
from graphnet.ir.graph import Graph


def _odd_convolutions() -> Graph:
    return load(
        {
            "inputs": {"x": {"shape": [4, 9, 7]}},
            "ops": [
                {"name": "a", "op": "conv2d", "out": 6, "kernel": [3, 2], "stride": 2, "groups": 2},
                {"name": "b", "op": "conv2d", "out": 12, "kernel": 2, "depthwise": True, "dilation": 2},
                {"name": "c", "op": "flatten", "start": 2},
                {"name": "d", "op": "conv1d", "out": 5, "kernel": 1, "bias": False},
                {"name": "e", "op": "linear", "out": 3, "bias": False},
            ],
        }
    )


BUILT: dict[str, Callable[[], Graph]] = {
    "mlp": lambda: mlp([6, 8, 3], norm="batch"),
    "convnet": lambda: convnet((3, 8, 8), channels=(4, 6), hidden=(5,)),
    "resnet": lambda: resnet((3, 8, 8), stages=(4, 8), blocks=1),
    "transformer": lambda: transformer(9, width=8, depth=2, heads=4, context=6),
    "grouped-query": lambda: transformer(9, width=8, depth=1, heads=4, kv_heads=2, context=6, norm="rms", tied=True),
    "convolutions": _odd_convolutions,
}


def _shape(graph: Graph) -> list[int] | None:
    return [5] if graph.dynamic.keys() > {"<batch>"} else None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", BUILT)
def test_flops_and_parameters_are_those_of_the_lowered_network(
    name: str, batch: int, lowered: Callable[..., Any]
) -> None:
    graph = BUILT[name]()
    root, module, inputs = lowered(graph, batch=batch, dynamic={"time": 5})
    # the counter knows no attention kernel of the CPU: the plain one is made of products that it counts
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    found = cost(graph, _shape(graph), batch=batch)
    assert found.flops == counter.get_total_flops() == sum(entry.flops for entry in found.per_op.values())
    assert found.params == sum(p.numel() for p in root.parameters())
    root.float()
    assert found.param_bytes == sum(p.nbytes for p in root.parameters())
    assert found.buffer_bytes == sum(b.nbytes for b in root.buffers())


@pytest.mark.parametrize("name", BUILT)
def test_activation_bytes_are_those_of_every_op(name: str, lowered: Callable[..., Any]) -> None:
    graph = BUILT[name]()
    root, _, inputs = lowered(graph, batch=2, dynamic={"time": 5})
    ops = [key for key, op in graph.ops.items() if op.op not in ("input", "output")]
    values = lower(graph, root, taps=ops)(*inputs)[1]
    found = cost(graph, _shape(graph), batch=2, dtype=torch.float64)
    assert {key: entry.activation_bytes for key, entry in found.per_op.items()} == {
        key: value.nbytes for key, value in values.items()
    }
    assert found.activation_bytes == sum(value.nbytes for value in values.values())


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
        ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("adamax", torch.optim.Adamax),
        ("nadam", torch.optim.NAdam), ("radam", torch.optim.RAdam), ("adadelta", torch.optim.Adadelta),
        ("amsgrad", lambda p: torch.optim.Adam(p, amsgrad=True)), ("adagrad", torch.optim.Adagrad),
        ("rmsprop", torch.optim.RMSprop), ("rprop", torch.optim.Rprop), ("asgd", torch.optim.ASGD),
    ],
)  # fmt: skip
def test_optimizer_bytes_are_those_of_the_real_optimizer(name: str, make: Any, lowered: Callable[..., Any]) -> None:
    graph = mlp([6, 8, 3])
    root, module, inputs = lowered(graph)
    root.float()
    optimizer = make(root.parameters())
    module(inputs[0].float()).sum().backward()
    optimizer.step()
    held = sum(
        value.nbytes
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
    )
    assert cost(graph, optimizer=name).optimizer_bytes == held


def test_the_slots_are_all_tested_but_muon() -> None:
    tested = {mark[0] for mark in test_optimizer_bytes_are_those_of_the_real_optimizer.pytestmark[0].args[1]}
    assert set(OPTIMIZER_SLOTS) - tested == {"muon"}  # takes matrices only


def test_dormant_units_count_when_asked_for() -> None:
    graph = mlp([4, 6, 2])
    group = graph.groups["fc1"]
    retired = graph.resized({"fc1": dataclasses.replace(group, ids=(0, 1, 2, 4), dormant=(3, 5))})
    executed, nominal = cost(retired), cost(retired, dormant=True)
    assert executed == cost(mlp([4, 4, 2]))
    assert dataclasses.replace(nominal, units=cost(graph).units) == cost(graph)
    assert (executed.units["fc1"], nominal.units["fc1"]) == (4, 6)


def test_growing_costs_more() -> None:
    graph = mlp([4, 6, 2])
    group = graph.groups["fc1"]
    wider = graph.resized({"fc1": dataclasses.replace(group, ids=(*group.ids, 6), next_id=7)})
    assert wider.cost().params - graph.cost().params == 4 + 1 + 2


def test_an_input_shape_is_taken_by_name() -> None:
    graph = transformer(9, width=8, depth=1, heads=2, context=6)
    assert cost(graph, {"x": [5]}) == cost(graph, [5])
    assert cost(graph, [5]).flops > cost(graph, [4]).flops


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        (None, {}, "<time>.*input_shape"),
        ([5, 5], {}, r"\['time'\].*\[5, 5\]"),
        ([0], {}, "at least 1"),
        (["long"], {}, "'long'"),
        ({"y": [5]}, {}, r"'y'.*\['x'\]"),
        ({"x": 5}, {}, "list of sizes"),
        ([5], {"batch": 0}, "batch"),
        ([5], {"optimizer": "adamm"}, "'adamm' is not one of"),
    ],
)
def test_what_does_not_fit_is_refused(shape: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        cost(transformer(9, width=8, depth=1, heads=2, context=6), shape, **options)


def test_a_fixed_shape_must_agree() -> None:
    with pytest.raises(GraphError, match=r"\[4\].*\[5\]"):
        cost(mlp([4, 3, 2]), [5])


def test_the_text_names_every_number() -> None:
    text = str(cost(mlp([4, 3, 2]), batch=2))
    assert "FLOPs (forward, batch 2)" in text
    assert "optimizer bytes (adam)" in text
