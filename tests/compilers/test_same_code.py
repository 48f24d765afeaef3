"""A width edit that no size in the code has to do with leaves the code as it is."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import graphnet as gn
from graphnet.compilers.plain import lower, same_code
from graphnet.testing import graphs, random_network, sample


@given(st.data())
def test_where_the_code_is_said_to_be_the_same_it_is(data: st.DataObject) -> None:
    net = random_network(data.draw(graphs()), 0)
    groups = sorted(name for name, group in net.graph.groups.items() if group.frozen is None)
    if not groups:
        return
    before, program = net.graph, net._current.program
    with net.edit() as edit:
        edit.grow(data.draw(st.sampled_from(groups)), data.draw(st.integers(1, 3)), init="kaiming")
    anew = lower(net.graph, net)
    assert str(net._current.program.code) == str(anew.code)
    if same_code(before, net.graph):
        assert str(program.code) == str(anew.code)
    net.eval()
    inputs = sample(net.graph)
    pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (net(*inputs), anew(*inputs))), strict=True)
    for one, other in pairs:
        assert torch.equal(one, other)


def test_a_feed_forward_layer_does_not_lower_a_transformer_again_and_its_heads_do() -> None:
    net = gn.Network(gn.transformer(11, width=8, depth=2, heads=2, context=6), seed=0)
    program = net._current.program
    with net.edit() as edit:
        edit.grow("blocks.1.fc1", 3)
    assert net._current.program is program
    with net.edit() as edit:
        edit.grow("blocks.1.q_proj.heads", 1, init="kaiming")
    assert net._current.program is not program
