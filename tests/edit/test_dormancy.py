"""Dormant units leave and come back as they were, and scores read what they would do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.edit.operators.dormancy import score_dormant
from graphnet.edit.plan import Plan
from graphnet.testing import check_bits, check_close, check_lowering, graphs, random_network, sample, train, wave_loss


def backbone(seed: int = 0) -> gn.Network:
    return random_network(gn.mlp([5, 8, 7, 6, 3], activation="gelu"), seed)


def weights(net: gn.Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def dense_forward(
    tensors: dict[str, Tensor], x: Tensor, masks: dict[str, Tensor], open_: str = ""
) -> dict[str, Tensor]:
    """The masked backbone by hand: h = act(z) * m for every layer; the mask of ``open_`` is applied after recording."""
    found, h = {}, x
    for layer in ("fc1", "fc2", "fc3"):
        h = torch.nn.functional.gelu(h @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"])
        found[layer] = h
        h = h * masks[layer]
    found["head"] = h @ tensors["head.weight"].T + tensors["head.bias"]
    return found


@given(st.data())
def test_retire_then_recruit_restores_every_weight(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 1)
    names = sorted(n for n, g in graph.groups.items() if g.frozen is None and g.size > 2)
    if not names:
        return
    before, (inputs) = weights(net), sample(graph, 2)
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    for name in chosen:
        with net.edit() as edit:
            edit.retire(name, lowest=data.draw(st.integers(1, graph.groups[name].size - 2)), score="random")
        check_lowering(net, *inputs)
    for name in data.draw(st.permutations(chosen)):
        with net.edit() as edit:
            edit.recruit(name, units=data.draw(st.permutations(net.graph.groups[name].dormant)))
        check_lowering(net, *inputs)
    check_bits(before, weights(net), "retire and recruit")
    assert not net._current.reserve


def masks_of(net: gn.Network) -> dict[str, Tensor]:
    masks = {}
    for layer in ("fc1", "fc2", "fc3"):
        group = net.graph.groups[layer]
        masks[layer] = torch.tensor([unit in group.ids for unit in sorted(group.extended)], dtype=torch.float64)
    return masks


def test_the_compact_network_is_the_masked_one() -> None:
    net = backbone()
    tensors = {name: tensor.requires_grad_() for name, tensor in weights(net).items()}
    with net.edit() as edit:
        edit.retire("fc1", units=[1, 4])
        edit.retire("fc2", units=[0, 6])
    (x,) = sample(net.graph, 1, 9)
    masked = dense_forward(tensors, x, masks_of(net))["head"]
    check_close(masked, net(x), "compact against masked", tolerance=1e-12)
    wave_loss(masked).backward()
    wave_loss(net(x)).backward()
    live1, live2 = list(net.graph.groups["fc1"].ids), list(net.graph.groups["fc2"].ids)
    dense = tensors["fc2.weight"].grad
    assert dense is not None
    torch.testing.assert_close(net.fc2.weight.grad, dense[live2][:, live1], rtol=1e-12, atol=1e-15)


def test_activation_frequency_of_dormant_units_is_the_masked_backbones() -> None:
    net = backbone()
    tensors = weights(net)
    with net.edit() as edit:
        edit.retire("fc1", units=[1, 4, 5])
        edit.retire("fc2", units=[0, 2, 6])
    (x,) = sample(net.graph, 1, 40)
    for tau in (0.0, 0.05):
        plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
        found = score_dormant(plan, net.graph.groups["fc2"], "activation-frequency", (x, None), None, {"tau": tau})
        h = dense_forward(tensors, x, masks_of(net))["fc2"]  # unmasked at fc2, fc1's mask in force
        torch.testing.assert_close(found, (h > tau).double().mean(0)[[0, 2, 6]], rtol=0, atol=1e-12)
    assert net.graph.groups["fc2"].dormant == (0, 2, 6)


def test_dormant_activation_does_not_depend_on_the_groups_own_mask() -> None:
    found = []
    for retired in ([2, 5], [0, 2, 3, 5]):
        net = backbone()
        with net.edit() as edit:
            edit.retire("fc1", units=[1, 4])
            edit.retire("fc2", units=retired)
        (x,) = sample(net.graph, 1, 40)
        plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
        values = score_dormant(plan, net.graph.groups["fc2"], "activation-frequency", (x, None), None, {})
        found.append({unit: float(v) for unit, v in zip(net.graph.groups["fc2"].dormant, values, strict=True)})
    assert found[0][2] == found[1][2]
    assert found[0][5] == found[1][5]


@pytest.mark.parametrize(("score", "options"), [("gradient", {}), ("gate", {})])
def test_gradient_scores_of_dormant_units_read_behind_the_mask(score: str, options: dict[str, Any]) -> None:
    net = backbone()
    tensors = weights(net)
    with net.edit() as edit:
        edit.retire("fc2", units=[0, 3])
    (x,) = sample(net.graph, 1, 20)
    mask = masks_of(net)["fc2"]
    h = torch.nn.functional.gelu(x @ tensors["fc1.weight"].T + tensors["fc1.bias"])
    h2 = torch.nn.functional.gelu(h @ tensors["fc2.weight"].T + tensors["fc2.bias"])
    after = (h2 * mask).requires_grad_()
    h3 = torch.nn.functional.gelu(after @ tensors["fc3.weight"].T + tensors["fc3.bias"])
    wave_loss(h3 @ tensors["head.weight"].T + tensors["head.bias"]).backward()
    assert after.grad is not None
    expected = after.grad.abs().mean(0) if score == "gradient" else (h2 * after.grad).sum(0).abs()
    plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
    found = score_dormant(plan, net.graph.groups["fc2"], score, (x, None), wave_loss, options)
    torch.testing.assert_close(found, expected[[0, 3]], rtol=1e-10, atol=1e-15)
    assert bool((found > 0).all())


def test_recruiting_takes_the_highest_and_breaks_ties_by_the_seed() -> None:
    (x,) = sample(backbone().graph, 1, 40)
    net = backbone()
    tensors = weights(net)
    with net.edit() as edit:
        edit.retire("fc1", units=[0, 1, 2, 3, 4, 5])
    rate = (torch.nn.functional.gelu(x @ tensors["fc1.weight"].T + tensors["fc1.bias"]) > 0.05).double().mean(0)[:6]
    with net.edit() as edit:
        chosen = edit.recruit("fc1", highest=2, batch=(x, None))
    assert min(rate[list(chosen)]) >= max(rate[[u for u in range(6) if u not in chosen]])
    picks = set()
    for seed in range(12):
        net = backbone()
        with net.edit() as edit:
            edit.retire("fc1", units=[0, 1, 2, 3, 4, 5])
        with net.edit(seed=seed) as edit:  # every rate is 1: all tie
            picks.add(edit.recruit("fc1", highest=2, batch=(x, None), tau=-1e9))
    assert len(picks) > 4


@pytest.mark.parametrize("first", ["fc1", "fc2"])
@pytest.mark.parametrize("back", ["fc1", "fc2"])
def test_cross_weights_of_dormant_units_in_adjacent_layers_survive(first: str, back: str) -> None:
    net = backbone()
    before = weights(net)
    units = {"fc1": [1, 5], "fc2": [0, 4]}
    second, later = ({"fc1", "fc2"} - {first}).pop(), ({"fc1", "fc2"} - {back}).pop()
    for name in (first, second):
        with net.edit() as edit:
            edit.retire(name, units=units[name])
    for name in (back, later):
        with net.edit() as edit:
            edit.recruit(name, units=units[name])
    check_bits(before, weights(net), "cross weights")


def test_live_weights_train_on_while_others_are_dormant() -> None:
    net = backbone()
    with net.edit() as edit:
        edit.retire("fc1", units=[1, 5])
    dormant = weights(backbone())["fc1.weight"][[1, 5]]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    net.attach(optimizer)
    wave_loss(net(*sample(net.graph, 1))).backward()
    optimizer.step()
    live = net.fc1.weight.detach().clone()
    with net.edit() as edit:
        edit.recruit("fc1", units=[5])
        edit.recruit("fc1", units=[1])
    assert net.graph.groups["fc1"].ids == tuple(range(8))
    assert torch.equal(net.fc1.weight[[1, 5]], dormant)
    assert torch.equal(net.fc1.weight[[0, 2, 3, 4, 6, 7]], live)


def test_a_unit_that_retires_later_comes_back_as_it_was_then() -> None:
    net = backbone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.attach(optimizer)
    with net.edit() as edit:
        edit.retire("fc1", units=[1])
    train(net, optimizer, 2)
    at = net.graph.groups["fc1"].ids.index(5)
    row, column = net.fc1.weight[at].detach().clone(), net.fc2.weight[:, at].detach().clone()
    with net.edit() as edit:
        edit.retire("fc1", units=[5])
    with net.edit() as edit:
        edit.recruit("fc1", units=[5])
    assert torch.equal(net.fc1.weight[at], row)
    assert torch.equal(net.fc2.weight[:, at], column)


def test_dormant_units_follow_growth_and_pruning_of_their_neighbours() -> None:
    net = backbone()
    before = weights(net)
    with net.edit() as edit:
        edit.retire("fc1", units=[1, 5])
    with net.edit() as edit:
        born = edit.grow("fc2", 2, init="kaiming")
        edit.prune("fc2", units=[3])
        edit.grow("fc1", 1, init="kaiming")
    with net.edit() as edit:
        edit.recruit("fc1", units=[1, 5])
    kept = [0, 1, 2, 4, 5, 6]
    assert net.graph.groups["fc1"].ids == (0, 1, 2, 3, 4, 5, 6, 7, 8)
    assert net.graph.groups["fc2"].ids == (*kept, *born)
    assert torch.equal(net.fc1.weight[:8], before["fc1.weight"])
    assert torch.equal(net.fc2.weight[:6, :8], before["fc2.weight"][kept])
    assert not net.fc2.weight[6:, [1, 5]].any()  # there never was a weight between these


def test_retire_and_recruit_in_one_transaction() -> None:
    net = backbone()
    before = weights(net)
    with net.edit() as edit:
        edit.retire("fc1", units=[2, 6])
        edit.recruit("fc1", units=[2])
        edit.recruit("fc1", units=[6])
    check_bits(before, weights(net), "in one transaction")
    assert net.version == 1


def test_refusals() -> None:
    net = backbone()
    with pytest.raises(gn.EditError, match="no dormant"), net.edit() as edit:
        edit.recruit("fc1", highest=1, batch=sample(net.graph))
    with net.edit() as edit:
        edit.retire("fc1", units=[2, 6])
    arguments: list[dict[str, Any]] = [
        {}, {"units": [2], "highest": 1}, {"units": [0]}, {"units": []}, {"highest": 3}, {"highest": 1},
        {"highest": 1, "batch": sample(net.graph), "state": "fresh"},
    ]  # fmt: skip
    for wrong in arguments:
        with pytest.raises(gn.EditError), net.edit() as edit:
            edit.recruit("fc1", **wrong)
    assert net.version == 1


def test_a_network_of_a_graph_with_dormant_units_is_drawn_with_all_of_them() -> None:
    """As if it had been made whole and they had been retired: so they can be recruited."""
    whole = gn.Network(gn.mlp([4, 6, 5, 3], norm="batch"), seed=3)
    with whole.edit() as edit:
        edit.retire("fc1", units=[2, 4])
        edit.retire("fc2", units=[0])
    net = gn.Network(whole.graph, seed=3)
    for each in (whole, net):
        with each.edit() as edit:
            edit.recruit("fc2", units=[0])
            edit.recruit("fc1", units=[4])
    state = net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    again = copy.deepcopy(net)
    for each in (net, again):
        with each.edit() as edit:
            edit.recruit("fc1", units=[2])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    assert gn.Network(whole.graph, seed=3, init="kaiming").graph is whole.graph
