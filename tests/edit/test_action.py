"""Laws 1, 4, 6 and 7 over random layouts, graphs and edits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import graphnet as gn
from graphnet.edit.action import move, reduce_units, write_block
from graphnet.edit.staged import Maps, Staged
from graphnet.edit.unit_map import UnitMap
from graphnet.ir.layout import atom, const, join, times
from graphnet.testing import (
    check_edit,
    check_functor,
    check_lowering,
    check_permutation,
    check_round_trip,
    edits,
    graphs,
    layouts,
    optimizers,
    random_network,
    sample,
    train,
)

NAMES = ("A", "B", "C")


def free(graph: gn.Graph) -> list[str]:
    """Groups that may be edited; a graph that has none is passed over."""
    names = sorted(name for name, group in graph.groups.items() if group.frozen is None)
    assume(names)
    return names


@st.composite
def unit_maps(draw: st.DrawFn, old: dict[str, int]) -> dict[str, UnitMap]:
    """A map for each group: kept, dropped, permuted, repeated and newborn units in any mixture."""
    return {
        group: UnitMap(group, size, np.array(draw(st.lists(st.integers(-1, size - 1), min_size=1, max_size=5))))
        for group, size in old.items()
    }


@given(st.data())
@settings(max_examples=60)
def test_acting_twice_is_acting_by_the_composition(data: st.DataObject) -> None:
    sizes = {group: data.draw(st.integers(1, 4)) for group in NAMES}
    dims = data.draw(st.lists(layouts(NAMES), min_size=1, max_size=2))
    first = data.draw(unit_maps(sizes))
    second = data.draw(unit_maps({group: step.new for group, step in first.items()}))
    shape = [layout.size(sizes) for layout in dims]
    dtype = data.draw(st.sampled_from([torch.float64, torch.int64, torch.bool]))
    tensor = torch.arange(1, int(np.prod(shape)) + 1).reshape(shape).to(dtype)
    check_functor(tensor, dims, first, second, newborn=data.draw(st.sampled_from([0.0, 1.0])))


def test_a_concat_flattened_channels_last_moves_inside_each_position() -> None:
    # 2*(A + B) with A = {a0, a1}, B = {b0}: positions a0 a1 b0 | a0 a1 b0
    layout = times(const(2), join(atom("A"), atom("B")))
    moved = move(torch.arange(6.0), [layout], {"A": np.array([1]), "B": np.array([0, -1])}, {"A": 2, "B": 1})
    assert moved.tolist() == [1, 2, 0, 4, 5, 0]


def test_a_flattened_channel_moves_with_all_its_positions() -> None:
    base = torch.arange(6.0)[None].repeat(2, 1)
    by_channel = move(base, [const(2), times(atom("C"), const(2))], {"C": np.array([2, -1, 0])}, {"C": 3})
    assert by_channel.tolist() == [[4, 5, 0, 0, 0, 1]] * 2
    by_position = move(base, [const(2), times(const(2), atom("C"))], {"C": np.array([2, -1, 0])}, {"C": 3})
    assert by_position.tolist() == [[2, 0, 0, 5, 0, 3]] * 2


@pytest.mark.parametrize("source", [[0, 1, -1], [0], [1, 0], [1, -1, 0], [0, 0, 1]])
@pytest.mark.parametrize("dim", [0, 1])
def test_channels_last_stays_channels_last(source: list[int], dim: int) -> None:
    weight = torch.randn(2, 2, 3, 3).to(memory_format=torch.channels_last)
    dims = [atom("A") if d == dim else const(n) for d, n in enumerate(weight.shape)]
    moved = move(weight, dims, {"A": np.array(source)}, {"A": 2})
    plain = move(weight.contiguous(), dims, {"A": np.array(source)}, {"A": 2})
    assert torch.equal(moved, plain)
    if min(moved.shape[:2]) > 1:  # with one channel both formats are the same bytes
        assert moved.is_contiguous(memory_format=torch.channels_last)
        assert not moved.is_contiguous()
    assert plain.is_contiguous()


def test_a_moved_tensor_shares_no_memory_with_the_old_one() -> None:
    base = torch.randn(4, 3)
    for source in ([0, 1], [0, 1, 2, 3, -1], [3, 2, 1, 0]):
        moved = move(base, [atom("A"), const(3)], {"A": np.array(source)}, {"A": 4})
        assert moved.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()


def test_a_block_is_written_along_every_dimension_that_is_given() -> None:
    tensor = torch.zeros(3, 4, 2)
    write_block(tensor, [np.array([2, 0]), np.array([1, 3]), None], torch.arange(1.0, 9.0).reshape(2, 2, 2))
    assert tensor[2].tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert tensor[0].tolist() == [[0, 0], [5, 6], [0, 0], [7, 8]]
    assert not tensor[1].any()


def test_what_was_written_before_a_growth_is_carried_through_it() -> None:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    before = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    with net.edit() as edit:
        edit.shrink_and_perturb(shrink=0.5, noise=0.0)
        edit.grow("fc2", 2, init="kaiming")
        edit.grow("fc1", 3, init="kaiming")
    weight = net.fc2.weight.detach()
    assert torch.equal(weight[:5, :6], 0.5 * before["fc2.weight"])
    assert bool((weight[5:] != 0).all()), "rows that the first growth drew, and columns that the second one did"
    assert bool((weight[:, 6:] != 0).all())
    assert torch.equal(net.fc1.weight[:6], 0.5 * before["fc1.weight"])
    assert torch.equal(net.fc2.bias, torch.cat([0.5 * before["fc2.bias"], torch.zeros(2, dtype=torch.float64)]))


def test_the_sum_over_a_flattened_channel_is_over_its_positions() -> None:
    values = torch.tensor([[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 30.0, 40.0]])
    assert reduce_units(values, 1, times(atom("A"), const(2)), "A", {"A": 2}).tolist() == [10, 100]
    assert reduce_units(values, 1, times(const(2), atom("A")), "A", {"A": 2}).tolist() == [44, 66]
    assert reduce_units(values, 1, join(atom("A"), atom("A")), "A", {"A": 2}).tolist() == [44, 66]


@given(layouts(NAMES), st.sampled_from(NAMES), st.integers(0, 2**20))
def test_reducing_sums_exactly_what_belongs_to_a_unit(layout: Any, group: str, seed: int) -> None:
    sizes = {"A": 2, "B": 3, "C": 1}
    values = torch.randn(2, layout.size(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    owners = layout.owners(group, sizes)
    expected = torch.stack([values[:, np.flatnonzero(owners == unit)].sum() for unit in range(sizes[group])])
    torch.testing.assert_close(reduce_units(values, 1, layout, group, sizes), expected, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_lowering_and_round_trip_hold_through_random_edits(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, data.draw(st.integers(0, 99)))
    optimizer = data.draw(optimizers())(net.parameters())
    net.attach(optimizer)
    train(net, optimizer, 2)
    for call in data.draw(edits(graph, operators=["grow", "prune", "retire", "recruit"])):
        check_edit(net, call.apply, ["valid", "lowering"])
    group = data.draw(st.sampled_from(free(net.graph)))
    if not net.graph.groups[group].dormant:
        assert check_round_trip(net, group, 1)
    train(net, optimizer, 1)  # and it still trains


@given(st.data())
def test_growing_and_pruning_again_restores_every_bit(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 3)
    optimizer = data.draw(optimizers())(net.parameters())
    net.attach(optimizer)
    train(net, optimizer, 2)
    group = data.draw(st.sampled_from(free(graph)))
    state = data.draw(st.sampled_from(["cold", "aged", "transplant"]))
    init = data.draw(st.sampled_from(["kaiming", "copy-std"]))
    check_round_trip(net, group, data.draw(st.integers(1, 4)), init=init, state=state)


def test_the_round_trip_holds_in_one_transaction_and_for_channels_last() -> None:
    net = random_network(gn.convnet((3, 8, 8), channels=(4, 6), hidden=(5,), norm="batch"), 0)
    net = net.to(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with net.edit() as edit:
        born = edit.grow("conv1", 3, init="kaiming")
        edit.grow("fc1", 2, init="kaiming")
        edit.prune("conv1", units=born)
        edit.prune("fc1", lowest=2, score="random")
    with net.edit() as edit:
        edit.grow("conv2", 2, init="kaiming")
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.conv1.weight, before["conv1.weight"])
    assert torch.equal(net.conv2.weight[:6], before["conv2.weight"])


@given(st.data())
def test_permuting_a_group_changes_nothing_but_order(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    train(net, optimizer, 1)
    group = data.draw(st.sampled_from(free(graph)))
    order = data.draw(st.permutations(range(graph.groups[group].size)))
    check_permutation(net, group, order, *sample(graph, 7))


@given(st.data())
def test_a_whole_transaction_moves_once_what_step_by_step_would_move(data: st.DataObject) -> None:
    """Blocks written between maps are carried through the later ones."""
    sizes = {"A": data.draw(st.integers(1, 4)), "B": data.draw(st.integers(1, 3))}
    dims = [data.draw(layouts(("A", "B"), depth=1)) for _ in range(2)]
    base = torch.arange(1.0, 1.0 + np.prod([d.size(sizes) for d in dims])).reshape([d.size(sizes) for d in dims])
    maps, eager, mark = Maps(dict(sizes)), base.clone(), 100.0
    staged = Staged(base, dims, maps, 0.5)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            index = [
                np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
                if data.draw(st.booleans())
                else None
                for n in eager.shape
            ]
            shape = [n if at is None else at.size for n, at in zip(eager.shape, index, strict=True)]
            value = torch.arange(mark, mark + np.prod(shape)).reshape(shape)
            mark += 100.0
            staged.write(index, value)
            write_block(eager, index, value)
        else:
            step = data.draw(unit_maps(sizes))
            eager = move(eager, dims, {g: m.source for g, m in step.items()}, sizes, newborn=0.5).clone()
            staged.advance(step, sizes)
            maps.advance(step)
            sizes = {group: one.new for group, one in step.items()}
        if data.draw(st.booleans()):
            assert torch.equal(staged.value(), eager)
    assert torch.equal(staged.value(), eager)
    assert torch.equal(base, torch.arange(1.0, 1.0 + base.numel()).reshape(base.shape))


@pytest.mark.parametrize(
    "graph",
    [
        gn.transformer(7, width=8, depth=1, heads=4, kv_heads=2, context=6, norm="rms"),
        gn.transformer(7, width=8, depth=1, heads=2, context=6, tied=True),
        gn.convnet((2, 4, 4), channels=(12,), hidden=(5,), norm="group"),
        gn.resnet((2, 4, 4), stages=(3, 4), blocks=1, classes=3),
    ],
    ids=["grouped-queries", "tied", "group-norm", "residual"],
)
def test_every_group_of_a_graph_can_be_grown_and_pruned(graph: gn.Graph) -> None:
    for group in (name for name, group in graph.groups.items() if group.frozen is None):
        net = random_network(graph, 0)
        for _ in range(2):
            with net.edit() as edit:
                edit.grow(group, 2, init="copy-std")
            check_lowering(net)  # attention keeps the scale that it was built with
            with net.edit() as edit:
                edit.prune(group, lowest=1, score="random")
            check_lowering(net)


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_attention_prunes_to_one_head_and_grows_from_one(kv_heads: int | None) -> None:
    graph = gn.transformer(11, width=16, depth=1, heads=4, kv_heads=kv_heads, context=6)
    name = "blocks.0.q_proj.heads" if kv_heads is None else "blocks.0.q_proj.kv_heads"
    net = random_network(graph, 0)
    with net.edit() as edit:
        edit.prune(name, keep=1)
    check_lowering(net)
    with net.edit() as edit:
        edit.grow(name, 2)
    check_lowering(net)


def test_a_head_keeps_two_features() -> None:
    net = random_network(gn.transformer(11, width=16, depth=1, heads=4, context=6), 0)
    with pytest.raises(gn.EditError, match="keeps at least 2"), net.edit() as edit:
        edit.prune("blocks.0.v_proj.head_dim", keep=1)
