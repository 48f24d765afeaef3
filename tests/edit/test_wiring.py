"""Insert, redirect, remove, deepen, replace, kernel, tie and untie: what holds of the function, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.edit.edit import Edit
from graphnet.ir.graph import Graph
from graphnet.ir.ops import OPS, Op
from graphnet.ir.ops.io import Input
from graphnet.runtime.replay import replay, replay_graph
from graphnet.testing.data import sample
from graphnet.testing.graphs import graphs, op

Do = Callable[[Edit], Any]


def build(
    graph: Graph, *shape: int, adam: bool = True, steps: int = 2
) -> tuple[gn.Network, torch.optim.Optimizer, Tensor]:
    """A network trained for a few steps, its optimizer, and a batch."""
    torch.manual_seed(0)
    net = gn.Network(graph, seed=0).double()
    kind = torch.optim.Adam if adam else torch.optim.SGD
    optimizer = kind(net.parameters(), lr=1e-2)
    net.attach(optimizer)
    x = torch.randn(5, *shape, dtype=torch.float64) if shape else torch.randint(0, 11, (3, 6))
    for _ in range(steps):
        train(net, optimizer, x)
    return net, optimizer, x


def train(net: gn.Network, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


def output(net: gn.Network, x: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        found: Tensor = net(x)
    net.train()
    return found


def gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max() / one.abs().max())


def mlp(**options: Any) -> Graph:
    return gn.mlp([4, 8, 6, 2], **options)


def conv(norm: Any = "batch") -> Graph:
    return gn.resnet((3, 8, 8), stages=(4, 6), blocks=1, classes=3, norm=norm)


def residual(edit: Edit) -> None:
    edit.insert("linear", "branch", inputs="act1", init="zeros")
    edit.insert("add", "sum", inputs=["act1", "branch"])
    edit.redirect("act1 -> fc2", "sum", preserves="function")


EXACT: dict[str, tuple[Graph, tuple[int, ...], Do]] = {
    "identity layer": (mlp(), (4,), lambda e: e.deepen("act1", preserves="function")),
    "identity layer behind gelu": (mlp(activation="gelu"), (4,), lambda e: e.deepen("act1", preserves="function")),
    "identity layer, no activation": (mlp(), (4,), lambda e: e.deepen("act1", activation=None, preserves="function")),
    "residual block": (mlp(), (4,), lambda e: e.deepen("act2", form="residual", preserves="function")),
    "residual block, layer norm": (
        mlp(), (4,), lambda e: e.deepen("act2", form="residual", norm="layer_norm", preserves="function")),
    "identity convolution": (conv(), (3, 8, 8), lambda e: e.deepen("act1", preserves="function")),
    "identity convolution, 5 wide": (conv(), (3, 8, 8), lambda e: e.deepen("act1", kernel=5, preserves="function")),
    "residual convolutions": (
        conv(), (3, 8, 8), lambda e: e.deepen("layer1.0.act2", form="residual", norm="batch_norm")),
    "inserted identity": (
        mlp(), (4,), lambda e: e.insert("linear", "more", inputs="act1", before="fc2", init="identity",
                                        preserves="function")),
    "inserted dropout": (
        mlp(), (4,), lambda e: e.insert("dropout", "drop", inputs="act1", before="fc2", preserves="function")),
    "residual by hand": (mlp(), (4,), residual),
    "kernel": (conv(), (3, 8, 8), lambda e: e.kernel("conv1", 5, preserves="function")),
    "kernel twice and wider": (
        conv(), (3, 8, 8), lambda e: (e.kernel("conv1", 5), e.grow("conv1", 2), e.kernel("conv1", 7))),
    "strided kernel": (conv(), (3, 8, 8), lambda e: e.kernel("layer2.0.conv1", 5, preserves="function")),
    "separable at full rank": (
        conv(), (3, 8, 8), lambda e: e.replace("conv1", by="separable", rank=4, preserves="function")),
    "low rank at full rank": (mlp(), (4,), lambda e: e.replace("fc2", by="low-rank", rank=6, preserves="function")),
    "blend": (mlp(), (4,), lambda e: e.replace("act1", by="blend", to="gelu", preserves="function")),
    "blend as a buffer": (
        mlp(), (4,), lambda e: e.replace("act1", by="blend", to="tanh", learned=False, preserves="function")),
    "untie": (
        gn.transformer(11, width=8, depth=1, heads=2, context=6, hidden=12, tied=True), (),
        lambda e: e.untie("head", preserves="function")),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_exact_edits(case: str) -> None:
    graph, shape, do = EXACT[case]
    net, optimizer, x = build(graph, *shape)
    before, objects = output(net, x), {name: id(p) for name, p in net.named_parameters()}
    with net.edit() as edit:
        do(edit)
    assert net.history.latest.preserves == "function"
    assert gap(before, output(net, x)) <= 1e-12
    kept = {name: id(p) for name, p in net.named_parameters() if name in objects and not fresh(net, name)}
    assert kept
    assert all(objects[name] == number for name, number in kept.items()), "a parameter that stays is the same object"
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    for _ in range(2):
        train(net, optimizer, x)
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert len(optimizer.state) == len(held)
    assert all(
        value.shape == p.shape
        for p in net.parameters() for key, value in optimizer.state[p].items() if key.startswith("exp_avg")
    )  # fmt: skip


def fresh(net: gn.Network, name: str) -> bool:
    changes = [change for step in net.history.latest.steps for change in step.changes if change["kind"] == "ops"]
    return any(name in change["fresh"] for change in changes)


@pytest.mark.parametrize("case", EXACT)
def test_the_journal_gives_the_same_graph_and_tensors(case: str) -> None:
    graph, shape, do = EXACT[case]
    net = gn.Network(graph, seed=3).double()
    first = gn.Network(graph, seed=3).double()
    with net.edit() as edit:
        do(edit)
    journal = net.history.journal()
    assert replay_graph(graph, journal).to_document() == net.graph.to_document()
    again = replay(first, journal)
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert shape is not None


@pytest.mark.parametrize("case", EXACT)
def test_incumbents_gradients_and_moments_stay(case: str) -> None:
    graph, shape, do = EXACT[case]
    net, optimizer, x = build(graph, *shape)

    def gradients() -> dict[str, Tensor]:
        net.eval()  # dropout and batch statistics aside
        net.zero_grad()
        net(x).square().mean().backward()
        found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        net.zero_grad()
        net.train()
        return found

    before = gradients()
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in net.named_parameters()}
    with net.edit() as edit:
        do(edit)
    after = gradients()
    moved = {n for s in net.history.latest.steps for c in s.changes if c["kind"] == "ops" for n in c["resized"]}
    untied = {"tok.weight"} if case == "untie" else set()  # its gradient is now that of one use
    for name, grad in before.items():
        if fresh(net, name) or name in moved | untied or name not in after or after[name].shape != grad.shape:
            continue
        assert float((after[name] - grad).abs().max()) <= 1e-12 * max(float(grad.abs().max()), 1e-30), name
        assert torch.equal(optimizer.state[net.get_parameter(name)]["exp_avg"], moments[name]), name


def test_a_kernel_that_grows_carries_its_moments_to_the_middle() -> None:
    net, optimizer, x = build(conv(), 3, 8, 8)
    weight = net.get_parameter("conv1.weight")
    before = weight.detach().clone()
    moment = optimizer.state[weight]["exp_avg"].clone()
    weight.grad = torch.ones_like(weight)
    with net.edit() as edit:
        edit.kernel("conv1", 5)
    assert torch.equal(weight[:, :, 1:4, 1:4], before)
    assert int((weight.detach() != 0).sum()) == int((before != 0).sum())
    assert torch.equal(optimizer.state[weight]["exp_avg"][:, :, 1:4, 1:4], moment)
    assert weight.grad is not None
    assert float(weight.grad.sum()) == before.numel()
    assert net.get_submodule("conv1").kernel_size == (5, 5)
    assert net.get_submodule("conv1").padding == (2, 2)
    ring = weight.detach().clone()
    train(net, optimizer, x)
    moved = (weight.detach() - ring).abs()
    moved[:, :, 1:4, 1:4] = 0
    assert 0.99e-2 <= float(moved.max()) <= 1.01e-2, "a newborn tap's first Adam step is the learning rate"
    with net.edit() as edit:
        edit.kernel("conv1", 3)
    assert tuple(weight.shape[2:]) == (3, 3)


def test_what_does_not_hold_is_said() -> None:
    net, _, x = build(conv(), 3, 8, 8)
    before = output(net, x)
    with net.edit() as edit:
        edit.replace("conv1", by="separable", rank=1)
    latest = net.history.latest
    assert latest.preserves == "approximate"
    assert "rank 1 of 4" in latest.steps[0].note
    assert gap(before, output(net, x)) > 1e-6
    with net.edit() as edit:
        edit.insert("relu", "cut", inputs="conv1", before="norm1")
    assert net.history.latest.preserves == "none"
    with net.edit() as edit:
        edit.remove("cut")
    assert net.history.latest.preserves == "none"
    with net.edit() as edit:
        edit.kernel("conv1_depthwise", 1)
    assert net.history.latest.preserves == "none"


REFUSED: dict[str, tuple[Do, str]] = {
    "no such op": (lambda e: e.insert("lineer", "a", inputs="act1"), "no op 'lineer'"),
    "name taken": (lambda e: e.insert("linear", "fc1", inputs="act1"), "already"),
    "reads nothing known": (lambda e: e.insert("linear", "a", inputs="nowhere"), "no op 'nowhere'"),
    "loose at the end": (lambda e: e.insert("linear", "a", inputs="act1"), "nothing reads the inserted 'a'"),
    "not an edge": (lambda e: e.redirect("fc1 -> fc2", "act1"), "does not read 'fc1'"),
    "bad edge": (lambda e: e.redirect("act1", "fc1"), "an edge is"),
    "to nowhere": (lambda e: e.redirect("act1 -> fc2", "zzz"), "no op 'zzz'"),
    "wrong width": (
        lambda e: e.insert("linear", "a", inputs="act1", before="fc2", out=5), "tensor 'fc2.weight'"),
    "what would be cut off": (lambda e: e.redirect("act1 -> fc2", "x"), "no output is reached from"),
    "a cycle": (lambda e: e.redirect("x -> fc1", "act2"), "cycle"),
    "promise": (
        lambda e: e.insert("tanh", "t", inputs="act1", before="fc2", preserves="function"), "cannot promise"),
    "identity of another width": (
        lambda e: e.insert("linear", "a", inputs="act1", before="fc2", init="identity", out=6), "as many outputs"),
    "input": (lambda e: e.remove("x"), "inputs and outputs"),
    "nothing": (lambda e: e.remove("nothing"), "no op 'nothing'"),
    "removal of a layer that narrows": (lambda e: e.remove("fc2"), "tensor 'head.weight'"),
    "kernel of a linear layer": (lambda e: e.kernel("fc1", 3), "only a convolution"),
    "separable linear": (lambda e: e.replace("fc1", by="separable"), "'separable' is for a conv2d"),
    "rank": (lambda e: e.replace("fc2", by="low-rank", rank=7), "a rank from 1 to 6"),
    "activation by norm": (lambda e: e.replace("act1", by="batch_norm"), "an activation is replaced by"),
    "no replacement": (lambda e: e.replace("act1", by="swishy"), "no such replacement"),
    "unknown option": (lambda e: e.replace("fc2", by="low-rank", rank=2, ranks=3), "does not take ranks"),
    "attribute": (lambda e: e.insert("linear", "a", inputs="act1", before="fc2", outt=3), "outt"),
    "beside": (lambda e: e.insert("linear", "a", inputs="act1", before="fc2", out=8, beside="no"), "beside='no'"),
    "like nothing": (lambda e: e.insert("linear", "a", inputs="act1", before="fc2", like="no"), "no op 'no'"),
    "like no port": (lambda e: e.insert("linear", "a", inputs="act1", before="fc2", like="act1:1"), "no '1'"),
    "like no number": (lambda e: e.insert("linear", "a", inputs="act1", before="fc2", like="act1:x"), "no 'x'"),
    "untie": (lambda e: e.untie("head"), "shares no weight"),
    "tie": (lambda e: e.tie("head", "fc1"), "its weight is"),
    "deepen an output": (lambda e: e.deepen("output"), "middle of the network"),
    "form": (lambda e: e.deepen("act1", form="dense"), "form is"),
    "norm": (lambda e: e.deepen("act1", norm="instance"), "norm is"),
    "preserves": (lambda e: e.deepen("act1", preserves="yes"), "preserves is"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_change_nothing(case: str) -> None:
    do, words = REFUSED[case]
    net, optimizer, x = build(mlp(), 4)
    graph, before, code = net.graph, output(net, x), net.code
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(gn.GraphnetError, match=words), net.edit() as edit:
        do(edit)
    assert net.graph is graph
    assert net.code == code
    assert torch.equal(before, output(net, x))
    assert held == [id(p) for group in optimizer.param_groups for p in group["params"]]
    train(net, optimizer, x)


def test_an_op_that_was_taken_back_is_forgotten() -> None:
    net, _, x = build(mlp(), 4)
    with net.edit() as edit:
        edit.insert("linear", "a", inputs="act1", out=5)
        edit.remove("a")
        edit.insert("linear", "b", inputs="act1", out=3)
        edit.remove("b")
        edit.insert("linear", "b", inputs="act1", before="fc2")
    assert net.b.weight.shape == (8, 8)
    output(net, x)


def test_a_layer_after_a_tensor_without_features_is_refused() -> None:
    layers: list[Op] = [
        Input(name="x", shape=(4,)), op("linear", "fc", "x", out=3), op("mean", "mean", "fc", dim=1),
        op("tanh", "act", "mean"), op("relu", "last", "act"),
    ]  # fmt: skip
    net, _, x = build(Graph.from_ops(layers, ["last"], name="scalar"), 4)
    before = output(net, x)
    for kind in ("linear", "conv1d", "conv2d"):
        with pytest.raises(gn.EditError, match="none of them of features"), net.edit() as edit:
            edit.insert(kind, "new", inputs="act", before="last")
    assert torch.equal(before, output(net, x))


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs(), st.data())
def test_any_op_anywhere_runs_or_is_refused(graph: Graph, data: st.DataObject) -> None:
    net = gn.Network(graph, seed=0).double()
    x = sample(graph, dtype=torch.float64)
    sources = [
        key if node.op.ports == 1 else f"{key}:{port}"
        for key, node in graph.nodes.items() for port in range(node.op.ports)
    ]  # fmt: skip
    for at in range(4):
        kind = data.draw(st.sampled_from(sorted(OPS)))
        read = data.draw(st.lists(st.sampled_from(sources), min_size=1, max_size=2))
        readers = [key for key, node in graph.nodes.items() if read[0] in node.op.inputs]
        options: dict[str, Any] = {"init": data.draw(st.sampled_from(["default", "zeros", "identity", "kaiming"]))}
        if data.draw(st.booleans()):
            options["like"] = data.draw(st.sampled_from(sources))
        if readers:
            options["before"] = data.draw(st.sampled_from(readers))
        before = net.graph
        try:
            with net.edit() as edit:
                edit.insert(kind, f"new{at}", inputs=read, **options)
        except gn.GraphnetError:
            assert net.graph is before
        else:
            net(*x)
            break


def test_remove_undoes_an_insertion_bit_for_bit() -> None:
    net, optimizer, _ = build(mlp(), 4)
    document = net.graph.to_document() | {"graph_version": 0}
    state = {key: value.clone() for key, value in net.state_dict().items()}
    moments = {name: optimizer.state[p]["exp_avg_sq"].clone() for name, p in net.named_parameters()}
    with net.edit() as edit:
        residual(edit)
    with net.edit() as edit:
        assert edit.remove("sum", keep="act1", preserves="function") == ("branch", "sum")
    assert net.graph.to_document() | {"graph_version": 0} == document
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
    for name, value in moments.items():
        assert torch.equal(optimizer.state[net.get_parameter(name)]["exp_avg_sq"], value)
    assert len(optimizer.state) == len(moments)


def test_units_keep_their_ids_through_structure() -> None:
    net, _, _ = build(mlp(), 4)
    with net.edit() as edit:
        edit.prune("fc1", units=[0, 3])
        edit.grow("fc1", 1)
        edit.deepen("act1", form="residual", name="block")
        edit.prune("fc1", units=[5])
        edit.remove("act2")
    assert net.graph.groups["fc1"].ids == (1, 2, 4, 6, 7, 8)
    assert net.graph.groups["fc1"].next_id == 9
    assert tuple(net.get_parameter("block_in.weight").shape) == (7, 6)
    assert tuple(net.get_parameter("block_out.weight").shape) == (6, 7)


def test_coupling_two_groups_and_parting_them() -> None:
    net, _, x = build(gn.mlp([4, 6, 6, 2]), 4)
    with net.edit() as edit:
        edit.insert("add", "skip", inputs=["act2", "act1"])
        edit.redirect("act2 -> head", "skip")
    assert "fc2" not in net.graph.groups, "a sum makes its writers one group"
    with net.edit() as edit:
        edit.prune("fc1", units=[2])
    assert net.get_parameter("fc2.weight").shape == (5, 5)
    with net.edit() as edit:
        edit.remove("skip", keep="act2")
    assert net.graph.groups["fc2"].ids == net.graph.groups["fc1"].ids == (0, 1, 3, 4, 5)
    assert output(net, x).shape == (5, 2)


def test_dormant_units_keep_out_of_structural_change() -> None:
    net, _, _ = build(mlp(), 4)
    with net.edit() as edit:
        edit.retire("fc1", units=[1])
    with pytest.raises(gn.EditError, match="recruit or prune them"), net.edit() as edit:
        edit.deepen("act1", form="residual")
    with net.edit() as edit:  # elsewhere it may
        edit.deepen("act2", form="residual")
        edit.recruit("fc1", units=[1])
    assert net.graph.groups["fc1"].size == 8


def test_layers_that_stay_are_the_same_objects_with_their_hooks() -> None:
    net, _, x = build(mlp(), 4)
    layer, called = net.get_submodule("fc1"), []
    layer.register_forward_hook(lambda *_: called.append(1))
    with net.edit() as edit:
        edit.deepen("act1")
    assert net.get_submodule("fc1") is layer
    net(x)
    assert called


def test_new_parameters_join_the_group_of_their_kind_or_of_a_named_neighbour() -> None:
    torch.manual_seed(0)
    net = gn.Network(mlp(), seed=0)
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}])
    net.attach(optimizer)
    groups = [id(group) for group in optimizer.param_groups]
    with net.edit() as edit:
        edit.deepen("act1", name="a")
        edit.insert("linear", "b", inputs="act2", before="head", init="identity", beside="fc1.bias")
    assert [id(group) for group in optimizer.param_groups] == groups
    first, second = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert id(net.get_parameter("a.weight")) in first
    assert id(net.get_parameter("a.bias")) in second
    assert id(net.get_parameter("b.weight")) in second
    with net.edit() as edit:
        edit.remove("b")
    assert all(len({id(p) for p in group["params"]}) == len(group["params"]) for group in optimizer.param_groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


def test_a_blend_moves_from_one_activation_to_the_other() -> None:
    net, optimizer, x = build(mlp(), 4)
    with net.edit() as edit:
        edit.replace("act1", by="blend", to="gelu", preserves="function")
    train(net, optimizer, x)
    mix = net.get_parameter("act1.mix")
    assert float(mix.detach().abs()) > 0, "the mixture is learned"
    with torch.no_grad():
        mix.fill_(1.0)
    before = output(net, x)
    with net.edit() as edit:
        edit.replace("act1", by="gelu", preserves="function")
    assert gap(before, output(net, x)) <= 1e-12
    assert net.graph.ops["act1"].op == "gelu"


def test_measured_identity_norm_and_its_replay() -> None:
    net, _, x = build(conv(), 3, 8, 8)
    before = output(net, x)
    with net.edit() as edit:
        edit.deepen("act1", norm="batch_norm", batch=(x,), preserves="function")
    assert gap(before, output(net, x)) <= 1e-12
    with pytest.raises(gn.EditError, match="needed a batch"):
        replay(gn.Network(conv(), seed=0).double(), net.history.journal())


def try_in(edit: Edit) -> None:
    with edit.nested():
        edit.prune("fc1", units=[0])
        edit.deepen("act1")
        edit.redirect("act2 -> head", "zzz")


def test_a_nested_edit_that_fails_leaves_the_outer_one() -> None:
    net, optimizer, x = build(mlp(), 4)
    twin, _, _ = build(mlp(), 4)
    with net.edit(seed=5) as edit:
        edit.grow("fc1", 2, init="kaiming")
        with pytest.raises(gn.EditError, match="no op 'zzz'"):
            try_in(edit)
        with edit.nested():
            edit.prune("fc2", units=[1])
        edit.grow("fc2", 1, init="kaiming")
    with twin.edit(seed=5) as edit:
        edit.grow("fc1", 2, init="kaiming")
        edit.prune("fc2", units=[1])
        edit.grow("fc2", 1, init="kaiming")
    assert net.graph.to_document() == twin.graph.to_document()
    for name, value in twin.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name
    train(net, optimizer, x)


def test_a_branch_that_gives_something_cannot_go_without_a_trace() -> None:
    net, _, x = build(mlp(), 4)

    def half(edit: Edit) -> None:
        edit.insert("linear", "branch", inputs="act1", init="zeros")
        edit.insert("sigmoid", "gate", inputs="branch")
        edit.insert("add", "sum", inputs=["act1", "gate"])
        edit.redirect("act1 -> fc2", "sum", preserves="function")

    with pytest.raises(gn.EditError, match="cannot promise"), net.edit() as edit:  # sigmoid(0) is 1/2
        half(edit)
    with net.edit() as edit:
        residual(edit)
    with torch.no_grad():
        net.get_parameter("branch.bias")[2] = 1.0  # its weights are zero, and so are its other biases
    before = output(net, x)
    with pytest.raises(gn.EditError, match="cannot promise"), net.edit() as edit:
        edit.remove("sum", keep="act1", preserves="function")
    assert torch.equal(before, output(net, x))


def test_new_layers_train_when_the_network_does() -> None:
    net, _, _ = build(mlp(), 4)
    for mode in (False, True):
        net.train(mode)
        with net.edit() as edit:
            edit.insert("dropout", f"drop{mode}", inputs="act1", before="fc2" if not mode else "dropFalse")
        assert net.get_submodule(f"drop{mode}").training is mode
    net.eval()
    with net.edit() as edit:
        edit.deepen("act2", form="residual", norm="batch_norm")
    assert not any(module.training for module in net.modules())


def test_values_written_in_a_nested_edit_that_fails_are_taken_back() -> None:
    net, _, _ = build(mlp(), 4)
    twin, _, _ = build(mlp(), 4)

    def fail(edit: Edit) -> None:
        with edit.nested():
            edit.shrink_and_perturb("fc1", noise=1.0)
            edit.redirect("act2 -> head", "zzz")

    with net.edit(seed=5) as edit:
        edit.grow("fc1", 2, init="kaiming")
        with pytest.raises(gn.EditError, match="no op 'zzz'"):
            fail(edit)
    with twin.edit(seed=5) as edit:
        edit.grow("fc1", 2, init="kaiming")
    for name, value in twin.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


def test_swapping_norms_carries_gain_and_shift() -> None:
    net, optimizer, x = build(conv(), 3, 8, 8)
    gain = net.get_parameter("norm1.weight").detach().clone()
    with net.edit() as edit:
        edit.replace("norm1", by="group_norm", groups=2)
    assert isinstance(net.get_submodule("norm1"), torch.nn.GroupNorm)
    assert torch.equal(net.get_parameter("norm1.weight"), gain)
    assert "norm1.running_mean" not in net.state_dict()
    train(net, optimizer, x)


def test_tie_drops_one_weight_and_its_state() -> None:
    graph = gn.transformer(11, width=8, depth=1, heads=2, context=6, hidden=12)
    net, optimizer, x = build(graph)
    with torch.no_grad():
        net.get_parameter("head.weight").copy_(net.get_parameter("tok.weight"))
    before, count = output(net, x), len(optimizer.state)
    with net.edit() as edit:
        edit.tie("head", "tok", preserves="function")
    assert torch.equal(before, output(net, x))
    assert net.get_parameter("head.weight") is net.get_parameter("tok.weight")
    assert len(optimizer.state) == count - 1
    train(net, optimizer, x)
    with net.edit() as edit:
        edit.untie("head", preserves="function")
    assert net.get_parameter("head.weight") is not net.get_parameter("tok.weight")
    train(net, optimizer, x)


@pytest.mark.parametrize("by", ["low-rank", "separable"])
def test_new_weights_lie_as_torch_lays_them(by: str) -> None:
    """LBFGS flattens every gradient by a view, which lies as its parameter does."""
    dense = by == "low-rank"
    graph = mlp() if dense else gn.convnet((2, 6, 6), channels=(3, 4), hidden=())
    net = gn.Network(graph, seed=0).double()
    shape = (4,) if dense else (2, 6, 6)
    name = "fc2" if dense else "conv2"
    with net.edit() as edit:
        edit.replace(name, by=by, rank=2)
        edit.apply(lambda plan: plan.restructure(
            [], tensors={f"{name}.weight": plan.value(f"{name}.weight").clone().mT.contiguous().mT}
        ))  # fmt: skip
    assert all(parameter.is_contiguous() for parameter in net.parameters())
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=2)
    net.attach(optimizer)
    x = torch.randn(3, *shape, dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_real_numbers_are_not_computed_before_an_embedding() -> None:
    net = gn.Network(gn.transformer(7, width=4, depth=1, heads=2, context=5), seed=0)
    with pytest.raises(gn.EditError, match="computes with real numbers"), net.edit() as edit:
        edit.insert("relu", "odd", inputs=net.graph.inputs[0].name, before="tok")
    assert net.version == 0
