"""What initialisers say of the function holds, and what newborns start with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.edit.newborns import visible
from graphnet.ir.ops import OPS
from graphnet.testing import check_close, check_preserved, graphs, random_network, sample, wave_loss

F64 = torch.float64


def gradients(net: gn.Network, *inputs: Tensor) -> dict[str, Tensor]:
    """The loss's gradient with respect to every parameter, in evaluation mode."""
    net.eval()
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(wave_loss(net(*inputs)), parameters)
    return dict(zip(names, found, strict=True))


def tied_to_itself(net: gn.Network, group: str) -> bool:
    """Whether one stored tensor produces and consumes the group (tied embeddings)."""
    roles: dict[tuple[str, int], set[str]] = {}
    for spec in net.graph.users[group]:
        for dim, (layout, role) in enumerate(zip(spec.dims, spec.roles, strict=True)):
            if group in set(layout.atoms()):
                roles.setdefault((spec.shared or spec.name, dim), set()).add(role)
    return any({"read", "write"} <= found for found in roles.values())


@given(data=st.data())
def test_a_promise_of_the_function_is_kept_or_refused(draw_group: Any, data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 1)
    inputs = sample(graph, 2)
    group = draw_group(data, graph).name
    init = data.draw(st.sampled_from(["zero-outgoing", "net2wider"]))
    options = {"split": "random"} if init == "net2wider" and data.draw(st.booleans()) else {}
    net.eval()
    before = net(*inputs)
    try:
        with net.edit() as edit:
            edit.grow(group, data.draw(st.integers(1, 4)), init=init, preserves="function", **options)
    except gn.EditError:
        assert visible(graph.groups[group]) is not None or tied_to_itself(net, group)
        assert net.version == 0
        return
    assert visible(graph.groups[group]) is None
    assert net.history.latest.preserves == "function"
    check_preserved(net, before, *inputs, what=f"{init} of {group}")


@given(data=st.data())
def test_what_the_record_says_held_did_hold(draw_group: Any, data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 1)
    inputs = sample(graph, 2)
    group = draw_group(data, graph).name
    net.eval()
    before = net(*inputs)
    try:
        with net.edit() as edit:
            edit.grow(group, 2, init=data.draw(st.sampled_from(["zero-outgoing", "net2wider"])))
    except gn.EditError:
        assert tied_to_itself(net, group)
        return
    (step,) = net.history.latest.steps
    if step.preserves == "function":
        check_preserved(net, before, *inputs)
    else:
        assert step.note


@pytest.mark.parametrize("init", ["kaiming", "copy-std"])
def test_random_outgoing_weights_cannot_promise(init: str) -> None:
    net = gn.Network(gn.mlp([4, 6, 2]))
    for promise in ("function", "approximate"):
        with pytest.raises(gn.EditError, match="cannot promise"), net.edit() as edit:
            edit.grow("fc1", 2, init=init, preserves=promise)  # type: ignore[arg-type]
    with net.edit() as edit:
        edit.grow("fc1", 2, init=init)
    assert net.history.latest.preserves == "none"


@pytest.mark.parametrize(
    ("graph", "group", "reason"),
    [
        (gn.mlp([4, 6, 2], norm="layer"), "fc1", "layer norm"),
        (gn.mlp([4, 6, 2], norm="rms"), "fc1", "RMS norm"),
        (gn.convnet((1, 4, 4), channels=(12,), hidden=(), norm="group"), "", "group norm"),
        (gn.mlp([4, 6, 2]), "head", "output"),
        (gn.transformer(7, width=8, depth=1, heads=2), "tok", "layer norm"),
        (gn.transformer(7, width=8, depth=1, heads=2), "blocks.0.q_proj.head_dim", "multiplied along it"),
    ],
)
@pytest.mark.parametrize("init", ["zero-outgoing", "net2wider"])
def test_a_promise_is_refused_where_something_else_reads_the_group(
    graph: gn.Graph, group: str, reason: str, init: str
) -> None:
    net = gn.Network(graph)
    if not group:  # 12 channels in 4 groups of 3: the 3 are coupled
        group = next(n for n, g in graph.groups.items() if g.coupled and "group norm" in g.coupled)
    with pytest.raises(gn.EditError, match=reason), net.edit() as edit:
        edit.grow(group, 2, init=init, preserves="function")
    assert net.version == 0


