"""Scores from data: formulas by hand, gradients sample by sample, and no more evaluation than a score needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import graphnet as gn
from graphnet.edit.host import Evaluation
from graphnet.edit.plan import Plan
from graphnet.edit.scores import SCORES, score_units
from graphnet.edit.scores.base import Scoring
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.io import Input
from graphnet.testing import random_network, sample, wave_loss
from graphnet.testing.graphs import op

Loss = Callable[..., Tensor]


def scores(
    net: gn.Network, name: str, group: str, batch: Any = None, loss: Loss | None = wave_loss, **options: Any
) -> Tensor:
    plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
    return score_units(name, Scoring(plan, net.graph.group(group), batch, loss), options)


@pytest.fixture
def dense() -> gn.Network:
    return random_network(gn.mlp([5, 6, 4, 3]), 0)


@pytest.fixture
def conv() -> gn.Network:
    return random_network(gn.convnet((2, 6, 6), channels=(4, 3), hidden=(5,), norm="batch"), 0)


# -- what units do --------------------------------------------------------------------------------------------


def test_apoz_counts_zeros(dense: gn.Network, conv: gn.Network) -> None:
    (x,) = sample(dense.graph, 1, 30)
    h = dense.act1(dense.fc1(x)).detach()
    assert 0.1 < float((h == 0).double().mean()) < 0.9
    torch.testing.assert_close(scores(dense, "apoz", "fc1", (x, None)), 1 - (h == 0).double().mean(0))
    (x,) = sample(conv.graph, 1, 7)
    h = conv.eval().act_c1(conv.norm_c1(conv.conv1(x))).detach()
    torch.testing.assert_close(scores(conv, "apoz", "conv1", (x, None)), 1 - (h == 0).double().mean((0, 2, 3)))
    torch.testing.assert_close(
        scores(conv, "apoz", "conv1", (x, None), tau=0.2), 1 - (h <= 0.2).double().mean((0, 2, 3))
    )
    with pytest.raises(gn.EditError, match="tau"):
        scores(conv, "apoz", "conv1", (x, None), tau=-1.0)


def test_pruning_by_apoz_takes_the_unit_with_the_most_zeros(dense: gn.Network) -> None:
    with torch.no_grad():
        dense.fc1.bias[3] = -100.0
    (x,) = sample(dense.graph, 1, 30)
    with dense.edit() as edit:
        assert edit.prune("fc1", lowest=1, score="apoz", batch=(x, None)) == (3,)


def test_redo_is_the_share_of_the_mean(dense: gn.Network) -> None:
    (x,) = sample(dense.graph, 1, 30)
    h = dense.act1(dense.fc1(x)).detach().abs().mean(0)
    torch.testing.assert_close(scores(dense, "redo", "fc1", (x, None)), h / h.mean())
    with torch.no_grad():
        dense.fc1.bias.fill_(-100.0)
    assert scores(dense, "redo", "fc1", (x, None)).tolist() == [0.0] * 6


def test_contribution_by_hand(dense: gn.Network) -> None:
    (x,) = sample(dense.graph, 1, 30)
    h = dense.act1(dense.fc1(x)).detach()
    out, into = dense.fc2.weight.detach().abs().sum(0), dense.fc1.weight.detach().abs().mean(1)
    for at in ("activation", "consumers"):
        torch.testing.assert_close(scores(dense, "contribution", "fc1", (x, None), at=at), h.abs().mean(0) * out)
        centred = (h - h.mean(0)).abs().mean(0) * out
        torch.testing.assert_close(scores(dense, "contribution", "fc1", (x, None), at=at, mean_corrected=True), centred)
        torch.testing.assert_close(
            scores(dense, "contribution", "fc1", (x, None), at=at, mean_corrected=True, adaptable=True), centred / into
        )
    with torch.no_grad():
        dense.fc1.weight[2] = 0.0
    with pytest.raises(gn.EditError, match=r"zero for units \[2\]"):
        scores(dense, "contribution", "fc1", (x, None), adaptable=True)


def test_contribution_at_the_consumers_reads_what_they_read(conv: gn.Network) -> None:
    """Behind the pooling, each column of the flattened map by itself."""
    (x,) = sample(conv.graph, 1, 9)
    held: list[Tensor] = []
    handle = conv.eval().fc1.register_forward_hook(lambda _, inputs, __: held.append(inputs[0].detach()))
    conv(x)
    handle.remove()
    weight = conv.fc1.weight.detach().abs().sum(0)
    expected = (held[0].abs().mean(0) * weight).reshape(3, -1).sum(1)
    torch.testing.assert_close(scores(conv, "contribution", "conv2", (x, None), at="consumers"), expected)
    h = conv.act_c2(conv.norm_c2(conv.conv2(conv.pool1(conv.act_c1(conv.norm_c1(conv.conv1(x))))))).detach()
    torch.testing.assert_close(
        scores(conv, "contribution", "conv2", (x, None)), h.abs().mean((0, 2, 3)) * weight.reshape(3, -1).sum(1)
    )


def test_contribution_sums_over_several_consumers_and_ports() -> None:
    ops: list[Op] = [
        Input(name="x", shape=(4,)), op("linear", "one", "x", out=3), op("linear", "two", "x", out=2),
        op("concat", "both", "one", "two"), op("tanh", "act", "both"), op("split", "parts", "act", sizes=(3, 2)),
        op("linear", "left", "parts:0", out=2), op("linear", "right", "parts:1", out=2),
        op("linear", "again", "act", out=2), op("add", "sum", "left", "right", "again"),
    ]  # fmt: skip
    net = random_network(gn.Graph.from_ops(ops, ["sum"]), 0)
    (x,) = sample(net.graph, 1, 11)
    h = torch.tanh(net.two(x)).detach().abs().mean(0)
    out = net.right.weight.detach().abs().sum(0) + net.again.weight.detach().abs().sum(0)[3:]
    torch.testing.assert_close(scores(net, "contribution", "two", (x, None), at="consumers"), h * out[:2])
    written = net.two(x).detach().abs().mean(0)  # no nonlinearity follows the writer at once
    torch.testing.assert_close(scores(net, "contribution", "two", (x, None)), written * out[:2])


def test_nothing_goes_out_of_a_group_that_no_weight_reads(dense: gn.Network) -> None:
    (x,) = sample(dense.graph, 1, 4)
    with pytest.raises(gn.EditError, match="no stored weight reads 'head'"):
        scores(dense, "contribution", "head", (x, None))


def test_a_share_is_taken_over_the_units_own_elements() -> None:
    """The group is written as one part of a wider dimension: the other part does not count."""
    ops: list[Op] = [
        Input(name="x", shape=(4,)), op("linear", "wide", "x", out=6), op("split", "parts", "wide", sizes=(4, 2)),
        op("relu", "act", "parts:1"), op("linear", "head", "act", out=2), op("linear", "other", "parts:0", out=2),
        op("add", "sum", "head", "other"),
    ]  # fmt: skip
    net = random_network(gn.Graph.from_ops(ops, ["sum"]), 0)
    (x,) = sample(net.graph, 1, 20)
    group = next(name for name, g in net.graph.groups.items() if g.size == 2 and not g.output)
    found = scores(net, "activation-frequency", group, (x, None), tau=0.0)
    torch.testing.assert_close(found, (net.wide(x)[:, 4:] > 0).double().mean(0))


# -- gradients of a loss --------------------------------------------------------------------------------------


def test_taylor_sum_square_and_the_gate_form_of_norms(conv: gn.Network, dense: gn.Network) -> None:
    (x,) = sample(conv.graph, 1, 9)
    norm = conv.eval().norm_c1
    parameters = [conv.conv1.weight, conv.conv1.bias, norm.weight, norm.bias]
    products = [g * p for g, p in zip(torch.autograd.grad(wave_loss(conv(x)), parameters), parameters, strict=True)]
    weight, bias, gamma, beta = (p.detach() for p in products)
    expected = weight.square().sum((1, 2, 3)) + bias.square()
    torch.testing.assert_close(scores(conv, "taylor", "conv1", (x, None), form="sum-square"), expected)
    torch.testing.assert_close(scores(conv, "taylor", "conv1", (x, None), members="norms"), (gamma + beta).square())
    each = torch.stack([weight.sum((1, 2, 3)), bias]).abs()
    torch.testing.assert_close(scores(conv, "taylor", "conv1", (x, None), form="abs-sum", aggregate="sum"), each.sum(0))
    with pytest.raises(gn.EditError, match="no parameters"):
        scores(dense, "taylor", "fc1", sample(dense.graph), members="norms")


def by_samples(net: gn.Network, parameters: list[Tensor], x: Tensor, y: Tensor) -> list[list[Tensor]]:
    """The gradients of each sample's own loss."""
    return [
        list(torch.autograd.grad(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), parameters)) for i in range(len(x))
    ]


