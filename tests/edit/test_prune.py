"""Pruning: thresholds, what it says of the function, and means that go into the consumers' biases."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.edit.newborns import visible
from graphnet.edit.plan import Plan
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.io import Input
from graphnet.testing import (
    check_bits,
    check_close,
    check_preserved,
    graphs,
    random_network,
    sample,
    state_of,
    wave_loss,
)
from graphnet.testing.edits import spare
from graphnet.testing.graphs import op


def blocks(net: gn.Network, group: str, unit: int, role: str) -> list[tuple[str, int, list[int]]]:
    """Where a unit stands in the stored tensors in one role: tensor, dimension, positions."""
    plan, found = Plan(net, net.graph, torch.Generator()), []
    for holder in plan.holders(group, roles=(role,)):  # type: ignore[arg-type]
        owners = holder.layout.owners(group, net.graph.sizes)
        found.append((holder.tensor, holder.dim, np.flatnonzero(owners == unit).tolist()))
    return found


def put_zero(net: gn.Network, group: str, unit: int, role: str, *, biases: bool = True) -> None:
    with torch.no_grad():
        for name, dim, at in blocks(net, group, unit, role):
            if biases or net.graph.tensors[name].kind != "bias":
                net.tensor(name).index_fill_(dim, torch.tensor(at), 0.0)


def output(net: gn.Network, *inputs: Tensor) -> Any:
    net.eval()
    with torch.no_grad():
        return net(*inputs)


def data_of(net: gn.Network, seed: int, size: int = 6) -> tuple[tuple[Tensor, ...], Any]:
    inputs = sample(net.graph, seed, size)
    return inputs, (inputs, None)


# -- networks whose groups have every kind of consumer ------------------------------------------------------------


def network(*ops: Op, outputs: tuple[str, ...] = ("head",), x: tuple[int, ...] = (3,)) -> gn.Network:
    return random_network(gn.Graph.from_ops([Input(name="x", shape=x), *ops], outputs), 0)


def linear(**options: Any) -> gn.Network:
    return network(
        op("linear", "fc", "x", out=5), op("tanh", "act", "fc"), op("linear", "head", "act", out=4, **options)
    )  # fmt: skip


def normed() -> gn.Network:
    """The consumer has no bias; a batch norm takes its place."""
    return network(
        op("linear", "fc", "x", out=5), op("gelu", "act", "fc"), op("linear", "mid", "act", out=4, bias=False),
        op("batch_norm", "norm", "mid"), op("relu", "act2", "norm"), op("linear", "head", "act2", out=2),
    )  # fmt: skip


def conv(padding: int = 0, groups: int = 1, bias: bool = True) -> gn.Network:
    return network(
        op("conv2d", "c1", "x", out=8, kernel=3, padding=1), op("batch_norm", "n1", "c1"), op("softplus", "a1", "n1"),
        op("conv2d", "head", "a1", out=4, kernel=3, padding=padding, groups=groups, bias=bias), x=(2, 6, 6),
    )  # fmt: skip


def flattened() -> gn.Network:
    net = random_network(gn.convnet((2, 4, 4), channels=(4,), hidden=(3,), norm="batch", pool=2), 0)
    with torch.no_grad():
        net.norm_c1.bias.fill_(2.0)  # so that a constant unit is above the ReLU's zero
    return net


def concat() -> gn.Network:
    return network(
        op("conv2d", "c1", "x", out=3, kernel=3, padding=1), op("conv2d", "c2", "x", out=2, kernel=1),
        op("sigmoid", "a1", "c1"), op("concat", "both", "c2", "a1", "a1"), op("max_pool", "pool", "both", kernel=2),
        op("flatten", "flat", "pool"), op("linear", "one", "flat", out=3), op("linear", "two", "flat", out=3),
        op("conv2d", "three", "a1", out=3, kernel=2), op("adaptive_avg_pool", "gap", "three"),
        op("flatten", "gapped", "gap"), op("add", "head", "one", "two", "gapped"), x=(2, 4, 4),
    )  # fmt: skip


def ports() -> gn.Network:
    return network(
        op("linear", "wide", "x", out=6), op("tanh", "act", "wide"), op("split", "parts", "act", sizes=(4, 2)),
        op("linear", "one", "parts:0", out=3), op("linear", "two", "parts:1", out=3), op("add", "head", "one", "two"),
    )  # fmt: skip


def stream() -> gn.Network:
    """A residual stream: two writers, three consumers behind additions."""
    return network(
        op("linear", "stem", "x", out=4), op("linear", "up", "stem", out=3), op("tanh", "act", "up"),
        op("linear", "down", "act", out=4), op("add", "sum", "stem", "down"), op("silu", "act2", "sum"),
        op("linear", "head", "act2", out=2),
    )  # fmt: skip


EXACT: dict[str, tuple[Any, str]] = {
    "linear": (linear, "fc"), "batch norm for a bias": (normed, "fc"), "conv": (conv, "c1"),
    "flattened and pooled": (flattened, "conv1"), "concat, twice": (concat, "c1"), "second of a concat": (concat, "c2"),
    "grouped": (lambda: conv(groups=2), "c1.group_inputs"), "first port": (ports, "wide.0"),
    "second port": (ports, "wide.1"), "residual stream": (stream, "stem"),
}  # fmt: skip


def group_of(net: gn.Network, name: str) -> str:
    if name.startswith("wide."):
        sizes = {"wide.0": 4, "wide.1": 2}
        return next(n for n, g in net.graph.groups.items() if g.size == sizes[name] and n not in ("head", "x"))
    return name if name in net.graph.groups else net.graph.group(name).name


@pytest.mark.parametrize("case", EXACT)
def test_a_constant_unit_is_removed_exactly(case: str) -> None:
    make, name = EXACT[case]
    net = make()
    group = group_of(net, name)
    put_zero(net, group, 1, "write", biases=False)
    inputs, _ = data_of(net, 7)
    before, lost = output(net, *inputs), copy.deepcopy(net)
    with net.edit() as edit:
        edit.prune(group, units=[1], compensate="all", preserves="function", batch=data_of(net, 3)[1])
    assert net.history.latest.preserves == "function"
    check_preserved(net, before, *inputs)
    with lost.edit() as edit:
        edit.prune(group, units=[1])
    with pytest.raises(AssertionError):  # what compensation is for
        check_preserved(lost, before, *inputs, tolerance=1e-4)


@pytest.mark.parametrize("case", EXACT)
def test_any_other_unit_leaves_its_mean(case: str) -> None:
    """In each consumer's bias, by hand; behind a flatten each column has a mean of its own."""
    make, name = EXACT[case]
    net = make()
    group = group_of(net, name)
    _, batch = data_of(net, 3)
    read: dict[str, Tensor] = {}
    consumers = [tensor.rpartition(".")[0] for tensor, _, _ in blocks(net, group, 1, "read")]
    handles = [
        net.get_submodule(consumer).register_forward_hook(lambda _, x, __, c=consumer: read.update({c: x[0].detach()}))
        for consumer in consumers
    ]
    output(net, *batch[0])
    for handle in handles:
        handle.remove()
    expected = {}
    for consumer in consumers:
        module, x = net.get_submodule(consumer), read[consumer]
        layout = next(d for d in net.graph.dims(*net.graph.nodes[consumer].inputs[0])[1:] if group in set(d.atoms()))
        mine = torch.from_numpy(layout.owners(group, net.graph.sizes) == 1)
        means = x.mean((0, 2, 3)) if x.dim() == 4 else x.mean(0)
        means = torch.where(mine, means, torch.zeros_like(means))
        if isinstance(module, torch.nn.Conv2d):
            shape = (1, -1, *module.kernel_size)  # one window over a constant map
            given_ = torch.nn.functional.conv2d(
                means.reshape(1, -1, 1, 1).expand(shape), module.weight.detach(), groups=module.groups
            ).flatten()  # fmt: skip
        else:
            given_ = module.weight.detach() @ means
        if module.bias is None:
            expected["norm.running_mean"] = net.norm.running_mean - given_
        else:
            expected[f"{consumer}.bias"] = module.bias.detach() + given_
    with net.edit() as edit:
        edit.prune(group, units=[1], compensate="all", preserves="approximate", batch=batch)
    step = net.history.latest.steps[0]
    assert step.preserves == "approximate"
    assert "on the batch the output changed by" in step.note
    assert step.arguments["compensate"] == "all"
    for tensor, value in expected.items():
        torch.testing.assert_close(net.tensor(tensor).detach(), value, rtol=1e-12, atol=1e-14, msg=tensor)


