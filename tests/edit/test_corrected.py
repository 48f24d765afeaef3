"""Growth of groups that a norm or an attention computes along: exact with a correction, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import graphnet as gn
from graphnet.ir.graph import Graph


def network(graph: Graph, *shape: int) -> tuple[gn.Network, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    net = gn.Network(graph, seed=0).double()
    with torch.no_grad():  # gains and shifts that are not the identity
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.attach(optimizer)
    x = torch.randn(5, *shape, dtype=torch.float64) if shape else torch.randint(0, 11, (3, 6))
    for _ in range(2):
        step(net, optimizer, x)
    return net, optimizer, x


def step(net: gn.Network, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


def transformer(**options: Any) -> Graph:
    return gn.transformer(11, width=8, depth=2, heads=2, context=6, hidden=12, **options)


CASES: dict[str, tuple[Graph, tuple[int, ...], str]] = {
    "layer norm behind a layer": (gn.mlp([4, 8, 6, 2], norm="layer"), (4,), "fc1"),
    "RMS norm behind a layer": (gn.mlp([4, 8, 6, 2], norm="rms"), (4,), "fc1"),
    "stream under layer norms": (transformer(), (), "tok"),
    "stream under RMS norms": (transformer(norm="rms"), (), "tok"),
    "tied stream under layer norms": (transformer(tied=True), (), "tok"),
    "tied stream under RMS norms": (transformer(norm="rms", tied=True), (), "tok"),
    "stream, grouped queries": (transformer(kv_heads=1), (), "tok"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, 3, 9])
def test_corrected_growth_is_exact(case: str, count: int) -> None:
    graph, shape, group = CASES[case]
    net, optimizer, x = network(graph, *shape)
    before = net(x).detach()
    eps = {name: op.model_dump()["eps"] for name, op in net.graph.ops.items() if op.op in ("layer_norm", "rms_norm")}
    size = net.graph.groups[group].size
    with net.edit() as edit:
        edit.grow(group, count, init="corrected", preserves="function")
    after = net(x).detach()
    assert float((after - before).abs().max() / before.abs().max()) <= 1e-12
    changed = [name for name, old in eps.items() if net.graph.ops[name].model_dump()["eps"] != old]
    assert changed
    for name in changed:
        new = net.graph.ops[name].model_dump()["eps"]
        assert new == pytest.approx(eps[name] * size / (size + count), rel=1e-12)
        assert net.get_submodule(name).eps == new, "the layer runs with the epsilon of its op"
    for _ in range(2):
        step(net, optimizer, x)
    weights = [p for p in net.parameters() if p.dim() == 2]
    assert all(torch.isfinite(p).all() for p in weights)


def test_newborns_learn_from_the_first_step() -> None:
    net, _, x = network(gn.mlp([4, 8, 6, 2], norm="layer"), 4)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="corrected")
    net(x).square().mean().backward()
    incoming = net.get_parameter("fc1.weight").grad
    assert incoming is not None
    assert bool((incoming[-2:].abs().sum(1) > 0).all())


def test_the_gain_s_moments_follow_by_the_chain_rule() -> None:
    net, optimizer, x = network(gn.mlp([4, 8, 6, 2], norm="rms"), 4)
    name = next(name for name, op in net.graph.ops.items() if op.op == "rms_norm")
    gain = net.get_parameter(f"{name}.weight")
    optimizer.zero_grad()
    net(x).square().mean().backward()
    assert gain.grad is not None
    then, moments = gain.grad.clone(), {k: v.clone() for k, v in optimizer.state[gain].items() if v.dim()}
    with net.edit() as edit:
        edit.grow("fc1", 4, init="corrected")
    carried = gain.grad[:8].clone()
    net.zero_grad()
    net(x).square().mean().backward()
    assert torch.allclose(gain.grad[:8], carried, rtol=1e-10, atol=0), "what was carried is what a backward gives"
    factor = (12 / 8) ** 0.5
    assert torch.allclose(carried, then * factor, rtol=1e-12)
    assert torch.allclose(optimizer.state[gain]["exp_avg"][:8], moments["exp_avg"] * factor, rtol=1e-12)
    assert torch.allclose(optimizer.state[gain]["exp_avg_sq"][:8], moments["exp_avg_sq"] * factor**2, rtol=1e-12)


def test_group_norm_without_positions() -> None:
    graph = gn.mlp([4, 8, 6, 2], norm="group")
    net, _, x = network(graph, 4)
    group = next(name for name, one in graph.groups.items() if one.coupled)
    before = net(x).detach()
    with net.edit() as edit:
        edit.grow(group, 1, init="corrected", preserves="function")
    assert float((net(x).detach() - before).abs().max() / before.abs().max()) <= 1e-12


CONVOLVED = {
    "inputs": {"x": {"shape": [3, 4, 4]}},
    "ops": [
        {"name": "c", "op": "conv2d", "out": 6, "kernel": 1}, {"name": "n", "op": "group_norm", "groups": 2},
        {"name": "a", "op": "gelu"}, {"name": "d", "op": "conv2d", "out": 2, "kernel": 1},
    ],
    "outputs": ["d"],
}  # fmt: skip


@pytest.mark.parametrize("count", [3, 6])
def test_group_norm_over_positions_takes_equal_copies(count: int) -> None:
    graph = gn.load(CONVOLVED)
    net, _, x = network(graph, 3, 4, 4)
    inside = next(name for name, one in graph.groups.items() if one.coupled)
    before = net(x).detach()
    with net.edit() as edit:
        edit.grow(inside, count, init="corrected", preserves="function")
    assert float((net(x).detach() - before).abs().max() / before.abs().max()) <= 1e-12
    with pytest.raises(gn.EditError, match=f"grow it by {3 + count} or a multiple, not by 1"), net.edit() as edit:
        edit.grow(inside, 1, init="corrected")


@pytest.mark.parametrize("norm", ["layer", "rms", "group"])
def test_equal_copies_keep_the_statistics_of_a_norm_and_unequal_ones_do_not(norm: Any) -> None:
    graph = gn.mlp([4, 8, 6, 2], norm=norm)
    net, _, x = network(graph, 4)
    group = next(name for name, one in graph.groups.items() if one.coupled)
    before = net(x).detach()
    with net.edit() as edit:
        edit.split(group, units=list(edit.graph.groups[group].ids), copies=1, preserves="function")
    assert float((net(x).detach() - before).abs().max() / before.abs().max()) <= 1e-12
    for units, options in ((net.graph.groups[group].ids[:2], {}), (net.graph.groups[group].ids, {"shares": "random"})):
        with pytest.raises(gn.EditError, match="coupled"), net.edit() as edit:
            edit.split(group, units=list(units), preserves="function", **options)


def test_equal_copies_of_a_part_of_what_a_norm_reads_are_not_exact() -> None:
    """Of a concat of two groups only one is copied: the other weighs less in the mean."""
    graph = gn.load({
        "inputs": {"x": {"shape": [4]}},
        "ops": [
            {"name": "a", "op": "linear", "inputs": ["x"], "out": 3},
            {"name": "b", "op": "linear", "inputs": ["x"], "out": 2},
            {"name": "both", "op": "concat", "inputs": ["a", "b"]}, {"name": "n", "op": "layer_norm"},
            {"name": "head", "op": "linear", "out": 2},
        ],
        "outputs": ["head"],
    })  # fmt: skip
    net, _, _ = network(graph, 4)
    with pytest.raises(gn.EditError, match="coupled"), net.edit() as edit:
        edit.split("a", units=list(edit.graph.groups["a"].ids), copies=1, preserves="function")


def test_refusals() -> None:
    def refused(graph: Graph, group: str, words: str, init: str = "corrected") -> None:
        net = gn.Network(graph, seed=0)
        with pytest.raises(gn.EditError, match=words), net.edit() as edit:
            edit.grow(group, 2, init=init, preserves="function")
        assert net.version == 0

    refused(gn.mlp([4, 8, 2]), "fc1", "no op computes a statistic")
    convolved = {
        "inputs": {"x": {"shape": [3, 4, 4]}},
        "ops": [
            {"name": "c", "op": "conv2d", "out": 6, "kernel": 1}, {"name": "n", "op": "group_norm", "groups": 2},
            {"name": "d", "op": "conv2d", "out": 2, "kernel": 1},
        ],
        "outputs": ["d"],
    }  # fmt: skip
    inside = next(name for name, one in gn.load(convolved).groups.items() if one.coupled)
    refused(gn.load(convolved), inside, "positions")
    refused(gn.mlp([4, 8, 6, 2]), "fc1", "no attention multiplies", "zero-keys")
    document = {
        "inputs": {"x": {"shape": [4]}},
        "ops": [
            {"name": "a", "op": "linear", "out": 8}, {"name": "r", "op": "relu"},
            {"name": "n", "op": "layer_norm"}, {"name": "head", "op": "linear", "out": 2},
        ],
        "outputs": ["head"],
    }  # fmt: skip
    refused(gn.load(document), "a", "'r' .relu. stands between")
    post_norm = {
        "inputs": {"x": {"shape": [4]}},
        "ops": [
            {"name": "a", "op": "linear", "out": 8},
            {"name": "n", "op": "layer_norm", "inputs": ["a"]},
            {"name": "b", "op": "linear", "out": 8, "inputs": ["n"]},
            {"name": "s", "op": "add", "inputs": ["n", "b"]},
            {"name": "m", "op": "layer_norm", "inputs": ["s"]},
            {"name": "head", "op": "linear", "out": 2, "inputs": ["m"]},
        ],
        "outputs": ["head"],
    }
    refused(gn.load(post_norm), "a", "adds a newborn's zero|post-norm")
    mixed = {
        "inputs": {"x": {"shape": [4]}},
        "ops": [
            {"name": "a", "op": "linear", "out": 8, "inputs": ["x"]},
            {"name": "n", "op": "rms_norm", "inputs": ["a"]},
            {"name": "b", "op": "linear", "out": 8, "inputs": ["n"]},
            {"name": "s", "op": "add", "inputs": ["a", "b"]},
            {"name": "m", "op": "layer_norm", "inputs": ["s"]},
            {"name": "head", "op": "linear", "out": 2, "inputs": ["m"]},
        ],
        "outputs": ["head"],
    }
    refused(gn.load(mixed), "a", "'n' .rms_norm. is left alone by newborns that are zero, 'm' by those")


@pytest.mark.parametrize("options", [{}, {"kv_heads": 1}, {"norm": "rms"}])
def test_the_six_expansions_of_a_transformer_are_exact(options: dict[str, Any]) -> None:
    """MLP, head, value, key, hidden and layer, one after another in one network (Gesmundo and Maile, 2308.06103)."""
    net, optimizer, x = network(transformer(**options))
    heads = next(name for name, one in net.graph.groups.items() if one.kind == "heads")
    for what in ("mlp", "head", "value", "key", "hidden", "layer"):
        before = net(x).detach()
        with net.edit() as edit:
            if what == "mlp":
                edit.grow("blocks.0.fc1", 3, preserves="function")
            elif what == "head":
                edit.grow(heads, 1, preserves="function")
            elif what == "value":
                edit.grow("blocks.0.v_proj.head_dim", 2, preserves="function")
            elif what == "key":
                edit.grow("blocks.0.q_proj.head_dim", 2, init="zero-keys", preserves="function")
            elif what == "hidden":
                edit.grow("tok", 3, init="corrected", preserves="function")
            else:
                edit.deepen(
                    "blocks.0.add2", form="residual", norm="layer_norm", activation="gelu", preserves="function"
                )
        gap = float((net(x).detach() - before).abs().max() / before.abs().max())
        assert gap <= 1e-12, what
        step(net, optimizer, x)


def test_new_classes_leave_the_old_outputs_alone() -> None:
    net, optimizer, x = network(gn.mlp([4, 8, 2]), 4)
    before = net(x).detach()
    with net.edit() as edit:
        edit.grow("head", 2, init="mean-rows")
    after = net(x).detach()
    assert torch.equal(after[:, :2], before)
    assert torch.allclose(after[:, 2], before.mean(1), rtol=1e-12)
    assert "what it returned before is unchanged" in net.history.latest.steps[0].note
    step(net, optimizer, x)