@pytest.mark.parametrize("name", ["fisher", "obd"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fisher_squares_the_gradient_of_each_sample(conv: gn.Network, name: str, reduction: str) -> None:
    (x,) = sample(conv.graph, 1, 9)
    y = torch.arange(9) % 10
    parameters = [conv.eval().conv1.weight, conv.conv1.bias]
    found = by_samples(conv, parameters, x, y)
    total = torch.zeros(4, dtype=torch.float64)
    for weight, bias in found:
        total += 0.5 * (weight * parameters[0]).square().sum((1, 2, 3)) + 0.5 * (bias * parameters[1]).square()
    total = total.detach() / (9 if reduction == "mean" else 1)
    given = scores(conv, name, "conv1", (x, y), F.cross_entropy, reduction=reduction)
    torch.testing.assert_close(given, total, rtol=1e-10, atol=0)
    # a mean-reduced loss and a sum-reduced one agree: each sample is a batch of its own
    summed = scores(
        conv, name, "conv1", (x, y), lambda out, t: F.cross_entropy(out, t, reduction="sum"), reduction=reduction
    )
    torch.testing.assert_close(summed, total, rtol=1e-10, atol=0)
    # and the square of the batch's gradient is another number
    whole = torch.autograd.grad(F.cross_entropy(conv(x), y), parameters)
    wrong = 0.5 * (whole[0] * parameters[0]).square().sum((1, 2, 3)) + 0.5 * (whole[1] * parameters[1]).square()
    assert float((wrong / total).detach().max()) < 0.9


def test_the_group_form_of_fisher_squares_the_sum_over_the_unit(conv: gn.Network) -> None:
    (x,) = sample(conv.graph, 1, 7)
    y = torch.arange(7) % 10
    names = ["conv1.weight", "conv1.bias", "norm_c1.weight", "norm_c1.bias", "conv2.weight"]
    parameters = [conv.eval().get_parameter(name) for name in names]
    pooled, separate = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for gradients in by_samples(conv, parameters, x, y):
        product = [(g * p).detach() for g, p in zip(gradients, parameters, strict=True)]
        sums = [product[0].sum((1, 2, 3)), *product[1:4], product[4].sum((0, 2, 3))]
        pooled += torch.stack(sums).sum(0).square() / 14
        separate += torch.stack(sums).square().sum(0) / 14
    options: dict[str, Any] = {"form": "group", "members": "all"}
    torch.testing.assert_close(scores(conv, "fisher", "conv1", (x, y), F.cross_entropy, **options), pooled)
    torch.testing.assert_close(
        scores(conv, "fisher", "conv1", (x, y), F.cross_entropy, aggregate="sum", **options), separate
    )


class Straight(torch.autograd.Function):
    """A loss of the caller's that cannot be mapped over samples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x * x).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


def test_a_loss_that_cannot_be_mapped_is_taken_sample_by_sample(dense: gn.Network) -> None:
    (x,) = sample(dense.graph, 1, 6)
    mapped = scores(dense, "fisher", "fc1", (x, None), lambda out, _: out.square().sum())
    looped = scores(dense, "fisher", "fc1", (x, None), lambda out, _: Straight.apply(out))
    torch.testing.assert_close(looped, mapped, rtol=1e-12, atol=0)
    branching = scores(dense, "fisher", "fc1", (x, None), lambda out, _: out.square().sum() * float(out.sum() < 1e9))
    torch.testing.assert_close(branching, mapped, rtol=1e-12, atol=0)


def test_many_samples_are_taken_in_chunks(dense: gn.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    (x,) = sample(dense.graph, 1, 11)
    y = torch.arange(11) % 3
    whole = scores(dense, "fisher", "fc1", (x, y), F.cross_entropy)
    monkeypatch.setattr("graphnet.runtime.per_sample.CHUNK_BYTES", 4 * 36 * 8)  # 4 samples a chunk
    torch.testing.assert_close(scores(dense, "fisher", "fc1", (x, y), F.cross_entropy), whole, rtol=1e-12, atol=0)


def test_samples_of_attention_and_tied_weights() -> None:
    graph = gn.transformer(7, width=4, depth=1, heads=2, context=6, hidden=5, tied=True)
    net = random_network(graph, 0)
    (x,) = sample(graph, 1, 5)
    y = (x + 1) % 7

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    table = net.tok.weight
    expected = torch.zeros(4, dtype=torch.float64)
    for i in range(5):
        (gradient,) = torch.autograd.grad(loss(net.eval()(x[i : i + 1]), y[i : i + 1]), [table])
        expected += (gradient * table).detach().square().sum(0) / 10
    group = graph.group("tok").name
    holders = list(Plan(net, graph, torch.Generator()).holders(group, roles=("write",)))
    assert holders[0].tensor == "tok.weight"
    found = scores(net, "fisher", group, (x, y), loss, aggregate="first")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("batch", "loss", "message"),
    [
        ((torch.ones(3, 5).double(), torch.ones(2).long()), F.cross_entropy, "first dimensions"),
        ((torch.ones(3, 5).double(), torch.ones(3).long()), None, "needs gradients"),
        ((torch.ones(3, 5).double(), None), lambda out, _: out, "scalar"),
        ((torch.ones(3, 5).double(), None), lambda out, _: torch.ones(()), "depend"),
        ((torch.ones(3, 5).double(), None), lambda out, _: 1 / 0, "division"),
        ((torch.ones(0, 5).double(), None), lambda out, _: out.sum(), "first dimensions"),
    ],
)  # fmt: skip
def test_what_has_no_gradient_for_each_sample_is_refused(
    dense: gn.Network, batch: Any, loss: Loss | None, message: str
) -> None:
    with pytest.raises(gn.EditError, match=message):
        scores(dense, "fisher", "fc1", batch, loss)


# -- how much is evaluated ------------------------------------------------------------------------------------


class Counting:
    """The host of a plan; keeps what each evaluation was asked for."""

    def __init__(self, net: gn.Network) -> None:
        self.net = net
        self.asked: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def evaluate(self, graph: Any, tensors: Any, batch: Any, loss: Any = None, **options: Any) -> Evaluation:
        self.asked.append({**options, "loss": loss is not None})
        return self.net.evaluate(graph, tensors, batch, loss, **options)


NEEDS: dict[str, tuple[int, list[str], list[str], bool]] = {  # evaluations, taps, parameters, loss
    "magnitude": (0, [], [], False), "l1": (0, [], [], False), "l2": (0, [], [], False), "fpgm": (0, [], [], False),
    "slimming": (0, [], [], False), "random": (0, [], [], False),
    "activation-frequency": (1, ["act_c1"], [], False), "apoz": (1, ["act_c1"], [], False),
    "redo": (1, ["act_c1"], [], False), "contribution": (1, ["act_c1"], [], False),
    "gradient": (1, ["act_c1"], [], True), "gate": (1, ["act_c1"], [], True),
    "taylor": (1, [], ["conv1.weight", "conv1.bias"], True), "fisher": (1, [], ["conv1.weight", "conv1.bias"], True),
    "obd": (1, [], ["conv1.weight", "conv1.bias"], True),
}  # fmt: skip


def test_every_score_is_listed() -> None:
    assert {name for name in SCORES if not name.startswith("test-")} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_a_score_collects_what_it_needs_and_no_more(conv: gn.Network, name: str) -> None:
    host = Counting(conv)
    plan = Plan(host, conv.graph, torch.Generator().manual_seed(0))
    (x,) = sample(conv.graph, 1, 3)
    score_units(name, Scoring(plan, conv.graph.groups["conv1"], (x, None), wave_loss))
    times, taps, parameters, loss = NEEDS[name]
    assert len(host.asked) == times
    for asked in host.asked:
        assert list(asked.get("taps", ())) == taps
        assert list(asked.get("parameters", ())) == parameters
        assert asked["loss"] == loss


# -- dormant units --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["apoz", "redo", "contribution", "magnitude", "l1", "fpgm", "taylor", "fisher", "obd"])
def test_scores_of_dormant_units_can_choose_recruits(dense: gn.Network, name: str) -> None:
    (x,) = sample(dense.graph, 1, 12)
    h = dense.act1(dense.fc1(x)).detach()
    with dense.edit() as edit:
        edit.retire("fc1", units=[0, 2, 4])
    with dense.edit() as edit:
        (chosen,) = edit.recruit("fc1", highest=1, score=name, batch=(x, None), loss=wave_loss)
    assert chosen in (0, 2, 4)
    if name == "redo":
        assert chosen == max((0, 2, 4), key=lambda unit: float(h[:, unit].mean()))


def test_dormant_units_do_not_change_the_scores_of_live_ones(dense: gn.Network) -> None:
    with dense.edit() as edit:
        edit.retire("fc1", units=[1, 5])
    (x,) = sample(dense.graph, 1, 12)
    names = sorted(set(NEEDS) - {"slimming", "random"})
    before = {name: scores(dense, name, "fc1", (x, None)) for name in names}
    for tensor in dense._current.reserve.values():
        live = tensor.shape[0] == 6
        tensor[[1, 5] if live else slice(None)] = 7.0 if live else tensor
    for name in names:
        assert torch.equal(before[name], scores(dense, name, "fc1", (x, None))), name
    with pytest.raises(gn.EditError, match="at='activation'"), dense.edit() as edit:
        edit.recruit("fc1", highest=1, score="contribution", at="consumers", batch=(x, None))
