"""Probes agree with hooks on plain torch modules, and touch nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphnet.errors import GraphnetError
from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.probes import GroupStatistics, dormant_fraction, effective_rank, probe, stable_rank
from graphnet.runtime.network import Network

TAU = 0.05
CLOSE = {"rtol": 1e-12, "atol": 1e-14}  # float64; sums run in another order


def network(graph: Graph, *, randomize: bool = True) -> Network:
    """A float64 network in training mode, with norm slots that are not the identity."""
    net = Network(graph, seed=3).double()
    if randomize:
        torch.manual_seed(7)
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                if "norm" in name and tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) + 0.5)
    return net.train()


def watched(net: Network, ops: list[str], x: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> dict[str, Any]:
    """Outputs of modules of a plain copy, with their gradients, from forward hooks and one backward."""
    plain = net.to_torch().eval()
    seen: dict[str, Tensor] = {}

    def keep(op: str) -> Callable[..., None]:
        def hook(_module: object, _args: object, output: Tensor) -> None:
            if output.requires_grad:
                output.retain_grad()
            seen[op] = output

        return hook

    for op in ops:
        plain.get_submodule(op).register_forward_hook(keep(op))
    loss(plain(x), y).backward()
    return seen


def by_unit(values: Tensor, dim: int) -> np.ndarray:
    """The mean over everything but one dimension, by hand."""
    return values.detach().double().movedim(dim, 0).flatten(1).mean(1).numpy()


def check(found: GroupStatistics, z: Tensor, h: Tensor, dim: int) -> None:
    np.testing.assert_allclose(found.activation, by_unit(h > TAU, dim), **CLOSE)
    np.testing.assert_allclose(found.gradient, by_unit(z.grad.abs(), dim), **CLOSE)
    np.testing.assert_allclose(found.saliency, by_unit((z * z.grad).abs(), dim), **CLOSE)
    np.testing.assert_allclose(found.magnitude, by_unit(h.abs(), dim), **CLOSE)
    assert {v.dtype for v in (found.activation, found.gradient, found.saliency)} == {np.dtype("float64")}
    assert found.gradient.any()


IMAGES = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_dense_units_match_hooks() -> None:
    net = network(mlp([192, 7, 5, 4], activation="gelu"))
    x = IMAGES.flatten(1)
    found = probe(net, (x, LABELS), F.cross_entropy, tau=TAU)
    seen = watched(net, ["fc1", "act1", "fc2", "act2", "head"], x, LABELS, F.cross_entropy)
    check(found.groups["fc1"], seen["fc1"], seen["act1"], 1)
    check(found.groups["fc2"], seen["fc2"], seen["act2"], 1)
    check(found.groups["head"], seen["head"], seen["head"], 1)  # no activation follows: z is h
    norm = net.fc1.weight.detach().norm(dim=1).numpy()
    np.testing.assert_allclose(found.groups["fc1"].weight_norm, norm, **CLOSE)
    assert found.loss == pytest.approx(F.cross_entropy(seen["head"], LABELS).item(), rel=1e-12)


def test_channels_are_averaged_over_positions() -> None:
    """Behind a batch norm z is the norm's output, with running statistics although the network is in training."""
    net = network(convnet((3, 8, 8), channels=(4, 5), hidden=(6,), classes=4, norm="batch"))
    found = probe(net, (IMAGES, LABELS), F.cross_entropy, tau=TAU)
    seen = watched(net, ["norm_c1", "act_c1", "norm_c2", "act_c2"], IMAGES, LABELS, F.cross_entropy)
    check(found.groups["conv1"], seen["norm_c1"], seen["act_c1"], 1)
    check(found.groups["conv2"], seen["norm_c2"], seen["act_c2"], 1)
    norm = net.conv2.weight.detach().flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(found.groups["conv2"].weight_norm, norm, **CLOSE)


def test_a_residual_stream_is_watched_where_it_starts() -> None:
    net = network(resnet((3, 8, 8), stages=(4, 6), blocks=1, classes=4))
    found = probe(net, (IMAGES, LABELS), F.cross_entropy, tau=TAU)
    seen = watched(net, ["norm1", "act1", "layer1.0.norm1", "layer1.0.act1"], IMAGES, LABELS, F.cross_entropy)
    check(found.group("conv1"), seen["norm1"], seen["act1"], 1)
    check(found.group("layer1.0.conv1"), seen["layer1.0.norm1"], seen["layer1.0.act1"], 1)
    # Several weights write a stream: its norm is over all of them.
    rows = torch.cat([net.get_parameter(f"{op}.weight").detach().flatten(1) for op in ("conv1", "layer1.0.conv2")], 1)
    np.testing.assert_allclose(found.group("conv1").weight_norm, rows.norm(dim=1).numpy(), **CLOSE)