def test_the_mean_of_the_output_stays_where_the_consumer_is_last() -> None:
    for net in (linear(), random_network(gn.convnet((2, 4, 4), channels=(4,), hidden=(), pool=2), 0)):
        group = next(iter(net.graph.groups))
        inputs, batch = data_of(net, 3)
        before, lost = output(net, *inputs), copy.deepcopy(net)
        with net.edit() as edit:
            edit.prune(group, units=[1, 2], compensate=True, batch=batch)
        with lost.edit() as edit:
            edit.prune(group, units=[1, 2])
        after, without = output(net, *inputs), output(lost, *inputs)
        torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-12, atol=1e-12)
        assert float((after - before).square().mean()) < float((without - before).square().mean())


def test_the_bias_by_hand() -> None:
    net = linear()
    (x,), batch = data_of(net, 3)
    mean = torch.tanh(net.fc(x)).mean(0).detach()
    weight, bias = net.head.weight.detach().clone(), net.head.bias.detach().clone()
    with net.edit() as edit:
        edit.prune("fc", units=[1, 4], compensate=True, batch=batch)
    torch.testing.assert_close(net.head.bias.detach(), bias + weight[:, [1, 4]] @ mean[[1, 4]], rtol=1e-13, atol=0)
    assert torch.equal(net.head.weight, weight[:, [0, 2, 3]])


