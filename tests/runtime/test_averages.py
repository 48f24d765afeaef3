"""Averaged copies of a network (EMA, SWA) follow its edits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn, update_bn

import graphnet as gn
from graphnet.edit.action import write_block
from graphnet.runtime import network, transaction
from graphnet.runtime.transaction import Swap
from graphnet.testing import check_close, check_preserved, random_network, sample, train, wave_loss
from graphnet.testing.compare import positions, survivors, take

DECAY = 0.8
FUNCTIONS: dict[str, dict[str, Any]] = {
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(DECAY)},
    "ema-buffers": {"multi_avg_fn": get_ema_multi_avg_fn(DECAY), "use_buffers": True},
    "ema-single": {"avg_fn": get_ema_avg_fn(DECAY)},
    "swa": {},
    "swa-single-buffers": {"avg_fn": get_swa_avg_fn(), "use_buffers": True},
}
GRAPHS: dict[str, Callable[[], gn.Graph]] = {
    "mlp": lambda: gn.mlp([4, 6, 5, 3], norm="batch", activation="gelu"),
    "conv": lambda: gn.convnet((2, 4, 4), channels=(4, 6), hidden=(5,), norm="batch", activation="gelu"),
    "transformer": lambda: gn.transformer(11, width=8, depth=1, heads=2, hidden=6, context=5),
}
GROUPS = {
    "mlp": ("fc1", "fc2"),
    "conv": ("conv1", "conv2"),
    "transformer": ("blocks.0.fc1", "blocks.0.v_proj.head_dim"),
}


class ByHand:
    """The averages of a network, kept from their definition; what is new starts at the live value."""

    def __init__(self, net: gn.Network, options: dict[str, Any]) -> None:
        self.net, self.count, self.swa = net, 0, not any("ema" in str(f) for f in options.values())
        self.buffers = options.get("use_buffers", False)
        self.graph = net.graph
        self.held = {name: net.tensor(name).detach().clone() for name in net.graph.tensors}

    def update(self) -> None:
        for name, spec in self.graph.tensors.items():
            live = self.net.tensor(name).detach()
            if not live.is_floating_point():
                continue  # counts of batches: torch rounds their averages down
            share = 1 / (self.count + 1) if self.swa else 1 - DECAY
            averaged = self.count and (self.buffers or not spec.buffer)
            self.held[name] = torch.lerp(self.held[name], live, share) if averaged else live.clone()
        self.count += 1

    def follow(self) -> None:
        ids = survivors(self.graph, self.net.graph)
        for name in self.net.graph.tensors:
            new = self.net.tensor(name).detach().clone()
            if name in self.held:
                before, after = positions(self.graph, name, ids), positions(self.net.graph, name, ids)
                write_block(new, after, take(self.held[name], before))
            self.held[name] = new
        self.graph = self.net.graph


def averaged(name: str, function: str) -> tuple[gn.Network, AdamW, AveragedModel, ByHand]:
    net = random_network(GRAPHS[name](), 0)
    optimizer = AdamW(net.parameters(), lr=0.05)
    net.attach(optimizer)
    model = AveragedModel(net, **FUNCTIONS[function])
    net.attach(model)
    hand = ByHand(net, FUNCTIONS[function])
    return net, optimizer, model, hand


def learn(net: gn.Network, optimizer: AdamW, model: AveragedModel, hand: ByHand, steps: range) -> None:
    for step in steps:
        train(net, optimizer, 1, seed=step)
        model.update_parameters(net)
        hand.update()


def check(net: gn.Network, model: AveragedModel, hand: ByHand) -> None:
    """The copy holds the averages, is intact, and computes with them."""
    twin = random_network(net.graph, 1)
    with torch.no_grad():
        for name in (name for name, held in hand.held.items() if held.is_floating_point()):
            torch.testing.assert_close(model.module.tensor(name).detach(), hand.held[name], rtol=1e-12, atol=1e-14)
            twin.tensor(name).copy_(hand.held[name])
    inputs = sample(net.graph, 5)
    model.eval()
    twin.eval()
    check_close(model(*inputs), twin(*inputs), "the averaged network", tolerance=1e-11)
    assert model.module.graph is net.graph
    assert len(model.module.history) == len(net.history)
    assert [n for n, _ in model.module.named_parameters()] == [n for n, _ in net.named_parameters()]
    model.train()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_an_average_equals_one_kept_by_hand(graph: str, function: str) -> None:
    net, optimizer, model, hand = averaged(graph, function)
    learn(net, optimizer, model, hand, range(4))
    objects = [id(parameter) for parameter in model.parameters()]
    first, second = GROUPS[graph]

    def grow(edit: gn.Edit) -> None:
        edit.grow(first, 3, init="kaiming")
        edit.grow(second, 1, init="kaiming")

    def prune(edit: gn.Edit) -> None:
        edit.prune(first, units=[0, 2])
        edit.grow(first, 1, init="kaiming", state="transplant")

    def rest(edit: gn.Edit) -> None:
        edit.retire(first, units=[1])

    def wake(edit: gn.Edit) -> None:
        edit.recruit(first, units=[1])
        edit.reset(second, units=[3], outgoing="init")

    for number, change in enumerate((grow, prune, rest, wake)):
        with net.edit() as edit:
            change(edit)
        hand.follow()
        check(net, model, hand)
        learn(net, optimizer, model, hand, range(4 + 2 * number, 6 + 2 * number))
        check(net, model, hand)
    assert [id(parameter) for parameter in model.parameters()] == objects


def test_the_first_update_after_an_edit_may_be_the_first_of_all() -> None:
    net, optimizer, model, hand = averaged("mlp", "ema")
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming")
    hand.follow()
    check(net, model, hand)
    learn(net, optimizer, model, hand, range(3))
    check(net, model, hand)


# -- structure ----------------------------------------------------------------------------------------------------


def test_new_parameters_start_at_the_live_value_and_old_ones_go() -> None:
    net, optimizer, model, hand = averaged("mlp", "ema-buffers")
    learn(net, optimizer, model, hand, range(4))
    with net.edit() as edit:
        edit.deepen("act1", activation="relu", norm=None)
        edit.grow("fc2", 2, init="kaiming")
    hand.follow()
    new = [name for name in net.graph.tensors if name not in net.history[0].graph.tensors]
    assert new
    for name in new:
        assert torch.equal(model.module.tensor(name), net.tensor(name))
    check(net, model, hand)
    learn(net, optimizer, model, hand, range(4, 7))
    assert not torch.equal(model.module.tensor(new[0]), net.tensor(new[0]))
    check(net, model, hand)
    with net.edit() as edit:
        edit.remove("norm1")
    hand.follow()
    hand.held = {name: value for name, value in hand.held.items() if name in net.graph.tensors}
    check(net, model, hand)
    learn(net, optimizer, model, hand, range(7, 9))
    check(net, model, hand)


# -- what an edit writes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["aged", "cold", "transplant", "scaled"])
def test_copies_of_a_unit_share_its_average(state: str) -> None:
    """The averaged network computes what it did: its rows are copied and its columns divided like the live ones."""
    net, optimizer, model, hand = averaged("mlp", "ema-buffers")
    learn(net, optimizer, model, hand, range(5))
    inputs, live = sample(net.graph, 7), copy.deepcopy(net)
    model.eval()
    net.eval()
    before = model(*inputs).detach()
    with net.edit() as edit:
        edit.grow("fc1", 4, init="net2wider", split="random", state=state)
        edit.grow("fc2", 3, init="net2wider", split="random", state=state)
    check_close(before, model(*inputs), "the averaged network", tolerance=1e-12)
    check_preserved(net, live.eval()(*inputs), *inputs)
    assert not torch.equal(model(*inputs), net(*inputs))


def test_where_an_edit_wrote_the_average_is_the_weight() -> None:
    net, optimizer, model, hand = averaged("mlp", "ema")
    snapshot = net.snapshot()
    learn(net, optimizer, model, hand, range(4))
    before = model.module.fc1.weight.detach().clone()
    with net.edit() as edit:
        edit.rewind("fc2", snapshot)
        edit.grow("fc1", 1, init="kaiming")
    assert torch.equal(model.module.fc2.bias, net.fc2.bias)
    assert torch.equal(model.module.fc2.weight[:, :6], snapshot.tensors["fc2.weight"])
    assert torch.equal(model.module.fc1.weight[:6], before)
    assert not torch.equal(model.module.fc1.weight[:6], net.fc1.weight[:6])


def test_an_average_in_another_type() -> None:
    net = gn.Network(GRAPHS["mlp"](), seed=0).to(torch.bfloat16)
    model = AveragedModel(net, **FUNCTIONS["ema-single"]).float()
    net.attach(model)
    model.update_parameters(net)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming")
        edit.deepen("act2", activation="relu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.module.fc1.weight[6:], net.fc1.weight[6:].float())
    model.update_parameters(net)
    model.eval()
    assert model(torch.zeros(2, 4)).dtype == torch.float32


def test_several_averages_and_batch_norm_statistics_anew() -> None:
    net, optimizer, model, hand = averaged("conv", "ema")
    other = AveragedModel(net)
    net.attach(other)
    assert net.averaged == (model, other)
    learn(net, optimizer, model, hand, range(2))
    other.update_parameters(net)
    with net.edit() as edit:
        edit.grow("conv1", 2, init="kaiming")
    hand.follow()
    check(net, model, hand)
    (x,) = sample(net.graph, 3)
    update_bn([x], other)
    assert other.module.norm_c1.running_mean.shape == (6,)
    net.detach(model)
    with net.edit() as edit:
        edit.grow("conv1", 1)
    assert other.module.conv1.weight.shape[0] == 7
    assert model.module.conv1.weight.shape[0] == 6


# -- transactions -------------------------------------------------------------------------------------------------


def everything(net: gn.Network, model: AveragedModel) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for label, root in (("net", net), ("copy", model.module)):
        tables |= {f"{label} {name}": root.tensor(name).detach().clone() for name in root.graph.tensors}
        tables |= {f"{label} graph": id(root.graph), f"{label} code": root.code, f"{label} shown": repr(root)}
        tables[f"{label} history"] = len(root.history)
    return tables


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(value, two[key]) if isinstance(value, Tensor) else value == two[key] for key, value in one.items()
    )


class Stop(BaseException):
    """Raised in the middle of a commit."""


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("structural", [False, True])
def test_a_commit_that_fails_leaves_the_copy_as_it_was(structural: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After however many of its swaps it is that something is raised."""
    net, optimizer, model, hand = averaged("conv", "ema-buffers")
    learn(net, optimizer, model, hand, range(3))
    inputs = sample(net.graph, 8)
    losses = [wave_loss(net.eval()(*inputs)), wave_loss(model.eval()(*inputs))]
    net.train()
    model.train()
    before, counts = everything(net, model), [0]

    def change() -> None:
        with net.edit() as edit:
            edit.grow("conv1", 2, init="kaiming")
            if structural:
                edit.remove("norm1")

    at = 0
    while at <= counts[-1]:

        def commit(swaps: Sequence[Swap], place: int = at) -> None:
            counts.append(len(swaps))
            transaction.commit([*swaps[:place], Swap(stop, lambda: None), *swaps[place:]])

        monkeypatch.setattr(network, "commit", commit)
        with pytest.raises(Stop):
            change()
        monkeypatch.undo()
        assert same(before, everything(net, model)), f"stopped after {at} of {counts[-1]} swaps"
        at += 5 if at else 1
    assert at > 40
    for loss in losses:
        loss.backward()  # from before the edits that came to nothing
    with pytest.raises(gn.GraphError), net.edit() as edit:  # noqa: PT012
        edit.grow("conv1", 2, init="kaiming")
        edit.grow("no such group", 1)
    assert same(before, everything(net, model))
    with net.edit() as edit:
        edit.grow("conv1", 2, init="kaiming")
    hand.follow()
    check(net, model, hand)
    learn(net, optimizer, model, hand, range(3, 5))
    check(net, model, hand)