def test_heads_and_their_dimensions_are_read_through_the_layout() -> None:
    net = network(transformer(11, width=8, depth=1, heads=2, context=6))
    torch.manual_seed(1)
    x = torch.randint(0, 11, (3, 5))  # 5 positions: not the context

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    found = probe(net, (x, x), loss, tau=TAU)
    q = "blocks.0.q_proj"
    seen = watched(net, [q, "blocks.0.fc1", "blocks.0.act", "tok"], x, x, loss)
    check(found.group("blocks.0.fc1"), seen["blocks.0.fc1"], seen["blocks.0.act"], 2)
    check(found.group("tok"), seen["tok"], seen["tok"], 2)
    heads = seen[q].unflatten(2, (2, 4))
    heads.grad = seen[q].grad.unflatten(2, (2, 4))
    check(found.groups[f"{q}.heads"], heads, heads, 2)
    check(found.groups[f"{q}.head_dim"], heads, heads, 3)


def test_units_that_hold_a_part_of_a_dimension() -> None:
    """A projection of 2*A + B: units of A have two positions each, units of B one."""
    graph = load(
        {
            "kind": "architecture",
            "schema_version": 1,
            "name": "fused",
            "inputs": {"x": {"shape": [5]}},
            "ops": [
                {"name": "fused", "op": "linear", "inputs": ["x"], "out": 10},
                {"name": "cut", "op": "split", "inputs": ["fused"], "sizes": [3, 3, 4]},
                {"name": "gate", "op": "mul", "inputs": ["cut:0", "cut:1"]},
                {"name": "one", "op": "linear", "inputs": ["gate"], "out": 2},
                {"name": "two", "op": "linear", "inputs": ["cut:2"], "out": 2},
                {"name": "sum", "op": "add", "inputs": ["one", "two"]},
            ],
            "outputs": ["sum"],
        }
    )
    first, second = (graph.dims("cut", port)[1].single for port in (0, 2))
    assert str(graph.dims("fused")[1]) == f"2*{first} + {second}"
    net = network(graph)
    x = IMAGES.flatten(1)[:, :5]
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    found = probe(net, (x, y), F.cross_entropy, tau=TAU)
    seen = watched(net, ["fused"], x, y, F.cross_entropy)["fused"]
    pair = seen[:, :6].unflatten(1, (2, 3))
    pair.grad = seen.grad[:, :6].unflatten(1, (2, 3))
    check(found.groups[first], pair, pair, 2)
    rest = seen[:, 6:]
    rest.grad = seen.grad[:, 6:]
    check(found.groups[second], rest, rest, 1)


def test_nothing_of_the_network_changes() -> None:
    net = network(convnet((3, 8, 8), channels=(4,), hidden=(6,), classes=4, norm="batch", dropout=0.5))
    net.get_submodule("norm_c1").eval()
    F.cross_entropy(net(IMAGES), LABELS).backward()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    pointers = {name: (p.data_ptr(), id(p.grad), p.requires_grad) for name, p in net.named_parameters()}
    modes = {name: module.training for name, module in net.named_modules()}
    calls: list[int] = []
    for module in net.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    random = torch.get_rng_state()
    first = probe(net, (IMAGES, LABELS), F.cross_entropy)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert {n: p.grad for n, p in net.named_parameters() if p.grad is not None}.keys() == grads.keys()
    assert all(torch.equal(p.grad, grads[n]) for n, p in net.named_parameters() if p.grad is not None)
    assert pointers == {name: (p.data_ptr(), id(p.grad), p.requires_grad) for name, p in net.named_parameters()}
    assert modes == {name: module.training for name, module in net.named_modules()}
    assert calls == []
    with torch.no_grad():  # gradients are taken whatever mode the caller is in
        again = probe(net, (IMAGES, LABELS), F.cross_entropy)
    for name, found in first.groups.items():  # dropout is off, so two probes agree to the bit
        assert np.array_equal(found.gradient, again.groups[name].gradient)


def test_groups_are_those_that_can_change_or_those_named() -> None:
    net = network(mlp([192, 6, 5, 4]))
    batch = IMAGES.flatten(1), LABELS
    assert set(probe(net, batch, F.cross_entropy).groups) == {"fc1", "fc2", "head"}
    assert set(probe(net, batch, F.cross_entropy, groups=["act2"]).groups) == {"fc2"}
    assert set(probe(net, batch, F.cross_entropy, groups="fc1").groups) == {"fc1"}