def tied_network() -> gn.Network:
    """An embedding whose table is also the head, with nothing between them that would couple the features."""
    ops = [
        OPS["input"](name="x", shape=(3,), dtype="int64", high=5),
        OPS["embedding"](name="tok", inputs=("x",), count=5, dim=4),
        OPS["tanh"](name="act", inputs=("tok",)),
        OPS["linear"](name="head", inputs=("act",), out=5, bias=False, tied="tok"),
    ]
    return random_network(gn.Graph.from_ops(ops, ["head"]), 0)


@pytest.mark.parametrize("init", ["zero-outgoing", "net2wider"])
def test_tied_weights_that_produce_and_consume_the_group_refuse(init: str) -> None:
    net = tied_network()
    with pytest.raises(gn.EditError, match="tied"), net.edit() as edit:
        edit.grow("tok", 2, init=init)
    with net.edit() as edit:
        edit.grow("tok", 2, init="copy-std")
    assert net.head.weight is net.tok.weight


# -- gradients of newborns and incumbents ---------------- -----------------------------------------------------


@pytest.mark.parametrize(
    ("init", "incoming", "outgoing"),
    [("kaiming", True, True), ("copy-std", True, True), ("zero-outgoing", False, True), ("gradmax", True, False)],
)
def test_which_newborn_gradients_are_nonzero_at_the_first_step(init: str, incoming: bool, outgoing: bool) -> None:
    net = random_network(gn.mlp([5, 8, 6, 3], activation="tanh"), 0)
    (x,) = sample(net.graph, 1, 16)
    with net.edit() as edit:
        edit.grow("fc1", 3, init=init, **({"batch": (x, None), "loss": wave_loss} if init == "gradmax" else {}))
    found = gradients(net, x)
    rows, columns = found["fc1.weight"][8:], found["fc2.weight"][:, 8:]
    assert bool(rows.any(dim=1).all()) is incoming
    assert bool(rows.any()) is incoming
    assert bool(columns.any(dim=0).all()) is outgoing
    assert bool(columns.any()) is outgoing


@given(data=st.data())
def test_incumbents_keep_their_gradients_when_newborns_are_silent(draw_group: Any, data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 4)
    inputs = sample(graph, 5)
    group = draw_group(data, graph).name
    assume(visible(graph.groups[group]) is None and not tied_to_itself(net, group))
    before = gradients(net, *inputs)
    with net.edit() as edit:
        born = edit.grow(group, 2, preserves="function")
    after = gradients(net, *inputs)
    largest = max(float(tensor.abs().max()) for tensor in before.values())
    for name, parameter in net.named_parameters():
        parameter.grad = after[name]
    with net.edit() as edit:  # the gradients in flight follow the edit: what is left are the incumbents'
        edit.prune(group, units=born)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert float((parameter.grad - before[name]).abs().max()) <= 1e-12 * largest


@pytest.mark.parametrize("split", ["equal", "random"])
def test_net2wider_gradient_identities(split: str) -> None:
    net = random_network(gn.mlp([5, 6, 4, 3], activation="gelu", norm="batch"), 0)
    (x,) = sample(net.graph, 1, 16)
    before = gradients(net, x)
    columns = net.fc2.weight.detach().clone()
    with net.edit() as edit:
        edit.grow("fc1", 5, init="net2wider", split=split)
    after = gradients(net, x)
    rows = net.fc1.weight.detach()
    for unit in range(11):
        donor = next(d for d in range(6) if torch.equal(rows[d], rows[unit]))
        at = int(columns[:, donor].abs().argmax())
        share = float(net.fc2.weight.detach()[at, unit] / columns[at, donor])
        for name in ("fc1.weight", "fc1.bias", "norm1.weight", "norm1.bias"):
            scale = float(before[name].abs().max())
            gap = (after[name][unit] - share * before[name][donor]).abs().max()
            assert float(gap) <= 1e-12 * scale, f"d{name} of a copy is its share of the donor's"
        gap = (after["fc2.weight"][:, unit] - before["fc2.weight"][:, donor]).abs().max()
        assert float(gap) <= 1e-12 * float(before["fc2.weight"].abs().max())


def test_net2wider_noise_changes_the_function_in_proportion() -> None:
    changes = []
    for noise in (1e-5, 1e-4, 1e-3):
        net = random_network(gn.mlp([5, 6, 3], activation="tanh"), 0)
        (x,) = sample(net.graph, 1)
        before = net(x)
        with net.edit(seed=3) as edit:
            edit.grow("fc1", 4, init="net2wider", noise=noise)
        assert net.history.latest.preserves == "approximate"
        changes.append(float((net(x) - before).detach().norm()) / noise)
    assert changes[0] == pytest.approx(changes[1], rel=0.01)
    assert changes[0] == pytest.approx(changes[2], rel=0.05)
    assert changes[0] > 0


