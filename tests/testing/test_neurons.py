"""The oracle that walks over neurons agrees with networks, before and after edits, and sees a wrong edge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphnet as gn
from graphnet.testing import (
    COUNTS,
    check_edit,
    check_neurons,
    concat_nets,
    convnets,
    edit_calls,
    mlps,
    neurons,
    random_network,
    residual_nets,
    shared_nets,
    unets,
)
from graphnet.testing.data import sample

NETS = st.one_of(
    mlps(norms=[None, "batch"]), convnets(), residual_nets(), concat_nets(), unets(), shared_nets()
)  # fmt: skip


@settings(max_examples=15)
@given(st.data())
def test_neuron_by_neuron_is_the_network_also_after_edits(data: st.DataObject) -> None:
    net = random_network(data.draw(NETS), 1)
    before = COUNTS.laws["neurons"]
    known = check_neurons(net)
    assert COUNTS.laws["neurons"] == before + known
    call = data.draw(edit_calls(net.graph, ["grow", "prune", "retire", "split", "permute", "insert"]))
    check_edit(net, call.apply, ["valid"])
    check_neurons(net)


@pytest.mark.parametrize(
    "build",
    [
        lambda: gn.mlp([3, 5, 4, 2], norm="batch"),
        lambda: gn.convnet((2, 6, 6), channels=(3, 4), hidden=(5,), norm="batch", pool=2),
        lambda: gn.resnet((2, 4, 4), stages=(3, 4), blocks=1, classes=3),
        lambda: gn.load({
            "inputs": {"x": {"shape": [4, 9]}},
            "ops": [
                {"name": "a", "op": "conv1d", "out": 6, "kernel": 3, "stride": 2, "padding": 2, "dilation": 2},
                {"name": "b", "op": "conv1d", "out": 4, "kernel": 2, "groups": 2},
                {"name": "c", "op": "conv1d", "out": 8, "kernel": 2, "depthwise": True},
                {"name": "flat", "op": "flatten"}, {"name": "head", "op": "linear", "out": 2},
            ],
        }),
    ],
)  # fmt: skip
def test_these_networks_are_known(build: Callable[[], gn.Graph]) -> None:
    assert check_neurons(random_network(build(), 0))


def test_other_ops_are_not_known() -> None:
    assert not check_neurons(random_network(gn.mlp([3, 4, 2], norm="layer"), 0))
    assert not check_neurons(random_network(gn.transformer(7, width=8, depth=1, heads=2, context=6, hidden=6), 0))


@pytest.mark.parametrize("group", ["fc1", "conv1"])
def test_an_edge_that_leads_elsewhere_is_seen(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = gn.mlp([3, 5, 2]) if group == "fc1" else gn.convnet((2, 4, 4), channels=(3,), hidden=(), classes=2)
    net = random_network(graph, 0)
    expand: Any = gn.Graph.expand

    def crossed(self: gn.Graph, *args: Any, **options: Any) -> nx.DiGraph:
        """Two units of the group have changed places in what comes in."""
        found = expand(self, *args, **options)
        names = {(group, 0): (group, 1), (group, 1): (group, 0)}
        wrong = nx.DiGraph()
        for one, two, data in found.edges(data=True):
            wrong.add_edge(one, names.get(two, two), **data)
        return wrong

    inputs = sample(graph)
    (right,) = neurons(graph, net.state_dict(), inputs) or ()
    np.testing.assert_allclose(right, net.eval()(*inputs).detach().numpy(), rtol=1e-12)
    monkeypatch.setattr(gn.Graph, "expand", crossed)
    with pytest.raises(AssertionError, match="neuron by neuron: output 0 differs"):
        check_neurons(net)


def test_it_reads_the_units_that_are_live() -> None:
    net = random_network(gn.mlp([3, 5, 2]), 0)
    x = torch.randn(4, 3, dtype=torch.float64)
    with net.edit() as edit:
        edit.retire("fc1", units=[1, 3])
    (found,) = neurons(net.graph, net.state_dict(), [x]) or ()
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-12)


def test_a_depthwise_multiplier_is_left_out() -> None:
    """Its units stand once for each channel, and read another one each time."""
    net = random_network(gn.convnet((2, 4, 4), channels=(3,), hidden=()), 0)
    assert check_neurons(net)
    with net.edit() as edit:
        edit.replace("conv1", by="separable", rank=2)
    assert not check_neurons(net)