def test_a_running_mean_by_hand() -> None:
    net = normed()
    (x,), batch = data_of(net, 3)
    mean = torch.nn.functional.gelu(net.fc(x)).mean(0).detach()
    weight, running = net.mid.weight.detach().clone(), net.norm.running_mean.clone()
    before = output(net, x)
    with net.edit() as edit:
        edit.prune("fc", units=[2], compensate="all", batch=batch)
    torch.testing.assert_close(net.norm.running_mean, running - weight[:, 2] * mean[2], rtol=1e-13, atol=0)
    assert not torch.allclose(output(net, x), before)


def test_a_padded_border_is_declared_and_the_inside_is_right() -> None:
    net = conv(padding=1)
    put_zero(net, "c1", 1, "write", biases=False)
    (x,), batch = data_of(net, 3)
    before = output(net, x)
    with pytest.raises(gn.EditError, match="padded border of 'head'"), net.edit() as edit:
        edit.prune("c1", units=[1], compensate=True, batch=batch, preserves="function")
    with net.edit() as edit:
        edit.prune("c1", units=[1], compensate=True, batch=batch, preserves="approximate")
    after = output(net, x)
    check_close(before[:, :, 1:-1, 1:-1], after[:, :, 1:-1, 1:-1], "inside", tolerance=1e-12)
    assert not torch.allclose(before[:, :, 0], after[:, :, 0])
    assert "border" in net.history.latest.steps[0].note