def test_kaiming_bounds_and_zero_biases() -> None:
    net = random_network(gn.mlp([50, 100, 3]), 0)
    with net.edit() as edit:
        edit.grow("fc1", 200, init="kaiming")
    rows, columns = net.fc1.weight[100:].detach(), net.head.weight[:, 100:].detach()
    assert not net.fc1.bias[100:].any()
    for values, bound in ((rows, (6 / 50) ** 0.5), (columns, (6 / 300) ** 0.5)):  # the post-growth fan-in is 300
        assert float(values.abs().max()) <= bound
        assert float(values.abs().max()) > 0.95 * bound


def test_copy_std_follows_the_incumbents() -> None:
    net = random_network(gn.mlp([50, 100, 3]), 0)
    with torch.no_grad():
        net.fc1.weight.mul_(7.0)
    with net.edit() as edit:
        edit.grow("fc1", 200, init="copy-std")
    rows = net.fc1.weight.detach()
    ratio = float(rows[100:].std() / rows[:100].std())
    assert ratio == pytest.approx(1.0, abs=0.05)


def test_new_norm_slots_are_the_identity() -> None:
    net = random_network(gn.mlp([5, 6, 3], norm="batch"), 0)
    with net.edit() as edit:
        edit.grow("fc1", 2)
    slots = [getattr(net.norm1, name)[6:].tolist() for name in ("weight", "bias", "running_mean", "running_var")]
    assert slots == [[1, 1], [0, 0], [0, 0], [1, 1]]


# -- GradMax ------------ --------------------------------------------------------------------------------------


def bridging(net: gn.Network, x: Tensor, below: str, above: str) -> Tensor:
    """The gradient of a direct connection from an activation to a pre-activation: sum of delta h^T."""
    held: dict[str, Tensor] = {}

    def keep(name: str, index: int) -> Any:
        def hook(_: Any, inputs: Any, output: Tensor) -> None:
            held[name] = inputs[0] if index == 0 else output
            held[name].retain_grad() if held[name].requires_grad else None

        return hook

    handles = [
        net.get_submodule(below).register_forward_hook(keep("h", 0)),
        net.get_submodule(above).register_forward_hook(keep("z", 1)),
    ]
    wave_loss(net(x)).backward()
    for handle in handles:
        handle.remove()
    net.zero_grad()
    delta = held["z"].grad
    assert delta is not None
    return delta.T @ held["h"].detach()


def incoming_norm(net: gn.Network, x: Tensor, first: int) -> float:
    """Squared norm of the newborns' incoming weight gradient."""
    return float(gradients(net, x)["fc2.weight"][first:].square().sum())


@pytest.mark.parametrize(("activation", "slope"), [("tanh", 1.0), ("gelu", 0.5), ("relu", 1.0)])
def test_gradmax_reaches_the_best_orthonormal_gradient(activation: str, slope: float) -> None:
    # under relu newborns stand at the constant `lift`, where the slope is 1
    net = random_network(gn.mlp([6, 7, 5, 6, 3], activation=activation), 0)
    (x,) = sample(net.graph, 1, 32)
    net.eval()
    before, values = net(x), torch.linalg.svdvals(bridging(net, x, "fc2", "fc3"))
    norm = float(net.fc3.weight.detach().norm(dim=0).mean())
    with net.edit() as edit:
        edit.grow("fc2", 3, init="gradmax", scale=0.7, preserves="function", batch=(x, None), loss=wave_loss)
    check_preserved(net, before, x, what="gradmax")
    c = 0.7 * norm
    expected = slope**2 * c**2 * float(values[:3].square().sum())
    reached = incoming_norm(net, x, 5)
    assert reached == pytest.approx(expected, rel=1e-10)
    columns = net.fc3.weight[:, 5:].detach()
    torch.testing.assert_close(columns.T @ columns, c**2 * torch.eye(3, dtype=F64), rtol=1e-10, atol=1e-10)
    lifted = activation == "relu"
    generator = torch.Generator().manual_seed(0)
    for _ in range(0 if lifted else 30):
        with torch.no_grad():
            net.fc3.weight[:, 5:] = c * torch.linalg.qr(torch.randn(6, 3, dtype=F64, generator=generator)).Q
        assert incoming_norm(net, x, 5) <= reached * (1 + 1e-10)


def interior_loss(output: Tensor, target: Any = None) -> Tensor:
    """Reads no output that a padded position of the hidden map reaches."""
    return wave_loss(output[..., 1:-1, 1:-1])