def test_an_average_that_changes_during_an_edit_is_noticed() -> None:
    net, optimizer, model, hand = averaged("mlp", "ema")
    learn(net, optimizer, model, hand, range(2))
    with pytest.raises(gn.EditError, match="was changed while the edit was open"), net.edit() as edit:  # noqa: PT012
        edit.grow("fc1", 1)
        model.update_parameters(net)
    assert net.version == 0


def test_a_backward_through_the_copy_from_before_is_refused() -> None:
    net, _, model, _ = averaged("mlp", "ema")
    loss = model(*sample(net.graph)).sum()
    loss.backward()
    again = model(*sample(net.graph)).sum()
    with net.edit() as edit:
        edit.grow("fc1", 1)
    assert model.module.fc1.weight.grad is None
    with pytest.raises(gn.EditError, match="before an edit"):
        again.backward()


# -- attaching ----------------------------------------------------------------------------------------------------


def test_what_is_no_copy_of_this_network_is_refused() -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    model = AveragedModel(net)
    wrong: list[tuple[Any, str]] = [
        (AveragedModel(torch.nn.Linear(2, 2)), "holds 0 copies of a network"),
        (AveragedModel(random_network(GRAPHS["conv"](), 0)), "another one altogether"),
    ]
    for one, message in wrong:
        with pytest.raises(gn.EditError, match=message):
            net.attach(one)
    with net.edit() as edit:
        edit.grow("fc1", 1)
    with pytest.raises(gn.EditError, match="a copy of version 0, and the network is at version 1"):
        net.attach(model)
    fresh = AveragedModel(net)
    net.attach(fresh)
    with pytest.raises(gn.EditError, match="already attached"):
        net.attach(fresh)
    assert net.averaged == (fresh,)


