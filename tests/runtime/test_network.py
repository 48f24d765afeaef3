"""What a user of the network relies on around edits: stale losses, hooks, ties, copies, attach, names, refusals."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - that a network survives it is what is tested
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.ir.ops import OPS
from graphnet.testing import check_bits, check_lowering, graphs, optimizers, random_network, sample, train, wave_loss


def small(norm: Any = None) -> gn.Network:
    return random_network(gn.mlp([4, 6, 5, 3], norm=norm), 0)


def adam(net: gn.Network) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    return optimizer


# -- lowering -----------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_lowered_network_is_the_graph(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, data.draw(st.integers(0, 99)))
    check_lowering(net, *sample(graph, data.draw(st.integers(0, 99))))


# -- backward through the past --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["grow", "prune", "retire"])
@given(data=st.data())
def test_a_loss_from_before_an_edit_raises_our_error(operator: str, data: st.DataObject) -> None:
    # A convolution saves its weight itself, a linear layer a view of it: both must be caught before autograd fails.
    graph = data.draw(graphs())
    net = random_network(graph, 0)
    loss = wave_loss(net(*sample(graph)))
    names = sorted(n for n, g in graph.groups.items() if g.frozen is None and (operator == "grow" or g.size > 2))
    if not names:
        return
    with net.edit() as edit:
        group = data.draw(st.sampled_from(names))
        edit.grow(group, 1, init="kaiming") if operator == "grow" else getattr(edit, operator)(
            group, lowest=1, score="random"
        )
    with pytest.raises(gn.EditError, match="backward through a forward pass from before an edit"):
        loss.backward()
    wave_loss(net(*sample(graph))).backward()


def test_a_part_of_the_network_used_alone_is_caught_too() -> None:
    net = small()
    loss = net.fc1(sample(net.graph)[0]).sum()
    with net.edit() as edit:
        edit.prune("fc1", units=[0])
    with pytest.raises(gn.EditError, match="before an edit"):
        loss.backward()


def test_a_refused_edit_leaves_a_loss_alive() -> None:
    net = small()
    loss = wave_loss(net(*sample(net.graph)))
    with pytest.raises(gn.EditError), net.edit() as edit:
        edit.prune("fc1", units=[99])
    loss.backward()
    assert net.fc1.weight.grad is not None


# -- gradients and hooks ----------------------------------------------------------------------------------------------


def test_gradients_in_flight_move_with_their_units() -> None:
    net = small()
    optimizer = adam(net)
    wave_loss(net(*sample(net.graph))).backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    with net.edit() as edit:
        edit.prune("fc1", units=[1, 4])
        edit.grow("fc2", 2)
    kept = [0, 2, 3, 5]
    assert torch.equal(net.fc1.weight.grad, before["fc1.weight"][kept])
    assert torch.equal(net.fc2.weight.grad[:5], before["fc2.weight"][:, kept])
    assert not net.fc2.weight.grad[5:].any()
    assert torch.equal(net.head.bias.grad, before["head.bias"])
    optimizer.step()


def test_gradients_in_flight_outlive_an_edit_that_only_writes_values() -> None:
    net = small()  # gradmax under relu takes the newborns' constant from the consumer's bias
    wave_loss(net(*sample(net.graph))).backward()
    grad = net.fc2.bias.grad.clone()
    with net.edit() as edit:
        edit.grow("fc1", 1, init="gradmax", batch=(*sample(net.graph), None), loss=wave_loss)
    assert torch.equal(net.fc2.bias.grad, grad)


def test_hooks_on_parameters_survive() -> None:
    net = small()
    seen: list[tuple[str, tuple[int, ...]]] = []
    net.fc1.weight.register_hook(lambda grad: seen.append(("tensor", tuple(grad.shape))))
    net.fc1.weight.register_post_accumulate_grad_hook(lambda p: seen.append(("after", tuple(p.shape))))
    net.fc1.register_forward_hook(lambda module, args, out: seen.append(("forward", tuple(out.shape))))
    for size in (6, 8, 7):
        if size == 8:
            with net.edit() as edit:
                edit.grow("fc1", 2)
        if size == 7:
            with net.edit() as edit:
                edit.prune("fc1", units=[0])
        seen.clear()
        wave_loss(net(*sample(net.graph))).backward()
        assert seen == [("forward", (4, size)), ("tensor", (size, 4)), ("after", (size, 4))]


def test_tied_parameters_stay_one_object() -> None:
    net = random_network(gn.transformer(7, width=8, depth=1, heads=2, context=6, tied=True), 0)
    optimizer = adam(net)
    train(net, optimizer, 1)
    with net.edit() as edit:
        edit.grow("tok", 2, init="copy-std")
        edit.prune("blocks.0.fc1", lowest=3)
    assert net.head.weight is net.tok.weight
    assert tuple(net.tok.weight.shape) == (7, 10)
    assert len({id(p) for p in net.parameters()}) == len(list(net.parameters()))
    train(net, optimizer, 1)
    check_lowering(net)


def test_the_autocast_cache_does_not_outlive_an_edit() -> None:
    net = gn.Network(gn.mlp([4, 6, 3]))
    x = torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
        with net.edit() as edit:
            edit.prune("fc1", units=[0, 1])
        assert net.fc1(x).shape == (2, 4)  # the cached cast of the old weight would give 6
        inside = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(inside, net(x))


def test_modules_show_their_new_sizes_and_state_dicts_load() -> None:
    net = random_network(gn.convnet((2, 4, 4), channels=(4,), hidden=(5,), norm="batch"), 0)
    with net.edit() as edit:
        edit.grow("conv1", 2)
        edit.prune("fc1", units=[0])
    assert (net.conv1.out_channels, net.norm_c1.num_features, net.fc1.in_features, net.fc1.out_features) == (
        6,
        6,
        24,
        4,
    )
    other = gn.Network(net.graph).double()
    other.load_state_dict(net.state_dict())
    (x,) = sample(net.graph)
    assert torch.equal(net.eval()(x), other.eval()(x))
    assert torch.equal(net.to_torch()(x), net(x))


# -- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize(
    "graph",
    [
        gn.mlp([4, 6, 5, 3], norm="batch"),
        gn.transformer(7, width=8, depth=1, heads=4, kv_heads=2, context=6, tied=True),
        gn.mlp([4, 6, 5, 3], activation={"op": "rand_smooth_leaky"}),
    ],
)
def test_copies_are_independent_and_go_on(duplicate: Callable[[gn.Network], gn.Network], graph: gn.Graph) -> None:
    net = random_network(graph, 0)
    optimizer = adam(net)
    group = next(n for n, g in graph.groups.items() if g.frozen is None and not g.output)
    train(net, optimizer, 1)
    with net.edit() as edit:
        edit.retire(group, units=[1])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    twin = duplicate(net)
    assert twin.attached == ()
    assert twin.version == 1
    assert [v.number for v in twin.history] == [0, 1]
    own = adam(twin)
    train(twin, own, 1)
    with twin.edit() as edit:
        edit.recruit(group, units=[1])
        edit.grow(group, 1, init="copy-std")
    train(twin, own, 1)
    check_lowering(twin)
    check_bits(before, dict(net.state_dict()), "the original")
    assert net.version == 1
    train(net, optimizer, 1)


def test_a_dropped_network_is_freed() -> None:
    net = small()
    net(*sample(net.graph))
    with net.edit() as edit:
        edit.grow("fc1", 1)
    gone = weakref.ref(net.fc1.weight)
    del net, edit
    import gc

    gc.collect()
    assert gone() is None


# -- attach -----------------------------------------------------------------------------------------------------------


def test_a_parameter_outside_every_optimizer_is_an_error_at_commit() -> None:
    net = small()
    net.attach(torch.optim.SGD(net.fc1.parameters(), lr=0.1))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(gn.EditError, match=r"fc2\.weight.*no attached optimizer"), net.edit() as edit:
        edit.grow("fc1", 1)
    check_bits(before, dict(net.state_dict()), "a refused commit")
    assert net.version == 0
    net.attach(torch.optim.SGD([*net.fc2.parameters()], lr=0.1))
    net.head.requires_grad_(False)
    with net.edit() as edit:
        edit.grow("fc1", 1)
    assert net.version == 1


def test_two_optimizers_each_carry_their_own() -> None:
    net = small()
    sgd = torch.optim.SGD(net.fc1.parameters(), lr=0.1, momentum=0.9)
    rest = torch.optim.AdamW([*net.fc2.parameters(), *net.head.parameters()], lr=0.01)
    net.attach(sgd)
    net.attach(rest)
    wave_loss(net(*sample(net.graph))).backward()
    sgd.step()
    rest.step()
    with net.edit() as edit:
        edit.grow("fc1", 2)
    assert tuple(sgd.state[net.fc1.weight]["momentum_buffer"].shape) == (8, 4)
    assert tuple(rest.state[net.fc2.weight]["exp_avg"].shape) == (5, 8)
    assert len(net.attached) == 2


class Lookahead(torch.optim.SGD):
    """A subclass with a step of its own: nothing is known of what it keeps."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_attach_errors() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    wrong: list[tuple[Any, str]] = [
        (net, "takes a torch optimizer"),
        (torch.optim.SGD(small().parameters(), lr=0.1), "no parameter of this network"),
        (Lookahead(net.parameters(), lr=0.1), "does not know"),
        (torch.optim.Adam(net.parameters(), differentiable=True), "differentiable"),
    ]
    for one, message in wrong:
        with pytest.raises(gn.EditError, match=message):
            net.attach(one)
        if isinstance(one, torch.optim.Optimizer):
            assert not one._optimizer_step_pre_hooks
    net.attach(optimizer)
    with pytest.raises(gn.EditError, match="already attached"):
        net.attach(optimizer)
    with pytest.raises(gn.EditError, match="held by another"):
        net.attach(torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_parameter_resized_elsewhere_is_noticed() -> None:
    net = small()
    optimizer = adam(net)
    train(net, optimizer, 1)
    optimizer.state[net.fc1.weight]["exp_avg"] = torch.zeros(1, 1)
    with pytest.raises(gn.EditError, match="resized outside"), net.edit() as edit:
        edit.grow("fc1", 1)


# -- names and refusals ------------------------------------------------------------------------------------------


def test_frozen_groups_refuse_with_op_and_reason() -> None:
    net = random_network(gn.transformer(7, width=8, depth=1, heads=2, context=6), 0)
    for operator in (lambda e: e.grow("tok.entries", 1), lambda e: e.prune("tok.entries", units=[0])):
        with pytest.raises(gn.FrozenGroupError, match=r"picked by index.*tok"), net.edit() as edit:
            operator(edit)
    assert net.version == 0


def test_groups_have_the_names_of_the_ops_that_write_them() -> None:
    net = random_network(gn.resnet((2, 4, 4), stages=(3,), blocks=2, classes=3), 0)
    owner = net.graph.group("layer1.0.conv2").name
    assert owner == net.graph.group("layer1.1.add").name == "conv1"
    with net.edit() as edit:
        edit.grow("layer1.1.add", 1)
        edit.prune("layer1.0.conv2", units=[0])
    assert net.graph.groups["conv1"].ids == (1, 2, 3)
    heads = random_network(gn.transformer(7, width=8, depth=1, heads=2, context=6), 0)
    with pytest.raises(gn.GraphError, match=r"several unit groups.*head_dim.*heads"), heads.edit() as edit:
        edit.grow("blocks.0.q_proj", 1)
    with pytest.raises(gn.GraphError, match="did you mean"), heads.edit() as edit:
        edit.grow("blocks.0.fc3", 1)


def test_each_edit_draws_numbers_of_its_own() -> None:
    nets = [gn.Network(gn.mlp([4, 6, 2]), seed=seed) for seed in (0, 0, 1)]
    for net in nets:
        for _ in range(2):
            with net.edit() as edit:
                edit.grow("fc1", 1, init="kaiming")
    first, again, other = (net.fc1.weight.detach()[6:] for net in nets)
    assert torch.equal(first, again), "the network's seed says which"
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_one_edit_at_a_time() -> None:
    net = small()
    with net.edit() as edit:
        edit.grow("fc1", 1)
        with pytest.raises(gn.EditError, match="open already"), net.edit():
            pass
    with pytest.raises(gn.EditError, match="has ended"):
        edit.grow("fc1", 1)
    assert net.version == 1
    with net.edit():
        pass
    assert net.version == 1
    assert len(net.history) == 2


def test_an_operator_of_the_callers_own_makes_a_version() -> None:
    net = small()

    def drop_first(plan: Any, group: str) -> None:
        from dataclasses import replace

        old = plan.graph.editable(group)
        plan.advance(replace(old, ids=old.ids[1:]))

    with net.edit() as edit:
        edit.apply(drop_first, "fc1")
    assert net.version == 1
    assert tuple(net.fc1.weight.shape) == (5, 4)
    assert net.history.latest.steps[0].operator == "drop_first"


def test_inference_mode_is_refused() -> None:
    net = small()
    with torch.inference_mode(), pytest.raises(gn.EditError, match="inference mode"), net.edit():
        pass
    with torch.inference_mode():
        born_there = small()
    with pytest.raises(gn.EditError, match="inference mode"), born_there.edit() as edit:
        edit.grow("fc1", 1)
    assert born_there.version == 0
    with torch.no_grad(), net.edit() as edit:
        edit.grow("fc1", 1)
    assert net.fc1.weight.requires_grad


@pytest.mark.parametrize(
    "batch",
    [
        (torch.randn(3, 5).double(), None), (torch.randn(4).double(), None), ((), None), ("text", None), (1, 2, 3),
        (torch.randn(3, 4), None), ((torch.randn(3, 4).double(), torch.randn(3, 4).double()), None),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_an_edit_error(batch: Any) -> None:
    net = small()
    with pytest.raises(gn.EditError), net.edit() as edit:
        edit.prune("fc1", lowest=1, score="activation-frequency", batch=batch)
    assert net.version == 0


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3", None])
def test_wrong_counts_are_edit_errors(count: Any) -> None:
    net = small()
    with pytest.raises(gn.EditError, match="count is a whole number"), net.edit() as edit:
        edit.grow("fc1", count)


@pytest.mark.parametrize("options", [{"init": "xavier"}, {"state": "warm"}, {"scale": 1.0}, {"preserves": "all"}])
def test_wrong_names_and_options_are_edit_errors(options: dict[str, Any]) -> None:
    net = small()
    with pytest.raises(gn.EditError), net.edit() as edit:
        edit.grow("fc1", 1, **options)
    assert net.version == 0


@given(st.data())
def test_moving_the_network_moves_the_reserve(data: st.DataObject) -> None:
    net = gn.Network(gn.mlp([4, 6, 3]))
    optimizer = data.draw(optimizers())(net.parameters())
    net.attach(optimizer)
    weight = net.fc1.weight.detach().clone()
    with net.edit() as edit:
        edit.retire("fc1", units=[2])
    net.double()
    kept = net.reserve_of("fc1.weight")
    assert kept is not None
    assert kept.dtype == torch.float64
    with net.edit() as edit:
        edit.recruit("fc1", units=[2])
    assert net.fc1.weight.dtype == torch.float64
    assert torch.equal(net.fc1.weight, weight.double())


def test_dropout_and_training_mode_survive_edits() -> None:
    net = random_network(gn.mlp([4, 50, 3], dropout=0.5), 0)
    with net.edit() as edit:
        edit.grow("fc1", 2)
    (x,) = sample(net.graph)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    with net.edit() as edit:
        edit.grow("fc1", 2)
    assert torch.equal(net(x), net(x))


def test_two_inputs_and_two_outputs() -> None:
    ops = [
        OPS["input"](name="a", shape=(3,)),
        OPS["input"](name="b", shape=(2,)),
        OPS["linear"](name="one", inputs=("a",), out=4),
        OPS["linear"](name="two", inputs=("b",), out=4),
        OPS["add"](name="sum", inputs=("one", "two")),
        OPS["tanh"](name="act", inputs=("sum",)),
        OPS["linear"](name="p", inputs=("act",), out=2),
        OPS["linear"](name="q", inputs=("act",), out=3),
    ]
    net = random_network(gn.Graph.from_ops(ops, ["p", "q"]), 0)
    inputs: tuple[Tensor, ...] = sample(net.graph)
    before = net(*inputs)
    stale = wave_loss((before[1],))
    with net.edit() as edit:
        edit.prune("sum", lowest=1, score="gradient", batch=(inputs, None), loss=wave_loss)
        edit.grow("one", 2, preserves="function")
    check_lowering(net, *inputs)
    with pytest.raises(gn.EditError, match="before an edit"):
        stale.backward()