def test_a_consumer_without_a_place_is_named() -> None:
    net = linear(bias=False)
    _, batch = data_of(net, 3)
    before = state_of(net)
    with pytest.raises(gn.EditError, match="no place for the mean at 'head'"), net.edit() as edit:
        edit.prune("fc", units=[1], compensate="all", batch=batch)
    with pytest.raises(gn.EditError, match="the mean is lost at 'head'"), net.edit() as edit:
        edit.prune("fc", units=[1], compensate=True, batch=batch, preserves="approximate")
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(net).items())
    with net.edit() as edit:
        edit.prune("fc", units=[1], compensate=True, batch=batch)
    assert net.history.latest.preserves == "none"
    assert "the mean is lost at 'head'" in net.history.latest.steps[0].note


def test_a_batch_norm_that_is_not_alone_takes_nothing() -> None:
    net = network(
        op("linear", "fc", "x", out=5), op("linear", "mid", "fc", out=4, bias=False), op("batch_norm", "norm", "mid"),
        op("add", "sum", "norm", "mid"), op("linear", "head", "sum", out=2),
    )  # fmt: skip
    with pytest.raises(gn.EditError, match="no place for the mean at 'mid'"), net.edit() as edit:
        edit.prune("fc", units=[1], compensate="all", batch=data_of(net, 3)[1])


def test_what_only_looks_constant_is_not_said_to_be() -> None:
    """Another writer moves the unit; a padded average differs at the border; a product with something else moves."""
    product = network(
        op("linear", "fc", "x", out=4), op("linear", "gate", "x", out=4), op("mul", "both", "fc", "gate"),
        op("linear", "head", "both", out=2),
    )  # fmt: skip
    pooled = network(
        op("conv2d", "c1", "x", out=4, kernel=1), op("avg_pool", "pool", "c1", kernel=3, stride=1, padding=1),
        op("conv2d", "head", "pool", out=2, kernel=1), x=(2, 4, 4),
    )  # fmt: skip
    for net, weight in ((stream(), "stem.weight"), (product, "fc.weight"), (pooled, "c1.weight")):
        group = net.graph.group(weight.rpartition(".")[0]).name
        with torch.no_grad():
            net.tensor(weight)[1] = 0.0
        inputs, batch = data_of(net, 3)
        before = output(net, *inputs)
        with pytest.raises(gn.EditError, match="means over the batch"), net.edit() as edit:
            edit.prune(group, units=[1], compensate=True, batch=batch, preserves="function")
        with net.edit() as edit:
            edit.prune(group, units=[1], compensate=True, batch=batch, preserves="approximate")
        with pytest.raises(AssertionError):
            check_preserved(net, before, *inputs, tolerance=1e-4)


def test_silent_units_are_approximate_and_dead_ones_exact() -> None:
    """A ReLU unit that is zero on the batch may fire elsewhere; one whose weights are zero cannot."""
    net = random_network(gn.mlp([3, 5, 2]), 0)
    with torch.no_grad():
        net.fc1.bias[1] = -50.0
    inputs, batch = data_of(net, 3)
    before = output(net, *inputs)
    with net.edit() as edit:
        edit.prune("fc1", units=[1], compensate=True, batch=batch, preserves="approximate")
    check_preserved(net, before, *inputs)
    assert net.history.latest.preserves == "approximate"
    assert "changed by 0 " in net.history.latest.steps[0].note
    with torch.no_grad():
        net.fc1.weight[0], net.fc1.bias[0] = 0.0, -1.0
    with net.edit() as edit:
        edit.prune("fc1", units=[0], compensate=True, batch=batch, preserves="function")
    check_preserved(net, before, *inputs, tolerance=1e6)
    assert net.history.latest.preserves == "function"


def test_compensation_evaluates_once_and_once_more_to_say_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in (False, True):
        net, asked = flattened(), []
        if constant:
            put_zero(net, "conv1", 1, "write", biases=False)
        evaluate = net.evaluate
        monkeypatch.setattr(net, "evaluate", lambda *a, e=evaluate, t=asked, **o: t.append(o) or e(*a, **o))
        with net.edit() as edit:
            edit.prune("conv1", units=[1], compensate=True, batch=data_of(net, 3)[1])
        taps = [list(one.get("taps", ())) for one in asked]
        assert taps == ([["flatten"]] if constant else [["flatten"], []])