def test_a_copy_that_was_edited_by_itself_cannot_follow() -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    model = AveragedModel(net)
    net.attach(model)
    with model.module.edit() as edit:
        edit.grow("fc1", 1)
    with pytest.raises(gn.EditError, match="was edited by itself"), net.edit() as edit:
        edit.grow("fc1", 1)
    assert net.version == 0
    net.detach(model)
    with net.edit() as edit:
        edit.grow("fc1", 1)


def test_a_copy_whose_layer_was_replaced_is_refused() -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    model = AveragedModel(net)
    net.attach(model)
    model.module.fc1 = torch.nn.Linear(4, 6)
    with pytest.raises(gn.EditError, match="'fc1' was replaced"), net.edit() as edit:
        edit.grow("fc1", 1)
    assert net.version == 0


def test_a_network_inside_an_averaged_model_of_more() -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    whole = torch.nn.Sequential(net, torch.nn.Linear(3, 3).double())
    model = AveragedModel(whole, **FUNCTIONS["ema"])
    net.attach(model)
    with net.edit() as edit:
        edit.grow("fc1", 2)
    model.update_parameters(whole)
    model.eval()
    assert model(*sample(net.graph)).shape == (4, 3)


def test_copies_of_a_network_have_no_averages() -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    net.attach(AveragedModel(net))
    assert copy.deepcopy(net).averaged == ()


def test_an_average_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    net, optimizer, model, hand = averaged("mlp", "ema-buffers")
    learn(net, optimizer, model, hand, range(3))
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming")
    hand.follow()
    learn(net, optimizer, model, hand, range(3, 5))
    path = net.save(tmp_path / "c", state={"average": model})
    learn(net, optimizer, model, hand, range(5, 8))
    checkpoint = gn.load_checkpoint(path)
    again = checkpoint.network()
    other = AdamW(again.parameters())
    average = AveragedModel(again, **FUNCTIONS["ema-buffers"])
    again.attach(average)
    checkpoint.resume(again, other, state={"average": average})
    hand_again = ByHand(again, FUNCTIONS["ema-buffers"])
    hand_again.held = {name: average.module.tensor(name).detach().clone() for name in again.graph.tensors}
    hand_again.count = int(average.n_averaged)
    learn(again, other, average, hand_again, range(5, 8))
    for name in net.graph.tensors:
        assert torch.equal(average.module.tensor(name), model.module.tensor(name)), name
    with again.edit() as edit:
        edit.grow("fc1", 1)
    hand_again.follow()
    check(again, average, hand_again)
