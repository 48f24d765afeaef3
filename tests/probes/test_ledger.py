"""The ledger adds up what the graph and the optimizer say, version by version."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from graphnet.errors import CheckpointError, GraphError, GraphnetError
from graphnet.ir.builders import convnet, mlp, transformer
from graphnet.probes import Ledger, optimizer_bytes, optimizer_name
from graphnet.runtime.network import Network

FORWARD = 2 * (6 * 8 + 8 * 3)  # FLOPs of one sample through mlp([6, 8, 3])
PARAMS = 6 * 8 + 8 + 8 * 3 + 3


def test_costs_are_integrated_over_versions() -> None:
    net = Network(mlp([6, 8, 3]), seed=0)
    ledger = Ledger(net, batch_size=4)
    for _ in range(5):
        ledger.step(4)
    with net.edit() as edit:
        edit.grow("fc1", 2)
    ledger.edit(0.25)
    ledger.step(3)
    ledger.scoring(1_000)
    wide, wide_params = 2 * (6 * 10 + 10 * 3), 6 * 10 + 10 + 10 * 3 + 3
    flops = 3 * (5 * 4 * FORWARD + 3 * wide) + 1_000
    assert ledger.totals() == {
        "steps": 6, "samples": 23, "flops": flops, "flops_nominal": flops, "scoring_flops": 1_000,
        "param_steps": 5 * PARAMS + wide_params, "param_steps_nominal": 5 * PARAMS + wide_params,
        "optimizer_byte_steps": 0, "wall_seconds": 0.0, "param_seconds": 0.0, "edit_seconds": 0.25, "edits": 1,
    }  # fmt: skip
    assert (ledger.current.version, ledger.current.flops_forward, ledger.current.params) == (1, wide, wide_params)


def test_dormant_units_cost_nothing_executed_and_everything_nominal() -> None:
    net = Network(mlp([6, 8, 3]), seed=0)
    ledger = Ledger(net, batch_size=4)
    with net.edit() as edit:
        edit.retire("fc1", lowest=6)
    ledger.step(1)
    spent = ledger.totals()
    assert spent["flops"] == 3 * 2 * (6 * 2 + 2 * 3)
    assert spent["flops_nominal"] == 3 * FORWARD
    assert spent["param_steps"] == 6 * 2 + 2 + 2 * 3 + 3 == ledger.current.params
    assert spent["param_steps_nominal"] == PARAMS


def test_flops_agree_with_torch_on_a_step() -> None:
    """Three forwards for a step, but for the gradient of the input, which the first layer does not compute."""
    net = Network(convnet((3, 8, 8), channels=(4,), hidden=(8,), classes=3), seed=0)
    ledger = Ledger(net, batch_size=5)
    x, y = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(x), y).backward()
    ledger.step(5)
    first = net.graph.cost(batch=5).per_op["conv1"].flops
    assert counter.get_total_flops() == ledger.totals()["flops"] - first


OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], bool]] = {  # whether it keeps step counters
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), False),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), False),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.1), True),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.1), True),
    "amsgrad": (lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True), True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_bytes_measured_and_predicted(name: str, dtype: torch.dtype) -> None:
    make, counts = OPTIMIZERS[name]
    net = Network(mlp([6, 8, 3]), seed=0).to(dtype)
    optimizer = make(net.parameters())
    net.attach(optimizer)
    assert optimizer_name(optimizer) == name
    ledger = Ledger(net, batch_size=4)
    x, y = torch.randn(4, 6, dtype=dtype), torch.tensor([0, 1, 2, 0])
    expected = 0
    for grow in (False, True):
        if grow:
            with net.edit() as edit:
                edit.grow("fc1", 3)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            ledger.step(4)
        counters = 4 * len(list(net.parameters())) if counts else 0  # a float32 step count for each parameter
        predicted = net.graph.cost(optimizer=name, dtype=dtype).optimizer_bytes
        assert optimizer_bytes(net) == predicted + counters
        expected += 3 * (predicted + counters)
        assert ledger.totals()["optimizer_byte_steps"] == expected


def test_an_optimizer_without_a_prediction_is_named() -> None:
    class Odd(torch.optim.SGD):
        pass

    with pytest.raises(GraphnetError, match="Odd"):
        optimizer_name(Odd([torch.zeros(1, requires_grad=True)], lr=0.1))


def test_dynamic_inputs_are_bound_by_a_shape() -> None:
    net = Network(transformer(11, width=8, depth=1, heads=2, context=6))
    with pytest.raises(GraphError, match="input_shape"):
        Ledger(net, batch_size=2)
    ledger = Ledger(net, batch_size=2, input_shape=(5,))
    ledger.step(2)
    assert ledger.totals()["flops"] == 3 * net.graph.cost((5,), batch=2).flops
    single = net.graph.cost((5,), batch=2).activation_bytes
    assert ledger.current.activation_bytes == single
    assert Ledger(net.double(), batch_size=2, input_shape=(5,)).current.activation_bytes == 2 * single


def test_wall_time_is_counted_inside_its_block_only() -> None:
    net = Network(mlp([6, 8, 3]), seed=0)
    ledger = Ledger(net, batch_size=4)
    started = time.perf_counter()
    with ledger.timing():
        time.sleep(0.01)
        ledger.step(4)
        time.sleep(0.02)
        with pytest.raises(GraphnetError, match="twice"), ledger.timing():
            pass
    elapsed = time.perf_counter() - started
    time.sleep(0.02)
    spent = ledger.totals()
    assert 0.03 <= spent["wall_seconds"] <= elapsed
    assert spent["param_seconds"] == pytest.approx(spent["wall_seconds"] * PARAMS)
    with pytest.raises(ValueError), ledger.timing():
        raise ValueError
    with ledger.timing():  # an error closed its block
        pass


def test_a_ledger_resumes_exactly() -> None:
    net = Network(mlp([6, 8, 3]), seed=0)
    ledger, again = Ledger(net, batch_size=4), Ledger(net, batch_size=4)
    with ledger.timing():
        ledger.step(4)
    ledger.scoring(2**70 + 1)  # past what a float holds
    again.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert again.totals() == ledger.totals()
    assert again.totals()["flops"] == 3 * 4 * FORWARD + 2**70 + 1
    for one in (ledger, again):
        one.step(2)
    assert again.totals() == ledger.totals()
    state = again.state_dict()
    for wrong in ({}, state | {"flops": "many"}, state | {"steps": 1.5}, state | {"more": 1}):
        with pytest.raises(CheckpointError):
            again.load_state_dict(wrong)
    assert again.totals() == ledger.totals()


def test_negative_costs_are_refused() -> None:
    ledger = Ledger(Network(mlp([6, 8, 3])), batch_size=4)
    for spend in (ledger.edit, ledger.scoring):
        with pytest.raises(GraphnetError, match="no less than 0"):
            spend(-1)