@pytest.mark.parametrize(
    ("padding", "loss", "tolerance"),
    # The spanning kernel sees the padding of the input, the convolution above that of the hidden map: at the border
    # their products differ, which is the whole error (8% of the squared norm here, with a gradient of pure noise).
    [(0, wave_loss, 1e-10), (1, interior_loss, 1e-10), (1, wave_loss, 0.15)],
)
def test_gradmax_between_convolutions(padding: int, loss: Any, tolerance: float) -> None:
    ops = [
        OPS["input"](name="x", shape=(2, 12, 12)),
        OPS["conv2d"](name="one", inputs=("x",), out=3, kernel=3, padding=padding),
        OPS["tanh"](name="act", inputs=("one",)),
        OPS["conv2d"](name="two", inputs=("act",), out=4, kernel=3, padding=padding),
    ]
    net = random_network(gn.Graph.from_ops(ops, ["two"]), 0)
    (x,) = sample(net.graph, 1, 8)
    output = net(x)
    (delta,) = torch.autograd.grad(loss(output), output)
    spanning = torch.nn.grad.conv2d_weight(x, (4, 2, 5, 5), delta, padding=2 * padding)
    taps = [spanning[:, :, u : u + 3, v : v + 3].permute(1, 0, 2, 3).reshape(2, -1) for u in range(3) for v in range(3)]
    values = torch.linalg.svdvals(torch.cat(taps))
    norm = float(net.two.weight.detach().transpose(0, 1).reshape(3, -1).norm(dim=1).mean())
    with net.edit() as edit:
        edit.grow("one", 3, init="gradmax", scale=1.0, preserves="function", batch=(x, None), loss=loss)
    check_close(output, net(x), "gradmax", tolerance=1e-12)
    (gradient,) = torch.autograd.grad(loss(net(x)), net.one.weight)
    reached = float(gradient[3:].square().sum())
    assert reached == pytest.approx(norm**2 * float(values[:3].square().sum()), rel=tolerance)


@pytest.mark.parametrize(("order", "affine"), [("before", True), ("after", True), ("after", False)])
def test_gradmax_lifts_past_a_flat_activation_with_batch_norm_on_either_side(order: str, affine: bool) -> None:
    norm = OPS["batch_norm"](name="norm", inputs=("fc1",) if order == "before" else ("act",), affine=affine)
    act = OPS["relu"](name="act", inputs=("norm",) if order == "before" else ("fc1",))
    ops = [
        OPS["input"](name="x", shape=(4,)),
        OPS["linear"](name="fc1", inputs=("x",), out=5),
        *((norm, act) if order == "before" else (act, norm)),
        OPS["linear"](name="head", inputs=("act" if order == "before" else "norm",), out=5),
    ]
    net = random_network(gn.Graph.from_ops(ops, ["head"]), 0).eval()
    (x,) = sample(net.graph, 1, 8)
    before = net(x)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="gradmax", preserves="function", lift=0.1, batch=(x, None), loss=wave_loss)
    check_preserved(net, before, x, what="lifted gradmax")
    assert bool(gradients(net, x)["fc1.weight"][5:].any(dim=1).all())


def test_gradmax_refuses_what_it_cannot_do() -> None:
    x = torch.randn(4, 5)
    batch: dict[str, Any] = {"batch": (x, None), "loss": wave_loss}
    with pytest.raises(gn.EditError, match="needs data"), gn.Network(gn.mlp([5, 4, 3, 2])).edit() as edit:
        edit.grow("fc1", 1, init="gradmax")
    with pytest.raises(gn.EditError, match="orthonormal directions"), gn.Network(gn.mlp([5, 4, 3])).edit() as edit:
        edit.grow("fc1", 4, init="gradmax", **batch)
    normed = gn.Network(gn.mlp([5, 4, 3], norm="layer"))
    with pytest.raises(gn.EditError, match=r"'norm1' \(layer_norm\) stands between"), normed.edit() as edit:
        edit.grow("fc1", 1, init="gradmax", **batch)
    ops = [
        OPS["input"](name="x", shape=(5,)),
        OPS["linear"](name="fc1", inputs=("x",), out=4, bias=False),
        OPS["relu"](name="act", inputs=("fc1",)),
        OPS["linear"](name="head", inputs=("act",), out=3),
    ]
    with pytest.raises(gn.EditError, match="never train"), gn.Network(gn.Graph.from_ops(ops, ["head"])).edit() as edit:
        edit.grow("fc1", 1, init="gradmax", **batch)
