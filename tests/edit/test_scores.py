"""Scores against their formulas by hand, and pruning by them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import graphnet as gn
from graphnet.edit.plan import Plan
from graphnet.edit.scores import SCORES
from graphnet.edit.scores.base import Scoring
from graphnet.testing import check_preserved, random_network, sample, wave_loss


def scores(net: gn.Network, name: str, group: str, x: Tensor | None = None, **options: Any) -> Tensor:
    """What a registered score gives."""
    plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
    batch = None if x is None else (x, None)
    found: Tensor = SCORES.call(name, Scoring(plan, net.graph.group(group), batch, wave_loss), **options)
    return found


@pytest.fixture
def dense() -> gn.Network:
    return random_network(gn.mlp([5, 6, 4, 3], activation="gelu"), 0)


@pytest.fixture
def conv() -> gn.Network:
    return random_network(gn.convnet((2, 6, 6), channels=(4, 3), hidden=(5,), norm="batch", activation="gelu"), 0)


def tap(net: gn.Network, x: Tensor, module: str) -> tuple[Tensor, Tensor]:
    """A module's output and the loss's gradient with respect to it, in evaluation mode."""
    held: list[Tensor] = []

    def keep(_: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        held.append(output)

    handle = net.eval().get_submodule(module).register_forward_hook(keep)
    wave_loss(net(x)).backward()
    handle.remove()
    net.zero_grad()
    assert held[0].grad is not None
    return held[0].detach(), held[0].grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_weights_scored_a_few_rows_at_a_time_are_scored_as_a_whole(dtype: torch.dtype) -> None:
    net = gn.Network(gn.mlp([700, 300, 2]), seed=0)  # 210,000 elements: more than are worked on at a time
    if dtype.is_complex:
        net.fc1.weight = torch.nn.Parameter(torch.complex(net.fc1.weight.detach(), net.fc1.weight.detach().flip(0)))
    else:
        net.to(dtype)
    magnitudes = net.fc1.weight.detach().abs().double()
    assert torch.equal(scores(net, "l1", "fc1"), magnitudes.sum(1))
    assert torch.equal(scores(net, "l2", "fc1"), magnitudes.square().sum(1).sqrt())


def test_magnitude(dense: gn.Network, conv: gn.Network) -> None:
    torch.testing.assert_close(scores(dense, "magnitude", "fc1"), dense.fc1.weight.abs().mean(1).detach())
    torch.testing.assert_close(
        scores(dense, "magnitude", "fc1", norm="l2"), dense.fc1.weight.square().mean(1).sqrt().detach()
    )
    torch.testing.assert_close(scores(conv, "magnitude", "conv2"), conv.conv2.weight.abs().mean((1, 2, 3)).detach())


@pytest.mark.parametrize("tau", [0.05, 0.2])
def test_activation_frequency(dense: gn.Network, conv: gn.Network, tau: float) -> None:
    (x,) = sample(dense.graph, 1, 50)
    h = dense.act1(dense.fc1(x))
    torch.testing.assert_close(
        scores(dense, "activation-frequency", "fc1", x, tau=tau), (h > tau).double().mean(0), rtol=0, atol=1e-12
    )
    (x,) = sample(conv.graph, 1, 7)
    h, _ = tap(conv, x, "act_c1")
    torch.testing.assert_close(
        scores(conv, "activation-frequency", "conv1", x, tau=tau),
        (h > tau).double().mean((0, 2, 3)),
        rtol=0,
        atol=1e-12,
    )


def test_gradient_and_gate(dense: gn.Network, conv: gn.Network) -> None:
    for net, group, pre, post, dims in (
        (dense, "fc2", "fc2", "act2", (0,)),
        (conv, "conv1", "norm_c1", "act_c1", (0, 2, 3)),
    ):
        (x,) = sample(net.graph, 1, 9)
        h, after = tap(net, x, post)
        _, before = tap(net, x, pre)
        torch.testing.assert_close(scores(net, "gradient", group, x), after.abs().mean(dims))
        torch.testing.assert_close(scores(net, "gradient", group, x, at="pre-activation"), before.abs().mean(dims))
        torch.testing.assert_close(scores(net, "gate", group, x), (h * after).sum(dims).abs())


@pytest.mark.parametrize("form", ["abs-sum", "sum-abs", "square-sum"])
def test_taylor(dense: gn.Network, form: str) -> None:
    (x,) = sample(dense.graph, 1, 9)
    weight, bias = dense.fc1.weight, dense.fc1.bias
    gw, gb = torch.autograd.grad(wave_loss(dense(x)), [weight, bias])
    parts = torch.cat([gw * weight, (gb * bias)[:, None]], dim=1).detach()
    expected = {
        "abs-sum": parts.sum(1).abs(),
        "sum-abs": parts.abs().sum(1),
        "square-sum": parts.sum(1).square(),
    }[form]
    torch.testing.assert_close(scores(dense, "taylor", "fc1", x, form=form), expected)


def test_scoring_changes_nothing(conv: gn.Network) -> None:
    (x,) = sample(conv.graph, 1, 9)
    conv.train()
    wave_loss(conv(x)).backward()
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in conv.named_parameters() if p.grad is not None}
    for name in ("activation-frequency", "gradient", "gate", "taylor"):
        scores(conv, name, "conv1", x)
    assert conv.training
    assert all(torch.equal(before[name], tensor) for name, tensor in conv.state_dict().items())
    for name, parameter in conv.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, grads[name])


def test_the_lowest_go(dense: gn.Network) -> None:
    order = dense.fc1.weight.abs().mean(1).argsort().tolist()
    with dense.edit() as edit:
        gone = edit.prune("fc1", lowest=2)
    assert sorted(gone) == sorted(order[:2])
    with dense.edit() as edit:
        edit.prune("fc1", keep=0.25)
    assert dense.graph.groups["fc1"].size == 1


def test_ties_follow_the_seed_and_not_the_index() -> None:
    chosen = set()
    for seed in range(12):
        net = random_network(gn.mlp([5, 8, 3]), 0)
        with torch.no_grad():
            net.fc1.weight.fill_(1.0)
        twice = []
        for copied in (net, copy.deepcopy(net)):
            with copied.edit(seed=seed) as edit:
                twice.append(edit.prune("fc1", lowest=2))
        assert twice[0] == twice[1]
        chosen.add(twice[0])
    assert len(chosen) > 4


@pytest.mark.parametrize("group", ["conv2", "fc1"])
def test_pruning_silent_units_preserves_the_function_and_says_so(conv: gn.Network, group: str) -> None:
    (x,) = sample(conv.graph, 1)
    consumer = conv.fc1.weight if group == "conv2" else conv.head.weight
    span = 1 if group == "fc1" else consumer.shape[1] // 3
    with torch.no_grad():
        consumer[:, span : 2 * span] = 0.0
    before = conv.eval()(x)
    with pytest.raises(gn.EditError, match="outgoing weights"), conv.edit() as edit:
        edit.prune(group, units=[0], preserves="function")
    with conv.edit() as edit:
        edit.prune(group, units=[1], preserves="function")
    assert conv.history.latest.preserves == "function"
    check_preserved(conv, before, x)
    with pytest.raises(gn.EditError, match="preserves is"), conv.edit() as edit:
        edit.prune(group, units=[0], preserves="everything")  # type: ignore[arg-type]


def test_pruning_before_a_layer_norm_cannot_promise() -> None:
    net = random_network(gn.mlp([4, 6, 2], norm="layer"), 0)
    with torch.no_grad():
        net.head.weight[:, 1] = 0.0
    with pytest.raises(gn.EditError, match="coupled"), net.edit() as edit:
        edit.prune("fc1", units=[1], preserves="function")


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": [0], "lowest": 1}, {}, {"units": []}, {"units": [99]}, {"units": [1, 1]}, {"units": [0.5]},
        {"lowest": 0}, {"lowest": 6}, {"lowest": True}, {"keep": 1.5}, {"keep": "half"}, {"lowest": 1, "score": "size"},
        {"lowest": 1, "score": "gradient"}, {"lowest": 1, "norm": "l3"}, {"lowest": 1, "colour": 1},
        {"units": list(range(6))},
    ],
)  # fmt: skip
def test_wrong_arguments_are_edit_errors(dense: gn.Network, wrong: dict[str, Any]) -> None:
    with pytest.raises(gn.EditError), dense.edit() as edit:
        edit.prune("fc1", **wrong)
    assert dense.version == 0