def test_compensation_needs_a_consumer_and_a_batch() -> None:
    net = random_network(gn.mlp([3, 5, 2]), 0)
    with pytest.raises(gn.EditError, match="needs data"), net.edit() as edit:
        edit.prune("fc1", units=[1], compensate=True)
    with pytest.raises(gn.EditError, match="no stored weight reads 'head'"), net.edit() as edit:
        edit.prune("head", units=[1], compensate=True, batch=data_of(net, 3)[1])
    before = state_of(net)
    for x in (torch.ones(0, 3), torch.full((2, 3), float("nan")), torch.full((2, 3), float("inf"))):
        with pytest.raises(gn.EditError, match="not finite"), net.edit() as edit:
            edit.prune("fc1", units=[1], compensate=True, batch=(x.double(), None))
    check_bits(before, state_of(net), "a refused prune")


def test_a_norm_over_the_group_still_forbids_a_promise() -> None:
    net = random_network(gn.mlp([4, 6, 2], norm="layer"), 0)
    put_zero(net, "fc1", 1, "write", biases=False)
    with pytest.raises(gn.EditError, match="coupled"), net.edit() as edit:
        edit.prune("fc1", units=[1], compensate=True, batch=data_of(net, 3)[1], preserves="approximate")


def test_dormant_consumers_keep_their_biases() -> None:
    net = random_network(gn.mlp([3, 5, 4, 2]), 0)
    with net.edit() as edit:
        edit.retire("fc2", units=[1])
    kept = net.reserve_of("fc2.bias").clone()
    with net.edit() as edit:
        edit.prune("fc1", units=[2], compensate=True, batch=data_of(net, 3)[1])
    assert float(net.reserve_of("fc2.bias")[1]) == float(kept[1])


@given(st.data())
def test_what_is_said_to_preserve_the_function_does(data: st.DataObject) -> None:
    """Random graphs; a unit whose incoming weights, or outgoing ones, are zero; new inputs."""
    graph = data.draw(graphs())
    net = random_network(graph, 2)
    names = [n for n, g in graph.groups.items() if g.frozen is None and spare(graph, n) > 0]
    if not names:
        return
    group = data.draw(st.sampled_from(sorted(names)))
    unit = data.draw(st.integers(0, graph.groups[group].size - 1))
    role = data.draw(st.sampled_from(["write", "read"]))
    put_zero(net, group, unit, role, biases=False)
    compensate = role == "write" and bool(blocks(net, group, unit, "read"))
    inputs = sample(graph, 5)
    before = output(net, *inputs)
    with net.edit() as edit:
        edit.prune(group, units=[unit], compensate=compensate, batch=(sample(graph, 6), None) if compensate else None)
    if net.history.latest.preserves == "function":
        check_preserved(net, before, *inputs)
    if role == "read" and visible(graph.groups[group]) is None and blocks(net, group, 0, "read"):
        assert net.history.latest.preserves == "function"


@given(st.data())
@settings(max_examples=20)
def test_the_compact_network_is_the_masked_one(data: st.DataObject) -> None:
    """Pruned by any score, the network gives what it gives with the units' outgoing weights at zero."""
    graph = data.draw(graphs())
    net, inputs = random_network(graph, 2), sample(graph, 5)
    names = [n for n, g in graph.groups.items() if g.frozen is None and visible(g) is None and spare(graph, n) > 0]
    names = [n for n in names if blocks(net, n, 0, "read")]
    if not names:
        return
    group = data.draw(st.sampled_from(sorted(names)))
    score = data.draw(st.sampled_from(["l2", "fpgm", "contribution", "apoz", "redo", "random", "taylor"]))
    masked = copy.deepcopy(net)
    with net.edit() as edit:
        gone = edit.prune(group, lowest=1, score=score, batch=(inputs, None), loss=wave_loss)
    put_zero(masked, group, gone[0], "read")
    check_close(output(masked, *inputs), output(net, *inputs), f"{group} by {score}", tolerance=1e-12)