def test_a_frozen_group_is_left_out() -> None:
    ops = [
        {"name": "fc1", "op": "linear", "inputs": ["x"], "out": 16},
        {"name": "image", "op": "reshape", "inputs": ["fc1"], "shape": [1, 4, 4]},
        {"name": "conv", "op": "conv2d", "inputs": ["image"], "out": 3, "kernel": 3},  # slides along the units
        {"name": "flat", "op": "flatten", "inputs": ["conv"]},
        {"name": "head", "op": "linear", "inputs": ["flat"], "out": 4},
    ]
    graph = load({"kind": "architecture", "schema_version": 1, "name": "slides", "inputs": {"x": {"shape": [192]}},
                  "ops": ops, "outputs": ["head"]})  # fmt: skip
    frozen = [name for name, group in graph.groups.items() if group.frozen is not None]
    assert frozen  # the 4x4 positions; the image's one channel stays free
    net = network(graph)
    batch = IMAGES.flatten(1), LABELS
    assert set(probe(net, batch, F.cross_entropy).groups) == set(graph.groups) - set(frozen)
    with pytest.raises(GraphnetError, match="no activation"):  # its place has become a fixed size
        probe(net, batch, F.cross_entropy, groups=frozen)


def test_ids_follow_edits() -> None:
    net = network(mlp([192, 6, 4]))
    batch = IMAGES.flatten(1), LABELS
    before = probe(net, batch, F.cross_entropy).groups["fc1"]
    with net.edit() as edit:
        edit.prune("fc1", units=[1, 4])
    after = probe(net, batch, F.cross_entropy)
    assert after.groups["fc1"].ids == (0, 2, 3, 5)
    assert after.version == 1
    np.testing.assert_allclose(after.groups["fc1"].activation, before.activation[[0, 2, 3, 5]], **CLOSE)


def test_mistakes_are_refused() -> None:
    net = network(mlp([192, 6, 4]))
    batch = IMAGES.flatten(1), LABELS
    with pytest.raises(GraphnetError, match="fc9"):
        probe(net, batch, F.cross_entropy, groups=["fc9"])
    with pytest.raises(GraphnetError, match="loss"):
        probe(net, batch, None)  # type: ignore[arg-type]
    with pytest.raises(GraphnetError, match="scalar"):
        probe(net, batch, lambda output, y: output)
    with pytest.raises(GraphnetError, match="shape"):
        probe(net, (IMAGES, LABELS), F.cross_entropy)
    found = probe(net, batch, F.cross_entropy, groups=["fc1"])
    with pytest.raises(GraphnetError, match="has no group"):
        found.parity("head", [0])
    with pytest.raises(GraphnetError, match="were not live"):
        found.parity("fc1", [6])


# -- signs of lost plasticity ------------------------------------------------------------------------------------


def test_dormant_units_by_redo_score() -> None:
    # Means of |h|: 2, 0, 1/8, 15/8; the group's mean is 1, so these are the scores (exact in binary).
    h = torch.tensor([[2.0, 0.0, -0.125, 1.75], [-2.0, 0.0, 0.125, 2.0]])
    assert dormant_fraction(h, 0.0) == 0.25
    assert dormant_fraction(h, 0.125) == 0.5  # at most tau
    assert dormant_fraction(h, 0.12) == 0.25
    assert dormant_fraction(4 * h, 0.125) == 0.5  # the scale does not matter
    maps = h[:, :, None, None].expand(2, 4, 3, 3)
    assert dormant_fraction(maps, 0.125) == 0.5
    assert dormant_fraction(h.T, 0.125, dim=0) == 0.5
    assert dormant_fraction(torch.zeros(3, 5)) == 1.0  # a layer that is all zero


def test_dormant_units_of_a_probe() -> None:
    net = network(mlp([192, 6, 4]))
    with torch.no_grad():
        net.fc1.bias[:3] = -1e3  # three of six never fire
    found = probe(net, (IMAGES.flatten(1), LABELS), F.cross_entropy)
    assert dormant_fraction(found.groups["fc1"]) == 0.5
    assert dormant_fraction(found.groups["head"]) == 0.0
    assert dormant_fraction(found) == 3 / 10


def test_ranks() -> None:
    q, _ = torch.linalg.qr(torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert effective_rank(q) == pytest.approx(6, rel=1e-12)
    assert stable_rank(q) == pytest.approx(6, rel=1e-12)
    one = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 4.0))
    assert effective_rank(one) == pytest.approx(1, abs=1e-4)
    assert stable_rank(one) == pytest.approx(1, rel=1e-12)
    values = torch.tensor([3.0, 1.0], dtype=torch.float64)  # p = 3/4, 1/4
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(values.diag()) == pytest.approx(np.exp(entropy), rel=1e-12)
    assert stable_rank(values.diag()) == pytest.approx(10 / 9, rel=1e-12)
    assert effective_rank(values.diag()[None].expand(2, 2, 2)) == pytest.approx(np.exp(entropy), rel=1e-12)
    assert effective_rank(torch.zeros(3, 2)) == stable_rank(torch.zeros(3, 2)) == 0.0
    for wrong in (torch.zeros(3), torch.zeros(0, 3)):
        with pytest.raises(GraphnetError, match="samples"):
            effective_rank(wrong)