# -- thresholds -------------------------------------------------------------------------------------------------


def test_every_consumer_must_read_nothing_of_a_unit_that_goes_without_a_trace() -> None:
    ops = [op("input", "x", shape=(4,)), op("linear", "a", "x", out=5)]
    ops += [op("linear", "b", "a", out=3), op("linear", "c", "a", out=3), op("add", "s", "b", "c")]
    net = random_network(gn.Graph.from_ops(ops, ["s"]), 0)
    with torch.no_grad():
        net.b.weight[:, 1] = 0
    with pytest.raises(gn.EditError, match="outgoing weights"), net.edit() as edit:
        edit.prune("a", units=[1], preserves="function")
    with torch.no_grad():
        net.c.weight[:, 1] = 0
    for units in ([1, 2], [2, 1], [1, 4]):  # the first of them says nothing of the other
        with pytest.raises(gn.EditError, match="outgoing weights"), net.edit() as edit:
            edit.prune("a", units=units, preserves="function")
    (x,) = sample(net.graph, 1)
    before = net(x)
    with net.edit() as edit:
        edit.prune("a", units=[1], preserves="function")
    check_preserved(net, before, x)


def test_an_id_is_never_given_twice() -> None:
    net = random_network(gn.mlp([4, 5, 3]), 0)
    with net.edit() as edit:
        edit.prune("fc1", units=[3, 4])
    with net.edit() as edit:
        assert edit.grow("fc1", 2) == (5, 6)
    with net.edit() as edit:
        assert edit.reset("fc1", units=[6]) == (7,)
        assert edit.grow("fc1", 1) == (8,)
        assert edit.split("fc1", units=[8]) == (9,)
    assert net.graph.groups["fc1"].ids == (0, 1, 2, 5, 7, 8, 9)


def test_below_takes_every_unit_at_most_the_threshold() -> None:
    net = random_network(gn.mlp([3, 5, 2]), 0)
    with torch.no_grad():
        net.fc1.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None])
    with net.edit() as edit:
        assert edit.prune("fc1", below=2.0) == (0, 1)
        assert edit.retire("fc1", below=3) == (2,)
        assert edit.prune("fc1", below=0.5) == ()
    assert net.graph.groups["fc1"].ids == (3, 4)
    assert [step.arguments for step in net.history.latest.steps] == [
        {"below": 2.0, "score": "magnitude"}, {"below": 3, "score": "magnitude"},
    ]  # fmt: skip
    version = net.version
    with net.edit() as edit:
        assert edit.prune("fc1", below=0.5) == ()
    assert net.version == version
    with pytest.raises(gn.EditError, match="2 of 2 units are at most"), net.edit() as edit:
        edit.prune("fc1", below=9.0)
    with pytest.raises(gn.EditError), net.edit() as edit:
        edit.retire("fc1", below=9.0)
    assert net.version == version


def test_a_last_unit_that_an_op_would_broadcast_is_refused_with_what_to_do() -> None:
    """Beside a constant dimension of one, which is multiplied with all units, a single unit has another meaning."""
    ops = [
        {"name": "one", "op": "linear", "inputs": ["x"], "out": 4},
        {"name": "low", "op": "linear", "inputs": ["z"], "out": 2},
        {"name": "joined", "op": "mul", "inputs": ["one", "narrow"]},
    ]
    ops.insert(2, {"name": "narrow", "op": "linear", "inputs": ["low"], "out": 1})
    graph = gn.load({"inputs": {"x": {"shape": [3]}, "z": {"shape": [3]}}, "ops": ops})
    net = gn.Network(graph, seed=0)
    with net.edit() as edit:
        edit.prune("low", keep=1)
    with pytest.raises(gn.EditError, match="keep two in 'one'"), net.edit() as edit:
        edit.prune("one", keep=1)
    assert net.version == 1
